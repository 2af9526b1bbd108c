//! Drift: how what a kernel holds differs from what a plan wants, rule by rule and in
//! order, in canonical form, so that how a backend writes a rule makes no difference.

use std::collections::BTreeSet;

use crate::config::types::Family;
use crate::plan::canon::{Canon, CanonRule};
use crate::plan::model::{ChainName, Routing, Table};
use crate::plan::why::Why;

use super::describe;

/// What is said of a rule that no plan has at its place.
const NOT_OURS: &str = "not part of the plan: somebody else's";

/// Which side a rule is missing from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The plan has it, the kernel does not, at this place.
    Missing,
    /// The kernel has it, the plan does not, at this place.
    Unexpected,
}

/// One difference.
#[derive(Debug, Clone)]
pub struct Difference {
    pub side: Side,
    /// `None`: not about a rule.
    pub place: Option<(Family, Table, ChainName)>,
    /// What is missing or unexpected.
    pub what: String,
    /// The reason for it, where one is known.
    pub why: Option<String>,
    /// Of a rule that differs in a list only what differs.
    pub rule: Option<CanonRule>,
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

/// All differences, by family, table and chain, in the order of the rules.
pub fn differences(want: &Canon, have: &Canon) -> Vec<Difference> {
    let mut out = Vec::new();
    for family in Family::BOTH {
        let (wanted, had) = (want.family(family), have.family(family));
        let places: BTreeSet<_> = wanted.keys().chain(had.keys()).cloned().collect();
        for place in places {
            let empty = Vec::new();
            let (a, b) = (wanted.get(&place).unwrap_or(&empty), had.get(&place).unwrap_or(&empty));
            let mut found: Vec<(Side, &CanonRule)> = Vec::new();
            rules(a, b, |side, rule| found.push((side, rule)));
            for (side, rule) in narrowed(&found) {
                out.push(Difference {
                    side,
                    place: Some((family, place.0, place.1.clone())),
                    what: describe::numbered(&rule, family),
                    why: Some(reason(side, rule.why())),
                    rule: Some(rule),
                });
            }
        }
    }
    routing(&want.routing, &have.routing, &mut out);
    out
}

/// The reason for a rule; for one that is nobody's but a stranger's, whose it is.
fn reason(side: Side, why: &Why) -> String {
    match (side, why) {
        (Side::Unexpected, Why::Foreign(comment)) if comment.is_empty() => NOT_OURS.into(),
        (Side::Unexpected, Why::Foreign(comment)) => format!("{NOT_OURS}, who says: {comment}"),
        _ => why.sentence().to_owned(),
    }
}

/// Where a rule is there, only with more or fewer items in one of its lists, just these
/// items are the difference.
fn narrowed(found: &[(Side, &CanonRule)]) -> Vec<(Side, CanonRule)> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&(side, rule)) = found.get(at) {
        let pair = found.get(at + 1).filter(|(other, _)| *other != side);
        let parts = pair.and_then(|(other_side, other)| {
            let same = rule.verdict == other.verdict;
            let only = |a: &CanonRule, b: &CanonRule| {
                let matches = a.matches.without(&b.matches)?;
                let why = a.why_for(&matches).clone();
                let (verdict, origin) = (a.verdict.clone(), a.origin.clone());
                Some(CanonRule { parts: vec![(why, matches.clone())], matches, verdict, origin })
            };
            same.then(|| Some([(side, only(rule, other)?), (*other_side, only(other, rule)?)]))?
        });
        match parts {
            Some(parts) => {
                out.extend(parts.into_iter().filter(|(_, rule)| !rule.matches.is_empty()));
                at += 2;
            }
            None => {
                out.push((side, rule.clone()));
                at += 1;
            }
        }
    }
    out
}

/// The shortest way from one list of rules to the other (longest common subsequence).
fn rules<'a>(want: &'a [CanonRule], have: &'a [CanonRule], mut each: impl FnMut(Side, &'a CanonRule)) {
    let start = want.iter().zip(have).take_while(|(a, b)| a == b).count();
    let (want, have) = (&want[start..], &have[start..]);
    let end = want.iter().rev().zip(have.iter().rev()).take_while(|(a, b)| a == b).count();
    let (want, have) = (&want[..want.len() - end], &have[..have.len() - end]);
    if want.len().saturating_mul(have.len()) > 4_000_000 {
        // Nothing of an interception is that long: what is there is something else.
        want.iter().for_each(|rule| each(Side::Missing, rule));
        return have.iter().for_each(|rule| each(Side::Unexpected, rule));
    }
    let width = have.len() + 1;
    let mut common = vec![0u32; (want.len() + 1) * width];
    for i in (0..want.len()).rev() {
        for j in (0..have.len()).rev() {
            common[i * width + j] = if want[i] == have[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < want.len() || j < have.len() {
        if i < want.len() && j < have.len() && want[i] == have[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == have.len() || (i < want.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            each(Side::Missing, &want[i]);
            i += 1;
        } else {
            each(Side::Unexpected, &have[j]);
            j += 1;
        }
    }
}

fn routing(want: &Routing, have: &Routing, out: &mut Vec<Difference>) {
    let mut push = |side, what: String| out.push(Difference { side, place: None, what, why: None, rule: None });
    let mut both = |a: &Routing, b: &Routing, side| {
        for rule in a.rules.iter().filter(|r| !b.rules.contains(r)) {
            push(side, format!("the {} rule 'fwmark {} lookup {}'", rule.family, rule.mark, rule.table));
        }
        for route in a.routes.iter().filter(|r| !b.routes.contains(r)) {
            push(side, format!("the {} route 'local default dev lo table {}'", route.0, route.1));
        }
        if a.mesh_address && !b.mesh_address {
            push(side, "the address ::6/128 on lo".into());
        }
    };
    both(want, have, Side::Missing);
    both(have, want, Side::Unexpected);
}
