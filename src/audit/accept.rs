//! Escapes that are known and wanted, as `--accept` names them: YAML, or JSON.
//!
//! ```yaml
//! accept:
//!   - class: inbound-excluded-port      # an escape's name, or a lint's
//!     reason: health checks, reviewed in SEC-117
//!     expires: 2027-06-30               # after this day it counts again; optional
//!     only:                             # just these flows of the class; optional
//!       ports: ["15020-15021", 15090]
//!   - class: outbound-excluded-range
//!     reason: the database is outside the mesh
//!     only: { destinations: [10.9.0.0/16], ports: [5432], protocols: [tcp] }
//!   - class: outbound-excluded-port
//!     reason: the shop's database
//!     namespaces: [shop, team-*]        # just these pods'; each is optional
//!     workloads: [Deployment/web, db]
//!     labels: { tier: data }
//! ```
//!
//! Of `namespaces`, `workloads` and `labels` all that are given must hold, of names one of
//! each list; a trailing `*` is any ending. What is known of a pod by none of its names is not
//! accepted by an entry that has some.
//!
//! `only` may name `protocols`, `interfaces`, `users`, `groups`, `destinations`, `ports`
//! and `sources`. What of a class is outside goes on counting: a port that is excluded
//! tomorrow is not accepted today.

use std::collections::BTreeMap;

use jiff::civil::Date;
use serde::Deserialize;
use serde_json::Value;

use crate::config::ranges::RangeList;
use crate::config::types::{Family, IdList, Interface, Networks, PortList};
use crate::config::value;
use crate::plan::canon::addresses;
use crate::plan::model::{Cond, protocol};

use super::escapes::kind::EscapeKind;
use super::escapes::{Escape, scope_name};
use super::lints::{LINTS, OF_MANY};
use super::space::cube::{Cube, owners};
use super::space::{Scope, Space};

/// The findings that an `--accept` file accepts.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    pub entries: Vec<AcceptedEntry>,
}

/// One entry of the file: a class of findings that is accepted.
#[derive(Debug, Clone)]
pub struct AcceptedEntry {
    pub class: String,
    pub reason: String,
    pub expires: Option<Date>,
    only: Option<Only>,
    whose: Whose,
}

/// The pods that an entry is about; an absent list means any pod.
#[derive(Debug, Clone, Default)]
struct Whose {
    namespaces: Option<Vec<String>>,
    workloads: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
}

/// The pods whose findings are judged; what is not known of them is empty.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    /// The kind and the name of the pod's workload.
    pub workload: (&'a str, &'a str),
    pub labels: &'a BTreeMap<String, String>,
}

impl Whose {
    fn includes(&self, subject: &Subject) -> bool {
        let among = |list: &Option<Vec<String>>, is: &dyn Fn(&str) -> bool| {
            list.as_ref().is_none_or(|list| list.iter().any(|pattern| is(pattern)))
        };
        let (kind, name) = subject.workload;
        let is_workload = |pattern: &str| match pattern.split_once('/') {
            Some((of_kind, pattern)) => of_kind.eq_ignore_ascii_case(kind) && is_like(name, pattern),
            None => is_like(name, pattern),
        };
        among(&self.namespaces, &|pattern| is_like(subject.namespace, pattern))
            && among(&self.workloads, &is_workload)
            && self.labels.iter().all(|(name, value)| subject.labels.get(name) == Some(value))
    }
}

/// Whether a name matches a pattern: it is the same, or the pattern's `*` stands for its ending.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => !name.is_empty() && name.starts_with(beginning),
        None => !name.is_empty() && name == pattern,
    }
}

/// The flows of a class that are accepted; an absent list means any value.
#[derive(Debug, Clone, Default)]
struct Only {
    protocols: Option<RangeList<u8>>,
    interfaces: Option<Vec<Interface>>,
    users: Option<IdList>,
    groups: Option<IdList>,
    destinations: Option<Networks>,
    ports: Option<PortList>,
    sources: Option<Networks>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("{0}")]
    Syntax(String),
    #[error("entry {number}: {problem}")]
    Entry { number: usize, problem: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    accept: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    class: String,
    reason: String,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    only: Option<RawOnly>,
    namespaces: Option<Vec<String>>,
    workloads: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOnly {
    protocols: Option<Vec<Value>>,
    interfaces: Option<Vec<Value>>,
    users: Option<Vec<Value>>,
    groups: Option<Vec<Value>>,
    destinations: Option<Vec<Value>>,
    ports: Option<Vec<Value>>,
    sources: Option<Vec<Value>>,
}

impl Accepted {
    /// Parses an `--accept` file.
    ///
    /// # Errors
    ///
    /// An item that is no known finding, or names a place that cannot be one, and what would be
    /// right.
    pub fn parse(text: &str) -> Result<Self, AcceptError> {
        let file: RawFile = serde_saphyr::from_str(text).map_err(|e| AcceptError::Syntax(e.to_string()))?;
        let entry = |(at, raw)| entry(raw).map_err(|problem| AcceptError::Entry { number: at + 1, problem });
        Ok(Self { entries: file.accept.into_iter().enumerate().map(entry).collect::<Result<_, _>>()? })
    }
}

impl Accepted {
    /// The entries that are about a pod, with their numbers in the file.
    pub fn of(&self, subject: &Subject) -> (Self, Vec<usize>) {
        let about = self.entries.iter().enumerate().filter(|(_, entry)| entry.whose.includes(subject));
        let (numbers, entries) = about.map(|(at, entry)| (at, entry.clone())).unzip();
        (Self { entries }, numbers)
    }

    /// The interfaces that some entry names.
    pub fn interfaces(&self) -> Vec<Interface> {
        let named = self.entries.iter().filter_map(|entry| entry.only.as_ref()?.interfaces.as_ref());
        named.flatten().cloned().collect()
    }
}

impl AcceptedEntry {
    /// Whether the entry's last day is over.
    pub fn is_expired(&self, today: Date) -> bool {
        self.expires.is_some_and(|last| last < today)
    }

    /// The flows of an escape that are accepted; `None` for all of them.
    pub fn flows(&self, escape: &Escape, space: &Space) -> Option<Vec<(Family, Cube)>> {
        let only = self.only.as_ref()?;
        let cube = |family| (family, only.cube(family, escape.scope, space));
        Some(escape.families().iter().map(cube).collect())
    }
}

impl Only {
    fn cube(&self, family: Family, scope: Scope, space: &Space) -> Cube {
        let whole = space.whole(family, scope);
        let networks = |set: &Option<Networks>, all| set.as_ref().map_or(all, |nets| addresses(nets, family));
        let ids = |set: &Option<IdList>, all| set.as_ref().map_or(all, |ids| owners(&Cond::is(ids.clone())));
        let named = self.interfaces.as_ref().map(|names| space.interfaces.meeting(&Cond::is(names.clone())));
        let (in_interface, out_interface) = if scope.is_outbound() { (None, named) } else { (named, None) };
        Cube {
            protocol: self.protocols.clone().unwrap_or(whole.protocol),
            in_interface: in_interface.unwrap_or(whole.in_interface),
            out_interface: out_interface.unwrap_or(whole.out_interface),
            uid: ids(&self.users, whole.uid),
            gid: ids(&self.groups, whole.gid),
            destination: networks(&self.destinations, whole.destination),
            port: self.ports.clone().unwrap_or(whole.port),
            source: networks(&self.sources, whole.source),
            source_port: whole.source_port,
            state: whole.state,
        }
    }
}

/// Whether an escape or a lint can have this name.
fn is_class(name: &str) -> bool {
    let of_scope = |scope: &Scope| {
        let rest = name.strip_prefix(scope_name(*scope)).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|rest| EscapeKind::ALL.iter().any(|kind| kind.id() == rest))
    };
    Scope::ALL.iter().any(of_scope) || is_lint(name)
}

fn is_lint(name: &str) -> bool {
    LINTS.iter().chain(OF_MANY).any(|(id, ..)| *id == name)
}

fn entry(raw: RawEntry) -> Result<AcceptedEntry, String> {
    if !is_class(&raw.class) {
        return Err(format!("'{}' is neither an escape nor a lint; podweir audit prints their names", raw.class));
    }
    if raw.reason.trim().is_empty() {
        return Err("the reason is empty; say why this is wanted".into());
    }
    let date = |text: String| {
        text.parse::<Date>().map_err(|_| format!("expires: '{text}' is no date; expected one like 2027-06-30"))
    };
    if is_lint(&raw.class) && raw.only.is_some() {
        return Err(format!("{} is a lint, which has no flows: 'only' means nothing", raw.class));
    }
    Ok(AcceptedEntry {
        class: raw.class,
        reason: raw.reason,
        expires: raw.expires.map(date).transpose()?,
        only: raw.only.map(only).transpose()?,
        whose: Whose {
            namespaces: patterns("namespaces", raw.namespaces)?,
            workloads: patterns("workloads", raw.workloads)?,
            labels: raw.labels,
        },
    })
}

/// Checks that no name is empty, since an empty one would match nothing.
fn patterns(name: &str, list: Option<Vec<String>>) -> Result<Option<Vec<String>>, String> {
    match list {
        Some(list) if list.is_empty() || list.iter().any(|item| item.trim().is_empty()) => {
            Err(format!("{name} is empty, or a name in it is; leave it out for all"))
        }
        list => Ok(list),
    }
}

fn only(raw: RawOnly) -> Result<Only, String> {
    fn list<T>(
        name: &str,
        items: Option<Vec<Value>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(items) = items else { return Ok(None) };
        let word = |item: &Value| match item {
            Value::String(text) if !text.contains(',') => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(format!("only.{name}: {other} is no single value")),
        };
        let words = items.iter().map(word).collect::<Result<Vec<_>, _>>()?;
        if words.iter().all(|word| word.trim().is_empty()) {
            return Err(format!("only.{name} is empty; leave it out for all"));
        }
        parse(&words.join(",")).map(Some).map_err(|problem| format!("only.{name}: {problem}"))
    }
    let said =
        |invalid: value::Invalid| format!("'{}' {}; expected {}", invalid.item, invalid.problem, invalid.expected);
    let networks = |text: &str| value::networks(text, &mut |_| {}).map_err(said);
    let protocols = |text: &str| {
        let number = |word| protocol::by_name(word).ok_or(format!("'{word}' is no protocol; expected tcp or 6"));
        let numbers = value::items(text).map(number).collect::<Result<Vec<_>, _>>()?;
        Ok(RangeList::of(numbers).normalised())
    };
    Ok(Only {
        protocols: list("protocols", raw.protocols, protocols)?,
        interfaces: list("interfaces", raw.interfaces, |text| value::interfaces(text).map_err(said))?,
        users: list("users", raw.users, |text| value::id_list(text, &|_| None).map_err(said))?,
        groups: list("groups", raw.groups, |text| value::id_list(text, &|_| None).map_err(said))?,
        destinations: list("destinations", raw.destinations, networks)?,
        ports: list("ports", raw.ports, |text| value::port_list(text).map(|l| l.normalised()).map_err(said))?,
        sources: list("sources", raw.sources, networks)?,
    })
}
