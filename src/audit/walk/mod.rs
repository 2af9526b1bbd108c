//! The one walk through hooks and chains, as the kernel takes packets through them, marks and
//! the second pass of a looped-back packet included. What travels is one packet (`explain`) or
//! a set of them (`partition`, and lints about single chains): a rule that only some of a set
//! meet cuts it in two, and both parts are followed, one after the other. So it is where it is
//! not known whether a rule applies: the walk goes on as if it did not, and comes back for the
//! other possibility.

mod chains;
pub(super) mod flows;
pub(super) mod journey;
pub(super) mod limits;
mod step;
pub(super) mod trace;
pub(super) mod traffic;

use std::net::IpAddr;

use crate::audit::flow::Taker;
use crate::audit::ruleset::{FamilyRules, Hook, Order};
use crate::audit::space::dimensions::{NOBODY, Name};
use crate::audit::space::known::{KnownFields, Meets};
use crate::config::types::Family;
use crate::plan::canon::{CanonMatches, number};
use crate::plan::model::Masked;

use journey::{Cause, Journey};
use limits::{Exceeded, Limits};
use step::End;
use trace::Trace;
use traffic::Traffic;

/// What is done about a rule of which it is not known whether it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uncertain {
    /// Both possibilities are followed.
    Both,
    /// The packets end there, with the outcome "unknown".
    Ends,
    /// The packets go on as if the rule did not apply. If it may return, they also go on in the chain
    /// that jumped to this one.
    Passed,
}

/// Packets whose journey is over, and who gets them.
pub(super) struct Arrived<'a, 'n, T> {
    pub journey: Journey<'a, 'n, T>,
    pub taker: Taker,
}

impl<T: Traffic> Arrived<'_, '_, T> {
    /// Whether the packets' mark routed them to the pod itself, which is not the host that they are
    /// addressed to.
    pub(super) fn is_astray(&self) -> bool {
        self.journey.is_routed_back() && self.taker == Taker::Direct
    }

    /// The outcome for first packets of connections: those that go astray are dropped. (A later packet
    /// is an answer that gets back to the proxy that way.)
    pub(super) fn of_first_packets(mut self) -> Self {
        if self.is_astray() {
            self.taker = Taker::Dropped;
            self.journey.decider = None;
        }
        self
    }
}

/// A walk. Each call of [`Walk::follow`] and [`Walk::next`] follows some packets to their end.
pub(super) struct Walk<'a, 'n, T> {
    rules: &'a FamilyRules,
    order: Order,
    uncertain: Uncertain,
    /// The destination of outbound packets that are redirected.
    loopback: u128,
    /// The destination of inbound packets that are redirected: the address of the interface by which
    /// they came.
    own: u128,
    /// Marks with which outbound packets come in again instead. The routing rule for them is not part of
    /// the ruleset: it belongs to TPROXY, and to ambient mode.
    pub routed_back: Vec<Masked>,
    pub limits: Limits<'a>,
    /// The first uncertain rule that was met.
    pub first_uncertain: Option<Cause<'a>>,
    /// Packets that are still to be followed, the next ones last.
    open: Vec<Journey<'a, 'n, T>>,
}

impl<'a, 'n, T: Traffic> Walk<'a, 'n, T> {
    /// A walk of packets of a family, in a pod with these addresses.
    pub(super) fn new(
        rules: &'a FamilyRules,
        order: Order,
        family: Family,
        addresses: &[IpAddr],
        uncertain: Uncertain,
        limits: Limits<'a>,
    ) -> Self {
        let loopback = match family {
            Family::V4 => IpAddr::from([127, 0, 0, 1]),
            Family::V6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]),
        };
        let own = addresses.iter().find(|a| a.is_ipv4() == loopback.is_ipv4()).unwrap_or(&loopback);
        Self {
            rules,
            order,
            uncertain,
            loopback: number(loopback),
            own: number(*own),
            routed_back: Vec::new(),
            limits,
            first_uncertain: None,
            open: Vec::new(),
        }
    }

    /// Follows the next of the packets that were put aside; `None` if there are no more.
    pub(super) fn next(&mut self, trace: &mut dyn Trace<'a>) -> Option<Result<Arrived<'a, 'n, T>, Exceeded<'a>>> {
        self.open.pop().map(|journey| self.follow(journey, trace))
    }

    /// Follows packets to their end. Packets that are cut off on the way are put aside. Where it is not
    /// known whether a rule applies, it is assumed not to, and the other possibility is put aside.
    pub(super) fn follow(
        &mut self,
        mut journey: Journey<'a, 'n, T>,
        trace: &mut dyn Trace<'a>,
    ) -> Result<Arrived<'a, 'n, T>, Exceeded<'a>> {
        loop {
            let taker = match journey.frames.is_empty() {
                true => self.between_chains(&mut journey, trace),
                false => {
                    let end = self.through_chains(&mut journey, trace)?;
                    self.leave(&mut journey, end, trace)
                }
            };
            if let Some(taker) = taker {
                journey.nobody_is(NOBODY);
                return Ok(Arrived { journey, taker });
            }
        }
    }

    /// Goes on to the next base chain, on this hook or a later one; tells who gets the packets
    /// where there is none.
    fn between_chains(&mut self, journey: &mut Journey<'a, 'n, T>, trace: &mut dyn Trace<'a>) -> Option<Taker> {
        let Some(hook) = journey.hook else { return Some(Taker::Direct) };
        let Some(chain) = self.rules.on(hook, self.order).nth(journey.entered) else {
            journey.be_tracked();
            return self.behind(hook, journey, trace);
        };
        match chain.base {
            Some(base) if base.is_nat() && journey.nat_done => {
                journey.entered += 1;
                // Conntrack does with a packet what was done with the connection's first one.
                if let Some((_, port)) = journey.rewritten.filter(|(on, _)| *on == hook) {
                    self.redirect(hook, port, journey, trace);
                }
            }
            Some(base) => {
                trace.hook(hook, chain);
                journey.enter(chain, base);
                self.look_ahead(journey);
            }
            None => journey.entered += 1,
        }
        None
    }

    /// Goes on from a hook; returns who gets the packets if it was the last one.
    fn behind(&mut self, hook: Hook, journey: &mut Journey<'a, 'n, T>, trace: &mut dyn Trace<'a>) -> Option<Taker> {
        match hook {
            Hook::Output => {
                if let Some(out_interface) = journey.rerouted.take() {
                    journey.known.out_interface = out_interface;
                }
                journey.come_to(Hook::Postrouting);
            }
            Hook::Postrouting if !journey.local => return Some(Taker::Direct),
            Hook::Postrouting => {
                trace.note("comes in again on lo");
                let known = &mut journey.known;
                if let Some((source, port)) = journey.answers_as {
                    (known.source, known.source_port) = (Some(source), Some(port));
                }
                (known.in_interface, known.out_interface) = (Some(LO), Some(None));
                // The connection is known since it left: it is not rewritten a second time, and
                // its socket is no longer the sender's.
                journey.nat_done = true;
                (known.uid, known.gid) = (Some(NOBODY), Some(NOBODY));
                journey.come_to(Hook::Prerouting);
            }
            Hook::Prerouting if journey.local || journey.redirected.is_some() => journey.come_to(Hook::Input),
            Hook::Prerouting => journey.come_to(Hook::Forward),
            Hook::Input | Hook::Forward => {
                let taker = journey.redirected.or_else(|| self.listener(journey));
                return Some(taker.unwrap_or(Taker::Direct));
            }
        }
        None
    }

    /// The proxy's listener, if packets to the pod itself are addressed to its port: they were sent
    /// there in the first place.
    fn listener(&mut self, journey: &mut Journey<'a, 'n, T>) -> Option<Taker> {
        if !journey.local {
            return None;
        }
        self.rules.listeners.iter().find_map(|listener| {
            let part = inside_of(&journey.traffic, &journey.known, &listener.asked)?;
            self.cut_off(journey, &part);
            journey.traffic = part;
            Some(listener.taker)
        })
    }

    /// Leaves a base chain; tells who gets the packets, if that decides it.
    fn leave(&mut self, journey: &mut Journey<'a, 'n, T>, ended: End, trace: &mut dyn Trace<'a>) -> Option<Taker> {
        let Some((chain, base)) = journey.base.take() else { return Some(Taker::Direct) };
        let before = journey.decided_before.take();
        let end = ended.of_base(&base);
        if end == End::Drop && ended == End::Back {
            journey.decider = chain.policy().map(|policy| (policy, policy.rule.why()));
            trace.note("dropped: it is the chain's policy");
        } else if journey.decider.is_none()
            || (before.is_some() && end.leaves_decided(&base, journey.redirected.is_some()))
        {
            journey.decider = before;
        }
        if let Some(taker) = end.taker() {
            return Some(taker);
        }
        match end {
            End::Tproxy => {
                journey.redirected = Some(Taker::InboundProxy);
                trace.note("handed to the proxy's socket");
            }
            End::Redirect(taker, port) => {
                journey.redirected.get_or_insert(taker);
                journey.nat_done = true;
                journey.rewritten = Some((base.hook, port));
                self.redirect(base.hook, port, journey, trace);
            }
            _ => {}
        }
        if base.hook == Hook::Output {
            self.route(journey, trace);
        }
        None
    }

    /// Redirects packets to the pod itself: outbound ones to loopback, inbound ones to the address of
    /// the interface by which they came.
    fn redirect(&self, hook: Hook, port: u16, journey: &mut Journey<'a, 'n, T>, trace: &mut dyn Trace<'a>) {
        trace.note("now addressed to the pod itself");
        let known = &mut journey.known;
        known.destination = Some(if hook == Hook::Output { self.loopback } else { self.own });
        known.port = Some(port);
        journey.local = true;
        if hook == Hook::Output {
            known.out_interface = Some(LO);
            journey.rerouted = None;
        }
    }

    /// Routes packets on their way out by the mark that they have: some are sent back in. It happens
    /// when they are made, and again behind the chains that may have changed the mark.
    pub(super) fn route(&self, journey: &mut Journey<'a, 'n, T>, trace: &mut dyn Trace<'a>) {
        let is_routed =
            journey.known.mark.is_some_and(|mark| self.routed_back.iter().any(|of| mark & of.mask == of.value));
        let out_interface = match journey.way_out {
            None if is_routed && !journey.local => {
                trace.note("routed to the pod itself, by the routing rule for this mark");
                journey.way_out = Some(journey.known.out_interface);
                Some(LO)
            }
            Some(way_out) if !is_routed && journey.redirected.is_none() => {
                trace.note("routed to where it is addressed to, since its mark is another one now");
                journey.way_out = None;
                way_out
            }
            _ => return,
        };
        journey.local = journey.way_out.is_some();
        match journey.entered {
            0 => journey.known.out_interface = out_interface,
            _ => journey.rerouted = Some(out_interface),
        }
    }
}

/// The name of the loopback interface.
const LO: Name<'static> = Some("lo");

/// The part of some traffic that meets conditions, on known fields and on unknown ones.
fn inside_of<T: Traffic>(traffic: &T, known: &KnownFields, asked: &CanonMatches) -> Option<T> {
    (known.meets(asked) != Meets::No).then(|| traffic.inside(known, asked)).flatten()
}
