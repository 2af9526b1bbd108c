//! Rules of iptables-nft as nft lists them: of some matches and targets nft shows only the name, and
//! some targets it does not print at all. Their effect can only be read from the listing of iptables'
//! own program.

use crate::config::types::Family;
use crate::plan::canon::CanonMatches;
use crate::plan::model::Rule;
use crate::plan::words;

use super::listing::{ListedChain, ListedTable};

/// What to say of the first such rule; `None`: there is none.
pub fn in_any(tables: &[ListedTable]) -> Option<String> {
    tables.iter().find_map(|table| first(table, |_| true))
}

/// What to say of the first such rule that may be one of an interception's own: what the
/// interception holds cannot be told then.
pub fn in_interception(tables: &[ListedTable]) -> Option<String> {
    let may_be_ours = |chain: &ListedChain| chain.name.is_own() || chain.name.is_hook();
    tables.iter().filter(|table| table.kind().is_some()).find_map(|table| first(table, may_be_ours))
}

fn first(table: &ListedTable, of: impl Fn(&ListedChain) -> bool) -> Option<String> {
    let chains = table.chains.iter().filter(|chain| table.as_nft_shows && of(chain));
    let mut rules = chains.flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    let (chain, rule) = rules.find(|(_, rule)| rule.origin.as_ref().is_some_and(|origin| origin.incomplete))?;
    message(table, chain, rule)
}

fn message(table: &ListedTable, chain: &ListedChain, rule: &Rule) -> Option<String> {
    let family = rule.families.intersection(table.families).iter().next()?;
    let conditions = CanonMatches::of(&rule.matches, family).map(|m| words::matches(&m, family));
    let words = [conditions.unwrap_or_default(), words::verdict(&rule.verdict)];
    let which = rule.origin.as_ref().map_or_else(|| "a rule".to_owned(), |origin| origin.to_string());
    let program = if family == Family::V4 { "iptables-save" } else { "ip6tables-save" };
    Some(format!(
        "{which} of {family} {} {} is one of iptables-nft, and nft does not show all of it ({}): dump with {program} instead, or add that as another --dump",
        table.name,
        chain.name,
        words.join(": ").trim_start_matches(": "),
    ))
}
