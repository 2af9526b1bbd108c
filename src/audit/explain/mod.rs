//! Who gets a flow: its first packet is walked through hooks and chains as the kernel would
//! walk it, and then those that follow it and the replies.

mod following;

use crate::config::types::Family;
use crate::plan::why::Why;

use super::flow::{Direction, Flow, Surroundings, Taker};
pub use super::ruleset::Decider;
use super::ruleset::{Order, Ruleset};
use super::space::connection::ConntrackView;
use super::space::known::KnownFields;
use super::walk::journey::{Cause, Journey};
use super::walk::limits::{Limits, MOST_RULES};
pub use super::walk::trace::{NoTrace, Trace};
use super::walk::traffic::OnePacket;
use super::walk::{Arrived, Uncertain, Walk};
pub use following::LostPackets;

/// Who gets a flow, and the rule that decided.
#[derive(Debug, Clone)]
pub struct Explanation<'a> {
    pub taker: Taker,
    /// The rule that decided; `None`: no rule matched.
    pub decider: Option<Decider<'a>>,
    /// The reason for that part of the rule that the flow meets.
    pub why: Option<&'a Why>,
    /// Whether the packet's mark routes it to the pod itself, so that it does not get to its
    /// destination.
    pub routed_back: bool,
    /// Packets of the connection that are dropped although the first one gets there.
    pub lost: Option<LostPackets<'a>>,
}

impl<'a> Explanation<'a> {
    /// The answer "unknown", with the rule that is not understood.
    pub fn unknown(because: Option<Decider<'a>>) -> Self {
        let why = because.map(|decider| decider.rule.why());
        Self { taker: Taker::Unknown, decider: because, why, routed_back: false, lost: None }
    }

    /// The answer "dropped" for a packet that its mark routes back to the pod.
    fn astray() -> Self {
        Self { taker: Taker::Dropped, decider: None, why: None, routed_back: true, lost: None }
    }
}

/// How many outcomes of a flow are looked at, where it is not known whether rules apply.
const MOST_OUTCOMES: usize = 256;
/// How many rules a flow may meet for all outcomes after the first one.
pub(in crate::audit) const MOST_RULES_AGAIN: usize = 1_000_000;

/// Walks a flow through a ruleset. Where it is not known whether a rule applies, or which
/// of two chains comes first, both are tried: what comes out either way is certain, and
/// where it differs the rule is named.
pub fn explain<'a>(
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    trace: &mut dyn Trace<'a>,
) -> Explanation<'a> {
    let answer = explain_in(Order::First, ruleset, pod, flow, trace);
    if ruleset.family(flow.family()).has_one_order() {
        return answer;
    }
    let other = explain_in(Order::Second, ruleset, pod, flow, &mut NoTrace);
    if answer.taker == other.taker { answer } else { Explanation::unknown(answer.decider.or(other.decider)) }
}

/// Walks a flow through a ruleset whose base chains come in one order.
fn explain_in<'a>(
    order: Order,
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    trace: &mut dyn Trace<'a>,
) -> Explanation<'a> {
    let rules = ruleset.family(flow.family());
    let limits = Limits::of_rules(MOST_RULES);
    let mut walk = Walk::new(rules, order, flow.family(), &pod.addresses, Uncertain::Both, limits);
    let known = KnownFields::of(flow, pod);
    let mut journey =
        Journey::new(flow.direction, OnePacket, known, ConntrackView::NEW, pod.is_local(flow.destination));
    if flow.direction == Direction::Outbound {
        walk.routed_back = rules.ambient_marks().collect();
        walk.route(&mut journey, trace);
        if journey.is_routed_back() && flow.source.is_none() && flow.family() == Family::V4 {
            // The kernel takes the destination for the address to send from, which the pod does not have.
            trace.note("not sent: by that route there is no address to send from (network is unreachable)");
            return Explanation::astray();
        }
    }
    let decider = |cause: Option<Cause<'a>>| cause.map(|(decider, _)| decider);
    let (astray, Arrived { journey, taker }) = match walk.follow(journey, trace) {
        Ok(arrived) => (arrived.is_astray(), arrived.of_first_packets()),
        Err(exceeded) => return Explanation::unknown(Some(exceeded.rule)),
    };
    let decided = journey.decider;
    let lost = match trace.wants_following() {
        true => following::lost(order, ruleset, pod, flow, journey, taker, trace),
        false if rules.may_drop => following::lost(order, ruleset, pod, flow, journey, taker, &mut NoTrace),
        false => None,
    };
    walk.limits = Limits::of_rules(MOST_RULES_AGAIN);
    for _ in 0..MOST_OUTCOMES {
        match walk.next(&mut NoTrace) {
            None => {
                let why = decided.map(|(_, why)| why);
                return Explanation { taker, decider: decider(decided), why, routed_back: astray, lost };
            }
            Some(Err(_)) => break,
            Some(Ok(other)) => {
                let other = other.of_first_packets();
                if other.taker != taker {
                    return Explanation::unknown(decider(other.journey.assumed));
                }
            }
        }
    }
    Explanation::unknown(decider(walk.first_uncertain.or(decided)))
}
