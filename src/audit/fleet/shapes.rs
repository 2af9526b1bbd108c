//! The distinct interceptions among many pods. 30,000 pods have a few: each is audited once,
//! whether options, a manifest or a kernel say what it is.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use jiff::civil::Date;

use crate::audit::accept::{Accepted, Subject};
use crate::audit::digest::digest;
use crate::audit::escapes::kind::{EscapeKind, Severity};
use crate::audit::escapes::{Escape, words};
use crate::audit::lints::{Lint, OF_MANY, containers};
use crate::audit::report::drift::DriftFinding;
use crate::audit::report::{Acceptance, Input, Report, by, proxy_owners};
use crate::audit::source::Source;
use crate::audit::source::options::{self, KnownPod};
use crate::audit::space::Space;
use crate::config::given::Given;
use crate::config::pod::manifest::Manifest;
use crate::config::ranges::RangeList;
use crate::config::settings::Face;
use crate::config::types::Families;
use crate::plan::words::{networks, spans};

use super::FleetFinding;

/// Addresses for documentation, which stand for those of all pods alike (RFC 5737, RFC 3849).
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

/// A distinct interception.
#[derive(Debug)]
pub struct Shape {
    /// The digest of this interception's plan.
    pub digest: String,
    pub families: Families,
    pub findings: Vec<Arc<FleetFinding>>,
    pub drawing: String,
    /// Users and groups that are taken for the proxy's.
    owners: (Vec<u32>, Vec<u32>),
}

#[cfg(test)]
impl Shape {
    /// An interception of which only these are known, for tests.
    pub fn empty(digest: &str, families: Families) -> Self {
        let (drawing, owners) = Default::default();
        Self { digest: digest.into(), families, findings: Vec::new(), drawing, owners }
    }
}

/// The rules of an interception, and for rules that were read from a kernel also those that are wanted.
pub type Sources = Result<(Source, Option<Source>), String>;

/// A pod's interception before it is audited.
pub struct Asked<'a> {
    /// A text that is the same for pods with the same interception.
    pub key: String,
    pub proxy_user: Option<u32>,
    /// Reads the rules, if the interception is a new one.
    pub source: Box<dyn FnOnce() -> Sources + 'a>,
}

impl<'a> Asked<'a> {
    /// The interception that options ask for. Findings do not depend on addresses, which differ from pod
    /// to pod, but on their families; where none is known both are assumed.
    pub fn of_options(
        given: &'a Given,
        face: Face,
        families: Families,
        dns_servers: Option<Vec<IpAddr>>,
        proxy_user: Option<u32>,
        notes: Vec<String>,
    ) -> Self {
        let typed: Vec<String> = given.iter().map(|(opt, _, text)| format!("{opt:?}={text}")).collect();
        let key = format!("{face:?} {families:?} {dns_servers:?} {:?} {typed:?}", given.envoy_user());
        let assumed = Some(if families.is_empty() { Families::BOTH } else { families });
        let known = KnownPod { dns_servers, assumed, ..KnownPod::default() };
        let source = move || {
            let mut source = options::read(given, face, &known).map_err(|e| e.to_string())?;
            // What is assumed of all is said once, in other words.
            source.notes = notes;
            Ok((source, None))
        };
        Self { key, proxy_user, source: Box::new(source) }
    }
}

/// All distinct interceptions found so far.
pub struct Shapes<'a> {
    accepted: &'a Accepted,
    today: Date,
    known: HashMap<String, Result<usize, String>>,
    pub all: Vec<Shape>,
    used: BTreeSet<usize>,
    /// The notes of all sources, each once.
    pub notices: BTreeSet<String>,
}

impl<'a> Shapes<'a> {
    pub fn new(accepted: &'a Accepted, today: Date) -> Self {
        Self {
            accepted,
            today,
            known: HashMap::new(),
            all: Vec::new(),
            used: BTreeSet::new(),
            notices: BTreeSet::new(),
        }
    }

    /// The number of an interception, which is audited if it is the first of its kind.
    ///
    /// # Errors
    /// Why its rules cannot be read or audited.
    pub fn find(&mut self, subject: &Subject, asked: Asked) -> Result<usize, String> {
        let (accepted, numbers) = self.accepted.of(subject);
        let key = format!("{numbers:?} {:?} {}", asked.proxy_user, asked.key);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let found = (asked.source)().and_then(|(source, wanted)| {
            self.notices.extend(source.notes.iter().cloned());
            let (shape, used) = self.audit(&source, wanted.as_ref(), asked.proxy_user, &accepted)?;
            self.used.extend(used.into_iter().filter_map(|at| numbers.get(at).copied()));
            self.all.push(shape);
            Ok(self.all.len() - 1)
        });
        self.known.insert(key, found.clone());
        found
    }

    fn audit(
        &self,
        source: &Source,
        wanted: Option<&Source>,
        proxy_user: Option<u32>,
        accepted: &Accepted,
    ) -> Result<(Shape, Vec<usize>), String> {
        let space = Space::telling_apart(&[&source.ruleset], &source.pod, &accepted.interfaces());
        let input = Input {
            about: String::new(),
            file: None,
            source,
            wanted,
            manifest: None,
            proxy_user,
            established: None,
            explain: None,
            accepted,
            today: self.today,
        };
        let report = Report::new(input, &space).map_err(|e| e.to_string())?;
        let mut findings: Vec<FleetFinding> = Vec::new();
        findings.extend(report.escapes.iter().map(|judged| of_escape(&judged.found, &space, judged.accepted.clone())));
        findings.extend(report.lints.iter().map(|judged| of_lint(&judged.found, judged.accepted.clone())));
        findings.extend(report.drift.iter().flatten().map(of_drift));
        findings.sort_by_key(|found| (found.accepted.is_some(), std::cmp::Reverse(found.severity)));
        let shape = Shape {
            digest: digest(&source.canon()),
            families: report.families,
            findings: findings.into_iter().map(Arc::new).collect(),
            drawing: report.drawing,
            owners: proxy_owners(source, wanted),
        };
        Ok((shape, report.used))
    }

    /// What a pod's own containers could do to its interception.
    pub fn of_containers(&mut self, subject: &Subject, shape: usize, manifest: &Manifest) -> Vec<Arc<FleetFinding>> {
        let Some(Shape { owners: (uids, gids), .. }) = self.all.get(shape) else { return Vec::new() };
        let lints = containers::lints(manifest, uids, gids);
        lints.iter().map(|lint| of_lint(lint, self.acceptance(subject, lint.id))).map(Arc::new).collect()
    }

    /// A finding about pods as such, one of [`OF_MANY`].
    pub fn of_pods(&mut self, subject: &Subject, id: &str, what: Vec<String>) -> FleetFinding {
        let (severity, about) = OF_MANY
            .iter()
            .find(|(known, ..)| *known == id)
            .map_or((Severity::High, ""), |(_, severity, about)| (*severity, *about));
        let closes = match id {
            "not-intercepted" => {
                "have the plugin in the chain of every node (podweir node status), and start the pod again"
            }
            "refused" => "correct what the pod asks for",
            _ => "see what differs: podweir node why NAMESPACE/POD on the pods' nodes",
        };
        FleetFinding {
            id: id.into(),
            severity,
            title: about.into(),
            meaning: String::new(),
            items: Vec::new(),
            what,
            by: Vec::new(),
            example: None,
            closes: closes.into(),
            accepted: self.acceptance(subject, id),
        }
    }

    /// The entry by which a finding without flows is accepted, if there is one.
    fn acceptance(&mut self, subject: &Subject, class: &str) -> Option<Acceptance> {
        let (accepted, numbers) = self.accepted.of(subject);
        let mut out = None;
        for (entry, number) in accepted.entries.iter().zip(numbers).filter(|(entry, _)| entry.class == class) {
            self.used.insert(number);
            if !entry.is_expired(self.today) && out.is_none() {
                out = Some(Acceptance { reason: entry.reason.clone(), expires: entry.expires });
            }
        }
        out
    }

    /// Notices about entries of the accept file that are expired, or that no finding matched.
    pub fn about_entries(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (at, entry) in self.accepted.entries.iter().enumerate() {
            let class = &entry.class;
            match entry.expires.filter(|_| entry.is_expired(self.today)) {
                _ if !self.used.contains(&at) => {
                    out.push(format!("entry {} ({class}): accepted, but not found: the entry can go", at + 1));
                }
                Some(last) => {
                    out.push(format!(
                        "entry {} ({class}): accepted until {last}, which is over; it counts again",
                        at + 1
                    ));
                }
                None => {}
            }
        }
        out
    }
}

fn of_escape(escape: &Escape, space: &Space, accepted: Option<Acceptance>) -> FleetFinding {
    FleetFinding {
        id: escape.id(),
        severity: escape.severity,
        title: escape.title(),
        meaning: escape.kind.meaning().into(),
        items: items(escape, space),
        what: words::flows(escape, space),
        by: by(escape),
        example: Some(escape.example.to_string()),
        closes: escape.closes().into(),
        accepted,
    }
}

/// The values of the option that lets the flows out: ports or ranges, if it names any.
fn items(escape: &Escape, space: &Space) -> Vec<String> {
    let flows = escape.flows.iter();
    let mut out = match escape.kind {
        EscapeKind::ExcludedPort => {
            let mut ports: RangeList<u16> = RangeList::default();
            flows.for_each(|(_, cube)| ports.extend(&cube.port));
            spans(&ports.normalised())
        }
        EscapeKind::ExcludedRange => flows
            .map(|(family, cube)| networks(&cube.destination, *family, &space.whole(*family, escape.scope).destination))
            .collect(),
        EscapeKind::ExcludedUser => flows.flat_map(|(_, cube)| spans(&cube.uid)).collect(),
        EscapeKind::ExcludedGroup => flows.flat_map(|(_, cube)| spans(&cube.gid)).collect(),
        EscapeKind::ExcludedInterface => flows
            .flat_map(|(_, cube)| space.interfaces.patterns(cube.interface(escape.scope)).0)
            .map(|name| name.to_string())
            .collect(),
        _ => Vec::new(),
    };
    let mut known = BTreeSet::new();
    out.retain(|item| known.insert(item.clone()));
    out
}

fn of_lint(lint: &Lint, accepted: Option<Acceptance>) -> FleetFinding {
    FleetFinding {
        id: lint.id.into(),
        severity: lint.severity,
        title: lint.message.clone(),
        meaning: String::new(),
        // Whose pod it is, the workload says.
        items: if lint.id == "host-network" { Vec::new() } else { vec![lint.subject.clone()] },
        what: vec![lint.message.clone()],
        by: Vec::new(),
        example: None,
        closes: lint.advice.clone(),
        accepted,
    }
}

fn of_drift(drift: &DriftFinding) -> FleetFinding {
    FleetFinding {
        id: "drift".into(),
        severity: drift.severity,
        title: "the rules are not what they should be".into(),
        meaning: String::new(),
        items: vec![drift.line()],
        what: drift.effects(),
        by: Vec::new(),
        example: None,
        closes: "podweir init installs them again; the node's agent does so by itself".into(),
        accepted: None,
    }
}
