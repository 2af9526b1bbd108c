//! What becomes of flows that rules may or may not apply to: where all possible outcomes are
//! alike that is certain, elsewhere it is not known.

use crate::audit::flow::Taker;
use crate::audit::space::index::{Index, Sides};
use crate::audit::walk::journey::Cause;

use super::part::Part;

/// What may become of flows: one of the outcomes that are possible for them.
pub(super) struct PossibleEnd<'a> {
    pub part: Part<'a>,
    /// The last rule before it that was taken to apply although that is not known; `None` for
    /// the one outcome of each flow that comes of taking none to.
    pub assumed: Option<Cause<'a>>,
}

/// The most pairs of a certain part and another one that are held against each other.
const MOST_PAIRS: usize = 20_000_000;

/// The parts of all flows, of all their outcomes in the order in which these were found. Flows
/// whose outcomes are all alike are certain. What becomes of others is not known, because of
/// the rule that was taken to apply for the first outcome that is another. `None` if there are
/// too many of them, or if more than `most` parts would come out.
pub(super) fn certain<'a>(outcomes: Vec<PossibleEnd<'a>>, most: usize) -> Option<Vec<Part<'a>>> {
    let (first, others): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.assumed.is_none());
    let others: Vec<Part> =
        others.into_iter().map(|outcome| Part { decider: outcome.assumed, ..outcome.part }).collect();
    agreed(first.into_iter().map(|outcome| outcome.part).collect(), &others, most)
}

/// The parts of all flows, where these may also end as others say: what becomes of those that
/// the two do not agree about is not known, because of the rule that decides in the others.
/// `None` if that is too much work, or if more than `most` parts would come out.
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
