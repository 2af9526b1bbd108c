//! The canonical form: what a plan means, without how it is written down.
//!
//! A backend may hold "these 500 ranges" as one rule with a set or as 500 rules; it may
//! sort a list, drop what another entry covers, or merge neighbours. None of that
//! changes a verdict. The canonical form of one family has every condition as a sorted
//! interval set, and rules that differ in one condition only are one rule, as long as
//! moving them together changes nothing: they may pass over rules that no packet can
//! meet together with them. Plans are equal, and hash equal, when their canonical forms
//! are. Comments and counters are no part of it.

use std::collections::BTreeMap;

use crate::config::types::{Families, Family};

pub use super::canon_rule::{
    Addresses, CanonMatches, CanonRule, address, addresses, all_addresses, cover, distinct_addresses, number,
};
use super::fold;
use super::model::{ChainName, Plan, Routing, Rule, Table};

/// A plan's chains for one family, in canonical form.
pub type CanonChains = BTreeMap<(Table, ChainName), Vec<CanonRule>>;

/// A plan in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canon {
    pub v4: CanonChains,
    pub v6: CanonChains,
    pub routing: Routing,
}

impl Canon {
    pub fn of(plan: &Plan) -> Self {
        let chains = |family| if plan.families.has(family) { canon_chains(plan, family) } else { CanonChains::new() };
        Self { v4: chains(Family::V4), v6: chains(Family::V6), routing: plan.routing.normalised() }
    }

    pub fn family(&self, family: Family) -> &CanonChains {
        if family == Family::V4 { &self.v4 } else { &self.v6 }
    }

    pub fn families(&self) -> Families {
        Families { v4: !self.v4.is_empty(), v6: !self.v6.is_empty() }
    }
}

fn canon_chains(plan: &Plan, family: Family) -> CanonChains {
    let mut out = CanonChains::new();
    for chain in &plan.chains {
        let rules = canon_rules(&chain.rules, family);
        if !rules.is_empty() {
            out.insert((chain.table, chain.name.clone()), rules);
        }
    }
    out
}

/// The canonical form of a chain's rules for one family.
pub fn canon_rules(rules: &[Rule], family: Family) -> Vec<CanonRule> {
    let rules = rules.iter().filter(|rule| rule.families.has(family));
    fold::folded(rules.filter_map(|rule| CanonRule::of(rule, family)).collect())
}

impl Canon {
    /// Whether both hold the same rules, whatever their routing.
    pub fn same_rules(&self, other: &Self) -> bool {
        self.v4 == other.v4 && self.v6 == other.v6
    }

    /// The tables whose rules for a family differ.
    pub fn differing_tables(&self, other: &Self, family: Family) -> Vec<Table> {
        let rules = |canon: &Self, table| {
            let chains = canon.family(family).iter().filter(|((t, _), _)| *t == table);
            chains.map(|(key, rules)| (key.clone(), rules.clone())).collect::<Vec<_>>()
        };
        Table::ALL.into_iter().filter(|&table| rules(self, table) != rules(other, table)).collect()
    }
}
