//! What changed since an earlier answer: findings of workloads that are new, gone or worse.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::audit::escapes::kind::Severity;
use crate::config::pod::owner::Workload;

use super::sum::FleetAnswer;

/// What the member `format` of an answer says.
pub const FORMAT: &str = "podweir-cluster-audit";
/// The version written, and the one compared with.
pub const VERSION: u64 = 1;

/// A finding of a workload that changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangedFinding {
    pub severity: Severity,
    pub workload: Workload,
    pub id: String,
    pub items: Vec<String>,
    /// What changed, in a few words.
    pub why: Option<String>,
}

impl fmt::Display for ChangedFinding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let items = if self.items.is_empty() { String::new() } else { format!(" {}", self.items.join(", ")) };
        write!(f, "{}: {}{items}: {}", self.severity, self.id, self.workload)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// The findings that changed since the baseline, the worst first.
#[derive(Debug)]
pub struct Comparison {
    /// The name of the baseline.
    pub baseline: String,
    pub new: Vec<ChangedFinding>,
    pub worse: Vec<ChangedFinding>,
    pub gone: Vec<ChangedFinding>,
}

impl Comparison {
    pub fn summary(&self) -> String {
        format!("{} new, {} worse, {} gone", self.new.len(), self.worse.len(), self.gone.len())
    }

    /// The new and worse findings of a severity or a higher one.
    pub fn from(&self, severity: Severity) -> Vec<(&'static str, &ChangedFinding)> {
        let new = self.new.iter().map(|row| ("new", row));
        let all = new.chain(self.worse.iter().map(|row| ("worse", row)));
        all.filter(|(_, row)| row.severity >= severity).collect()
    }
}

/// An earlier answer, of which only what is compared is read.
#[derive(Debug)]
pub struct Baseline {
    name: String,
    findings: BTreeMap<(Workload, String), KnownFinding>,
}

#[derive(Debug, Clone)]
struct KnownFinding {
    severity: Severity,
    items: BTreeSet<String>,
    accepted: bool,
}

#[derive(Deserialize)]
struct RawWorkload {
    namespace: String,
    kind: String,
    name: String,
    findings: Vec<RawFinding>,
}

#[derive(Deserialize)]
struct RawFinding {
    id: String,
    severity: String,
    #[serde(default)]
    items: Vec<String>,
    #[serde(default)]
    accepted: Option<Value>,
}

impl Baseline {
    /// Reads an answer that `--format json` wrote. `name`: what messages call it.
    ///
    /// # Errors
    /// When it is something else, or of another version.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("is no JSON: {e}"))?;
        if value["format"] != FORMAT {
            let found = value["format"].as_str().map_or("nothing".into(), |found| format!("'{found}'"));
            return Err(format!(
                "is no earlier answer: its format is {found}, expected '{FORMAT}' (podweir audit --manifests or --cluster, with --format json)"
            ));
        }
        match value["version"].as_u64() {
            Some(VERSION) => {}
            other => {
                let found = other.map_or("none".into(), |version| version.to_string());
                return Err(format!(
                    "is of version {found}, and this podweir compares with version {VERSION}: make the baseline again with this release"
                ));
            }
        }
        let workloads: Vec<RawWorkload> = serde_json::from_value(value["workloads"].clone())
            .map_err(|e| format!("is damaged: workloads: {e}; make the baseline again"))?;
        let mut findings: BTreeMap<(Workload, String), KnownFinding> = BTreeMap::new();
        for RawWorkload { namespace, kind, name, findings: found } in workloads {
            let workload = Workload { namespace, kind, name };
            for RawFinding { id, severity, items, accepted } in found {
                let severity = Severity::by_name(&severity).ok_or_else(|| {
                    format!("is damaged: '{severity}' of {id} is no severity; make the baseline again")
                })?;
                let accepted = accepted.is_some_and(|accepted| !accepted.is_null());
                add(&mut findings, workload.clone(), id, severity, items, accepted);
            }
        }
        Ok(Self { name: name.into(), findings })
    }

    /// Compares an answer with the baseline.
    pub fn compare(self, answer: &FleetAnswer) -> Comparison {
        let mut now = BTreeMap::new();
        for summed in &answer.workloads {
            for (found, _) in &summed.findings {
                let (id, items) = (found.id.clone(), found.items.clone());
                add(&mut now, summed.workload.clone(), id, found.severity, items, found.accepted.is_some());
            }
        }
        let row = |(workload, id): &(Workload, String), known: &KnownFinding, why: Option<String>| ChangedFinding {
            severity: known.severity,
            workload: workload.clone(),
            id: id.clone(),
            items: known.items.iter().cloned().collect(),
            why,
        };
        let (mut new, mut worse, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (key, found) in now.iter().filter(|(_, found)| !found.accepted) {
            match self.findings.get(key) {
                None => new.push(row(key, found, None)),
                Some(before) if before.accepted => new.push(row(key, found, Some("no longer accepted".into()))),
                Some(before) if found.severity > before.severity => {
                    worse.push(row(key, found, Some(format!("was {}", before.severity))));
                }
                Some(before) => {
                    let is_more = |item: &&String| !is_within(item, &before.items);
                    let more: Vec<&str> = found.items.iter().filter(is_more).map(String::as_str).collect();
                    if !more.is_empty() {
                        worse.push(row(key, found, Some(format!("more than before: {}", more.join(", ")))));
                    }
                }
            }
        }
        for (key, before) in self.findings.iter().filter(|(_, before)| !before.accepted) {
            match now.get(key) {
                None => gone.push(row(key, before, None)),
                Some(found) if found.accepted => gone.push(row(key, before, Some("accepted now".into()))),
                Some(_) => {}
            }
        }
        let sort =
            |rows: &mut Vec<ChangedFinding>| rows.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        [&mut new, &mut worse, &mut gone].into_iter().for_each(sort);
        Comparison { baseline: self.name, new, worse, gone }
    }
}

/// Whether an item was there before, or is a part of a range that was.
fn is_within(item: &str, before: &BTreeSet<String>) -> bool {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    };
    let is_part = |known: &String| match (range(item), range(known)) {
        (Some((a, b)), Some((c, d))) => c <= a && b <= d,
        _ => false,
    };
    before.contains(item) || before.iter().any(is_part)
}

/// Adds a finding. Findings of one class that a workload has are one; an accepted one is replaced by one
/// that counts.
fn add(
    into: &mut BTreeMap<(Workload, String), KnownFinding>,
    workload: Workload,
    id: String,
    severity: Severity,
    items: Vec<String>,
    accepted: bool,
) {
    let new = KnownFinding { severity, items: items.into_iter().collect(), accepted };
    match into.entry((workload, id)) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert(new);
        }
        std::collections::btree_map::Entry::Occupied(mut known) => {
            let known = known.get_mut();
            match (known.accepted, new.accepted) {
                (true, false) => *known = new,
                (false, true) => {}
                _ => {
                    known.severity = known.severity.max(new.severity);
                    known.items.extend(new.items);
                }
            }
        }
    }
}
