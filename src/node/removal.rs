//! Being removed: whether the agent goes with its DaemonSet, and taking everything off the node.
//!
//! An agent that is told to end asks the API server for its DaemonSet: one that is there keeps
//! everything, one that is gone (404) or being deleted takes everything along. But whoever removes
//! a release removes the account as well, and in no fixed order: helm deletes the DaemonSet first
//! and the account last, `kubectl delete -f` the other way round, and the garbage collector
//! deletes the DaemonSet's pods a moment or minutes after. So when the agent hears of it, its
//! rights are gone mostly (403), or its account is (401, at the latest some 10 s after the
//! account went, for which an API server believes a token that it has looked at).
//!
//! Neither says that the DaemonSet is gone. A token is refused as well when it has expired, when
//! the key that signed it was changed, when the account was made anew, and when the pod that it is
//! bound to was deleted by force; rights are missing while an API server starts, and where
//! somebody changed a role. Therefore the agent watches its DaemonSet from its start. A watch
//! is authorised once, when it begins, and goes on when account and rights go, so it tells the
//! deletion, which comes before any pod of the DaemonSet is told to end. A refusal counts
//! as "removed" only if that watch told that the DaemonSet is gone, and has not told since that
//! it is there again. On any doubt nothing is removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use tracing::{error, info, warn};

use crate::cni;
use crate::sys::mutex::lock;

use super::error::RunError;
use super::installer::{Installation, TYPE};
use super::metrics::Metrics;
use super::pulse::WatchPulse;
use super::settings::ObjectName;
use super::{ambient, api, socket};

/// The name of the file whose lock only one agent on a node has.
const LOCK: &str = "node.lock";
/// How long the runtime has to read a chain without our entry before the binary goes.
const RUNTIME_READS: Duration = Duration::from_secs(2);
/// How long the agent may take to find out whether the DaemonSet is still there, and the pause between
/// two requests for it: less time than the pod has to end.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);

/// What the watch of the agent's own DaemonSet last reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    There,
    /// The DaemonSet is gone, or being deleted.
    Gone,
}

/// The DaemonSet to which the agent belongs.
#[derive(Debug)]
pub(super) struct OwnDaemonSet {
    name: ObjectName,
    /// What was last reported, and whether the list that is being delivered has had the DaemonSet.
    told: Mutex<(Told, bool)>,
}

type Watched = PartialObjectMeta<DaemonSet>;

impl OwnDaemonSet {
    pub(super) fn new(name: ObjectName) -> Self {
        Self { name, told: Mutex::default() }
    }

    /// Takes note of an event of the watch.
    fn hear(&self, event: Event<Watched>) {
        let state = |set: &Watched| match set.metadata.deletion_timestamp {
            Some(_) => Told::Gone,
            None => Told::There,
        };
        let mut told = lock(&self.told);
        match event {
            Event::Apply(set) => told.0 = state(&set),
            Event::Delete(_) => told.0 = Told::Gone,
            Event::Init => told.1 = false,
            Event::InitApply(set) => *told = (state(&set), true),
            Event::InitDone if !told.1 => told.0 = Told::Gone,
            Event::InitDone => {}
        }
    }

    fn told(&self) -> Told {
        lock(&self.told).0
    }

    /// Watches the DaemonSet for ever: it alone, and only its metadata.
    pub(super) async fn watch(&self, client: kube::Client, metrics: &Metrics, pulse: &WatchPulse) {
        let sets: Api<Watched> = Api::namespaced(client, &self.name.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name.name)).any_semantic();
        api::watch_all(sets, config, api::Watch::DaemonSet, metrics, pulse, |event| self.hear(event)).await;
    }

    /// Whether the DaemonSet is gone or being deleted, for an agent that ends; false if that is in
    /// doubt.
    pub(super) async fn is_removed(&self, client: &kube::Client) -> bool {
        let name = &self.name;
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &name.namespace);
        let until = tokio::time::Instant::now() + PATIENCE;
        let removed = || {
            info!("the DaemonSet {}/{} is gone or being deleted", name.namespace, name.name);
            true
        };
        loop {
            // After a 401 the token is read anew for the next request (see `transport`).
            let problem = match tokio::time::timeout_at(until, sets.get_opt(&name.name)).await {
                Ok(Ok(None)) => return removed(),
                Ok(Ok(Some(set))) if set.metadata.deletion_timestamp.is_some() => return removed(),
                Ok(Ok(Some(_))) => return false,
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) && self.told() == Told::Gone => {
                    return removed();
                }
                Ok(Err(problem)) => problem.to_string(),
                Err(_) => "the API server does not answer".into(),
            };
            if tokio::time::Instant::now() + PAUSE >= until {
                warn!(
                    "cannot tell whether the DaemonSet is still there ({problem}): nothing is removed; if podweir has been uninstalled, run podweir node uninstall on this node"
                );
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Makes the run directory, and opens the file of which one agent has the lock.
///
/// # Errors
/// The operating system's, naming the directory.
pub(super) fn open_lock(run_dir: &Path) -> Result<File, RunError> {
    let failed = |source| RunError::RunDir { path: run_dir.display().to_string(), source };
    crate::sys::trust::make_directory(run_dir).map_err(|e| failed(e.into()))?;
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(run_dir.join(LOCK)).map_err(failed)
}

/// `podweir node uninstall`: removes everything from the node. Pods that run keep their rules, and as
/// long as some are in ambient mode the node keeps its rules for their probes.
///
/// # Errors
/// An agent runs, and nothing was removed; or what could not be removed, and the rest is gone.
pub fn uninstall(installation: &Installation, run_dir: &Path) -> Result<(), RunError> {
    // Without the directory there is no agent, and none is to be made.
    let _lock = match run_dir.exists() {
        false => None,
        true => match Flock::lock(open_lock(run_dir)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Some(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Err(RunError::AgentRuns),
            Err((_, errno)) => {
                return Err(RunError::RunDir { path: run_dir.display().to_string(), source: errno.into() });
            }
        },
    };
    let removed = remove(installation, run_dir);
    ambient::leave_node_by_hand();
    removed
}

/// Takes everything off the node; the caller holds the lock that only one agent has.
///
/// # Errors
/// What could not be removed. The rest is gone, but where the plugin had to stay so does what it
/// keeps of pods.
fn remove(installation: &Installation, run_dir: &Path) -> Result<(), RunError> {
    forget(run_dir, take_plugin_away(installation))
}

/// As [`remove`], by an agent: until the binary is gone the runtime may start the plugin, which
/// is answered meanwhile.
///
/// # Errors
/// As [`remove`].
pub(super) async fn remove_and_answer(installation: &Installation, run_dir: &Path) -> Result<(), RunError> {
    let taken = installation.clone();
    let problems = tokio::task::spawn_blocking(move || take_plugin_away(&taken)).await;
    let problems = problems.unwrap_or_else(|e| vec![format!("the plugin's removal ended before its time: {e}")]);
    // On the thread that answers, so that nobody makes the socket again.
    forget(run_dir, problems)
}

/// Takes the plugin out of the chain, and then its binary. What stands in the way of that, in
/// sentences.
fn take_plugin_away(installation: &Installation) -> Vec<String> {
    match installation.remove_entry() {
        Ok(files) => files.iter().for_each(|file| info!("the entry is out of {}", file.display())),
        Err(errors) => return errors.iter().map(ToString::to_string).collect(),
    }
    // A chain that names a plugin without a binary would fail for every pod.
    std::thread::sleep(RUNTIME_READS);
    match installation.still_named() {
        Ok(files) if files.is_empty() => {}
        Ok(files) => return files.iter().map(|file| stays_for(file, installation)).collect(),
        Err(error) => return vec![error.to_string()],
    }
    match installation.remove_binary() {
        Ok(true) => info!("the binary is out of {}", installation.bin_dir.display()),
        Ok(false) => {}
        Err(error) => return vec![error.to_string()],
    }
    Vec::new()
}

/// Why the binary stays, and what to do.
fn stays_for(file: &Path, installation: &Installation) -> String {
    let binary = installation.binary();
    format!(
        "{} still has the entry \"type\": \"{TYPE}\", which is not this installation's to take out: edit that file (or remove it, if it is a drop-in), then run podweir node uninstall on this node again; until then {} stays, since without it every start and end of a pod would fail",
        file.display(),
        binary.display()
    )
}

/// Removes what is left in the run directory, behind these problems with the plugin itself.
fn forget(run_dir: &Path, mut problems: Vec<String>) -> Result<(), RunError> {
    let plugin_stays = !problems.is_empty();
    let socket = cni::agent::socket(run_dir);
    for path in [socket::place_before(&socket), socket, run_dir.join(LOCK)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => problems.push(format!("{}: {e}", path.display())),
            _ => {}
        }
    }
    let attachments = run_dir.join("attachments");
    // A plugin that stays is asked to end what it has begun.
    match if plugin_stays { Ok(()) } else { fs::remove_dir_all(&attachments) } {
        Err(e) if e.kind() != io::ErrorKind::NotFound => problems.push(format!("{}: {e}", attachments.display())),
        _ => {}
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.iter().for_each(|problem| error!("{problem}"));
    Err(RunError::Uninstall(problems.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(deletion: Option<&str>) -> Watched {
        let value = serde_json::json!({ "metadata": { "name": "podweir-node", "deletionTimestamp": deletion } });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_the_watch_told_last_counts() {
        let own = OwnDaemonSet::new(ObjectName { namespace: "n".into(), name: "podweir-node".into() });
        let (there, going) = (|| set(None), || set(Some("2026-01-01T00:00:00Z")));
        assert_eq!(own.told(), Told::Nothing);
        for (event, told) in [
            (Event::Init, Told::Nothing),
            (Event::InitApply(there()), Told::There),
            (Event::InitDone, Told::There),
            (Event::Apply(there()), Told::There),
            (Event::Apply(going()), Told::Gone),
            (Event::Delete(going()), Told::Gone),
            (Event::Apply(there()), Told::There),
            (Event::Delete(there()), Told::Gone),
            // A list that is begun says nothing yet; one without it does.
            (Event::Init, Told::Gone),
            (Event::InitApply(there()), Told::There),
            (Event::InitDone, Told::There),
            (Event::Init, Told::There),
            (Event::InitDone, Told::Gone),
        ] {
            own.hear(event);
            assert_eq!(own.told(), told);
        }
    }
}
