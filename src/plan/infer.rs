//! Reasons for rules that carry none: iptables rules usually have no comment, and those of
//! istio-iptables never do.
//!
//! No decision is made a second time here. The rules tell which options a builder must have been given
//! to write them (`recover`); the builder writes its plan for these options; the plan is aligned with
//! the rules, and a rule that has a counterpart in the plan gets its reason. A rule without one is
//! foreign: it has other conditions than the plan's rule, or stands in another place. In a table whose
//! other rules carry their reasons, a rule without one is foreign as well.

use std::collections::HashSet;

use crate::config::types::Family;

use super::align::align;
use super::canon::CanonRule;
use super::found::{CandidateRule, CandidateRules};
use super::lower::lower_rules;
use super::model::{Chain, Plan, Rule, Table};
use super::recover;
use super::why::Why;

/// Gives the plans that a builder would have written for a family to make these rules. Where they can be
/// read in several ways, there is a plan for each, the likeliest one first.
type Builder = fn(&CandidateRules, Family) -> Vec<Plan>;

/// Every builder whose rules are known by their form.
const BUILDERS: &[Builder] = &[recover::sidecar, recover::ambient];

/// A rule's place (its chain's index, its index in the chain), and its reason.
type Reason = ((usize, usize), Why);

/// Gives rules without a comment the reason that follows from a builder's plan, if there is one.
pub fn infer(chains: &mut [Chain]) {
    let commented: HashSet<Table> =
        chains.iter().filter(|chain| chain.rules.iter().any(says_why)).map(|chain| chain.table).collect();
    if chains.iter().all(|chain| commented.contains(&chain.table)) {
        return;
    }
    let mut reasons: Vec<Reason> = Vec::new();
    for family in Family::BOTH {
        let found: Vec<Vec<CandidateRule>> =
            chains.iter().enumerate().map(|(at, chain)| found(at, chain, family, &commented)).collect();
        let rules = chains.iter().zip(&found).map(|(chain, found)| (chain.table, &chain.name, found.iter().collect()));
        let rules = CandidateRules(rules.collect());
        let explained = BUILDERS.iter().map(|builder| explain(*builder, rules.clone(), family));
        reasons.extend(explained.max_by_key(Vec::len).unwrap_or_default());
    }
    for ((chain, at), why) in reasons {
        let rule = &mut chains[chain].rules[at];
        if !says_why(rule) {
            rule.why = why;
        }
    }
}

fn says_why(rule: &Rule) -> bool {
    !matches!(rule.why, Why::Foreign(_))
}

/// The rules of a chain that may be a builder's: those with a reason, which help to find the options,
/// and those without a comment in tables where no rule has a reason.
fn found<'a>(index: usize, chain: &'a Chain, family: Family, commented: &HashSet<Table>) -> Vec<CandidateRule<'a>> {
    let may_be_ours = |rule: &Rule| match &rule.why {
        Why::Foreign(comment) => comment.is_empty() && !commented.contains(&chain.table),
        _ => true,
    };
    let rules = chain.rules.iter().enumerate().filter(|(_, rule)| rule.families.has(family) && may_be_ours(rule));
    rules
        .filter_map(|(at, rule)| Some(CandidateRule { place: (index, at), rule, canon: CanonRule::of(rule, family)? }))
        .collect()
}

/// The reasons of those rules that a builder would have written, had it written just them.
fn explain(builder: Builder, mut rules: CandidateRules, family: Family) -> Vec<Reason> {
    loop {
        let readings = builder(&rules, family).into_iter().map(|plan| Alignment::of(&plan, &rules, family));
        // Of readings that explain as much the first one.
        let best = readings.reduce(|best, other| if other.weight > best.weight { other } else { best });
        let Some(best) = best else { return Vec::new() };
        // A stranger's rules may have told something wrong. What the others tell is right if
        // the plan for it has them all.
        if best.ours.len() == rules.len() {
            return best.reasons;
        }
        rules = best.ours;
    }
}

/// How far one plan explains the rules that were found.
struct Alignment<'a> {
    weight: u64,
    ours: CandidateRules<'a>,
    reasons: Vec<Reason>,
}

impl<'a> Alignment<'a> {
    fn of(plan: &Plan, rules: &CandidateRules<'a>, family: Family) -> Self {
        let mut reading = Self { weight: 0, ours: CandidateRules(Vec::new()), reasons: Vec::new() };
        for (table, name, found) in &rules.0 {
            let have: Vec<&CanonRule> = found.iter().map(|found| &found.canon).collect();
            let planned = plan.chain(*table, name).map_or(&[][..], |chain| &chain.rules);
            // As nftables holds a plan, with lists; or as iptables does, a rule for each item.
            let mut aligned = counterparts(planned, &have, family);
            if aligned.len() < have.len() {
                let by_item = counterparts(&lower_rules(planned, family), &have, family);
                aligned = if by_item.len() > aligned.len() { by_item } else { aligned };
            }
            reading.ours.0.push((*table, name, aligned.iter().map(|(at, _)| found[*at]).collect()));
            reading.weight += aligned.iter().map(|(_, why)| weight(why)).sum::<u64>();
            reading.reasons.extend(aligned.into_iter().map(|(at, why)| (found[at].place, why)));
        }
        reading
    }
}

/// The rules that have a counterpart among a plan's, by index, with its reason.
fn counterparts(planned: &[Rule], have: &[&CanonRule], family: Family) -> Vec<(usize, Why)> {
    let want: Vec<CanonRule> = planned.iter().filter_map(|rule| CanonRule::of(rule, family)).collect();
    let pairs = align(&want.iter().collect::<Vec<_>>(), have, |rule| weight(rule.why()));
    pairs.into_iter().map(|(i, j)| (j, want[i].why().clone())).collect()
}

/// How much a counterpart counts where two cannot both be in order: the jumps into an interception's
/// chains and the redirections at their end are certain, exclusions are not.
fn weight(why: &Why) -> u64 {
    match why {
        Why::ExcludedInterface
        | Why::VirtualInterfaceRest
        | Why::ExcludedInboundPort
        | Why::ExcludedOutboundPort
        | Why::ExcludedUser
        | Why::ExcludedGroup
        | Why::NotIncludedGroup
        | Why::ExcludedRange => 1,
        _ => 1_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::interception::{Interception, OwnerGroups};
    use crate::config::ranges::RangeList;
    use crate::config::types::{
        Families, Mark, Mode, Networks, Port, PortList, PortSelection, RangeSelection, RouteTable,
    };
    use crate::plan::build;
    use crate::plan::lower::lower;
    use crate::plan::model::{ChainName, Matches, Verdict};

    fn interception() -> Interception {
        Interception {
            families: Families::V4,
            outbound_port: Port::literal(15001),
            inbound_port: Port::literal(15006),
            tunnel_port: Port::literal(15008),
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            mode: Mode::Redirect,
            inbound_ports: PortSelection::All,
            inbound_ports_exclude: RangeList::of([15020, 15090]),
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            outbound_ranges: RangeSelection::All,
            outbound_ranges_exclude: Networks::default(),
            outbound_ports: PortList::default(),
            outbound_ports_exclude: PortList::default(),
            owner_groups: OwnerGroups::Except(vec![7, 8]),
            outbound_uids_exclude: RangeList::default(),
            loopback: "127.0.0.1/32".parse().unwrap(),
            dns: None,
            drop_invalid: false,
            mark: Mark::new(1337),
            route_table: RouteTable::new(133),
        }
    }

    /// The rules of an interception as iptables holds them, with and without their reasons.
    fn held(interception: &Interception) -> (Vec<Chain>, Vec<Chain>) {
        let known = lower(&build(interception), Family::V4);
        let mut nameless = known.clone();
        for rule in nameless.iter_mut().flat_map(|chain| &mut chain.rules) {
            rule.why = Why::Foreign("".into());
        }
        (known, nameless)
    }

    fn main_chain(chains: &mut [Chain]) -> &mut Vec<Rule> {
        let main = chains.iter_mut().find(|chain| chain.table == Table::Nat && chain.name == ChainName::OutputMain);
        &mut main.unwrap().rules
    }

    #[test]
    fn rules_of_earlier_releases_of_istio_iptables_get_their_reasons() {
        let (known, mut chains) = held(&interception());
        for rule in main_chain(&mut chains).iter_mut() {
            if rule.verdict == Verdict::Jump(ChainName::InRedirect) {
                rule.matches = Matches { protocol: None, destination_port: None, ..rule.matches.clone() };
            }
        }
        let hook =
            chains.iter_mut().find(|chain| chain.table == Table::Nat && chain.name == ChainName::Output).unwrap();
        hook.rules[0].matches = Matches::tcp();
        infer(&mut chains);
        let reasons = |chains: &[Chain]| -> Vec<Why> {
            chains.iter().flat_map(|chain| &chain.rules).map(|rule| rule.why.clone()).collect()
        };
        assert_eq!(reasons(&chains), reasons(&known));
    }

    /// Of two readings of the rules, with two values of one option, the one that explains more is taken.
    #[test]
    fn a_strangers_rule_takes_no_reason_from_the_others() {
        let only_ranges: Networks = ["10.0.0.0/8", "192.168.0.0/16"].iter().map(|net| net.parse().unwrap()).collect();
        let all_returned = (Matches::default(), Verdict::Return);
        let all_taken = (Matches::default(), Verdict::Jump(ChainName::Redirect));
        let taken_port =
            Matches { destination_port: Some(crate::plan::model::Cond::is(RangeList::of([80]))), ..Matches::tcp() };
        for (interception, chain, (matches, verdict)) in [
            (interception(), ChainName::OutputMain, all_returned),
            (
                Interception { outbound_ranges: RangeSelection::Only(only_ranges), ..interception() },
                ChainName::OutputMain,
                all_taken,
            ),
            (interception(), ChainName::Inbound, (taken_port, Verdict::Jump(ChainName::InRedirect))),
        ] {
            let (known, mut chains) = held(&interception);
            let rules = &mut chains.iter_mut().find(|c| c.table == Table::Nat && c.name == chain).unwrap().rules;
            rules.insert(0, Rule { matches, verdict, ..rules[0].clone() });
            infer(&mut chains);
            let at = chains.iter().position(|c| c.table == Table::Nat && c.name == chain).unwrap();
            assert_eq!(chains[at].rules.remove(0).why, Why::Foreign("".into()), "{chain}");
            assert_eq!(chains, known, "{chain}");
        }
    }
}
