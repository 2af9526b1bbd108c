//! Rules as a table for people: chains with where they are hooked, rules with counters,
//! conditions, verdict and reason.

use std::fmt::Write;

use crate::config::types::{Families, Family};
use crate::plan::canon::CanonMatches;
use crate::plan::model::Rule;

use super::report::number;
use super::source::Source;
use crate::backend::listing::{ListedChain, ListedTable};
use crate::plan::words;

/// The rules of a source as a table.
pub fn table(source: &Source) -> String {
    let mut out = String::new();
    for table in &source.tables {
        let dormant = if table.dormant { ", switched off" } else { "" };
        let _ = writeln!(out, "{} ({}, {}{dormant})", table.name, table.holder, table.families);
        for chain in table.chains.iter().filter(|chain| !chain.rules.is_empty() || chain.base.is_some()) {
            chain_lines(table, chain, &mut out);
        }
        out.push('\n');
    }
    match &source.routing {
        None => out += "routing is not told\n",
        Some(routing) => {
            for command in crate::backend::routing::commands(routing) {
                let _ = writeln!(out, "{command}");
            }
        }
    }
    out
}

fn chain_lines(table: &ListedTable, chain: &ListedChain, out: &mut String) {
    let _ = match &chain.base {
        None => writeln!(out, "  {}", chain.name),
        Some(base) => {
            let policy = if base.drops { ", drops by default" } else { "" };
            writeln!(out, "  {}   hook {}, priority {}{policy}", chain.name, base.hook.name(), base.priority)
        }
    };
    let rows: Vec<[String; 4]> =
        chain.rules.iter().enumerate().flat_map(|(at, rule)| rows(number(at, rule), rule, table.families)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (numbers, counters, texts) = (width(0), width(1), width(2).min(90));
    for [number, counter, text, why] in &rows {
        let why = if why.is_empty() { String::new() } else { format!("  # {why}") };
        let counter = if counters == 0 { String::new() } else { format!("{counter:>counters$}  ") };
        let line = format!("    {number:>numbers$}  {counter}{:texts$}{why}", text.as_str());
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// A rule in words; in two lines where the families differ.
fn rows(number: usize, rule: &Rule, of_table: Families) -> Vec<[String; 4]> {
    let text = |family: Family| {
        let matches = CanonMatches::of(&rule.matches, family)?;
        let conditions = words::matches(&matches, family);
        let verdict = words::verdict(&rule.verdict);
        Some(if conditions.is_empty() { verdict } else { format!("{conditions}: {verdict}") })
    };
    let families = rule.families.intersection(of_table);
    let mut texts: Vec<(Families, String)> = Vec::new();
    for family in families.iter() {
        let Some(text) = text(family) else { continue };
        match texts.iter_mut().find(|(_, known)| *known == text) {
            Some((of, _)) => *of = of.union(Families::only(family)),
            None => texts.push((Families::only(family), text)),
        }
    }
    let counter = rule.counters.map_or(String::new(), |c| format!("{} packets", c.packets));
    let row = |(at, (of, text)): (usize, (Families, String))| {
        let text = if of == of_table { text } else { format!("{of}: {text}") };
        match at {
            0 => [number.to_string(), counter.clone(), text, rule.why.sentence().to_owned()],
            _ => [String::new(), String::new(), text, String::new()],
        }
    };
    texts.into_iter().enumerate().map(row).collect()
}
