//! The later packets of a connection: those that follow the first one, and the replies. Who gets the
//! connection is decided by then, and conntrack repeats the rewriting. What is left are marks, by which
//! TPROXY's packets and their replies find the proxy's socket, and filters that may still drop packets.

use crate::audit::flow::{Direction, Flow, Surroundings, Taker};
use crate::audit::ruleset::{Decider, FamilyRules, Order, Ruleset};
use crate::audit::space::EPHEMERAL;
use crate::audit::space::connection::ConntrackView;
use crate::audit::space::cube::{NOBODY, Owners, processes};
use crate::audit::space::known::KnownFields;
use crate::audit::walk::journey::Journey;
use crate::audit::walk::limits::{Limits, MOST_RULES};
use crate::audit::walk::trace::Trace;
use crate::audit::walk::traffic::OnePacket;
use crate::audit::walk::{Arrived, Uncertain, Walk};
use crate::config::types::IdList;
use crate::plan::canon::CanonMatches;
use crate::plan::model::{Cond, CtStates, Masked, Verdict};
use crate::plan::why::Why;

/// Packets after a connection's first that are dropped.
#[derive(Debug, Clone, Copy)]
pub struct LostPackets<'a> {
    /// Whether the replies are dropped; otherwise the packets that follow the first one.
    pub replies: bool,
    pub by: Option<Decider<'a>>,
}

/// Follows the packets after the first one, whose journey ended with `taker`. Tells which of
/// them do not get through.
pub(super) fn lost<'a>(
    order: Order,
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    first: Journey<'a, '_, OnePacket>,
    taker: Taker,
    trace: &mut dyn Trace<'a>,
) -> Option<LostPackets<'a>> {
    let forwarded = flow.direction == Direction::Inbound && !first.local && first.redirected.is_none();
    if forwarded || matches!(taker, Taker::Dropped | Taker::Unknown) {
        return None;
    }
    let rules = ruleset.family(flow.family());
    let sent = KnownFields::of(flow, pod);
    let connection = ConntrackView {
        state: CtStates::ESTABLISHED,
        mark: first.connection.map_or(0, |c| c.mark),
        ..ConntrackView::NEW
    };
    let mut follow = |mut journey: Journey<'a, '_, OnePacket>, which: &str| {
        trace.section(which);
        journey.nat_done = true;
        let limits = Limits::of_rules(MOST_RULES);
        let mut walk = Walk::new(rules, order, flow.family(), &pod.addresses, Uncertain::Both, limits);
        walk.routed_back = tproxy_marks(rules).chain(rules.ambient_marks()).collect();
        let (end, by) = match walk.follow(journey, trace) {
            Ok(Arrived { journey, taker }) => (taker, journey.decider.map(|(decider, _)| decider)),
            Err(exceeded) => (Taker::Unknown, Some(exceeded.rule)),
        };
        match end {
            Taker::Dropped => trace.ended("dropped"),
            Taker::Unknown => trace.ended("what becomes of them cannot be told"),
            _ => {}
        }
        (end == Taker::Dropped).then_some(by)
    };

    let to_pod = pod.is_local(flow.destination);
    let mut next = Journey::new(flow.direction, OnePacket, sent.clone(), connection, to_pod);
    next.rewritten = first.rewritten;
    let following = follow(next, "the packets after the first");
    let following = following.map(|by| LostPackets { replies: false, by });

    let within = first.local || taker != Taker::Direct;
    let outbound = flow.direction == Direction::Outbound;
    let to_itself = outbound && flow.source.is_none_or(|source| pod.is_local(source));
    let (uid, gid) = if within { owner_of(taker, rules) } else { (NOBODY, NOBODY) };
    let came_by = if outbound { sent.out_interface } else { sent.in_interface }.flatten();
    let (direction, in_interface, out_interface) = match within {
        // A process in the pod replies.
        true if to_itself => (Direction::Outbound, None, Some("lo")),
        true if outbound => (Direction::Outbound, None, Some(&*pod.uplink)),
        true => (Direction::Outbound, None, came_by),
        // Another host does.
        false => (Direction::Inbound, came_by, None),
    };
    let reply = KnownFields {
        source: first.known.destination,
        source_port: first.known.port,
        destination: first.known.source,
        port: Some(flow.source_port.unwrap_or(EPHEMERAL)),
        in_interface: Some(in_interface),
        out_interface: Some(out_interface),
        uid: Some(uid),
        gid: Some(gid),
        mark: Some(0),
        ..first.known
    };
    let answers_as = first.rewritten.and(sent.destination.zip(sent.port));
    let mut reply = Journey::new(direction, OnePacket, reply, connection, to_itself || !within);
    reply.answers_as = answers_as;
    let replies = follow(reply, "the replies");
    trace.end_section();
    following.or(replies.map(|by| LostPackets { replies: true, by }))
}

/// The user and group whose socket answers: the proxy's as far as the rules name them, otherwise ones
/// that they do not name.
fn owner_of(taker: Taker, rules: &FamilyRules) -> (u64, u64) {
    let parts = || rules.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.parts);
    let (mut uid, mut gid) = (None, None);
    for (_, matches) in parts().filter(|(why, _)| taker != Taker::Direct && *why == Why::ProxyOwn) {
        let id = |cond: &Option<Cond<IdList>>| {
            let cond = cond.as_ref().filter(|cond| !cond.negated)?;
            cond.value.iter().next().map(|(first, _)| first.into())
        };
        (uid, gid) = (uid.or(id(&matches.uid)), gid.or(id(&matches.gid)));
    }
    let unnamed = |of: fn(&CanonMatches) -> &Option<Cond<IdList>>| {
        let named = parts().filter_map(|(_, matches)| of(matches).as_ref()).flat_map(|cond| cond.value.iter());
        // The last number is no owner's: it means "none" to the kernel's calls.
        let none = [(u64::from(u32::MAX), u64::from(u32::MAX))];
        let named = Owners::new(named.map(|(a, b)| (a.into(), b.into())).chain(none)).normalised();
        processes().minus(&named).iter().next().map_or(0, |(first, _)| first)
    };
    (uid.unwrap_or_else(|| unnamed(|m| &m.uid)), gid.unwrap_or_else(|| unnamed(|m| &m.gid)))
}

/// The marks with which packets are routed to the pod itself: TPROXY's.
fn tproxy_marks(rules: &FamilyRules) -> impl Iterator<Item = Masked> {
    let rules = rules.chains.iter().flat_map(|chain| &chain.rules);
    rules.filter_map(|rule| match rule.verdict {
        Verdict::Tproxy { mark, .. } => Some(Masked { value: mark.get(), mask: u32::MAX }),
        _ => None,
    })
}
