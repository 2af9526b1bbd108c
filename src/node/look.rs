//! Looking at a pod's rules and repairing them: blocking work for a thread that is in the pod's network
//! namespace. All rules are read from the kernel natively; a program is started only for tables of
//! iptables-legacy, which nothing else can list.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::report::drift::{WORST, drift};
use crate::audit::source::{Source, SourceError, live, options};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::limit::Most;
use crate::backend::listing::ListedTable;
use crate::backend::ours::Holding;
use crate::cni::namespace::{self, Job, Replacement};
use crate::cni::protocol::CniError;
use crate::cni::request::Deadline;
use crate::config::given::{Given, process_environment};
use crate::config::options::Opt;
use crate::config::settings::Face;
use crate::config::value;
use crate::plan::canon::Canon;
use crate::plan::model::Plan;
use crate::probe::Beside;
use crate::sys::netns::Netns;

/// How long to wait for the lock of another program that changes the rules.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The rules that a pod's namespace should have.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The options from which the rules are made.
    pub options: Given,
    /// The program whose defaults count where the options say nothing.
    pub face: Face,
    /// The pod's resolv.conf, whose name servers count; `None` if it is not known.
    pub resolv_conf: Option<String>,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// The rules are exactly those that are wanted, made by this backend.
    Same { backend: &'static str },
    /// There are no rules of an interception.
    Nothing,
    /// The rules differ from those that are wanted.
    Differs(Drift),
    /// The rules cannot be compared; the reason says what would help.
    CannotTell(String),
}

/// How rules differ from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    /// The first difference; in `count`, how many there are.
    pub first: String,
    pub count: usize,
    /// What the differences change for traffic, in words; the worst first.
    pub effects: Vec<String>,
    /// Whether traffic gets past the proxy that should not.
    pub escapes: bool,
}

impl Wanted {
    /// Whether the rules depend on the pod's own resolv.conf: DNS is captured, but only to
    /// the servers that it names.
    pub(super) fn needs_resolv_conf(&self) -> bool {
        let is_on = |opt| value::boolean(self.options.text(opt).1) == Ok(true);
        is_on(Opt::RedirectDns) && !is_on(Opt::CaptureAllDns)
    }
}

/// Compares the rules in the namespace of the calling thread with those that are wanted.
pub(super) fn look(netns: &Netns, wanted: &Wanted) -> Look {
    // Its iptables programs have to be started inside the user namespace that it belongs to.
    let owner = match netns.foreign_owner() {
        Ok(owner) => owner.map(Arc::new),
        Err(e) => return Look::CannotTell(format!("cannot tell who owns the network namespace: {e}")),
    };
    let found = match live::read(&reader(wanted, owner)) {
        Ok(found) => found,
        Err(error) => return Look::CannotTell(error.to_string()),
    };
    match of_options(wanted, &found) {
        Ok(want) => compare(&want, &found),
        Err(error) => Look::CannotTell(error.to_string()),
    }
}

fn reader(wanted: &Wanted, user_namespace: Option<Arc<File>>) -> live::Live<'_> {
    let programs = ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        variables: [("XTABLES_LOCKFILE", NO_LOCK.into())].into(),
        user_namespace,
        ..ProgramEnvironment::default()
    };
    live::Live {
        programs,
        lock_timeout: LOCK_TIMEOUT,
        resolv_conf: wanted.resolv_conf.as_deref(),
        most: Most::OF_A_POD,
    }
}

/// The rules that the options make for a pod with the addresses and name servers that were found.
fn of_options(wanted: &Wanted, found: &Source) -> Result<Source, SourceError> {
    let known = options::KnownPod {
        addresses: found.pod.addresses.clone(),
        dns_servers: found.pod.dns_servers.clone(),
        ..options::KnownPod::default()
    };
    options::read(&wanted.options, wanted.face, &known)
}

fn compare(want: &Source, found: &Source) -> Look {
    let is_ours = |table: &ListedTable| {
        table.kind().is_some() && found.held.iter().any(|held: &Holding| held.holder == table.holder)
    };
    let wanted = want.canon();
    let is_wanted = |held: &Holding| {
        let plan = Plan { routing: found.routing.clone().unwrap_or_default(), ..held.plan.clone() };
        held.strange.is_empty() && Canon::of(&plan) == wanted
    };
    if let [held, ..] = &found.held[..]
        && found.tables.iter().all(is_ours)
        && found.held.iter().all(is_wanted)
    {
        // Nobody else has rules here, so nothing else can decide about a packet. A plugin behind
        // ours in the chain may have made the same rules once more, by which nothing changes.
        return Look::Same { backend: held.holder.name() };
    }
    let (drifts, notes) = drift(want, found);
    let Some(worst) = drifts.first() else {
        return match notes.first() {
            Some(note) => Look::CannotTell(note.clone()),
            None => Look::Same { backend: found.held.first().map_or("plan", |held| held.holder.name()) },
        };
    };
    if found.held.is_empty() {
        return Look::Nothing;
    }
    Look::Differs(Drift {
        first: format!("{} {}: {}", worst.how, worst.place, worst.what),
        count: drifts.len(),
        effects: drifts.iter().flat_map(|drift| drift.effects.iter().cloned()).collect(),
        escapes: worst.severity == WORST,
    })
}

/// The result of a repair.
#[derive(Debug)]
pub(super) enum Mending {
    Done(Mended),
    /// Nothing was changed, since this many older connections are open that the rules would break.
    Waits {
        open: usize,
    },
}

/// What a repair did.
#[derive(Debug)]
pub(super) struct Mended {
    pub backend: &'static str,
    pub families: String,
    pub rules: usize,
    pub warnings: Vec<String>,
    /// What became of connections that were open before.
    pub older: Vec<String>,
    /// What became of a test connection through the new rules.
    pub probed: Option<Beside>,
}

/// Replaces the rules in the namespace of the calling thread by those that are wanted, in one
/// transaction, and reads them back.
///
/// # Errors
/// The rules could not be replaced (they are then what they were), or are not what they should be
/// afterwards.
pub(super) fn mend(
    netns: &Netns,
    wanted: &Wanted,
    wait_for_older: bool,
    timeout: Duration,
) -> Result<Mending, CniError> {
    let deadline = Deadline { started: std::time::Instant::now(), timeout };
    let job = Job {
        options: wanted.options.clone(),
        name_servers: Vec::new(),
        resolv_conf: wanted.resolv_conf.clone(),
        deadline,
    };
    let done = match namespace::replace(netns, &job, wanted.face, wait_for_older)? {
        Replacement::Waits { open } => return Ok(Mending::Waits { open }),
        Replacement::Done(done) => done,
    };
    Ok(Mending::Done(Mended {
        backend: done.outcome.backend.name(),
        families: done.families,
        rules: done.rules,
        warnings: done.warnings,
        probed: done.probed,
        older: done.established.infos.into_iter().chain(done.established.warnings).collect(),
    }))
}
