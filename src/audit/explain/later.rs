//! The packets of a connection after its first: those that follow it, and the replies.
//! Where it goes is settled by then, and conntrack repeats the rewriting. What is left are
//! marks, by which TPROXY's packets and the replies to them find the proxy's socket, and
//! filters that may still drop them.

use std::net::IpAddr;

use crate::plan::model::{CtStates, Verdict};
use crate::plan::why::Why;

use crate::audit::flow::{Direction, Flow, Taker};
use crate::audit::packet::{EPHEMERAL, Packet, Tracking, usual_source};
use crate::audit::ruleset::Hook;

use super::{Lost, Walk};

impl<'a, 'w> Walk<'a, 'w> {
    /// Goes on after the first packet, which started out as `first` and was taken by `taker`.
    /// Tells which packets do not get through.
    pub(super) fn later(&mut self, flow: &Flow, first: Packet<'w>, taker: Taker) -> Option<Lost<'a>> {
        let forwarded = flow.direction == Direction::Inbound && !self.packet.local && self.redirected.is_none();
        if forwarded || matches!(taker, Taker::Dropped | Taker::Unknown) {
            return None;
        }
        let source = flow.source.unwrap_or_else(|| usual_source(flow, self.pod, first.local));
        let settled = self.packet.clone();
        let (uid, gid) = self.owner_of(taker);
        let reply = Packet {
            source: settled.destination,
            source_port: Some(settled.port),
            destination: settled.source,
            port: first.source_port.unwrap_or(EPHEMERAL),
            mark: 0,
            state: CtStates::ESTABLISHED,
            tracking: Tracking::NotYet,
            uid,
            gid,
            ..settled.clone()
        };
        let next = Packet { connection_mark: settled.connection_mark, state: CtStates::ESTABLISHED, ..first.clone() };

        self.nat_done = true;
        self.routed_home = self.rules.chains.iter().flat_map(|chain| &chain.rules).filter_map(tproxy_mark).collect();
        self.trace.later("the packets after the first");
        self.packet = next;
        self.decider = None;
        (self.redirected, self.zone) = (None, None);
        let end = match flow.direction {
            Direction::Outbound => self.outbound(),
            Direction::Inbound => self.arrive(),
        };
        let following = self.tell(end).then_some(Lost { replies: false, by: self.decider });

        self.answers_as = self.rewritten.take().map(|_| (first.destination, first.port));
        (self.redirected, self.zone, self.decider) = (None, None, None);
        self.trace.later("the replies");
        let within = settled.local || taker != Taker::Direct;
        let end = match within {
            true => self.answered(reply, &first, flow, source),
            false => self.answered_from_outside(reply, &first),
        };
        let replies = self.tell(end).then_some(Lost { replies: true, by: self.decider });
        self.trace.later_end();
        following.or(replies)
    }

    /// A reply of a process in the pod.
    fn answered(&mut self, reply: Packet<'w>, first: &Packet<'w>, flow: &Flow, source: IpAddr) -> Taker {
        let outbound = flow.direction == Direction::Outbound;
        let to_itself = outbound && (flow.source.is_none() || self.pod.is_local(source));
        let uplink: &'w str = &self.pod.uplink;
        let out = if to_itself { "lo" } else { first.in_interface.unwrap_or(uplink) };
        self.packet = Packet { in_interface: None, out_interface: Some(out), local: to_itself, ..reply };
        self.outbound()
    }

    /// A reply of another host.
    fn answered_from_outside(&mut self, reply: Packet<'w>, first: &Packet<'w>) -> Taker {
        let came_by = first.out_interface;
        self.packet = Packet { in_interface: came_by, out_interface: None, local: true, uid: None, gid: None, ..reply };
        self.arrive()
    }

    /// Whether packets are dropped.
    fn tell(&mut self, end: Taker) -> bool {
        match end {
            Taker::Dropped => self.trace.ended("dropped"),
            Taker::Unknown => self.trace.ended("what becomes of them cannot be told"),
            _ => {}
        }
        end == Taker::Dropped
    }

    /// Whose socket answers: the proxy's user and group, as far as the rules name them;
    /// nobody that they name for anybody else.
    fn owner_of(&self, taker: Taker) -> (Option<u32>, Option<u32>) {
        if taker == Taker::Direct {
            return (None, None);
        }
        let rules = self.rules.chains.iter().flat_map(|chain| &chain.rules);
        let own = rules.flat_map(|rule| &rule.parts).filter(|(why, _)| *why == Why::ProxyOwn);
        let mut owner = (None, None);
        for (_, matches) in own {
            let id = |cond: &Option<crate::plan::model::Cond<crate::config::types::IdList>>| {
                let cond = cond.as_ref().filter(|cond| !cond.negated)?;
                cond.value.iter().next().map(|(first, _)| first)
            };
            owner = (owner.0.or(id(&matches.uid)), owner.1.or(id(&matches.gid)));
        }
        owner
    }

    /// Does with a packet what was done with the connection's first one.
    pub(super) fn rewrite_again(&mut self, hook: Hook) {
        if let Some((_, port)) = self.rewritten.filter(|(on, _)| *on == hook) {
            self.redirect(hook, port);
        }
    }

    /// Sends a packet back in whose mark is routed to the pod itself.
    pub(super) fn reroute(&mut self) {
        if !self.packet.local && self.routed_home.contains(&self.packet.mark) {
            self.trace.note("routed to the pod itself, by the routing rule for this mark");
            self.packet.local = true;
            self.packet.out_interface = Some("lo");
        }
    }
}

fn tproxy_mark(rule: &crate::plan::canon::CanonRule) -> Option<u32> {
    match rule.verdict {
        Verdict::Tproxy { mark, .. } => Some(mark.get()),
        _ => None,
    }
}
