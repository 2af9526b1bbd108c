//! What becomes of flows that rules may or may not apply to: where all ways end alike that
//! is certain, elsewhere it is not known.

use crate::audit::explain::Decider;
use crate::audit::flow::Taker;
use crate::plan::why::Why;

use super::Part;
use super::guesses::{Guess, Guesses};
use super::near::{Near, Sides};

/// A part, and which rules that its flows may meet were taken to apply on the way there.
pub struct Way<'a> {
    pub part: Part<'a>,
    pub guesses: Guess,
    /// The last one that was.
    pub perhaps: Option<(Decider<'a>, &'a Why)>,
}

/// The most pairs of a certain and another way that are put against each other.
const MOST_PAIRS: usize = 20_000_000;

/// Flows that end alike whichever way they go are certain, others are not; the rule that
/// `explain` would name is the reason. `None` if there are too many ways, or if more than
/// `most` parts would come out.
pub fn settle<'a>(ways: Vec<Way<'a>>, guesses: &Guesses, most: usize) -> Option<Vec<Part<'a>>> {
    let places = guesses.places();
    let (certain, mut others): (Vec<_>, Vec<_>) = ways.into_iter().partition(|way| way.perhaps.is_none());
    others.sort_by_key(|way| places.get(way.guesses as usize));
    let others: Vec<Part> = others.into_iter().map(|way| Part { decider: way.perhaps, ..way.part }).collect();
    agree(certain.into_iter().map(|way| way.part).collect(), &others, most)
}

/// Flows of parts that others give to somebody else: nobody can tell, because of the rule
/// that decides there. `None` if that is too much work.
pub fn agree<'a>(parts: Vec<Part<'a>>, others: &[Part<'a>], most: usize) -> Option<Vec<Part<'a>>> {
    let near = Near::new(others.iter().map(|other| Sides::of_cube(&other.flows)));
    let (mut out, mut pairs) = (Vec::new(), 0);
    for part in parts {
        let mut left = vec![part.flows.clone()];
        let mut settle = |other: &Part<'a>| {
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
        let close = near.of_cube(&part.flows);
        pairs += close.as_ref().map_or(others.len(), Vec::len);
        if pairs > MOST_PAIRS {
            return None;
        }
        match close {
            Some(close) => close.iter().filter_map(|&at| others.get(at as usize)).for_each(&mut settle),
            None => others.iter().for_each(&mut settle),
        }
        out.extend(left.into_iter().map(|flows| Part { flows, ..part }));
        if out.len() > most {
            return None;
        }
    }
    Some(out)
}
