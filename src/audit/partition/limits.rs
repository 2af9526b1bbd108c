//! How much is cut before it is given up, and which chain is to blame.

use std::collections::HashMap;

use crate::audit::lints::shadow::chain_name;
use crate::audit::ruleset::ChainRules;
use crate::config::types::Family;

use super::cube::Cube;

/// The rules cut traffic into more parts than can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rules cut {family} traffic into too many parts, most of them in {place}; ask about single flows with 'explain', or look at the rules without these"
)]
pub struct TooManyParts {
    pub family: Family,
    /// The chain that cuts most, or how many do, in words.
    pub place: String,
}

impl TooManyParts {
    /// Because chains come in one of two orders.
    pub fn in_two_orders(family: Family) -> Self {
        Self { family, place: "chains of iptables-legacy and nftables in one place".into() }
    }
}

/// The most sets of flows that a family's traffic is cut into, half a kilobyte each.
const MOST_SETS: usize = 200_000;
/// The most work that is done on the way there: a few seconds'.
const MOST_WORK: usize = 50_000_000;
/// What a set costs, in ranges that it is made of.
const SET: usize = 16;
/// What it costs to hold it against a rule.
const LOOK: usize = 8;

/// What may still be done.
#[derive(Debug)]
pub struct Limits<'a> {
    family: Family,
    work: usize,
    sets: usize,
    cuts: HashMap<*const ChainRules, (&'a ChainRules, usize)>,
}

impl<'a> Limits<'a> {
    pub fn new(family: Family) -> Self {
        Self { family, work: MOST_WORK, sets: MOST_SETS, cuts: HashMap::new() }
    }

    /// A rule of a chain was held against a set of flows.
    pub fn look(&mut self) -> Result<(), TooManyParts> {
        self.spend(LOOK)
    }

    /// So many rules that flows may meet were listed.
    pub fn list(&mut self, rules: usize) -> Result<(), TooManyParts> {
        self.spend(rules)
    }

    /// A chain's rule cut a set in several.
    pub fn cut(&mut self, chain: &'a ChainRules, made: &[Cube]) -> Result<(), TooManyParts> {
        self.cuts.entry(chain).or_insert((chain, 0)).1 += made.len();
        let ranges = |cube: &Cube| cube.destination.len() + cube.source.len() + cube.port.len();
        self.spend(made.iter().map(|cube| SET + ranges(cube)).sum())
    }

    /// One more set of flows is kept.
    pub fn keep(&mut self) -> Result<(), TooManyParts> {
        self.sets = self.sets.checked_sub(1).ok_or_else(|| self.exceeded())?;
        Ok(())
    }

    /// So many sets of flows are on their way at once.
    pub fn hold(&self, sets: usize) -> Result<(), TooManyParts> {
        if sets > self.sets { Err(self.exceeded()) } else { Ok(()) }
    }

    fn spend(&mut self, work: usize) -> Result<(), TooManyParts> {
        self.work = self.work.checked_sub(work).ok_or_else(|| self.exceeded())?;
        Ok(())
    }

    fn exceeded(&self) -> TooManyParts {
        let all: usize = self.cuts.values().map(|(_, cuts)| cuts).sum();
        let worst = self.cuts.values().max_by_key(|(chain, cuts)| (*cuts, &chain.name));
        let place = worst.map(|(chain, cuts)| match (chain_name(chain), chain.rules.len()) {
            (name, _) if cuts * 10 < all => format!("{} chains, {name} and others", self.cuts.len()),
            (name, 1) => format!("chain {name}"),
            (name, rules) => format!("chain {name} with its {rules} rules"),
        });
        TooManyParts {
            family: self.family,
            place: place.unwrap_or_else(|| "conditions that are not understood".into()),
        }
    }
}
