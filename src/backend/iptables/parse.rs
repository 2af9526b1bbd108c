//! iptables-save text to tables, chains and rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::types::Family;
use crate::plan::model::{ChainName, Counters, Dataplane, Rule, RuleOrigin, Table};

use super::rule::rule;

/// A line that iptables-save does not print, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// The line's number, counted from 1.
    pub line: usize,
    pub problem: String,
}

/// One family's rules as iptables-save lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    pub tables: Vec<SavedTable>,
}

/// A table of an iptables-save listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedTable {
    pub name: String,
    /// Chain name to policy; `-` for a user's chain.
    pub chains: BTreeMap<String, String>,
    pub rules: Vec<SavedRule>,
}

/// A line of the listing that holds a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRule {
    pub chain: String,
    /// The line after `-A CHAIN `, word for word, without counters.
    pub words: String,
    pub rule: Rule,
}

impl SavedTable {
    /// The rules of each chain, in order; includes chains without rules.
    pub fn by_chain(&self) -> Vec<(ChainName, Vec<&SavedRule>)> {
        let mut out: BTreeMap<&str, Vec<&SavedRule>> =
            self.chains.keys().map(|name| (name.as_str(), Vec::new())).collect();
        for rule in &self.rules {
            out.entry(&rule.chain).or_default().push(rule);
        }
        out.into_iter().map(|(name, rules)| (ChainName::by_name(name), rules)).collect()
    }
}

impl Saved {
    /// The dataplanes whose chains are in the listing, by the chains' names.
    pub fn whose(&self) -> BTreeSet<Dataplane> {
        let tables = self.tables.iter().filter(|table| Table::by_name(&table.name).is_some());
        tables.flat_map(|table| table.chains.keys()).filter_map(|name| ChainName::by_name(name).dataplane()).collect()
    }

    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// Parses the output of iptables-save or ip6tables-save, with or without `-c`.
///
/// # Errors
///
/// The line that is not understood, and why.
pub fn parse(text: &str, family: Family) -> Result<Saved, ParseError> {
    let mut saved = Saved::default();
    let mut open: Option<SavedTable> = None;
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let fail = |problem: String| ParseError { line: at + 1, problem };
        let line = line.trim();
        match (line.chars().next(), &mut open) {
            (None | Some('#'), _) => {}
            (Some('*'), None) => {
                let name = line[1..].trim().to_owned();
                if saved.table(&name).is_some() {
                    return Err(fail(format!("table {name} stands here for the second time")));
                }
                numbers.clear();
                open = Some(SavedTable { name, ..SavedTable::default() });
            }
            (Some('*'), Some(table)) => {
                return Err(fail(format!("table {} is not closed by COMMIT", table.name)));
            }
            (Some(_), None) => {
                return Err(fail(format!("'{}' stands outside of a table; is this iptables-save output?", clip(line))));
            }
            (Some(':'), Some(table)) => {
                let mut words = line[1..].split_whitespace();
                let (Some(chain), Some(policy)) = (words.next(), words.next()) else {
                    return Err(fail("a chain needs a name and a policy".into()));
                };
                table.chains.insert(chain.to_owned(), policy.to_owned());
            }
            (Some(_), Some(_)) if line == "COMMIT" => saved.tables.extend(open.take()),
            (Some(_), Some(table)) => {
                let mut rule = rule_line(line, family).map_err(fail)?;
                let number = numbers.entry(rule.chain.clone()).or_default();
                *number += 1;
                let text = (!rule.rule.is_understood()).then(|| format!("-A {} {}", rule.chain, rule.words).into());
                rule.rule.origin =
                    Some(Arc::new(RuleOrigin { number: *number, handle: None, text, incomplete: false }));
                table.rules.push(rule);
            }
        }
    }
    match open {
        Some(table) => Err(ParseError {
            line: text.lines().count(),
            problem: format!("the text ends inside of table {}: it is cut short", table.name),
        }),
        None => Ok(saved),
    }
}

fn clip(line: &str) -> String {
    line.chars().take(40).collect()
}

fn rule_line(line: &str, family: Family) -> Result<SavedRule, String> {
    let (counters, rest) = counters(line)?;
    let rest = rest.strip_prefix("-A ").ok_or_else(|| format!("'{}' is no rule", clip(line)))?;
    let (chain, words) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
    let rule = Rule { counters, ..rule(words, family)? };
    Ok(SavedRule { chain: chain.to_owned(), words: words.trim().to_owned(), rule })
}

/// Splits the counters `[packets:bytes] ` from a rule that they stand before.
fn counters(line: &str) -> Result<(Option<Counters>, &str), String> {
    let Some(inner) = line.strip_prefix('[') else { return Ok((None, line)) };
    let parsed = inner.split_once("] ").and_then(|(numbers, rest)| {
        let (packets, bytes) = numbers.split_once(':')?;
        Some((Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? }, rest))
    });
    match parsed {
        Some((counters, rest)) => Ok((Some(counters), rest)),
        None => Err(format!("'{}' has no valid counters", clip(line))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{ChainName, Verdict};
    use crate::plan::why::Why;

    #[test]
    fn counters_and_comments() {
        let text = "*nat\n:OUTPUT ACCEPT [3:180]\n:ISTIO_OUTPUT - [0:0]\n[5:300] -A OUTPUT -m comment --comment \"all-inbound: x\" -j ISTIO_OUTPUT\nCOMMIT\n";
        let saved = parse(text, Family::V4).unwrap();
        let rule = &saved.tables[0].rules[0].rule;
        assert_eq!(rule.counters, Some(Counters { packets: 5, bytes: 300 }));
        assert_eq!(rule.why, Why::AllInbound);
        assert_eq!(rule.verdict, Verdict::Jump(ChainName::OutputMain));
        assert_eq!(saved.tables[0].chains["ISTIO_OUTPUT"], "-");
    }

    #[test]
    fn what_is_no_listing_is_refused_with_the_line() {
        for (text, line) in [
            ("*nat\n:OUTPUT ACCEPT [0:0]\n", 2),
            ("hello\n", 1),
            ("*nat\nCOMMIT\n*nat\nCOMMIT\n", 3),
            ("*nat\n-X OUTPUT\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -m comment --comment \"x\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -s\nCOMMIT\n", 2),
            ("*nat\n-A OUTPUT -s ::1/128 -j DROP\nCOMMIT\n", 2),
        ] {
            assert_eq!(parse(text, Family::V4).unwrap_err().line, line, "{text}");
        }
    }
}
