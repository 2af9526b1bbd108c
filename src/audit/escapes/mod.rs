//! Escapes: every class of traffic that reaches its destination without the proxy.
//! Complete and exact over the rules: the parts of the space of flows that nobody takes,
//! put together by the reason for it. Classes share no flow.

mod classify;
pub mod example;
pub mod kind;
pub mod words;

use std::collections::{BTreeMap, HashMap};

use crate::config::types::{Families, Family};
use crate::plan::canon::CanonRule;
use crate::plan::why::Why;

use super::flow::{Flow, Surroundings, Taker};
use super::partition::{Part, TooManyParts};
use super::ruleset::{Decider, Ruleset};
use super::space::cube::{Cube, merged, without};
use super::space::{Scope, Space};
use kind::{EscapeKind, Severity};

/// A class of traffic that escapes, or may.
#[derive(Debug, Clone)]
pub struct Escape<'a> {
    pub kind: EscapeKind,
    pub scope: Scope,
    pub severity: Severity,
    /// The flows, by family and deciding rule. Never empty.
    pub parts: Vec<Part<'a>>,
    /// The flows of all parts, by family only: fewer sets.
    pub flows: Vec<(Family, Cube)>,
    /// One of the flows, as ordinary as the class allows.
    pub example: Flow,
    /// The proxy is a ztunnel: the pod is in ambient mode.
    pub ztunnel: bool,
}

impl<'a> Escape<'a> {
    /// Makes a class of parts; `None` if there are no flows.
    fn new(kind: EscapeKind, scope: Scope, parts: Vec<Part<'a>>, space: &Space, ztunnel: bool) -> Option<Self> {
        let mut flows = Vec::new();
        for family in Family::BOTH {
            let cubes = parts.iter().filter(|part| part.family == family).map(|part| part.flows.clone());
            flows.extend(merged(cubes.collect()).into_iter().map(|cube| (family, cube)));
        }
        let example = example::of_any(&flows, scope, space)?;
        Some(Self { kind, scope, severity: kind.severity(), parts, flows, example, ztunnel })
    }

    /// The part of the class within some disjoint sets of flows; `None` if nothing is.
    pub fn within(&self, flows: &[(Family, Cube)], space: &Space) -> Option<Self> {
        let mut parts = Vec::new();
        for part in &self.parts {
            let inside = flows.iter().filter(|(family, _)| *family == part.family);
            let inside = inside.filter_map(|(_, cube)| part.flows.intersection(cube));
            parts.extend(inside.map(|flows| Part { flows, ..*part }));
        }
        Self::new(self.kind, self.scope, fewer(parts), space, self.ztunnel)
    }

    /// The class without some of its flows; `None` if nothing is left.
    pub fn without(&self, flows: &[(Family, Cube)], space: &Space) -> Option<Self> {
        let mut parts = Vec::new();
        for part in &self.parts {
            let others: Vec<Cube> =
                flows.iter().filter(|(family, _)| *family == part.family).map(|(_, cube)| cube.clone()).collect();
            let left = without(vec![part.flows.clone()], &others);
            parts.extend(left.into_iter().map(|flows| Part { flows, ..*part }));
        }
        Self::new(self.kind, self.scope, fewer(parts), space, self.ztunnel)
    }

    /// The stable name of the class.
    pub fn id(&self) -> String {
        format!("{}-{}", scope_name(self.scope), self.kind.id())
    }

    pub fn title(&self) -> String {
        self.kind.title(self.scope)
    }

    pub fn closes(&self) -> &'static str {
        self.kind.closes(self.scope, self.ztunnel)
    }

    /// Whether it is not known that the class escapes: the deciding rule is not understood.
    pub fn is_undecided(&self) -> bool {
        matches!(self.kind, EscapeKind::Undecided | EscapeKind::UndecidedOther)
    }

    pub fn families(&self) -> Families {
        self.parts.iter().fold(Families::NONE, |all, part| all.union(Families::only(part.family)))
    }

    /// The rules that let the class out, each once and with its reason; none for flows that no rule
    /// matches.
    pub fn rules(&self) -> Vec<(Family, Decider<'a>, &'a Why)> {
        let mut known: HashMap<*const CanonRule, Vec<&Why>> = HashMap::new();
        let mut out = Vec::new();
        for part in &self.parts {
            let Some((decider, why)) = part.decider else { continue };
            let reasons = known.entry(decider.rule).or_default();
            if !reasons.contains(&why) {
                reasons.push(why);
                out.push((part.family, decider, why));
            }
        }
        out
    }
}

/// How a class's name begins.
pub fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Outbound => "outbound",
        Scope::Local => "local",
        Scope::Inbound => "inbound",
        Scope::Transit => "transit",
    }
}

/// The families in which traffic can escape: those the pod has a global address in. Of a
/// pod of which no such address is known, those that anybody made rules for, or both.
pub fn families(ruleset: &Ruleset, pod: &Surroundings) -> Families {
    let ruled = |family| !ruleset.family(family).is_empty();
    let guesses = [pod.families(), Families { v4: ruled(Family::V4), v6: ruled(Family::V6) }];
    guesses.into_iter().find(|families| !families.is_empty()).unwrap_or(Families::BOTH)
}

/// Every escape, the worst first.
///
/// # Errors
///
/// More parts than an audit takes, with the chain that makes them.
pub fn find<'a>(ruleset: &'a Ruleset, space: &Space) -> Result<Vec<Escape<'a>>, TooManyParts> {
    find_in(ruleset, space, families(ruleset, space.pod))
}

/// Every escape in some families.
///
/// # Errors
///
/// More parts than an audit takes, with the chain that makes them.
pub fn find_in<'a>(ruleset: &'a Ruleset, space: &Space, families: Families) -> Result<Vec<Escape<'a>>, TooManyParts> {
    let captured = classify::Captured::of(ruleset);
    let mut classes: BTreeMap<(EscapeKind, Scope), Vec<Part<'a>>> = BTreeMap::new();
    for family in families.iter() {
        for part in space.parts(ruleset, family)? {
            if !matches!(part.taker, Taker::Direct | Taker::Unknown) {
                continue;
            }
            for (kind, part) in classify::classify(part, space, captured) {
                classes.entry((kind, part.scope)).or_default().push(part);
            }
        }
    }
    let escape = |((kind, scope), parts)| Escape::new(kind, scope, fewer(parts), space, captured.ztunnel);
    let mut out: Vec<Escape> = classes.into_iter().filter_map(escape).collect();
    out.sort_by_key(|escape| (std::cmp::Reverse(escape.severity), escape.kind, escape.scope));
    Ok(out)
}

/// Parts that hold the flows of those given, but are fewer: those with one decider are put together.
fn fewer<'a>(parts: Vec<Part<'a>>) -> Vec<Part<'a>> {
    let mut groups: Vec<Vec<Part<'a>>> = Vec::new();
    // Groups by the rule that decides; it may have several reasons.
    let mut places: HashMap<(Family, Option<*const CanonRule>), Vec<usize>> = HashMap::new();
    for part in parts {
        let rule = part.decider.map(|(decider, _)| std::ptr::from_ref(decider.rule));
        let groups_of_rule = places.entry((part.family, rule)).or_default();
        match groups_of_rule.iter().find(|&&at| groups[at][0].same_decider(&part)) {
            Some(&at) => groups[at].push(part),
            None => {
                groups_of_rule.push(groups.len());
                groups.push(vec![part]);
            }
        }
    }
    let merge = |group: Vec<Part<'a>>| -> Vec<Part<'a>> {
        let cubes = merged(group.iter().map(|part| part.flows.clone()).collect());
        cubes.into_iter().map(|flows| Part { flows, ..group[0] }).collect()
    };
    groups.into_iter().flat_map(merge).collect()
}
