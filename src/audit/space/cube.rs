//! A set of packets as the product of one set per dimension. Sets are intervals, so that
//! a thousand ports or ranges cost one set and not a thousand packets.

use std::collections::HashMap;

use crate::config::ranges::RangeList;
use crate::config::types::{Family, PortList};
use crate::plan::canon::{Addresses, CanonMatches, all_addresses};

pub(crate) use super::dimensions::processes;
pub use super::dimensions::{NOBODY, Owners, everyone, owner, owners};
use super::dimensions::{Narrows, each_dimension, make_known_as};
use super::interfaces::{Interfaces, Kinds};
use super::known::KnownFields;

macro_rules! define {
    ($($name:ident, $asked:ident, $set:ty, $value:ty, $told:ty;)*) => {
        /// A set of packets of one family. A packet is in it if each of its values is in the
        /// set of its dimension. No dimension's set is empty: an operation that would leave
        /// nothing gives no set.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct Cube {
            $(pub $name: $set,)*
        }

        /// A point of the space: one packet.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Point {
            $(pub $name: $value,)*
        }

        impl Cube {
            /// Whether a packet is in the set.
            pub fn holds(&self, point: &Point) -> bool {
                $(self.$name.holds(point.$name))&&*
            }

            /// Whether a packet is in both sets.
            pub fn overlaps(&self, other: &Self) -> bool {
                $(self.$name.overlaps(&other.$name))&&*
            }

            /// The packets in both sets; `None` if there are none.
            pub fn intersection(&self, other: &Self) -> Option<Self> {
                self.overlaps(other).then(|| Self { $($name: self.$name.intersection(&other.$name),)* })
            }

            /// The packets of the set that meet a rule's conditions; `None` if none do. Where a
            /// dimension has a known value only that counts, and the set keeps its own.
            pub(in crate::audit) fn inside(
                &self,
                known: &KnownFields,
                asked: &CanonMatches,
                interfaces: &Interfaces,
            ) -> Option<Self> {
                Some(Self {
                    $($name: match known.$name {
                        Some(_) => self.$name.clone(),
                        None => asked.$asked.narrow(&self.$name, interfaces)?,
                    },)*
                })
            }

            /// This set without a part of it, as disjoint sets.
            pub fn around(mut self, inside: &Self) -> Vec<Self> {
                let mut out = Vec::new();
                $(if self.$name != inside.$name {
                    let outside = self.$name.minus(&inside.$name);
                    self.$name = inside.$name.clone();
                    out.push(Self { $name: outside, ..self.clone() });
                })*
                out
            }

            /// Takes in another set that differs in one dimension at most; says whether it did.
            fn join(&mut self, other: &Self) -> bool {
                let mut differing = 0;
                $(differing += u32::from(self.$name != other.$name);
                if differing > 1 {
                    return false;
                })*
                $(if self.$name != other.$name {
                    self.$name.extend(&other.$name);
                    self.$name = self.$name.normalised();
                })*
                true
            }
        }

        /// Merges sets that differ in one dimension only, for each dimension in one pass.
        fn merged_many(mut cubes: Vec<Cube>) -> Vec<Cube> {
            $(let mut groups = HashMap::new();
            for mut cube in cubes {
                let list = std::mem::take(&mut cube.$name);
                let at = groups.len();
                let (_, lists) = groups.entry(cube).or_insert_with(|| (at, RangeList::default()));
                lists.extend(&list);
            }
            let mut merged: Vec<_> = groups.into_iter().collect();
            merged.sort_unstable_by_key(|(_, (at, _))| *at);
            cubes = merged.into_iter().map(|(rest, (_, lists))| Cube { $name: lists.normalised(), ..rest }).collect();)*
            cubes
        }
    };
}
each_dimension!(define);

impl Cube {
    /// Every packet of a family; no interface is in it yet.
    pub fn whole(family: Family) -> Self {
        Self {
            protocol: RangeList::full(),
            in_interface: Kinds::default(),
            out_interface: Kinds::default(),
            uid: everyone(),
            gid: everyone(),
            destination: all_addresses(family),
            port: RangeList::full(),
            source: all_addresses(family),
            source_port: RangeList::full(),
            state: RangeList::full(),
        }
    }

    /// Changes "no owner" in the set to `nobody`, as the next rules see it.
    pub(crate) fn nobody_is(&mut self, nobody: u64) {
        make_known_as(&mut self.uid, nobody);
        make_known_as(&mut self.gid, nobody);
    }

    /// The packets of the set that can occur: who has no user has no group.
    pub(crate) fn occurring(mut self) -> Option<Self> {
        let nobody: Owners = RangeList::of([NOBODY]);
        if self.uid == nobody || self.gid == nobody {
            if !(self.uid.holds(NOBODY) && self.gid.holds(NOBODY)) {
                return None;
            }
            (self.uid, self.gid) = (nobody.clone(), nobody);
        }
        Some(self)
    }

    /// This set without the other one, as disjoint sets.
    pub fn minus(&self, other: &Self) -> Vec<Self> {
        match self.intersection(other) {
            Some(inside) => self.clone().around(&inside),
            None => vec![self.clone()],
        }
    }
}

/// Up to this number of sets each is compared with all others.
const FEW: usize = 32;

/// Sets that hold the packets of those given, but are fewer: those that differ in one dimension only
/// become one.
pub fn merged(mut cubes: Vec<Cube>) -> Vec<Cube> {
    loop {
        let before = cubes.len();
        cubes = if before <= FEW { merged_few(cubes) } else { merged_many(cubes) };
        if cubes.len() == before {
            return with_nobodys(cubes);
        }
    }
}

/// Puts packets without an owner to those of processes that differ in nothing else. (Packets with
/// a user and no group, of which there are none, come along.)
fn with_nobodys(cubes: Vec<Cube>) -> Vec<Cube> {
    let nobody: Owners = RangeList::of([NOBODY]);
    let (nobodys, mut others): (Vec<_>, Vec<_>) =
        cubes.into_iter().partition(|cube| cube.uid == nobody && cube.gid == nobody);
    if others.is_empty() {
        return nobodys;
    }
    for mut cube in nobodys {
        let alike = others.iter_mut().find(|other| {
            cube.uid.clone_from(&other.uid);
            cube.gid.clone_from(&other.gid);
            **other == cube
        });
        match alike {
            Some(other) => [&mut other.uid, &mut other.gid].into_iter().for_each(|owners| {
                owners.extend(&nobody);
                *owners = owners.normalised();
            }),
            None => others.push(Cube { uid: nobody.clone(), gid: nobody.clone(), ..cube }),
        }
    }
    others
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

/// Some sets without the packets of others.
pub fn without(cubes: Vec<Cube>, others: &[Cube]) -> Vec<Cube> {
    others.iter().fold(cubes, |left, other| left.iter().flat_map(|cube| cube.minus(other)).collect())
}
