//! Sets of packets as what travels, with an index of the long chains that they go through.

use std::collections::HashMap;

use crate::audit::ruleset::{ChainRules, FamilyRules};
use crate::audit::space::cube::Cube;
use crate::audit::space::index::{FEW, Index, Sides};
use crate::audit::space::interfaces::Interfaces;
use crate::audit::space::known::KnownFields;
use crate::plan::canon::CanonMatches;

use super::traffic::Traffic;

/// A family's chains, with what it takes to hold sets of packets against their rules.
pub(crate) struct Chains<'s> {
    interfaces: &'s Interfaces,
    /// The index of each long chain's rules.
    indexes: HashMap<*const ChainRules, Index>,
}

impl<'s> Chains<'s> {
    pub(crate) fn new(rules: &FamilyRules, interfaces: &'s Interfaces) -> Self {
        let long = rules.chains.iter().filter(|chain| chain.rules.len() > FEW);
        let index = |chain: &ChainRules| Index::new(chain.rules.iter().map(|rule| Sides::of_rule(&rule.matches)));
        Self { interfaces, indexes: long.map(|chain| (std::ptr::from_ref(chain), index(chain))).collect() }
    }
}

/// A set of packets that walks through chains.
#[derive(Clone)]
pub(crate) struct Flows<'s> {
    pub set: Cube,
    pub chains: &'s Chains<'s>,
}

/// The cost of a set besides its ranges.
const SET: usize = 16;

impl Traffic for Flows<'_> {
    fn inside(&self, known: &KnownFields, asked: &CanonMatches) -> Option<Self> {
        self.set.inside(known, asked, self.chains.interfaces).map(|set| Self { set, ..*self })
    }

    fn is_all(&self, part: &Self) -> bool {
        self.set == part.set
    }

    fn around(&self, part: &Self) -> Vec<Self> {
        let pieces = self.set.clone().around(&part.set);
        pieces.into_iter().map(|set| Self { set, ..*self }).collect()
    }

    fn ahead(&self, known: &KnownFields, chain: &ChainRules, from: usize, left: usize) -> Option<Vec<u32>> {
        let index = self.chains.indexes.get(&std::ptr::from_ref(chain))?;
        index.of_packets(&self.set, known, from, left)
    }

    fn nobody_is(&mut self, nobody: u64) {
        self.set.nobody_is(nobody);
    }

    fn size(&self) -> usize {
        SET + self.set.destination.len() + self.set.source.len() + self.set.port.len()
    }
}
