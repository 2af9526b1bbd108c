//! In which order a plan writes the rules of a chain: what stands elsewhere is not its own.

use crate::config::types::Family;

use super::model::{Chain, ChainName, Table};
use super::why::Why;

/// How many places are told apart within a chain.
const PLACES: usize = 10;

/// Where in its chain a plan has the rules with a reason. Reasons that one rule could have
/// as well as another (an excluded user may be the proxy's) share a place.
fn place(table: Table, chain: &ChainName, why: &Why) -> usize {
    use ChainName as C;
    match (table, chain, why) {
        (_, C::Prerouting | C::Output, Why::ExcludedInterface | Why::VirtualInterface | Why::VirtualInterfaceRest) => 0,
        (Table::Mangle, C::Prerouting, Why::InvalidEntry) => 1,
        (_, C::Prerouting, Why::InboundEntry) => 2,
        (Table::Mangle, C::Prerouting, Why::TproxySaveMark) => 3,
        (Table::Mangle, C::Output, Why::TproxyProxyMarked) => 1,
        (Table::Mangle, C::Output, Why::TproxyProxyOut) => 2,
        (Table::Mangle, C::Output, Why::TproxyRestoreMark) => 3,
        (Table::Nat, C::Output, Why::OutboundEntry) => 1,
        (Table::Mangle, C::Inbound, Why::TproxyMarked) => 0,
        (Table::Mangle, C::Inbound, Why::TproxyProxyToApp) => 1,
        (Table::Mangle, C::Inbound, Why::TproxyLocal) => 2,
        (Table::Mangle, C::Inbound, Why::ExcludedInboundPort) => 3,
        (Table::Mangle, C::Inbound, _) => 4,
        (Table::Mangle, C::Divert, Why::TproxyDivertAccept) => 1,
        (Table::Nat, C::Inbound, Why::TunnelPort) => 0,
        (Table::Nat, C::Inbound, Why::ExcludedInboundPort) => 1,
        (Table::Nat, C::Inbound, _) => 2,
        (Table::Nat, C::OutputMain, Why::ExcludedOutboundPort) => 0,
        (Table::Nat, C::OutputMain, Why::ProxyToApp) => 1,
        (Table::Nat, C::OutputMain, Why::AppToItself | Why::LocalTraffic) => 2,
        (Table::Nat, C::OutputMain, Why::ProxyOwn | Why::ExcludedUser | Why::ExcludedGroup) => 2,
        (Table::Nat, C::OutputMain, Why::NotIncludedGroup) => 3,
        (Table::Nat, C::OutputMain, Why::DnsEntry) => 4,
        (Table::Nat, C::OutputMain, Why::Loopback | Why::ExcludedRange) => 5,
        (Table::Nat, C::OutputMain, Why::IncludedPort) => 6,
        (Table::Nat, C::OutputMain, Why::IncludedRange | Why::AllOutbound) => 7,
        _ => 0,
    }
}

/// How much a rule is to be believed where two cannot both be in their place: the ways into
/// an interception's chains and what they end in are beyond doubt, exclusions are not.
fn weight(why: &Why) -> usize {
    match why {
        Why::ExcludedInterface
        | Why::VirtualInterfaceRest
        | Why::ExcludedInboundPort
        | Why::ExcludedOutboundPort
        | Why::ExcludedUser
        | Why::ExcludedGroup
        | Why::NotIncludedGroup
        | Why::ExcludedRange => 1,
        _ => 1000,
    }
}

/// Takes the reasons of a family's rules that stand out of order: of all ways to leave some
/// out so that the others are in order, one that leaves out the least.
pub(super) fn keep_ordered(chain: &Chain, family: Family, reasons: &mut [Option<Why>]) {
    // For each place, the best choice of rules so far that ends there: its weight and last rule.
    let mut best: [(usize, Option<usize>); PLACES] = [(0, None); PLACES];
    let mut before: Vec<Option<usize>> = vec![None; reasons.len()];
    let named = |at: usize, why: &Option<Why>| {
        let of_family = chain.rules.get(at).is_some_and(|rule| rule.families.has(family));
        why.as_ref()
            .filter(|_| of_family)
            .map(|why| (place(chain.table, &chain.name, why).min(PLACES - 1), weight(why)))
    };
    for (at, why) in reasons.iter().enumerate() {
        let Some((place, weight)) = named(at, why) else { continue };
        // Of equal ones the latest place leaves nothing out that another would keep.
        let Some(&(sum, last)) = best[..=place].iter().max_by_key(|(sum, _)| *sum) else { continue };
        before[at] = last;
        best[place] = (sum + weight, Some(at));
    }
    let mut kept = vec![false; reasons.len()];
    let mut next = best.iter().max_by_key(|(sum, _)| *sum).and_then(|(_, last)| *last);
    while let Some(at) = next {
        kept[at] = true;
        next = before[at];
    }
    for (at, why) in reasons.iter_mut().enumerate() {
        if named(at, why).is_some() && !kept[at] {
            *why = None;
        }
    }
}
