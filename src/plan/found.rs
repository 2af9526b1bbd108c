//! Rules that were found and may be written by one builder, in which their reasons are looked for.

use super::canon_rule::CanonRule;
use super::model::{ChainName, Rule, Table};

/// A rule that was found.
pub(super) struct CandidateRule<'a> {
    /// The chain's index among all chains, and the rule's index in its chain.
    pub(super) place: (usize, usize),
    pub(super) rule: &'a Rule,
    pub(super) canon: CanonRule,
}

/// Rules of one family that one builder may have written, by chain and in order.
#[derive(Clone)]
pub(super) struct CandidateRules<'a>(pub(super) Vec<(Table, &'a ChainName, Vec<&'a CandidateRule<'a>>)>);

impl<'a> CandidateRules<'a> {
    /// The rules of a chain, in order.
    pub(super) fn of(&self, table: Table, name: ChainName) -> impl Iterator<Item = &'a Rule> + Clone {
        let chains = self.0.iter().filter(move |chain| chain.0 == table && *chain.1 == name);
        chains.flat_map(|chain| &chain.2).map(|found| found.rule)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(.., found)| found.len()).sum()
    }
}
