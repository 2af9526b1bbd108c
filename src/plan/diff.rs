//! Drift: how what a kernel holds differs from what a plan wants, rule by rule and in
//! order, in canonical form, so that how a backend writes a rule makes no difference.

use std::collections::BTreeSet;

use crate::config::types::Family;
use crate::plan::align::align;
use crate::plan::canon::{Canon, CanonMatches, CanonRule};
use crate::plan::infer::infer;
use crate::plan::model::{ChainName, Plan, Routing, Table};
use crate::plan::why::Why;
use crate::plan::words;

/// The reason given for a rule that is not in the plan.
const NOT_OURS: &str = "not part of the plan: somebody else's";

/// On which side of a comparison a rule is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The plan has the rule at this place, the kernel does not.
    Missing,
    /// The kernel has the rule at this place, the plan does not.
    Unexpected,
}

/// One difference between a plan and what a kernel holds.
#[derive(Debug, Clone)]
pub struct Difference {
    pub side: Side,
    /// The chain of the rule; `None` if the difference is not about a rule.
    pub place: Option<(Family, Table, ChainName)>,
    /// What is missing or unexpected.
    pub what: String,
    /// The rule's reason, where one is known.
    pub why: Option<String>,
    /// The rule that is missing or unexpected; if two rules differ in one list, with only the items that
    /// differ.
    pub rule: Option<CanonRule>,
    /// The change that undoes the difference in the kernel; `None` if it is not about a rule.
    pub undo: Option<Undo>,
    /// What else than a rule the difference is about; `None` for a rule.
    pub beside: Option<BesideRules>,
}

/// What an interception has next to its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BesideRules {
    /// The routing of marked packets to the pod itself.
    MarkRouting,
    /// The address from which the proxy connects to the app over IPv6.
    MeshAddress,
}

/// A change of a chain's rules.
#[derive(Debug, Clone)]
pub enum Undo {
    /// A rule in before another one, or at the end.
    Insert { rule: CanonRule, before: Option<CanonRule> },
    /// Removes a rule, or replaces it by what is to stay of it.
    Replace { rule: CanonRule, by: Option<CanonRule> },
}

impl Undo {
    /// Changes the rules; `false` if the rules to be changed are not among them.
    pub fn apply(&self, rules: &mut Vec<CanonRule>) -> bool {
        let place = |rules: &[CanonRule], rule| rules.iter().position(|known| known == rule);
        match self {
            Undo::Insert { rule, before } => {
                let at = match before {
                    Some(before) => place(rules, before),
                    None => Some(rules.len()),
                };
                at.inspect(|&at| rules.insert(at, rule.clone())).is_some()
            }
            Undo::Replace { rule, by } => {
                place(rules, rule).inspect(|&at| drop(rules.splice(at..=at, by.clone()))).is_some()
            }
        }
    }
}

/// A rule that only one side has.
struct FoundSide<'a> {
    side: Side,
    rule: &'a CanonRule,
    /// The rule of the kernel's before which a missing one belongs; `None`: the end.
    next: Option<&'a CanonRule>,
}

impl FoundSide<'_> {
    fn undo(&self) -> Undo {
        match self.side {
            Side::Missing => Undo::Insert { rule: self.rule.clone(), before: self.next.cloned() },
            Side::Unexpected => Undo::Replace { rule: self.rule.clone(), by: None },
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let side = if self.side == Side::Missing { "missing" } else { "unexpected" };
        if let Some((family, table, chain)) = &self.place {
            write!(f, "{family} {} {chain}: ", table.name())?;
        }
        write!(f, "{side}: {}", self.what)?;
        match self.why.as_deref().filter(|why| !why.is_empty()) {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// The differences between a plan and what was read from a kernel. Rules that were read carry no reasons
/// where the backend keeps none; reasons are inferred only if there is a difference.
pub fn from_plan(want: &Plan, have: &Plan) -> Vec<Difference> {
    let want = Canon::of(want);
    if want == Canon::of(have) {
        return Vec::new();
    }
    let mut named = have.clone();
    infer(&mut named.chains);
    differences(&want, &Canon::of(&named))
}

/// All differences, by family, table and chain, in the order of the rules.
pub fn differences(want: &Canon, have: &Canon) -> Vec<Difference> {
    let mut out = Vec::new();
    for family in Family::BOTH {
        let (wanted, had) = (want.family(family), have.family(family));
        let places: BTreeSet<_> = wanted.keys().chain(had.keys()).cloned().collect();
        for place in places {
            let empty = Vec::new();
            let (a, b) = (wanted.get(&place).unwrap_or(&empty), had.get(&place).unwrap_or(&empty));
            let mut found: Vec<FoundSide> = Vec::new();
            rules(a, b, |difference| found.push(difference));
            for (side, rule, undo) in narrowed(&found) {
                out.push(Difference {
                    side,
                    place: Some((family, place.0, place.1.clone())),
                    what: words::numbered(&rule, family),
                    why: Some(reason(side, rule.why())),
                    rule: Some(rule),
                    undo: Some(undo),
                    beside: None,
                });
            }
        }
    }
    routing(&want.routing, &have.routing, &mut out);
    out
}

/// The reason for a rule; for a foreign one, that it is foreign, and its comment.
fn reason(side: Side, why: &Why) -> String {
    match (side, why) {
        (Side::Unexpected, Why::Foreign(comment)) if comment.is_empty() => NOT_OURS.into(),
        (Side::Unexpected, Why::Foreign(comment)) => format!("{NOT_OURS}, who says: {comment}"),
        _ => why.sentence().to_owned(),
    }
}

/// Reduces pairs of a missing and an unexpected rule that differ in one list only to the items in which
/// they differ.
fn narrowed(found: &[FoundSide]) -> Vec<(Side, CanonRule, Undo)> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(one) = found.get(at) {
        let pair = found.get(at + 1).filter(|other| other.side != one.side);
        match pair.and_then(|other| items(one, other)) {
            Some(parts) => {
                out.extend(parts.into_iter().filter(|(_, rule, _)| !rule.matches.is_empty()));
                at += 2;
            }
            None => {
                out.push((one.side, one.rule.clone(), one.undo()));
                at += 1;
            }
        }
    }
    out
}

/// The items that only one of two rules has, of the only list in which they differ; `None` if they
/// differ elsewhere.
fn items(one: &FoundSide, other: &FoundSide) -> Option<[(Side, CanonRule, Undo); 2]> {
    let part = |rule: &CanonRule, matches: CanonMatches| {
        let why = rule.why_for(&matches).clone();
        let (verdict, origin) = (rule.verdict.clone(), rule.origin.clone());
        CanonRule { parts: vec![(why, matches.clone())], matches, verdict, origin }
    };
    let only = |a: &FoundSide, b: &FoundSide| {
        let items = part(a.rule, a.rule.matches.without(&b.rule.matches)?);
        let undo = match a.side {
            Side::Missing => Undo::Insert { rule: items.clone(), before: Some(b.rule.clone()) },
            Side::Unexpected => {
                let rest = a.rule.matches.without(&items.matches).filter(|rest| !rest.is_empty());
                Undo::Replace { rule: a.rule.clone(), by: rest.map(|rest| part(a.rule, rest)) }
            }
        };
        Some((a.side, items, undo))
    };
    let same = one.rule.verdict == other.rule.verdict;
    same.then(|| Some([only(one, other)?, only(other, one)?]))?
}

/// The rules that only one of two lists has, in order: between two common rules the missing ones come
/// first.
fn rules<'a>(want: &'a [CanonRule], have: &'a [CanonRule], mut each: impl FnMut(FoundSide<'a>)) {
    let (mut i, mut j) = (0, 0);
    for (next_i, next_j) in align(want, have, |_| 1).into_iter().chain([(want.len(), have.len())]) {
        want[i..next_i].iter().for_each(|rule| each(FoundSide { side: Side::Missing, rule, next: have.get(j) }));
        have[j..next_j].iter().for_each(|rule| each(FoundSide { side: Side::Unexpected, rule, next: None }));
        (i, j) = (next_i + 1, next_j + 1);
    }
}

fn routing(want: &Routing, have: &Routing, out: &mut Vec<Difference>) {
    let mut push = |side, beside, what: String| {
        let beside = Some(beside);
        out.push(Difference { side, place: None, what, why: None, rule: None, undo: None, beside });
    };
    let mut both = |a: &Routing, b: &Routing, side| {
        for rule in a.rules.iter().filter(|r| !b.rules.contains(r)) {
            push(
                side,
                BesideRules::MarkRouting,
                format!("the {} rule 'fwmark {} lookup {}'", rule.family, rule.mark, rule.table),
            );
        }
        for route in a.routes.iter().filter(|r| !b.routes.contains(r)) {
            push(
                side,
                BesideRules::MarkRouting,
                format!("the {} route 'local default dev lo table {}'", route.0, route.1),
            );
        }
        if a.mesh_address && !b.mesh_address {
            push(side, BesideRules::MeshAddress, "the address ::6/128 on lo".into());
        }
    };
    both(want, have, Side::Missing);
    both(have, want, Side::Unexpected);
}
