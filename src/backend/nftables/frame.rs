//! What stays of a table while its rules are replaced: its chains.
//!
//! The kernel gives every packet that enters a base chain either all old rules or all new
//! ones. But a base chain that is deleted goes on for a moment with its old rules after the
//! new ones have come into force (`nf_tables_commit`, nf_tables_api.c, unregisters its hook
//! last), so that a packet would pass both, if another one took its place. So base chains
//! stay wherever they sit where they should.

use super::names;
use crate::backend::hook::Base;
use crate::plan::model::{Chain, Table};

/// A table's chains, and whether it is a table like those we make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// The chains' names, and hook and priority of base chains.
    pub chains: Vec<(String, Option<Base>)>,
    /// Whether the table is switched off, or has sets that stay when rules are removed.
    pub odd: bool,
}

impl Frame {
    /// The chains that a table has by a plan.
    pub fn of(table: Table, chains: &[&Chain]) -> Self {
        let hook = |chain: &Chain| names::base(table, &chain.name);
        Self { chains: chains.iter().map(|c| (names::chain(&c.name), hook(c))).collect(), odd: false }
    }

    /// Whether a table with these chains can get those that are wanted without one of them
    /// being taken away and made again.
    pub fn fits(&self, wanted: &Self) -> bool {
        let stays = |(name, hook): &(String, Option<Base>)| {
            wanted.chains.iter().find(|(other, _)| other == name).is_none_or(|(_, other)| other == hook)
        };
        !self.odd && !wanted.odd && self.chains.iter().all(stays)
    }

    pub fn has(&self, chain: &str) -> bool {
        self.chains.iter().any(|(name, _)| name == chain)
    }
}
