//! The limits of a walk, and which chain is to blame if they are exceeded.

use std::collections::HashMap;

use crate::audit::ruleset::{ChainRules, Decider};

/// The cost of comparing a rule with traffic.
const LOOK: usize = 8;

/// How many possibilities of a packet may be put aside at once.
const MOST_OPEN: usize = 100_000;

/// How many rules a flow may meet on one walk: chains that each jump often to the next one could
/// lead through more than there is time for.
pub(crate) const MOST_RULES: usize = 2_000_000;

/// The work that a walk may still do, and the sets that may be pending.
#[derive(Debug)]
pub(crate) struct Limits<'a> {
    work: usize,
    /// How many sets may be pending at once.
    sets: usize,
    /// How many sets each chain has cut off.
    cuts: HashMap<*const ChainRules, (&'a ChainRules, usize)>,
}

/// A walk exceeds its limits.
#[derive(Debug)]
pub(crate) struct Exceeded<'a> {
    /// The rule that was looked at last.
    pub rule: Decider<'a>,
}

impl<'a> Limits<'a> {
    /// The limits of a walk that may evaluate so many rules.
    pub(crate) fn of_rules(rules: usize) -> Self {
        Self::new(rules * LOOK, MOST_OPEN)
    }

    /// The limits of a walk that may do so much work, with so many sets pending at once.
    pub(crate) fn new(work: usize, sets: usize) -> Self {
        Self { work, sets, cuts: HashMap::new() }
    }

    /// Charges the evaluation of a rule; fails if the work is used up.
    pub(crate) fn look(&mut self, rule: Decider<'a>) -> Result<(), Exceeded<'a>> {
        self.work = self.work.checked_sub(LOOK).ok_or(Exceeded { rule })?;
        Ok(())
    }

    /// Charges work; if that is too much, the next [`Limits::look`] fails.
    pub(crate) fn charge(&mut self, work: usize) {
        self.work = self.work.saturating_sub(work);
    }

    /// Records that a rule has cut off sets, and charges their size.
    pub(crate) fn cut(&mut self, sets: usize, size: usize, rule: Decider<'a>) {
        self.cuts.entry(rule.chain).or_insert((rule.chain, 0)).1 += sets;
        self.charge(size);
    }

    /// Fails if more sets are pending than the limit.
    pub(crate) fn hold(&self, sets: usize, rule: Decider<'a>) -> Result<(), Exceeded<'a>> {
        if sets > self.sets { Err(Exceeded { rule }) } else { Ok(()) }
    }

    /// Records that a set has come to its end and is kept; `false` if no more may be.
    pub(crate) fn keep(&mut self) -> bool {
        self.sets = self.sets.saturating_sub(1);
        self.sets > 0
    }

    /// The chain that has cut most, or how many have, in words.
    pub(crate) fn most_cut(&self) -> Option<String> {
        let all: usize = self.cuts.values().map(|(_, cuts)| cuts).sum();
        let (chain, cuts) = self.cuts.values().max_by_key(|(chain, cuts)| (*cuts, &chain.name))?;
        Some(match (chain.full_name(), chain.rules.len()) {
            (name, _) if cuts * 10 < all => format!("{} chains, {name} and others", self.cuts.len()),
            (name, 1) => format!("chain {name}"),
            (name, rules) => format!("chain {name} with its {rules} rules"),
        })
    }
}
