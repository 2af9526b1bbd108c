//! Which boxes of a long list a set of flows may meet, without looking at all of them: by
//! destination, port or source, whichever leaves fewest.

use std::collections::HashMap;

use crate::audit::ruleset::{ChainRules, FamilyRules};
use crate::config::ranges::{RangeList, Step};
use crate::config::types::PortList;
use crate::plan::canon::{Addresses, CanonMatches};

use super::cube::Cube;
use super::state::State;

/// The dimensions in which long lists of rules tell flows apart.
#[derive(Debug, Clone)]
pub struct Sides<'a> {
    pub destination: &'a Addresses,
    pub port: &'a PortList,
    pub source: &'a Addresses,
}

impl<'a> Sides<'a> {
    pub fn of_rule(m: &'a CanonMatches) -> Self {
        Self { destination: &m.destination, port: &m.destination_port, source: &m.source }
    }

    pub fn of_cube(cube: &'a Cube) -> Self {
        Self { destination: &cube.destination, port: &cube.port, source: &cube.source }
    }
}

/// A list of boxes, ordered by each of their sides.
#[derive(Debug)]
pub struct Near {
    boxes: usize,
    destination: Spans<u128>,
    port: Spans<u16>,
    source: Spans<u128>,
}

/// Below so many boxes it is quicker to look at all.
const FEW: usize = 16;
/// Sets of more ranges than that are taken to be near everything, or for all that is
/// between their ends.
const LONG: usize = 32;

impl Near {
    pub fn new<'a>(boxes: impl Iterator<Item = Sides<'a>> + Clone) -> Self {
        Self {
            boxes: boxes.clone().count(),
            destination: Spans::new(boxes.clone().map(|sides| sides.destination)),
            port: Spans::new(boxes.clone().map(|sides| sides.port)),
            source: Spans::new(boxes.map(|sides| sides.source)),
        }
    }

    /// The boxes from number `from` on that a state may meet, in order; `None` where they
    /// are not much fewer than `left`.
    pub fn of_state(&self, state: &State, from: usize, left: usize) -> Option<Vec<u32>> {
        let (destination, port) =
            (state.destination.map(|a| RangeList::of([a])), state.port.map(|p| RangeList::of([p])));
        let sides = Sides {
            destination: destination.as_ref().unwrap_or(&state.flows.destination),
            port: port.as_ref().unwrap_or(&state.flows.port),
            source: &state.flows.source,
        };
        self.of_sides(&sides, from, left)
    }

    /// The boxes that a cube may meet, in order; `None`: perhaps all.
    pub fn of_cube(&self, cube: &Cube) -> Option<Vec<u32>> {
        self.of_sides(&Sides::of_cube(cube), 0, self.boxes)
    }

    fn of_sides(&self, sides: &Sides, from: usize, left: usize) -> Option<Vec<u32>> {
        if left < FEW {
            return None;
        }
        let by_destination = self.destination.count(sides.destination);
        let by_port = self.port.count(sides.port);
        let by_source = self.source.count(sides.source);
        let best = by_destination.min(by_port).min(by_source);
        if best >= left / 2 {
            return None;
        }
        let mut out = Vec::with_capacity(best);
        let mut add = |number: u32| out.extend((number as usize >= from).then_some(number));
        match best {
            _ if best == by_destination => self.destination.each(sides.destination, &mut add),
            _ if best == by_port => self.port.each(sides.port, &mut add),
            _ => self.source.each(sides.source, &mut add),
        }
        out.sort_unstable();
        out.dedup();
        Some(out)
    }
}

/// A family's chains, the long ones with an index of their rules.
pub struct Chains<'a> {
    pub rules: &'a FamilyRules,
    near: HashMap<*const ChainRules, Near>,
}

impl<'a> Chains<'a> {
    pub fn new(rules: &'a FamilyRules) -> Self {
        let long = rules.chains.iter().filter(|chain| chain.rules.len() > FEW);
        let near = |chain: &ChainRules| Near::new(chain.rules.iter().map(|rule| Sides::of_rule(&rule.matches)));
        Self { rules, near: long.map(|chain| (std::ptr::from_ref(chain), near(chain))).collect() }
    }

    /// The index of a chain, if it has one.
    pub fn near(&self, chain: &ChainRules) -> Option<&Near> {
        self.near.get(&std::ptr::from_ref(chain))
    }
}

/// Ranges of boxes, ordered by where they begin; those of a stretch are the nodes of a
/// tree, the middle one on top.
#[derive(Debug)]
struct Spans<T> {
    /// First and last value, and the number of the box.
    spans: Vec<(T, T, u32)>,
    /// For each span the furthest end in the stretch that it is the middle of.
    furthest: Vec<T>,
    ends: Vec<T>,
}

impl<T: Step> Spans<T> {
    fn new<'a>(lists: impl Iterator<Item = &'a RangeList<T>>) -> Self
    where
        T: 'a,
    {
        let of_box = |(at, list): (usize, &'a RangeList<T>)| {
            let long = list.len() > LONG;
            let ends = list.iter().next().zip(list.iter().next_back()).filter(|_| long);
            let hull = ends.map(|((first, _), (_, last))| (first, last));
            let single = list.iter().filter(move |_| !long);
            hull.into_iter().chain(single).map(move |(a, b)| (a, b, at as u32))
        };
        let mut spans: Vec<(T, T, u32)> = lists.enumerate().flat_map(of_box).collect();
        spans.sort_unstable();
        let mut ends: Vec<T> = spans.iter().map(|span| span.1).collect();
        let mut furthest = ends.clone();
        find_furthest(&spans, &mut furthest);
        ends.sort_unstable();
        Self { spans, furthest, ends }
    }

    /// How many ranges share a value with a list; no fewer than there are.
    fn count(&self, list: &RangeList<T>) -> usize {
        if list.len() > LONG {
            return usize::MAX;
        }
        let of_range = |(first, last)| {
            let begun = self.spans.partition_point(|span| span.0 <= last);
            begun - self.ends.partition_point(|end| *end < first)
        };
        list.iter().map(of_range).sum()
    }

    /// The boxes with such a range; some twice.
    fn each(&self, list: &RangeList<T>, add: &mut impl FnMut(u32)) {
        for (first, last) in list.iter() {
            let mut open = vec![(0, self.spans.len())];
            while let Some((from, to)) = open.pop() {
                let middle = from + (to - from) / 2;
                let (Some(&(a, b, number)), Some(&furthest)) = (self.spans.get(middle), self.furthest.get(middle))
                else {
                    continue;
                };
                if from == to || furthest < first {
                    continue;
                }
                open.push((from, middle));
                if a <= last {
                    if b >= first {
                        add(number);
                    }
                    open.push((middle + 1, to));
                }
            }
        }
    }
}

fn find_furthest<T: Step>(spans: &[(T, T, u32)], furthest: &mut [T]) -> Option<T> {
    let middle = spans.len() / 2;
    let (_, last, _) = spans.get(middle)?;
    let before = find_furthest(&spans[..middle], &mut furthest[..middle]);
    let after = find_furthest(&spans[middle + 1..], &mut furthest[middle + 1..]);
    let most = before.into_iter().chain(after).fold(*last, T::max);
    furthest[middle] = most;
    Some(most)
}
