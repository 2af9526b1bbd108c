//! A set of flows as the product of one set per dimension. Sets are intervals, so that
//! a thousand ports or ranges cost one set and not a thousand flows.

use crate::config::ranges::RangeList;
use crate::config::types::{Family, IdList, PortList};
use crate::plan::canon::Addresses;
use crate::plan::model::Cond;

use super::interfaces::Kinds;

/// User or group ids; [`NOBODY`] stands for "no owner".
pub type Owners = RangeList<u64>;

/// The owner of a packet that no process sent.
pub const NOBODY: u64 = 1 << 32;

/// A set of flows of one family and direction. A flow is in it if each of its values is
/// in the set of its dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
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

    /// What both hold; `None` if that is nothing.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let mut out = self.clone();
        macro_rules! cut {
            ($dimension:ident) => {
                if !other.$dimension.eq(&self.$dimension) {
                    out.$dimension = self.$dimension.intersection(&other.$dimension);
                    if out.$dimension.is_empty() {
                        return None;
                    }
                }
            };
        }
        each_dimension!(cut);
        Some(out)
    }

    /// What is in this cube and not in the other: cubes that share nothing.
    pub fn minus(&self, other: &Self) -> Vec<Self> {
        match self.intersection(other) {
            Some(inside) => self.around(&inside),
            None => vec![self.clone()],
        }
    }

    /// What is left of this cube around a part of it: cubes that share nothing.
    pub fn around(&self, inside: &Self) -> Vec<Self> {
        let mut left = self.clone();
        let mut out = Vec::new();
        macro_rules! cut {
            ($dimension:ident) => {
                if left.$dimension != inside.$dimension {
                    let outside = left.$dimension.minus(&inside.$dimension);
                    out.push(Self { $dimension: outside, ..left.clone() });
                    left.$dimension = inside.$dimension.clone();
                }
            };
        }
        each_dimension!(cut);
        out
    }

    /// The two as one, if they differ in one dimension only.
    fn joined(&self, other: &Self) -> Option<Self> {
        let mut differing = 0;
        let mut out = self.clone();
        macro_rules! compare {
            ($dimension:ident) => {
                if self.$dimension != other.$dimension {
                    differing += 1;
                    if differing > 1 {
                        return None;
                    }
                    out.$dimension.extend(&other.$dimension);
                    out.$dimension = out.$dimension.normalised();
                }
            };
        }
        each_dimension!(compare);
        Some(out)
    }
}

/// The same flows in fewer cubes, where cubes differ in one dimension only.
pub fn merged(mut cubes: Vec<Cube>) -> Vec<Cube> {
    loop {
        let before = cubes.len();
        let mut out: Vec<Cube> = Vec::with_capacity(before);
        for cube in cubes {
            match out.iter_mut().find_map(|known| known.joined(&cube).map(|both| (known, both))) {
                Some((known, both)) => *known = both,
                None => out.push(cube),
            }
        }
        if out.len() == before {
            return out;
        }
        cubes = out;
    }
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

pub fn all_addresses(family: Family) -> Addresses {
    RangeList::new([(0, if family == Family::V4 { u32::MAX.into() } else { u128::MAX })])
}
