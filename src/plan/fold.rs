//! Folding: rules that differ in one condition only become one rule with a longer list,
//! as long as moving them together changes nothing.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{IdList, Interface};

use super::canon_rule::{CanonMatches, CanonRule};
use super::model::{Cond, Verdict};
use super::why::Why;

/// Dimensions in which rules may be merged, innermost first: the order in which `lower`
/// varies them, so that a full expansion folds back into what it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Protocol,
    OutInterface,
    InInterface,
    Gid,
    Uid,
    SourcePort,
    DestinationPort,
    Source,
    Destination,
}

const DIMENSIONS: [Dimension; 9] = [
    Dimension::Protocol,
    Dimension::OutInterface,
    Dimension::InInterface,
    Dimension::Gid,
    Dimension::Uid,
    Dimension::SourcePort,
    Dimension::DestinationPort,
    Dimension::Source,
    Dimension::Destination,
];

/// Folds a chain's rules, one dimension after the other.
pub(super) fn folded(rules: Vec<CanonRule>) -> Vec<CanonRule> {
    folded_within(rules, &mut { MOST_COMPARISONS })
}

/// Folds a chain's rules within a number of comparisons, from which those made are subtracted.
fn folded_within(mut rules: Vec<CanonRule>, left: &mut usize) -> Vec<CanonRule> {
    // Folding in one dimension can make rules alike that were not; until nothing changes.
    loop {
        let before = rules.len();
        for dimension in DIMENSIONS {
            rules = fold(rules, dimension, left);
        }
        if rules.len() == before {
            return rules;
        }
    }
}

/// A rule to which others are merged: they are gathered first and put in order at the end, so that 5,000
/// rules fold in one pass.
struct OpenRule {
    rule: CanonRule,
    more: Vec<CanonRule>,
}

/// From how many rules on an index pays.
const MANY: usize = 64;
/// How many pairs of rules are compared before rules stay as they are written. No
/// interception needs as many; tables of others, and made up ones, could.
const MOST_COMPARISONS: usize = 30_000_000;

fn fold(rules: Vec<CanonRule>, dimension: Dimension, left: &mut usize) -> Vec<CanonRule> {
    let mut open: Vec<OpenRule> = Vec::new();
    // What earlier rules look like but for the dimension. Without it, thousands of rules
    // that differ elsewhere would each be held against all before it.
    let mut seen = (rules.len() >= MANY).then(HashSet::new);
    for rule in rules {
        // What is not understood is not put together, nor what makes a difference when it is
        // done twice.
        use Verdict as V;
        let flips =
            matches!(rule.verdict, V::SetMark(mark) | V::SetConnectionMark(mark) if mark.value & !mark.mask != 0);
        let may_join = !flips
            && rule.matches.unknown.is_empty()
            && seen.as_mut().is_none_or(|seen| !seen.insert(digest_without(&rule, dimension)));
        match may_join.then(|| joinable_rule(&open, &rule, dimension, left)).flatten() {
            Some(at) => open[at].more.push(rule),
            None => open.push(OpenRule { rule, more: Vec::new() }),
        }
    }
    open.into_iter().map(|open| open.close(dimension, left)).collect()
}

/// A digest of a rule's verdict and its conditions without one dimension: rules that can be merged in
/// that dimension have equal digests.
fn digest_without(rule: &CanonRule, dimension: Dimension) -> u64 {
    use Dimension as D;
    let (m, mut hasher) = (&rule.matches, DefaultHasher::new());
    let mut add = |of: Dimension, value: &dyn Fn(&mut DefaultHasher)| {
        if of != dimension {
            value(&mut hasher);
        }
    };
    add(D::Source, &|h| m.source.hash(h));
    add(D::Destination, &|h| m.destination.hash(h));
    add(D::SourcePort, &|h| m.source_port.hash(h));
    add(D::DestinationPort, &|h| m.destination_port.hash(h));
    add(D::Protocol, &|h| m.protocol.hash(h));
    add(D::Uid, &|h| m.uid.hash(h));
    add(D::Gid, &|h| m.gid.hash(h));
    add(D::InInterface, &|h| m.in_interface.hash(h));
    add(D::OutInterface, &|h| m.out_interface.hash(h));
    rule.verdict.hash(&mut hasher);
    hasher.finish()
}

/// The index of the earlier rule that `rule` can be merged with: both differ in the dimension only, and
/// no packet of `rule` meets a rule between them.
fn joinable_rule(open: &[OpenRule], rule: &CanonRule, dimension: Dimension, left: &mut usize) -> Option<usize> {
    for (at, candidate) in open.iter().enumerate().rev() {
        let known = !matches!(rule.verdict, Verdict::Unknown(_));
        if known && candidate.rule.verdict == rule.verdict && candidate.rule.matches.same_but(&rule.matches, dimension)
        {
            return Some(at);
        }
        *left = left.checked_sub(1 + candidate.more.len())?;
        let apart = |other: &CanonRule| other.matches.disjoint(&rule.matches);
        if !(apart(&candidate.rule) && candidate.more.iter().all(apart)) {
            return None;
        }
    }
    None
}

impl OpenRule {
    fn close(self, dimension: Dimension, left: &mut usize) -> CanonRule {
        let mut rule = self.rule;
        if self.more.is_empty() {
            return rule;
        }
        let more: Vec<&CanonMatches> = self.more.iter().map(|r| &r.matches).collect();
        rule.matches.join(dimension, &more);
        rule.origin = None;
        let mut parts: Vec<(Why, CanonMatches, Vec<&CanonMatches>)> =
            rule.parts.drain(..).map(|(why, matches)| (why, matches, Vec::new())).collect();
        // Thousands of rules may have as many reasons: each one's parts, the last one last.
        let mut places: HashMap<Why, Vec<usize>> = HashMap::new();
        for (at, (why, ..)) in parts.iter().enumerate() {
            places.entry(why.clone()).or_default().push(at);
        }
        for (why, matches) in self.more.iter().flat_map(|r| &r.parts) {
            let alike = places.entry(why.clone()).or_default();
            let same = |at: &&usize| {
                *left = left.saturating_sub(1);
                parts[**at].1.same_but(matches, dimension)
            };
            match alike.iter().rev().find(same) {
                Some(&at) => parts[at].2.push(matches),
                None => {
                    alike.push(parts.len());
                    parts.push((why.clone(), matches.clone(), Vec::new()));
                }
            }
        }
        rule.parts = parts
            .into_iter()
            .map(|(why, mut matches, more)| {
                matches.join(dimension, &more);
                (why, matches)
            })
            .collect();
        rule
    }
}

impl CanonMatches {
    /// Merges conditions that differ from these in one dimension only.
    fn join(&mut self, dimension: Dimension, more: &[&CanonMatches]) {
        if more.is_empty() {
            return;
        }
        let more = more.iter().copied();
        match dimension {
            Dimension::Protocol => join(&mut self.protocol, more.map(|o| &o.protocol)),
            Dimension::SourcePort => join(&mut self.source_port, more.map(|o| &o.source_port)),
            Dimension::DestinationPort => join(&mut self.destination_port, more.map(|o| &o.destination_port)),
            Dimension::Source => join(&mut self.source, more.map(|o| &o.source)),
            Dimension::Destination => join(&mut self.destination, more.map(|o| &o.destination)),
            Dimension::Uid => join_ids(&mut self.uid, more.map(|o| &o.uid)),
            Dimension::Gid => join_ids(&mut self.gid, more.map(|o| &o.gid)),
            Dimension::InInterface => join_names(&mut self.in_interface, more.map(|o| &o.in_interface)),
            Dimension::OutInterface => join_names(&mut self.out_interface, more.map(|o| &o.out_interface)),
        }
    }

    /// Whether two differ in `dimension` at most, and can be merged in it.
    fn same_but(&self, other: &Self, dimension: Dimension) -> bool {
        use Dimension as D;
        (dimension == D::Source || self.source == other.source)
            && (dimension == D::Destination || self.destination == other.destination)
            && (dimension == D::Protocol || self.protocol == other.protocol)
            && (dimension == D::SourcePort || self.source_port == other.source_port)
            && (dimension == D::DestinationPort || self.destination_port == other.destination_port)
            && self.connection_state == other.connection_state
            && alike(dimension == D::InInterface, &self.in_interface, &other.in_interface)
            && alike(dimension == D::OutInterface, &self.out_interface, &other.out_interface)
            && alike(dimension == D::Uid, &self.uid, &other.uid)
            && alike(dimension == D::Gid, &self.gid, &other.gid)
            && self.mark == other.mark
            && self.connection_mark == other.connection_mark
            && self.unknown == other.unknown
            && self.unknown.is_empty()
    }

    /// The only dimension in which two differ, if there is just one.
    fn one_apart(&self, other: &Self) -> Option<Dimension> {
        if self == other {
            return None;
        }
        DIMENSIONS.into_iter().find(|&dimension| self.same_but(other, dimension))
    }

    /// The conditions for packets that meet these and not the other ones; `None` if the two differ in
    /// more than one dimension, or in interfaces.
    pub fn without(&self, other: &Self) -> Option<Self> {
        let mut left = self.clone();
        match self.one_apart(other)? {
            Dimension::Protocol => left.protocol = self.protocol.minus(&other.protocol),
            Dimension::SourcePort => left.source_port = self.source_port.minus(&other.source_port),
            Dimension::DestinationPort => left.destination_port = self.destination_port.minus(&other.destination_port),
            Dimension::Source => left.source = self.source.minus(&other.source),
            Dimension::Destination => left.destination = self.destination.minus(&other.destination),
            Dimension::Uid => left.uid = minus_ids(&self.uid, &other.uid)?,
            Dimension::Gid => left.gid = minus_ids(&self.gid, &other.gid)?,
            Dimension::InInterface | Dimension::OutInterface => return None,
        }
        Some(left)
    }
}

/// The ids of `a` that are not in `b`; `None` where one of the conditions is negated.
fn minus_ids(a: &Option<Cond<IdList>>, b: &Option<Cond<IdList>>) -> Option<Option<Cond<IdList>>> {
    match (a, b) {
        (Some(a), Some(b)) if !a.negated && !b.negated => Some(Some(Cond::is(a.value.minus(&b.value)))),
        _ => None,
    }
}

fn join<'a, T: Discrete + 'a>(into: &mut RangeList<T>, more: impl Iterator<Item = &'a RangeList<T>>) {
    more.for_each(|list| into.extend(list));
    *into = into.normalised();
}

fn join_ids<'a>(into: &mut Option<Cond<IdList>>, more: impl Iterator<Item = &'a Option<Cond<IdList>>>) {
    if let Some(cond) = into.as_mut().filter(|c| !c.negated) {
        join(&mut cond.value, more.flatten().map(|c| &c.value));
    }
}

fn join_names<'a>(
    into: &mut Option<Cond<Vec<Interface>>>,
    more: impl Iterator<Item = &'a Option<Cond<Vec<Interface>>>>,
) {
    if let Some(cond) = into.as_mut().filter(|c| !c.negated) {
        cond.value.extend(more.flatten().flat_map(|c| c.value.iter().cloned()));
        cond.value.sort();
        cond.value.dedup();
    }
}

/// Whether two optional conditions may become one list: both positive, or the same.
fn joinable<T: PartialEq>(a: &Option<Cond<T>>, b: &Option<Cond<T>>) -> bool {
    a == b || matches!((a, b), (Some(a), Some(b)) if !a.negated && !b.negated)
}

fn alike<T: PartialEq>(is_dimension: bool, a: &Option<Cond<T>>, b: &Option<Cond<T>>) -> bool {
    if is_dimension { joinable(a, b) } else { a == b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::types::{Families, Family};
    use crate::plan::model::{ChainName, Matches, Rule};

    /// Rules about single addresses that are not neighbours, one each.
    fn listed(count: u32, verdict: impl Fn(u32) -> Verdict) -> Vec<CanonRule> {
        let host = |n: u32| ipnet::IpNet::V4(std::net::Ipv4Addr::from(0x0a00_0000 + 2 * n).into());
        let rule = |n: u32| Rule {
            families: Families::V4,
            matches: Matches { destination: Some(Cond::is([host(n)].into_iter().collect())), ..Matches::default() },
            verdict: verdict(n),
            why: Why::Foreign(format!("number {n}").into()),
            counters: None,
            origin: None,
        };
        (0..count).filter_map(|n| CanonRule::of(&rule(n), Family::V4)).collect()
    }

    /// Folds rules; gives how many are left, of how many parts the first one consists, and how many
    /// comparisons were made.
    fn fold_all(rules: Vec<CanonRule>) -> (usize, usize, usize) {
        let mut left = MOST_COMPARISONS;
        let folded = folded_within(rules, &mut left);
        (folded.len(), folded[0].parts.len(), MOST_COMPARISONS - left)
    }

    #[test]
    fn thousands_of_reasons_take_no_more_comparisons_by_the_square() {
        let comparisons = |count| {
            let (rules, parts, comparisons) = fold_all(listed(count, |_| Verdict::Accept));
            assert_eq!((rules, parts), (1, count as usize));
            comparisons
        };
        let (short, long) = (comparisons(2_000), comparisons(16_000));
        assert!(long <= short * 9, "{short} comparisons for 2,000 rules, {long} for 16,000");
    }

    #[test]
    fn thousands_of_rules_that_cannot_be_folded_are_not_held_against_each_other() {
        let apart = |n: u32| Verdict::Jump(ChainName::Other(format!("SVC-{n}").into()));
        let (rules, _, comparisons) = fold_all(listed(16_000, apart));
        assert_eq!(rules, 16_000);
        assert!(comparisons <= 16_000, "{comparisons} comparisons");
    }
}
