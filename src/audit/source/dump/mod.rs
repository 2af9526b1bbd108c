//! Text that somebody saved as a source: iptables-save's, nft's in both notations, and
//! podweir's own JSON. Which it is, the text tells. Several texts make one source, as
//! iptables-save and ip6tables-save print one family each.

mod iptables;
mod nft_fields;
mod nft_json;
mod nft_names;
mod nft_rule;
mod nft_sets;
mod nft_text;
mod nft_values;
mod nft_words;

use serde_json::Value;

use crate::audit::flow::Surroundings;
use crate::audit::ruleset::Ruleset;
use crate::audit::schema;
use crate::backend::Kind;
use crate::backend::foreign_text;
use crate::backend::listing::{self, Holder, ListedTable};
use crate::backend::nftables::everything::FullTable;
use crate::backend::nftables::tables;
use crate::config::types::{Families, Family};

use super::{Source, SourceError, opaque};

/// One text, and what it is called.
#[derive(Debug, Clone)]
pub struct Text {
    pub name: String,
    pub bytes: Vec<u8>,
    /// The family that the user says it is of.
    pub family: Option<Family>,
}

/// What one text told.
enum Told {
    Tables(Tables),
    Everything(Box<Source>),
}

/// The tables that a text shows, and what it says that it does not.
#[derive(Default)]
struct Tables {
    /// Those that it would show tables of.
    families: Vec<Family>,
    tables: Vec<ListedTable>,
    /// nft's: nothing of nf_tables is left out.
    by_nft: bool,
    /// Tables that iptables-nft cannot show, or not all of: the line that says so.
    left_out: Vec<(usize, String)>,
    /// Families in which iptables-legacy has tables that stand elsewhere.
    legacy_left_out: Vec<Family>,
}

/// Reads texts that together are one source.
pub fn read(texts: &[Text]) -> Result<Source, SourceError> {
    let mut tables: Vec<ListedTable> = Vec::new();
    let mut told = Families::NONE;
    let mut by_nft = false;
    let mut gaps: Vec<SourceError> = Vec::new();
    let mut legacy: Vec<Family> = Vec::new();
    let mut whole: Option<Source> = None;
    for text in texts {
        let fail = |problem: String| SourceError::Dump { name: text.name.clone(), problem };
        match one(text).map_err(fail)? {
            Told::Everything(_) if texts.len() > 1 => {
                return Err(fail("podweir's JSON holds everything: it cannot be put together with other dumps".into()));
            }
            Told::Everything(source) => whole = Some(*source),
            Told::Tables(more) => {
                add(&mut tables, more.tables).map_err(fail)?;
                told = more.families.into_iter().fold(told, |all, family| all.union(Families::only(family)));
                by_nft |= more.by_nft;
                gaps.extend(more.left_out.iter().map(|(line, table)| fail(gap(*line, table))));
                legacy.extend(more.legacy_left_out);
            }
        }
    }
    if let Some(source) = whole {
        return Ok(source);
    }
    if let (false, Some(gap)) = (by_nft, gaps.into_iter().next()) {
        return Err(gap);
    }
    foreign_text::make_printable(&mut tables);
    listing::name_reasons(&mut tables);
    let mut notes: Vec<String> = opaque::in_any(&tables).into_iter().collect();
    notes.extend(without_legacy(&legacy, &tables));
    Ok(Source {
        ruleset: Ruleset::of_tables(&tables),
        held: listing::held(&tables),
        tables,
        routing: None,
        told,
        pod: Surroundings::of(Vec::new()),
        settings: None,
        given: None,
        notes,
    })
}

fn gap(line: usize, table: &str) -> String {
    format!(
        "line {line}: iptables-save does not show all of table {table}, which holds what only nft can show: dump with nft -j list ruleset instead, or add that as another --dump"
    )
}

/// What to say where a text mentions tables of iptables-legacy that are in none.
fn without_legacy(mentioned: &[Family], tables: &[ListedTable]) -> Option<String> {
    let is_there = |family| {
        let legacy = |table: &&ListedTable| table.holder == Holder::Kernel(Kind::IptablesLegacy);
        tables.iter().filter(legacy).any(|table| table.families.has(family))
    };
    let missing = Family::BOTH.into_iter().filter(|family| mentioned.contains(family) && !is_there(*family));
    let programs: Vec<&str> = missing
        .map(|family| if family == Family::V4 { "iptables-legacy-save" } else { "ip6tables-legacy-save" })
        .collect();
    (!programs.is_empty()).then(|| {
        format!(
            "the dump lacks rules that packets meet: iptables-legacy has tables as well; add what {} prints as another --dump",
            programs.join(" and ")
        )
    })
}

/// Adds a text's tables to those of others.
fn add(tables: &mut Vec<ListedTable>, more: Vec<ListedTable>) -> Result<(), String> {
    let iptables = |holder: Holder| matches!(holder, Holder::Kernel(Kind::IptablesNft) | Holder::Iptables);
    for table in more {
        let same = |other: &ListedTable| other.name == table.name && other.families == table.families;
        let twin = tables.iter().position(|other| {
            same(other) && (other.holder == table.holder || (iptables(other.holder) && iptables(table.holder)))
        });
        match twin {
            None => tables.push(table),
            // nft cannot show all that iptables-nft made; iptables-save can.
            Some(at) if tables[at].as_nft_shows && !table.as_nft_shows => tables[at] = table,
            Some(at) if !tables[at].as_nft_shows && table.as_nft_shows => {}
            Some(_) => {
                return Err(format!("table {} of {} ({}) is there twice", table.name, table.holder, table.families));
            }
        }
    }
    Ok(())
}

const EXPECTED: &str =
    "expected what iptables-save, nft list ruleset, nft -j list ruleset or podweir render --format json print";

fn one(text: &Text) -> Result<Told, String> {
    let content = std::str::from_utf8(&text.bytes)
        .map_err(|e| format!("it is no text: byte {} is not UTF-8; {EXPECTED}", e.valid_up_to()))?;
    let first = content.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let says = |line: &str| line.starts_with("# Generated by ip") || iptables::left_out(line).is_some();
    let saved = content.lines().any(says);
    match first {
        None if !saved && text.family.is_none() => {
            Err(format!("it is empty; {EXPECTED} (if iptables-save had nothing to print: --dump ipv4=FILE, ipv6=FILE)"))
        }
        Some(line) if line.starts_with(['{', '[']) => json(content),
        Some(line) if line.starts_with("table ") => {
            let tables = nft_text::parse(content, budget(content));
            let tables = tables.map_err(|(line, problem)| format!("line {line}: {problem}"))?;
            Ok(by_nft(&tables))
        }
        Some(line) if !line.starts_with('*') => Err(unknown_dialect(line)),
        _ => iptables::read(content, text.family).map(Told::Tables),
    }
}

/// nft cannot show all that iptables-nft made.
fn by_nft(tables: &[FullTable]) -> Told {
    let mut tables = tables::listed(tables);
    tables.iter_mut().for_each(|table| table.as_nft_shows = table.holder == Holder::Kernel(Kind::IptablesNft));
    Told::Tables(Tables { families: Family::BOTH.into(), tables, by_nft: true, ..Tables::default() })
}

/// How many elements of sets rules may name, all together: no more than a text of this
/// length could write out.
fn budget(content: &str) -> usize {
    content.len().max(65_536)
}

fn json(content: &str) -> Result<Told, String> {
    let value: Value = serde_json::from_str(content).map_err(|e| match e.is_eof() {
        true => format!("the JSON ends in the middle, on line {}: it is cut short", e.line()),
        false => format!("it is no JSON: {e}"),
    })?;
    if let Some(objects) = value.get("nftables").and_then(Value::as_array) {
        let tables = nft_json::parse(objects, budget(content))?;
        return Ok(by_nft(&tables));
    }
    match value.get("format").and_then(Value::as_str) {
        Some(schema::FORMAT) => Ok(Told::Everything(Box::new(schema::read(&value)?))),
        _ => Err(format!("it is JSON, but neither nft's nor podweir's; {EXPECTED}")),
    }
}

fn unknown_dialect(line: &str) -> String {
    let shown: String = line.chars().take(40).collect();
    let hint = match line {
        _ if line.starts_with("Chain ") => {
            ": that is what iptables -L prints, which leaves out what decides; take iptables-save"
        }
        _ if line.starts_with("-P ") || line.starts_with("-N ") || line.starts_with("-A ") => {
            ": that is what iptables -S prints, of one table only; take iptables-save"
        }
        _ => "",
    };
    format!("it begins with '{shown}'{hint}; {EXPECTED}")
}
