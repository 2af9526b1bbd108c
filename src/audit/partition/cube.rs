//! A set of flows as the product of one set per dimension. Sets are intervals, so that
//! a thousand ports or ranges cost one set and not a thousand flows.

use std::collections::HashMap;

use crate::config::ranges::RangeList;
use crate::config::types::{Family, IdList, PortList};
use crate::plan::canon::{Addresses, all_addresses};
use crate::plan::model::Cond;

use super::interfaces::Kinds;

/// User or group ids; [`NOBODY`] stands for "no owner".
pub type Owners = RangeList<u64>;

/// The owner of a packet that no process sent.
pub const NOBODY: u64 = 1 << 32;

/// A set of flows of one family and direction. A flow is in it if each of its values is
/// in the set of its dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cube {
    pub protocol: RangeList<u8>,
    pub interface: Kinds,
    pub uid: Owners,
    pub gid: Owners,
    pub destination: Addresses,
    pub port: PortList,
    pub source: Addresses,
    pub source_port: PortList,
}

/// One flow, as a point of that space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    pub protocol: u8,
    pub interface: Kinds,
    pub uid: u64,
    pub gid: u64,
    pub destination: u128,
    pub port: u16,
    pub source: u128,
    pub source_port: u16,
}

/// Calls a macro for every dimension, in the order in which a set is cut: what makes
/// short sentences first.
macro_rules! each_dimension {
    ($do:ident) => {
        $do!(protocol);
        $do!(interface);
        $do!(uid);
        $do!(gid);
        $do!(destination);
        $do!(port);
        $do!(source);
        $do!(source_port);
    };
}

impl Cube {
    /// Every flow of a family; no interface is in it yet.
    pub fn whole(family: Family) -> Self {
        Self {
            protocol: RangeList::full(),
            interface: RangeList::default(),
            uid: everyone(),
            gid: everyone(),
            destination: all_addresses(family),
            port: RangeList::full(),
            source: all_addresses(family),
            source_port: RangeList::full(),
        }
    }

    pub fn holds(&self, point: &Point) -> bool {
        self.protocol.holds(point.protocol)
            && self.interface.overlaps(&point.interface)
            && self.uid.holds(point.uid)
            && self.gid.holds(point.gid)
            && self.destination.holds(point.destination)
            && self.port.holds(point.port)
            && self.source.holds(point.source)
            && self.source_port.holds(point.source_port)
    }

    /// Whether a flow is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        macro_rules! apart {
            ($dimension:ident) => {
                if !self.$dimension.overlaps(&other.$dimension) {
                    return false;
                }
            };
        }
        each_dimension!(apart);
        true
    }

    /// What both hold; `None` if that is nothing.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let both = || Self {
            protocol: self.protocol.intersection(&other.protocol),
            interface: self.interface.intersection(&other.interface),
            uid: self.uid.intersection(&other.uid),
            gid: self.gid.intersection(&other.gid),
            destination: self.destination.intersection(&other.destination),
            port: self.port.intersection(&other.port),
            source: self.source.intersection(&other.source),
            source_port: self.source_port.intersection(&other.source_port),
        };
        self.overlaps(other).then(both)
    }

    /// What is in this cube and not in the other: cubes that share nothing.
    pub fn minus(&self, other: &Self) -> Vec<Self> {
        match self.intersection(other) {
            Some(inside) => self.clone().around(&inside),
            None => vec![self.clone()],
        }
    }

    /// What is left of this cube around a part of it: cubes that share nothing.
    pub fn around(mut self, inside: &Self) -> Vec<Self> {
        let mut out = Vec::new();
        macro_rules! cut {
            ($dimension:ident) => {
                if self.$dimension != inside.$dimension {
                    let outside = self.$dimension.minus(&inside.$dimension);
                    self.$dimension = inside.$dimension.clone();
                    out.push(Self { $dimension: outside, ..self.clone() });
                }
            };
        }
        each_dimension!(cut);
        out
    }

    /// Takes in another that differs in one dimension at most; says whether it did.
    fn join(&mut self, other: &Self) -> bool {
        let mut differing = 0;
        macro_rules! count {
            ($dimension:ident) => {
                differing += u32::from(self.$dimension != other.$dimension);
                if differing > 1 {
                    return false;
                }
            };
        }
        each_dimension!(count);
        macro_rules! join {
            ($dimension:ident) => {
                if self.$dimension != other.$dimension {
                    self.$dimension.extend(&other.$dimension);
                    self.$dimension = self.$dimension.normalised();
                }
            };
        }
        each_dimension!(join);
        true
    }
}

/// Up to so many cubes each is held against all others.
const FEW: usize = 32;

/// The same flows in fewer cubes, where cubes differ in one dimension only.
pub fn merged(mut cubes: Vec<Cube>) -> Vec<Cube> {
    loop {
        let before = cubes.len();
        cubes = if before <= FEW { merged_few(cubes) } else { merged_many(cubes) };
        if cubes.len() == before {
            return cubes;
        }
    }
}

fn merged_few(cubes: Vec<Cube>) -> Vec<Cube> {
    let mut out: Vec<Cube> = Vec::with_capacity(cubes.len());
    for cube in cubes {
        if !out.iter_mut().any(|known| known.join(&cube)) {
            out.push(cube);
        }
    }
    out
}

/// The same in one go for each dimension: cubes that are alike but for it become one.
fn merged_many(mut cubes: Vec<Cube>) -> Vec<Cube> {
    macro_rules! merge {
        ($dimension:ident) => {
            let mut groups = HashMap::new();
            for mut cube in cubes {
                let list = std::mem::take(&mut cube.$dimension);
                let at = groups.len();
                let (_, lists) = groups.entry(cube).or_insert_with(|| (at, RangeList::default()));
                lists.extend(&list);
            }
            let mut merged: Vec<_> = groups.into_iter().collect();
            merged.sort_unstable_by_key(|(_, (at, _))| *at);
            cubes =
                merged.into_iter().map(|(rest, (_, lists))| Cube { $dimension: lists.normalised(), ..rest }).collect();
        };
    }
    each_dimension!(merge);
    cubes
}

/// What is in none of the others.
pub fn without(cubes: Vec<Cube>, others: &[Cube]) -> Vec<Cube> {
    others.iter().fold(cubes, |left, other| left.iter().flat_map(|cube| cube.minus(other)).collect())
}

/// Every owner, and none.
pub fn everyone() -> Owners {
    RangeList::new([(0, NOBODY)])
}

/// The owners that meet a condition: who has no owner meets only "not owned by".
pub fn owners(cond: &Cond<IdList>) -> Owners {
    let named = RangeList::new(cond.value.iter().map(|(a, b)| (u64::from(a), u64::from(b)))).normalised();
    if cond.negated { everyone().minus(&named) } else { named }
}

/// An owner as a number.
pub fn owner(id: Option<u32>) -> u64 {
    id.map_or(NOBODY, u64::from)
}
