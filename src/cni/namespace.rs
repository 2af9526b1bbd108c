//! A pod's network namespace: entering it, programming it, and holding it against a plan.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audit::established::{self, Fate, Remarks};
use crate::audit::lints::tproxy;
use crate::backend::conditions::Conditions;
use crate::backend::facts::{NamespaceFacts, PodFiles};
use crate::backend::install::{InstallError, InstallRequest, Outcome, Session};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::{BackendKind, Reading, routing};
use crate::config::given::{Given, Origin, process_environment};
use crate::config::interception::Interception;
use crate::config::options::Opt;
use crate::config::settings::{BackendChoice, Face, Run, Settings, SettingsError};
use crate::config::types::OlderConnections;
use crate::plan::diff;
use crate::plan::{self, model::Plan};
use crate::probe::{self, Beside};
use crate::sys::lock::LockError;
use crate::sys::netns::{self, Netns};

use super::confine;
use super::protocol::{CniError, Code};
use super::reply::{Delivery, Reply};
use super::request::Deadline;

/// How long a connection through rules just repaired may take to arrive.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens the namespace at a path; refuses the node's own.
pub(crate) fn open(path: &Path) -> Result<Netns, CniError> {
    let failed = |text: String| CniError::new(Code::Environment, format!("CNI_NETNS: {text}"));
    let netns = Netns::open(path).map_err(|e| failed(e.to_string()))?;
    let (device, inode) = netns.identity().map_err(|e| failed(format!("cannot look at {}: {e}", path.display())))?;
    // The plugin runs where the runtime does: on the node.
    let own = Netns::open(Path::new("/proc/self/ns/net")).ok().and_then(|own| own.identity().ok());
    if own == Some((device, inode)) || netns::is_host(inode).is_some() {
        return Err(failed(format!("{} is the node's own network namespace", path.display()))
            .details("programming it would divert the node's traffic; a pod with hostNetwork needs no plugin"));
    }
    Ok(netns)
}

/// The interception of a pod, before it is made or compared.
pub(crate) struct Job {
    pub options: Given,
    pub name_servers: Vec<String>,
    /// The text of the pod's resolv.conf(5), if it runs already.
    pub resolv_conf: Option<String>,
    pub deadline: Deadline,
}

/// The result of programming a pod's namespace.
#[derive(Debug)]
pub(crate) struct ProgrammedPod {
    pub outcome: Outcome,
    pub warnings: Vec<String>,
    /// What was found about older connections.
    pub established: Remarks,
    pub families: String,
    pub rules: usize,
    /// The result of a probe, in a pod that runs.
    pub probed: Option<Beside>,
    pub read: Duration,
    pub apply: Duration,
}

/// Moves the process into a namespace for the rest of its short life, and runs a closure there. A
/// separate thread would be cleaner, but on a busy node every switch between threads waits for its turn,
/// and the pod with it. All that is left to do afterwards, even after a panic, is to answer and end.
fn inside<T>(
    netns: &Netns,
    deadline: Deadline,
    answer: &Arc<Reply>,
    work: impl FnOnce() -> Result<T, CniError>,
) -> Result<T, CniError> {
    answer.watch(deadline)?;
    netns.enter().map_err(|e| CniError::new(Code::Programming, e.to_string()))?;
    work()
}

/// The plugin's error for a pod's options that are not valid.
pub(crate) fn refused(error: SettingsError) -> CniError {
    match error.is_usage() {
        true => CniError::new(Code::Pod, error.to_string()).details("correct the pod's annotation"),
        false => CniError::new(Code::Programming, error.to_string()),
    }
}

fn failed(error: InstallError) -> CniError {
    match &error {
        InstallError::Lock(LockError::Held { .. }) => CniError::new(Code::TryAgainLater, error.to_string()),
        InstallError::Drift { backend, elsewhere, differences, .. } => {
            let place = elsewhere.first().unwrap_or(backend);
            let first = differences.first().map(|first| format!(": {first}")).unwrap_or_default();
            CniError::new(Code::Programming, format!("other rules of an interception are in {place} already{first}")).details(
                "delete the pod to have it set up anew, or have such rules replaced: \"interception\": {\"reconcile\": true} in the netconf",
            )
        }
        InstallError::Interference { problem } => CniError::new(Code::Programming, problem.clone())
            .details("have whoever makes them make none in pods, or take \"strict\" out of the netconf's interception"),
        error if error.lacks_program() => CniError::new(Code::Programming, error.to_string()).details(
            "the pod's rules are in iptables, whose programs are not here: delete the pod to have it set up anew, or run the agent in an image that has iptables",
        ),
        _ => CniError::new(Code::Programming, error.to_string()),
    }
}

fn io_failed(what: &str) -> impl FnOnce(std::io::Error) -> CniError {
    move |e| CniError::new(Code::Programming, format!("{what}: {e}"))
}

/// The plan for the namespace the thread is in, and a session to carry it out.
struct Ready {
    settings: Settings,
    plan: Plan,
    session: Session,
    mesh_address: bool,
    /// A user namespace of the pod's own has the network namespace.
    owned: bool,
}

fn prepare(netns: &Netns, job: &Job, face: Face) -> Result<Ready, CniError> {
    let files = PodFiles::OfNode { name_servers: &job.name_servers, resolv_conf: job.resolv_conf.as_deref() };
    let facts = NamespaceFacts::new(files);
    let settings = Settings::resolve(&job.options, face, &facts).map_err(refused)?;
    let plan = plan::build(&settings.interception);
    let (route, addresses) = facts.into_addresses().map_err(io_failed("cannot list the pod's addresses"))?;
    let mesh_address = routing::has_mesh_address(&addresses);
    let conditions = conditions(netns, &settings.run, &job.deadline)?;
    let owned = conditions.programs.user_namespace.is_some();
    let session = Session::open(conditions, route).map_err(failed)?;
    Ok(Ready { settings, plan, session, mesh_address, owned })
}

/// The settings for changing rules: iptables programs use a lock that is not the node's, and run in the
/// pod's user namespace, if it has one of its own.
fn conditions(netns: &Netns, run: &Run, deadline: &Deadline) -> Result<Conditions, CniError> {
    let owner = netns.foreign_owner().map_err(io_failed("cannot tell who owns the network namespace"))?;
    Ok(Conditions {
        rule_comments: run.rule_comments,
        lock_timeout: run.lock_timeout.min(deadline.remaining()),
        programs: ProgramEnvironment {
            path: process_environment("PATH").unwrap_or_default().into(),
            variables: [("XTABLES_LOCKFILE", NO_LOCK.into())].into(),
            user_namespace: owner.map(Arc::new),
            host_network: false,
        },
    })
}

/// Makes a namespace hold an interception and answers; undoes everything if the answer cannot be given.
pub(crate) fn program(netns: Netns, job: Job, answer: &Arc<Reply>, result: &str) -> Result<ProgrammedPod, CniError> {
    inside(&netns, job.deadline, answer, || {
        let mut ready = prepare(&netns, &job, Face::Init)?;
        confine::entered(ready.settings.run.backend, ready.owned);
        let started = Instant::now();
        let run = &ready.settings.run;
        let request = InstallRequest {
            plan: &ready.plan,
            choice: run.backend,
            reconcile: run.reconcile,
            force: run.force_apply,
            strict: run.strict,
        };
        let outcome = ready.session.install(&request, ready.mesh_address).map_err(failed)?;
        let took = started.elapsed();
        let error = match answer.give(result) {
            Delivery::Written => None,
            Delivery::TooLate => Some(CniError::new(Code::TryAgainLater, "too late")),
            Delivery::Failed(error) => Some(error),
        };
        if let Some(error) = error {
            return Err(match ready.session.undo() {
                Ok(()) => error,
                Err((problem, _)) => error.details(format!("going back failed too: {problem}")),
            });
        }
        let cure = "\"interception\": {\"established\": \"reset\"} in the netconf ends them";
        let Settings { interception, run, .. } = &ready.settings;
        let mut established = established::leave_or_end(interception, &ready.plan, run.established, cure);
        if !established.proxy_seen {
            established
                .warnings
                .extend(proxy(&job.options, interception).and_then(|p| tproxy::warning(interception, p)));
        }
        let done = done(&ready, outcome, took, established);
        // The process ends soon; the kernel closes what is open, faster than we would.
        std::mem::forget(ready.session);
        Ok(done)
    })
}

/// The user that the pod's manifest names for its proxy, if it does.
fn proxy(options: &Given, interception: &Interception) -> Option<tproxy::Proxy> {
    let said = matches!(options.get(Opt::ProxyUid), Some((Origin::ProxyField(_), _)));
    interception.proxy_uids.first().filter(|_| said).map(|&uid| tproxy::Proxy::RunsAs(uid))
}

/// The result of replacing rules.
pub(crate) enum Replacement {
    Done(Box<ProgrammedPod>),
    /// Nothing was changed, since this many older connections are open that the rules would break.
    Waits {
        open: usize,
    },
}

/// Makes the namespace that the calling thread is in hold an interception, whatever it holds now, and
/// reads it back.
///
/// Older connections that the rules would break are ended, so that both ends notice; with
/// `wait_for_older` nothing is done while there are some.
///
/// # Errors
/// The rules could not be replaced, and are then what they were; or the kernel does not
/// hold them afterwards.
pub(crate) fn replace(netns: &Netns, job: &Job, face: Face, wait_for_older: bool) -> Result<Replacement, CniError> {
    let mut ready = prepare(netns, job, face)?;
    if wait_for_older {
        let found = established::look_for(&ready.plan).map_err(io_failed("cannot list the pod's connections"))?;
        let open = found.map_or(0, |(_, found)| found.older.iter().filter(|o| o.fate != Fate::MayBreak).count());
        if open > 0 {
            return Ok(Replacement::Waits { open });
        }
    }
    let started = Instant::now();
    let request = InstallRequest {
        plan: &ready.plan,
        choice: ready.settings.run.backend,
        reconcile: true,
        force: false,
        strict: false,
    };
    let outcome = ready.session.install(&request, ready.mesh_address).map_err(failed)?;
    let took = started.elapsed();
    let readings = ready.session.read(&ready.plan.routing).map_err(failed)?;
    drift(&ready.plan, Some(outcome.backend), &readings)?;
    let Settings { interception, addresses, run, .. } = &ready.settings;
    let probed = probe::beside_proxy(&probe::Setup {
        interception,
        plan: &ready.plan,
        addresses,
        port: run.probe_port,
        timeout: PROBE_TIMEOUT,
        suspects: &[],
    });
    let cure = "a restart of the pod ends them";
    let established = established::leave_or_end(interception, &ready.plan, OlderConnections::Reset, cure);
    let done = done(&ready, outcome, took, established);
    Ok(Replacement::Done(Box::new(ProgrammedPod { probed: Some(probed), ..done })))
}

/// The result for a plan; `took`: the time for reading what was held and for applying the plan.
fn done(ready: &Ready, outcome: Outcome, took: Duration, established: Remarks) -> ProgrammedPod {
    ProgrammedPod {
        probed: None,
        established,
        read: outcome.read,
        apply: took.saturating_sub(outcome.read),
        warnings: ready.settings.warnings.iter().chain(&outcome.warnings).cloned().collect(),
        families: ready.plan.families.to_string(),
        rules: ready.plan.rule_count(),
        outcome,
    }
}

/// Holds a namespace against the plan for it; an error names the first difference.
pub(crate) fn compare(netns: Netns, job: Job, answer: &Arc<Reply>) -> Result<BackendKind, CniError> {
    inside(&netns, job.deadline, answer, || {
        let mut ready = prepare(&netns, &job, Face::Init)?;
        confine::entered(ready.settings.run.backend, ready.owned);
        let readings = ready.session.read(&ready.plan.routing).map_err(failed)?;
        let wanted = match ready.settings.run.backend {
            BackendChoice::Nftables => Some(BackendKind::Nftables),
            BackendChoice::IptablesNft => Some(BackendKind::IptablesNft),
            BackendChoice::IptablesLegacy => Some(BackendKind::IptablesLegacy),
            BackendChoice::Auto | BackendChoice::AutoIptables => None,
        };
        drift(&ready.plan, wanted, &readings)
    })
}

fn drift(
    plan: &Plan,
    wanted: Option<BackendKind>,
    readings: &[(BackendKind, Reading)],
) -> Result<BackendKind, CniError> {
    let error = |what: String| CniError::new(Code::Drift, format!("the kernel does not hold the pod's rules: {what}"));
    let (kind, reading) = match readings {
        [(kind, reading)] if wanted.is_none_or(|wanted| wanted == *kind) => (*kind, reading.clone()),
        [(kind, _)] => return Err(error(format!("they are in {kind}, which is not the backend"))),
        [] => (wanted.unwrap_or(BackendKind::Nftables), Reading::nothing()),
        several => {
            let names: Vec<&str> = several.iter().map(|(kind, _)| kind.name()).collect();
            return Err(error(format!("several backends hold some: {}", names.join(", "))));
        }
    };
    let hint = "delete the pod to have it set up anew";
    let differences = diff::from_plan(plan, &reading.plan);
    let mut all = differences.iter().map(ToString::to_string).chain(reading.strange.iter().map(ToString::to_string));
    let Some(first) = all.next() else { return Ok(kind) };
    let more = all.count();
    Err(error(first).details(match more {
        0 => hint.to_owned(),
        1 => format!("1 more difference; {hint}"),
        _ => format!("{more} more differences; {hint}"),
    }))
}
