//! Input for iptables-restore --noflush: what leads from one state of a family's tables
//! to another. A table is one commit, and changes at once.

use std::collections::HashMap;
use std::fmt::Write;

use crate::config::types::Family;
use crate::plan::model::{Chain, ChainName, Dataplane, Table};

use super::ours::{self, OwnPart};
use super::parse::{Saved, SavedRule, SavedTable};
use super::render;

/// The chains and rules that an interception needs in a table, in iptables' words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedTable {
    pub chains: Vec<ChainName>,
    /// Rules in hooks: the hook, the position in it (from 1 on; `None`: at the end), the words.
    pub hook_rules: Vec<(ChainName, Option<usize>, String)>,
    pub chain_rules: Vec<(ChainName, String)>,
}

impl WantedTable {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The chains and rules that a lowered plan needs in a table. Its rules stand first in a hook, so that
/// no foreign rule can keep packets from them; those of an ambient pod stand last, as they do in other
/// implementations of ambient mode.
pub fn wanted(lowered: &[Chain], table: Table, family: Family, comments: bool) -> WantedTable {
    let mut out = WantedTable::default();
    let first = Dataplane::of(lowered) != Dataplane::Ambient;
    for chain in lowered.iter().filter(|c| c.table == table) {
        let rules = chain.rules.iter().map(|rule| render::rule(rule, family, comments));
        if chain.name.is_hook() {
            out.hook_rules
                .extend(rules.enumerate().map(|(at, words)| (chain.name.clone(), first.then_some(at + 1), words)));
        } else {
            out.chains.push(chain.name.clone());
            out.chain_rules.extend(rules.map(|words| (chain.name.clone(), words)));
        }
    }
    out
}

/// The chains and rules that an interception has in a listed table, at their positions among foreign
/// rules, for restoring them.
pub fn as_found(saved: &Saved, table: Table) -> WantedTable {
    let Some(saved) = saved.table(table.name()) else { return WantedTable::default() };
    let part = own_part(table, saved);
    let mut positions: HashMap<&str, usize> = HashMap::new();
    let mut hook_rules = Vec::new();
    for rule in &saved.rules {
        let position = positions.entry(rule.chain.as_str()).and_modify(|n| *n += 1).or_insert(1);
        if part.hook_rules.iter().any(|(_, ours)| std::ptr::eq(*ours, rule)) {
            hook_rules.push((ChainName::by_name(&rule.chain), Some(*position), rule.words.clone()));
        }
    }
    let words = |(chain, rule): &(ChainName, &SavedRule)| (chain.clone(), rule.words.clone());
    WantedTable { chains: part.chains.clone(), hook_rules, chain_rules: part.chain_rules.iter().map(words).collect() }
}

fn own_part(table: Table, saved: &SavedTable) -> OwnPart<&SavedRule> {
    let chains = saved.by_chain();
    ours::own_part(table, chains.iter().map(|(name, rules)| (name, rules.iter().copied())), |rule| &rule.rule)
}

/// The script that changes one table from what is held to what is wanted. Empty if nothing has to
/// change.
pub fn table(table: Table, now: Option<&Saved>, wanted: &WantedTable) -> String {
    let saved = now.and_then(|saved| saved.table(table.name()));
    let part = saved.map(|saved| own_part(table, saved)).unwrap_or_default();
    if part.is_empty() && wanted.is_empty() {
        return String::new();
    }
    let mut out = format!("*{}\n", table.name());
    let mut line = |text: std::fmt::Arguments| {
        let _ = writeln!(out, "{text}");
    };
    // Declaring a chain makes it, or empties it if it is there.
    let unwanted: Vec<&ChainName> = part.chains.iter().filter(|c| !wanted.chains.contains(c)).collect();
    for chain in wanted.chains.iter().chain(unwanted.iter().copied()) {
        line(format_args!(":{chain} - [0:0]"));
    }
    for (chain, rule) in &part.hook_rules {
        line(format_args!("-D {chain} {}", rule.words));
    }
    for (chain, position, words) in &wanted.hook_rules {
        match position {
            Some(position) => line(format_args!("-I {chain} {position} {words}")),
            None => line(format_args!("-A {chain} {words}")),
        }
    }
    for (chain, words) in &wanted.chain_rules {
        line(format_args!("-A {chain} {words}"));
    }
    for chain in unwanted {
        line(format_args!("-X {chain}"));
    }
    out.push_str("COMMIT\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::iptables::parse::parse;

    const MIXED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n:OTHER - [0:0]\n\
        -A OUTPUT -d 1.2.3.4/32 -j ACCEPT\n-A OUTPUT -j ISTIO_OUTPUT\n-A OUTPUT -j OTHER\n-A ISTIO_OUTPUT -j RETURN\n-A OTHER -j RETURN\nCOMMIT\n";

    #[test]
    fn removal_leaves_the_rules_of_others() {
        let saved = parse(MIXED, Family::V4).unwrap();
        let text = table(Table::Nat, Some(&saved), &WantedTable::default());
        assert_eq!(text, "*nat\n:ISTIO_OUTPUT - [0:0]\n-D OUTPUT -j ISTIO_OUTPUT\n-X ISTIO_OUTPUT\nCOMMIT\n");
        assert_eq!(table(Table::Mangle, Some(&saved), &WantedTable::default()), "");
    }

    #[test]
    fn what_was_found_goes_back_to_its_place() {
        let saved = parse(MIXED, Family::V4).unwrap();
        let found = as_found(&saved, Table::Nat);
        assert_eq!(found.hook_rules, [(ChainName::Output, Some(2), "-j ISTIO_OUTPUT".to_owned())]);
        assert_eq!(found.chain_rules, [(ChainName::OutputMain, "-j RETURN".to_owned())]);
    }
}
