//! The lowered form: one family, one port, range, interface or owner per rule. It is
//! what iptables can hold, in the order in which the rules must stand.

use ipnet::IpNet;

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Families, Family, Interface, Networks};

use super::model::{Chain, Cond, Matches, Plan, Rule};

/// The plan's chains for one family, lowered. Chains whose rules are all for the other family are left
/// out.
pub fn lower(plan: &Plan, family: Family) -> Vec<Chain> {
    if !plan.families.has(family) {
        return Vec::new();
    }
    let lowered = plan.chains.iter().filter_map(|chain| {
        let rules = lower_rules(&chain.rules, family);
        let stays = !rules.is_empty() || chain.rules.is_empty();
        stays.then(|| Chain { table: chain.table, name: chain.name.clone(), rules })
    });
    lowered.collect()
}

/// A chain's rules for one family, lowered.
pub(super) fn lower_rules(rules: &[Rule], family: Family) -> Vec<Rule> {
    let rules: Vec<&Rule> = rules.iter().filter(|r| r.families.has(family)).collect();
    // Neighbours about the same ports are expanded together, port by port: "port 80 of a
    // known connection, port 80 of a new one, port 81 of a known one, …".
    let same_ports =
        |a: &&Rule, b: &&Rule| ports_of(a).is_some_and(|ports| ports.len() > 1 && ports_of(b) == Some(ports));
    let mut out = Vec::new();
    for group in rules.chunk_by(same_ports) {
        match (group, ports_of(group[0])) {
            ([_, _, ..], Some(ports)) => {
                for port in disjoint(ports) {
                    for rule in group {
                        let mut one = (*rule).clone();
                        one.matches.destination_port = Some(Cond::is(port.clone()));
                        expand(&one, family, &mut out);
                    }
                }
            }
            _ => group.iter().for_each(|rule| expand(rule, family, &mut out)),
        }
    }
    out
}

/// The destination ports a rule is about, if it is about any.
fn ports_of(rule: &Rule) -> Option<&RangeList<u16>> {
    rule.matches.destination_port.as_ref().filter(|c| !c.negated).map(|c| &c.value)
}

/// Each range of a list as a list of its own.
fn split<T: Discrete>(list: &RangeList<T>) -> Vec<RangeList<T>> {
    list.iter().map(|range| RangeList::new([range])).collect()
}

/// Whether a condition stands for one rule as it is: it is negated, or has one item.
fn is_one<T>(cond: &Option<Cond<T>>, len: impl Fn(&T) -> usize) -> bool {
    cond.as_ref().is_none_or(|cond| cond.negated || len(&cond.value) == 1)
}

/// The ranges of a list, each without what an earlier one covers: a packet must meet the
/// rules of its port once, together.
fn disjoint<T: Discrete>(list: &RangeList<T>) -> Vec<RangeList<T>> {
    let mut left = RangeList::full();
    let mut out = Vec::new();
    for range in list.iter() {
        let range = RangeList::new([range]);
        out.extend(split(&range.intersection(&left)));
        left = left.intersection(&range.complement());
    }
    out
}

/// Appends a rule as several, one for each combination of the items in its lists.
fn expand(rule: &Rule, family: Family, out: &mut Vec<Rule>) {
    let m = &rule.matches;
    let nets_are_one = |cond| is_one(cond, |n: &Networks| n.len_of(family));
    let names_are_one = |cond| is_one(cond, Vec::len);
    let as_it_is = nets_are_one(&m.destination)
        && nets_are_one(&m.source)
        && is_one(&m.destination_port, RangeList::len)
        && is_one(&m.source_port, RangeList::len)
        && is_one(&m.uid, RangeList::len)
        && is_one(&m.gid, RangeList::len)
        && names_are_one(&m.in_interface)
        && names_are_one(&m.out_interface)
        && is_one(&m.protocol, RangeList::len);
    if as_it_is {
        out.push(Rule { families: Families::only(family), ..rule.clone() });
        return;
    }
    let one_family = |net: IpNet| Networks::from_iter([net]);
    let nets = |n: &Networks| n.of(family).into_iter().map(one_family).collect::<Vec<_>>();
    let names = |n: &Vec<Interface>| n.iter().map(|i| vec![i.clone()]).collect::<Vec<_>>();
    let (destinations, sources) = (each(&m.destination, nets), each(&m.source, nets));
    let (dports, sports) = (each(&m.destination_port, split), each(&m.source_port, split));
    let (uids, gids) = (each(&m.uid, split), each(&m.gid, split));
    let (ins, outs) = (each(&m.in_interface, names), each(&m.out_interface, names));
    let protocols = each(&m.protocol, split);

    // The first dimension is the slowest: with several, the last one changes with every rule.
    let mut all = vec![Matches {
        mark: m.mark.clone(),
        connection_mark: m.connection_mark.clone(),
        connection_state: m.connection_state.clone(),
        destination_set: m.destination_set.clone(),
        unknown: m.unknown.clone(),
        ..Matches::default()
    }];
    vary(&mut all, &destinations, |m, v| m.destination = v);
    vary(&mut all, &sources, |m, v| m.source = v);
    vary(&mut all, &dports, |m, v| m.destination_port = v);
    vary(&mut all, &sports, |m, v| m.source_port = v);
    vary(&mut all, &uids, |m, v| m.uid = v);
    vary(&mut all, &gids, |m, v| m.gid = v);
    vary(&mut all, &ins, |m, v| m.in_interface = v);
    vary(&mut all, &outs, |m, v| m.out_interface = v);
    vary(&mut all, &protocols, |m, v| m.protocol = v);
    out.extend(all.into_iter().map(|matches| Rule {
        families: Families::only(family),
        matches,
        verdict: rule.verdict.clone(),
        why: rule.why.clone(),
        counters: None,
        origin: rule.origin.clone(),
    }));
}

/// A condition as one condition per item. A negated one stays whole: "none of these" is
/// no list of alternatives.
fn each<T: Clone>(cond: &Option<Cond<T>>, items: impl Fn(&T) -> Vec<T>) -> Vec<Option<Cond<T>>> {
    match cond {
        None => vec![None],
        Some(cond) if cond.negated => vec![Some(cond.clone())],
        Some(cond) => items(&cond.value).into_iter().map(|item| Some(Cond::is(item))).collect(),
    }
}

fn vary<T: Clone>(all: &mut Vec<Matches>, values: &[Option<Cond<T>>], set: impl Fn(&mut Matches, Option<Cond<T>>)) {
    if let [only] = values {
        all.iter_mut().for_each(|m| set(m, only.clone()));
        return;
    }
    let mut out = Vec::with_capacity(all.len() * values.len());
    for m in all.iter() {
        for value in values {
            let mut one = m.clone();
            set(&mut one, value.clone());
            out.push(one);
        }
    }
    *all = out;
}
