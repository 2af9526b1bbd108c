//! Who gets a flow: its first packet is walked through hooks and chains as the kernel
//! would walk it, marks and the second pass of a looped-back packet included.

mod choices;
mod later;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::types::Family;
use crate::plan::canon::{CanonRule, number};
use crate::plan::model::{Masked, protocol};
use crate::plan::why::Why;

use crate::audit::flow::{Direction, Flow, Surroundings, Taker};
use crate::audit::packet::{Meets, Packet, Tracking};
use crate::audit::ruleset::{ChainRules, FamilyRules, Hook, Order, Ruleset};
use crate::audit::step::{End, Step, step};

use choices::Choices;

/// Who gets a flow, and the rule that decided.
#[derive(Debug, Clone)]
pub struct Answer<'a> {
    pub taker: Taker,
    /// `None`: no rule says anything about it.
    pub decider: Option<Decider<'a>>,
    /// The reason for that part of the rule that the flow meets.
    pub why: Option<&'a Why>,
    /// Packets of the connection that are dropped although the first one gets there.
    pub lost: Option<Lost<'a>>,
}

/// Packets after a connection's first that are dropped.
#[derive(Debug, Clone, Copy)]
pub struct Lost<'a> {
    /// The replies, or else those that follow the first one.
    pub replies: bool,
    pub by: Option<Decider<'a>>,
}

impl<'a> Answer<'a> {
    /// Nobody can tell, because of this rule.
    pub fn unknown(because: Option<Decider<'a>>) -> Self {
        Self { taker: Taker::Unknown, decider: because, why: because.map(|decider| decider.rule.why()), lost: None }
    }
}

/// A rule and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Decider<'a> {
    pub chain: &'a ChainRules,
    pub rule: &'a CanonRule,
}

impl Decider<'_> {
    fn is(&self, other: &Decider) -> bool {
        std::ptr::eq(self.rule, other.rule)
    }
}

/// What happens on the way, for those who want to see all of it.
pub trait Trace<'a> {
    fn hook(&mut self, _hook: Hook, _chain: &'a ChainRules) {}
    fn rule(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}
    /// Whether the rule applies is not known; it is taken not to.
    fn passed(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}
    fn note(&mut self, _note: &str) {}
    fn mark(&mut self, _what: &str, _mark: u32) {}
    /// Whether the packets after the first are of interest too.
    fn wants_later(&self) -> bool {
        false
    }
    /// From here on it is about other packets of the connection.
    fn later(&mut self, _which: &str) {}
    /// How that ended, where it is not with the connection's other end.
    fn ended(&mut self, _how: &str) {}
    fn later_end(&mut self) {}
}

/// For those who want only the answer.
pub struct NoTrace;

impl Trace<'_> for NoTrace {}

/// How often a flow is walked again when rules have conditions that are not understood.
const MOST_WALKS: usize = 256;
/// How many rules are looked at in doing so.
pub(in crate::audit) const MOST_AGAIN: usize = 1_000_000;

/// Walks a flow through a ruleset. Where it is not known whether a rule applies, or which
/// of two chains comes first, both are tried: what comes out either way is certain, and
/// where it differs the rule is named.
pub fn explain<'a>(ruleset: &'a Ruleset, pod: &Surroundings, flow: &Flow, trace: &mut dyn Trace<'a>) -> Answer<'a> {
    let answer = explain_in(Order::First, ruleset, pod, flow, trace);
    if ruleset.family(flow.family()).has_one_order() {
        return answer;
    }
    let other = explain_in(Order::Second, ruleset, pod, flow, &mut NoTrace);
    if answer.taker == other.taker { answer } else { Answer::unknown(answer.decider.or(other.decider)) }
}

fn explain_in<'a>(
    order: Order,
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    trace: &mut dyn Trace<'a>,
) -> Answer<'a> {
    let mut choices = Choices::default();
    let answer = walk(order, ruleset, pod, flow, trace, &mut choices, true);
    let first_walk = choices.looks;
    for _ in 0..MOST_WALKS {
        let Some(rule) = choices.advance() else { return answer };
        if choices.looks - first_walk > MOST_AGAIN {
            break;
        }
        let other = walk(order, ruleset, pod, flow, &mut NoTrace, &mut choices, false);
        if answer.taker != other.taker {
            return Answer::unknown(Some(rule));
        }
    }
    let first = choices.met.first().copied();
    Answer::unknown(first.or(answer.decider))
}

fn walk<'a>(
    order: Order,
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    trace: &mut dyn Trace<'a>,
    choices: &mut Choices<'a>,
    later: bool,
) -> Answer<'a> {
    choices.begin();
    let (mut later_choices, mut silent) = (Choices::default(), NoTrace);
    let tells_later = trace.wants_later();
    let later = later && (tells_later || ruleset.family(flow.family()).may_drop);
    let mut walk = Walk {
        rules: ruleset.family(flow.family()),
        order,
        pod,
        packet: Packet::of(flow, pod),
        redirected: None,
        nat_done: false,
        rewritten: None,
        routed_home: Vec::new(),
        zone: None,
        answers_as: None,
        decider: None,
        merged: None,
        trace,
        choices,
    };
    let first = later.then(|| walk.packet.clone());
    let taker = match flow.direction {
        Direction::Outbound => walk.outbound(),
        Direction::Inbound => walk.arrive(),
    };
    let why = walk.decider.map(|decider| match walk.merged {
        Some((of, why)) if of.is(&decider) => why,
        _ => decider.rule.why(),
    });
    let decider = walk.decider;
    let lost = first.and_then(|first| {
        later_choices.begin();
        walk.choices = &mut later_choices;
        if !tells_later {
            walk.trace = &mut silent;
        }
        walk.later(flow, first, taker)
    });
    Answer { taker, decider, why, lost }
}

struct Walk<'a, 'w> {
    rules: &'a FamilyRules,
    order: Order,
    pod: &'w Surroundings,
    packet: Packet<'w>,
    redirected: Option<Taker>,
    /// A connection's destination is rewritten once, on its first hook.
    nat_done: bool,
    /// On which, and to which port; conntrack does the same with the packets that follow.
    rewritten: Option<(Hook, u16)>,
    /// Marks with which a packet on its way out comes in again instead. The routing rule
    /// is no rule of the ruleset: it goes with TPROXY.
    routed_home: Vec<u32>,
    /// Address and port that a reply leaves with: where the rewritten connection went to.
    answers_as: Option<(u128, u16)>,
    /// The conntrack zone that a rule has given the packet.
    zone: Option<u16>,
    decider: Option<Decider<'a>>,
    /// The last rule met that stands for several, and which of them the packet met.
    merged: Option<(Decider<'a>, &'a Why)>,
    trace: &'w mut dyn Trace<'a>,
    choices: &'w mut Choices<'a>,
}

impl<'a> Walk<'a, '_> {
    fn outbound(&mut self) -> Taker {
        if let Some(end) = self.hook(Hook::Output) {
            return end;
        }
        if let Some(end) = self.hook(Hook::Postrouting) {
            return end;
        }
        if !self.packet.local {
            return Taker::Direct;
        }
        self.trace.note("comes in again on lo");
        if let Some((source, port)) = self.answers_as {
            (self.packet.source, self.packet.source_port) = (source, Some(port));
        }
        self.packet.in_interface = Some("lo");
        self.packet.out_interface = None;
        // The connection is known since it left: it is not rewritten a second time, and
        // its socket is no longer the sender's.
        self.nat_done = true;
        (self.packet.uid, self.packet.gid) = (None, None);
        self.arrive()
    }

    /// From the network, or looped back.
    fn arrive(&mut self) -> Taker {
        if let Some(end) = self.hook(Hook::Prerouting) {
            return end;
        }
        let next = if self.packet.local || self.redirected.is_some() { Hook::Input } else { Hook::Forward };
        match self.hook(next) {
            Some(end) => end,
            None => self.redirected.or(self.listener()).unwrap_or(Taker::Direct),
        }
    }

    /// Whether the packet was sent to the proxy's own port in the first place.
    fn listener(&self) -> Option<Taker> {
        let p = &self.packet;
        let is_tcp = p.protocol == protocol::TCP && p.local;
        is_tcp.then(|| self.rules.listeners.iter().find(|(port, _)| *port == p.port).map(|(_, taker)| *taker))?
    }

    /// Passes the base chains of a hook; `Some` if the packet's fate is known.
    fn hook(&mut self, hook: Hook) -> Option<Taker> {
        for chain in self.rules.on(hook, self.order) {
            let Some(base) = chain.base else { continue };
            if base.nat && self.nat_done {
                self.rewrite_again(hook);
                continue;
            }
            self.trace.hook(hook, chain);
            self.packet.enter(chain, &base);
            let before = self.decider.take();
            let ended = self.chain(chain, None, 0);
            let end = ended.of_base(&base);
            if end == End::Drop && ended == End::Back {
                self.decider = chain.policy();
                self.trace.note("dropped: it is the chain's policy");
            } else if self.decider.is_none()
                || (before.is_some() && end.leaves_decided(&base, self.redirected.is_some()))
            {
                self.decider = before;
            }
            if let Some(fate) = end.fate() {
                return Some(fate);
            }
            match end {
                End::Tproxy => {
                    self.redirected = Some(Taker::InboundProxy);
                    self.trace.note("handed to the proxy's socket");
                }
                End::Redirect(taker, port) => {
                    self.redirected.get_or_insert(taker);
                    self.nat_done = true;
                    self.rewritten = Some((hook, port));
                    self.redirect(hook, port);
                }
                _ => {}
            }
            if hook == Hook::Output {
                self.reroute();
            }
        }
        self.packet.tracking = Tracking::Known;
        None
    }

    fn redirect(&mut self, hook: Hook, port: u16) {
        self.trace.note("now addressed to the pod itself");
        let p = &mut self.packet;
        let loopback: IpAddr = match p.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        // On its way out a packet is sent to loopback, on its way in to the address of
        // the interface that it came by.
        let own = self.pod.addresses.iter().find(|a| a.is_ipv4() == loopback.is_ipv4());
        let to = if hook == Hook::Output { Some(&loopback) } else { own };
        p.destination = number(*to.unwrap_or(&loopback));
        p.port = port;
        p.local = true;
        if hook == Hook::Output {
            p.out_interface = Some("lo");
        }
    }

    /// Walks a chain. `from`: the rule that jumped here, which decides more than what
    /// stands here.
    fn chain(&mut self, chain: &'a ChainRules, from: Option<Decider<'a>>, depth: usize) -> End {
        for (at, rule) in chain.rules.iter().enumerate() {
            self.choices.looks += 1;
            let meets = self.packet.meets(&rule.matches);
            if meets == Meets::No || (meets == Meets::Maybe && self.changes_nothing(rule)) {
                continue;
            }
            let here = Decider { chain, rule };
            if self.choices.looks > self.choices.most {
                self.decider = Some(here);
                return End::Unknown;
            }
            if meets == Meets::Maybe && !self.choices.choose(here) {
                self.trace.passed(chain, rule);
                continue;
            }
            self.trace.rule(chain, rule);
            if rule.parts.len() > 1 {
                self.merged = Some((here, self.why(rule)));
            }
            match step(self.rules, chain, at, rule, depth) {
                Step::Pass => {}
                Step::Zone(zone) => self.track(zone),
                Step::Mark(Masked { value, mask }) => self.mark((self.packet.mark & !mask) ^ value),
                Step::SaveMark if self.packet.tracking == Tracking::Known => {
                    self.packet.connection_mark = self.packet.mark;
                    self.trace.mark("the connection is marked", self.packet.mark);
                }
                Step::RestoreMark if self.packet.tracking == Tracking::Known => {
                    self.packet.mark = self.packet.connection_mark;
                    self.trace.mark("the packet is marked like its connection", self.packet.mark);
                }
                Step::SaveMark | Step::RestoreMark => {}
                Step::Ends(end) => {
                    self.decider = Some(here);
                    return end;
                }
                Step::EndsForCaller(end, mark) => {
                    if let Some(mark) = mark {
                        self.mark(mark);
                    }
                    self.decider = Some(from.unwrap_or(here));
                    return end;
                }
                Step::Call { chain, goes } => match self.chain(chain, Some(here), depth + 1) {
                    End::Back if goes => return End::Back,
                    End::Back => {}
                    end => return end,
                },
            }
        }
        End::Back
    }

    fn mark(&mut self, mark: u32) {
        self.packet.mark = mark;
        self.trace.mark("the packet is marked", mark);
    }

    /// Whether the packet goes on as before, whether it meets a rule or not.
    fn changes_nothing(&self, rule: &CanonRule) -> bool {
        let Packet { mark, connection_mark, tracking, .. } = self.packet;
        self.rules.decides_nothing(&rule.verdict) || tracking.changes_nothing(&rule.verdict, mark, connection_mark)
    }

    /// Which zone a packet is tracked in: the first that it is given.
    fn track(&mut self, zone: u16) {
        match self.zone {
            None => self.trace.note(&format!("tracked apart, in conntrack zone {zone}")),
            Some(before) => self.trace.note(&format!("stays in conntrack zone {before}")),
        }
        self.packet.give_zone();
        self.zone.get_or_insert(zone);
    }

    /// The reason for the part of a rule that the packet meets.
    fn why(&self, rule: &'a CanonRule) -> &'a Why {
        match &rule.parts[..] {
            [_] => rule.why(),
            parts => {
                let met = parts.iter().find(|(_, part)| self.packet.meets(part) == Meets::Yes);
                met.map_or(rule.why(), |(why, _)| why)
            }
        }
    }
}
