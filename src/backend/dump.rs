//! Saved listings: the text of iptables-save, and of nft in both notations. The format is recognised by
//! the text. Several texts make one listing, as iptables-save and ip6tables-save print one family each.

use serde_json::Value;

use crate::config::types::{Families, Family};

use super::listing::{Holder, ListedTable, Listing};
use super::nftables::table::NftTable;
use super::nftables::{json, tables, text};
use super::{BackendKind, iptables, opaque};

/// A saved listing with its name.
#[derive(Debug, Clone)]
pub struct Text {
    pub name: String,
    pub bytes: Vec<u8>,
    /// The family of the text, where the user names it.
    pub family: Option<Family>,
}

/// Why a text cannot be read as a listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct DumpError {
    /// The name of the text, such as its path.
    pub name: String,
    pub problem: String,
}

impl Text {
    /// An error about this text.
    pub fn error(&self, problem: String) -> DumpError {
        DumpError { name: self.name.clone(), problem }
    }
}

/// A text by its notation, before its rules are read.
pub enum DumpContent<'a> {
    /// JSON, of any program.
    Json(Value),
    Text(&'a str),
}

impl<'a> DumpContent<'a> {
    /// Tells JSON from text.
    ///
    /// # Errors
    ///
    /// It is no text at all, or JSON that does not parse.
    pub fn of(text: &'a Text) -> Result<Self, DumpError> {
        let content = std::str::from_utf8(&text.bytes)
            .map_err(|e| text.error(format!("it is no text: byte {} is not UTF-8; {EXPECTED}", e.valid_up_to())))?;
        if !first_line(content).is_some_and(|line| line.starts_with(['{', '['])) {
            return Ok(Self::Text(content));
        }
        let value = serde_json::from_str(content).map_err(|e| match e.is_eof() {
            true => format!("the JSON ends in the middle, on line {}: it is cut short", e.line()),
            false => format!("it is no JSON: {e}"),
        });
        value.map(Self::Json).map_err(|problem| text.error(problem))
    }
}

/// The first line that is neither empty nor a comment.
fn first_line(content: &str) -> Option<&str> {
    content.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Several texts that are read as one listing.
#[derive(Default)]
pub struct Dumps {
    tables: Vec<ListedTable>,
    /// The families whose tables the texts would show.
    told: Families,
    /// Whether one of the texts is nft's, which leaves out nothing of nf_tables.
    by_nft: bool,
    /// Tables that iptables-nft-save leaves out, or shows in part.
    gaps: Vec<DumpError>,
    /// Families whose iptables-legacy tables a text mentions without showing them.
    legacy: Vec<Family>,
}

impl Dumps {
    /// Adds the tables that a text lists.
    ///
    /// # Errors
    ///
    /// The text is in none of the known notations, is not understood, or lists a table again.
    pub fn add(&mut self, text: &Text, content: DumpContent) -> Result<(), DumpError> {
        self.read(text, content).map_err(|problem| text.error(problem))
    }

    fn read(&mut self, text: &Text, content: DumpContent) -> Result<(), String> {
        // How many elements of sets rules may name, all together: no more than a text of this
        // length could write out.
        let budget = text.bytes.len().max(65_536);
        let content = match content {
            DumpContent::Json(value) => {
                let objects = value.get("nftables").and_then(Value::as_array);
                let objects = objects.ok_or(format!("it is JSON, but neither nft's nor podweir's; {EXPECTED}"))?;
                return self.add_nft(&json::parse(objects, budget)?);
            }
            DumpContent::Text(content) => content,
        };
        match first_line(content) {
            None if !content.lines().any(iptables::text::says) && text.family.is_none() => Err(format!(
                "it is empty; {EXPECTED} (if iptables-save had nothing to print: --dump ipv4=FILE, ipv6=FILE)"
            )),
            Some(line) if line.starts_with("table ") => {
                let tables = text::parse(content, budget);
                self.add_nft(&tables.map_err(|(line, problem)| format!("line {line}: {problem}"))?)
            }
            Some(line) if !line.starts_with('*') => Err(unknown_dialect(line)),
            _ => {
                let dump = iptables::text::read(content, text.family)?;
                self.gaps.extend(dump.left_out.iter().map(|(line, table)| text.error(gap(*line, table))));
                self.legacy.extend(dump.legacy_left_out);
                self.told = dump.families.into_iter().fold(self.told, |all, f| all.union(Families::only(f)));
                add(&mut self.tables, dump.tables)
            }
        }
    }

    /// Adds tables that nft lists; it does not show all of what iptables-nft made.
    fn add_nft(&mut self, tables: &[NftTable]) -> Result<(), String> {
        let mut tables = tables::listed(tables);
        tables
            .iter_mut()
            .for_each(|table| table.as_nft_shows = table.holder == Holder::Kernel(BackendKind::IptablesNft));
        self.by_nft = true;
        self.told = Families::BOTH;
        add(&mut self.tables, tables)
    }

    /// The listing of all texts together.
    ///
    /// # Errors
    ///
    /// A text says itself that it leaves out a table, and none of the texts is nft's.
    pub fn finish(self) -> Result<Listing, DumpError> {
        if let (false, Some(gap)) = (self.by_nft, self.gaps.into_iter().next()) {
            return Err(gap);
        }
        let mut listing = Listing::new(self.tables, self.told);
        listing.notes.extend(opaque::in_any(&listing.tables));
        listing.notes.extend(without_legacy(&self.legacy, &listing.tables));
        Ok(listing)
    }
}

fn gap(line: usize, table: &str) -> String {
    format!(
        "line {line}: iptables-save does not show all of table {table}, which holds what only nft can show: dump with nft -j list ruleset instead, or add that as another --dump"
    )
}

/// A note if a text mentions tables of iptables-legacy that no text shows.
fn without_legacy(mentioned: &[Family], tables: &[ListedTable]) -> Option<String> {
    let is_there = |family| {
        let legacy = |table: &&ListedTable| table.holder == Holder::Kernel(BackendKind::IptablesLegacy);
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
    let iptables = |holder: Holder| matches!(holder, Holder::Kernel(BackendKind::IptablesNft) | Holder::Iptables);
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
