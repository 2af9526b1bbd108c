//! Many pods at once: what passes the proxies of a whole cluster, or of everything that a
//! repository would put there. Each distinct interception is audited once, however many pods
//! have it; what is found is told by workload and by namespace.
//!
//! | file | what it owns |
//! |---|---|
//! | `shapes` | the distinct interceptions, each audited once |
//! | `facts` | what agents told of their nodes' kernels |
//! | `sum` | from pods to findings of workloads, and what many have in common |
//! | `compare` | what is new, gone or worse since an earlier answer |
//! | `text`, `json`, `sarif`, `html`, `metrics` | the answer, written down |

pub mod compare;
pub mod facts;
pub mod html;
pub mod json;
pub mod metrics;
pub mod sarif;
pub mod shapes;
pub mod sum;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::pod::documents::DocumentPlace;
use crate::config::pod::owner::Workload;

use super::escapes::kind::Severity;
use super::report::Acceptance;

/// A finding about one interception or one pod.
#[derive(Debug, Clone)]
pub struct FleetFinding {
    pub id: String,
    pub severity: Severity,
    pub title: String,
    pub meaning: String,
    /// What distinguishes the finding from others of its class: ports, ranges, a container.
    pub items: Vec<String>,
    /// The flows that escape, in words.
    pub what: Vec<String>,
    pub by: Vec<String>,
    pub example: Option<String>,
    pub closes: String,
    pub accepted: Option<Acceptance>,
}

impl FleetFinding {
    /// The finding's class and items.
    pub fn name(&self) -> String {
        const ITEMS: usize = 4;
        let mut name = self.id.clone();
        for (at, item) in self.items.iter().take(ITEMS).enumerate() {
            name += if at == 0 { " " } else { ", " };
            name += item;
        }
        match self.items.len().saturating_sub(ITEMS) {
            0 => name,
            more => format!("{name} and {more} more"),
        }
    }
}

/// What is known of the interception of a workload's pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodOutcome {
    /// The pods' traffic is diverted; with the index of their distinct interception.
    Intercepted(usize),
    /// The pods have a sidecar, and nothing diverts their traffic; with the reason.
    NotIntercepted(String),
    /// The pods' options are not valid; with the error.
    Refused(String),
    Ambient,
    HostNetwork,
    LeftAlone(String),
    Outside(String),
    /// The pods could not be audited; with the reason.
    Unknown(String),
}

impl PodOutcome {
    /// All names, in the order in which they are listed.
    pub const NAMES: [&str; 8] = [
        "intercepted",
        "not-intercepted",
        "refused",
        "ambient",
        "host-network",
        "left-alone",
        "outside",
        "not-looked-at",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Intercepted(_) => "intercepted",
            Self::NotIntercepted(_) => "not-intercepted",
            Self::Refused(_) => "refused",
            Self::Ambient => "ambient",
            Self::HostNetwork => "host-network",
            Self::LeftAlone(_) => "left-alone",
            Self::Outside(_) => "outside",
            Self::Unknown(_) => "not-looked-at",
        }
    }

    /// The reason, for outcomes that have one.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::NotIntercepted(why)
            | Self::Refused(why)
            | Self::LeftAlone(why)
            | Self::Outside(why)
            | Self::Unknown(why) => Some(why),
            _ => None,
        }
    }
}

/// From what it is known how pods are intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KnownBy {
    /// The rules that their nodes' kernels have.
    Kernel,
    /// What their manifests ask for.
    Manifest,
}

impl KnownBy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Manifest => "manifest",
        }
    }
}

/// Pods of one workload with the same interception and findings.
#[derive(Debug, Clone)]
pub struct WorkloadVariant {
    pub standing: PodOutcome,
    pub origin: KnownBy,
    pub count: u64,
    /// The names of pods that exist.
    pub pods: Vec<String>,
    pub place: Option<DocumentPlace>,
    /// Findings about these pods themselves, beside those about their interception.
    pub own: Vec<Arc<FleetFinding>>,
}

/// Audited pods of one workload.
#[derive(Debug, Clone)]
pub struct Looked {
    pub workload: Workload,
    pub labels: BTreeMap<String, String>,
    pub variant: WorkloadVariant,
}

/// Something that could not be audited, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missed {
    pub what: String,
    pub why: String,
}

/// All audited pods, collected by workload.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was looked at, in a few words.
    pub about: String,
    /// Whether these are existing pods, rather than templates.
    pub live: bool,
    pub workloads: BTreeMap<Workload, Members>,
    pub missed: Vec<Missed>,
    /// Documents that make no pods.
    pub passed_over: usize,
    pub notices: Vec<String>,
}

/// The pods of a workload.
#[derive(Debug, Default)]
pub struct Members {
    pub labels: BTreeMap<String, String>,
    pub variants: Vec<WorkloadVariant>,
}

/// The most names of pods that are kept for one variant.
const MOST_NAMES: usize = 50;

impl Collected {
    /// Adds pods, to those of their workload that are alike.
    pub fn add(&mut self, looked: Looked) {
        let members = self.workloads.entry(looked.workload).or_default();
        if members.variants.is_empty() {
            members.labels = looked.labels;
        }
        let new = looked.variant;
        let alike = |known: &&mut WorkloadVariant| {
            let own = |list: &[Arc<FleetFinding>]| list.iter().map(|f| f.name()).collect::<Vec<_>>();
            known.standing == new.standing && known.origin == new.origin && own(&known.own) == own(&new.own)
        };
        match members.variants.iter_mut().find(alike) {
            Some(known) => {
                known.count += new.count;
                let room = MOST_NAMES.saturating_sub(known.pods.len());
                known.pods.extend(new.pods.into_iter().take(room));
            }
            None => members.variants.push(new),
        }
    }
}
