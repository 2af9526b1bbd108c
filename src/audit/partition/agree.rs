//! Combines the possible outcomes of flows when it is not known whether rules apply: where all outcomes
//! are the same that one is certain, elsewhere the outcome is unknown.

use crate::audit::flow::Taker;
use crate::audit::space::index::{Index, Sides};
use crate::audit::walk::journey::Cause;

use super::part::Part;

/// One of the outcomes that are possible for some flows.
pub(super) struct PossibleEnd<'a> {
    pub part: Part<'a>,
    /// The last uncertain rule that was assumed to apply; `None` for the one outcome of each flow for
    /// which none was.
    pub assumed: Option<Cause<'a>>,
}

/// The most pairs of parts that are compared.
const MOST_PAIRS: usize = 20_000_000;

/// Combines all outcomes, in the order in which they were found, to parts. Flows whose outcomes are all
/// the same are certain. Other flows get the outcome "unknown", with the rule that was assumed to apply
/// in the first outcome that differs. `None` if that is too much work, or if there would be more than
/// `most` parts.
pub(super) fn certain<'a>(outcomes: Vec<PossibleEnd<'a>>, most: usize) -> Option<Vec<Part<'a>>> {
    let (first, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.assumed.is_none());
    let others: Vec<Part> =
        others.into_iter().map(|outcome| Part { decider: outcome.assumed, ..outcome.part }).collect();
    agreed(first.into_iter().map(|outcome| outcome.part).collect(), &others, most)
}

/// Combines parts with others that are possible as well: flows about which both do not agree get the
/// outcome "unknown", with the rule that decides in the others. `None` if that is too much work, or if
/// there would be more than `most` parts.
pub(super) fn agreed<'a>(parts: Vec<Part<'a>>, others: &[Part<'a>], most: usize) -> Option<Vec<Part<'a>>> {
    let index = Index::new(others.iter().map(|other| Sides::of_cube(&other.flows)));
    let (mut out, mut pairs) = (Vec::new(), 0);
    for part in parts {
        let mut left = vec![part.flows.clone()];
        let mut compare = |other: &Part<'a>| {
            if other.taker == part.taker || !other.flows.overlaps(&part.flows) {
                return;
            }
            let mut rest = Vec::new();
            for flows in std::mem::take(&mut left) {
                let Some(inside) = flows.intersection(&other.flows) else {
                    rest.push(flows);
                    continue;
                };
                rest.extend(flows.around(&inside));
                let decider = other.decider.or(part.decider);
                out.push(Part { flows: inside, taker: Taker::Unknown, decider, ..part });
            }
            left = rest;
        };
        let overlapping = index.of_cube(&part.flows);
        pairs += overlapping.as_ref().map_or(others.len(), Vec::len);
        if pairs > MOST_PAIRS {
            return None;
        }
        match overlapping {
            Some(overlapping) => {
                overlapping.iter().filter_map(|&at| others.get(at as usize)).for_each(&mut compare);
            }
            None => others.iter().for_each(&mut compare),
        }
        out.extend(left.into_iter().map(|flows| Part { flows, ..part }));
        if out.len() > most {
            return None;
        }
    }
    Some(out)
}
