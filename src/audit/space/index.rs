//! An index of a long list of boxes, such as a chain's rules: finds those that a set of packets may
//! overlap, without comparing all of them. It is an interval tree for each of three dimensions
//! (destination, port and source), of which the one that leaves fewest boxes is used.

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::PortList;
use crate::plan::canon::{Addresses, CanonMatches};

use super::cube::Cube;
use super::known::KnownFields;

/// The ranges of a box in the three dimensions of the index.
#[derive(Debug, Clone)]
pub(crate) struct Sides<'a> {
    pub destination: &'a Addresses,
    pub port: &'a PortList,
    pub source: &'a Addresses,
}

impl<'a> Sides<'a> {
    pub(crate) fn of_rule(m: &'a CanonMatches) -> Self {
        Self { destination: &m.destination, port: &m.destination_port, source: &m.source }
    }

    pub(crate) fn of_cube(cube: &'a Cube) -> Self {
        Self { destination: &cube.destination, port: &cube.port, source: &cube.source }
    }
}

/// A list of boxes with an interval tree for each dimension.
#[derive(Debug)]
pub(crate) struct Index {
    boxes: usize,
    destination: IntervalTree<u128>,
    port: IntervalTree<u16>,
    source: IntervalTree<u128>,
}

/// Below this number of boxes comparing all of them is quicker.
pub(crate) const FEW: usize = 16;
/// A set of more ranges than that is taken to overlap everything, and a box with so many to
/// fill all that is between their ends.
const LONG: usize = 32;

impl Index {
    pub(crate) fn new<'a>(boxes: impl Iterator<Item = Sides<'a>> + Clone) -> Self {
        Self {
            boxes: boxes.clone().count(),
            destination: IntervalTree::new(boxes.clone().map(|sides| sides.destination)),
            port: IntervalTree::new(boxes.clone().map(|sides| sides.port)),
            source: IntervalTree::new(boxes.map(|sides| sides.source)),
        }
    }

    /// The boxes from number `from` on that packets may overlap, in order; `None` if there are not much
    /// fewer than `left`. A value in `known` is used instead of the set's dimension.
    pub(crate) fn of_packets(&self, set: &Cube, known: &KnownFields, from: usize, left: usize) -> Option<Vec<u32>> {
        let destination = known.destination.map(|address| RangeList::of([address]));
        let port = known.port.map(|port| RangeList::of([port]));
        let source = known.source.map(|address| RangeList::of([address]));
        let sides = Sides {
            destination: destination.as_ref().unwrap_or(&set.destination),
            port: port.as_ref().unwrap_or(&set.port),
            source: source.as_ref().unwrap_or(&set.source),
        };
        self.of_sides(&sides, from, left)
    }

    /// The boxes that a set may overlap, in order; `None` where that may be any.
    pub(crate) fn of_cube(&self, cube: &Cube) -> Option<Vec<u32>> {
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

/// The ranges of all boxes in one dimension, ordered by where they begin: an implicit interval
/// tree. The ranges of a stretch of the list are the nodes of a subtree, the middle one on top.
#[derive(Debug)]
struct IntervalTree<T> {
    /// First and last value of each range, and the number of its box.
    spans: Vec<(T, T, u32)>,
    /// For each range the largest end in the section of which it is the middle.
    furthest: Vec<T>,
    /// The ends of all ranges, sorted.
    ends: Vec<T>,
}

impl<T: Discrete> IntervalTree<T> {
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

    /// An upper bound of how many ranges share a value with a list.
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

    /// Gives the boxes that have a range in common with a list to `add`; some more than once.
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

/// Fills in the largest ends of a section; returns that of the whole section.
fn find_furthest<T: Discrete>(spans: &[(T, T, u32)], furthest: &mut [T]) -> Option<T> {
    let middle = spans.len() / 2;
    let (_, last, _) = spans.get(middle)?;
    let before = find_furthest(&spans[..middle], &mut furthest[..middle]);
    let after = find_furthest(&spans[middle + 1..], &mut furthest[middle + 1..]);
    let most = before.into_iter().chain(after).fold(*last, T::max);
    furthest[middle] = most;
    Some(most)
}
