//! The agent's start, its tasks, and its end.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::cni;
use crate::cni::state::Store;
use crate::sys::{memory, process};

use super::agent::{Agent, OnSocket};
use super::cache::Found;
use super::condition::{Condition, Reporter, TellError};
use super::error::RunError;
use super::events::{self, Teller};
use super::installer::keeper::Keeper;
use super::metrics::Metrics;
use super::pulse::WatchPulse;
use super::removal::{self, OwnDaemonSet};
use super::settings::AgentSettings;
use super::shared::Shared;
use super::socket::SocketError;
use super::{ambient, api, http, kept_socket, preflight, reports, socket};

/// The most open files, of which a pod needs three: enough for 20,000 pods.
const MOST_DESCRIPTORS: u64 = 65_536;
/// The pause between two looks whether the node's condition has changed.
const CONDITION_EVERY: Duration = Duration::from_secs(2);
/// The pause between two checks that threads for pods' rules still work.
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// How often attachments of pods that are gone are forgotten, and how old these have to be.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// How long after the pods of the node are known memory is first given back.
const SETTLES: Duration = Duration::from_secs(2);
/// How long after its start the agent waits, before it writes the node's condition, until chain, binary
/// and pods are known.
const STARTS: Duration = Duration::from_secs(30);
/// The pause between two checks whether they are known.
const STARTING: Duration = Duration::from_millis(200);
/// How long telling the condition may hold the removal up, for which the pod has little time.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Runs the agent until it gets a signal to end.
///
/// # Errors
/// The agent cannot start, or could not be removed completely from the node.
pub fn run(settings: AgentSettings) -> Result<(), RunError> {
    // Three for each pod: its namespace, and two in which the kernel tells of changes there.
    if let Err(e) = process::raise_descriptor_limit(MOST_DESCRIPTORS) {
        warn!("the limit of open files stays as it is: {e}");
    }
    memory::keep_little();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    runtime.map_err(RunError::Start)?.block_on(agent(settings))
}

async fn agent(settings: AgentSettings) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Start)?;
    let lock = only_one(&settings.run_dir);
    let _lock = tokio::select! {
        lock = lock => lock?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let pulse = Arc::<WatchPulse>::default();
    let client = api::client(settings.credentials.clone(), pulse.clone()).map_err(RunError::Credentials)?;
    let metrics = Arc::<Metrics>::default();
    let (teller, queue) = Teller::new(metrics.clone());
    let shared = Arc::new(Shared::new(settings, client.clone(), pulse, metrics.clone(), teller));
    let settings = &shared.settings;
    let ambient = settings.ambient.as_ref().map(|given| ambient::prepare(&shared, given)).transpose()?;
    let agent = Arc::new(Agent::new(shared.clone(), ambient.as_ref().map(|ready| ready.ambient.clone())));
    // The port first, so that probes are answered while everything else waits for others.
    if let Some(address) = settings.listen {
        let listener = http::bind(address).await.map_err(RunError::Listen)?;
        tokio::spawn(http::serve(listener, agent.clone()));
    }
    let listener = socket::bind(&cni::agent::socket(&settings.run_dir))?;
    tokio::spawn(serve(agent.clone(), listener));
    tokio::spawn(events::send(client.clone(), settings.node.clone(), queue, metrics, shared.cache.clone()));
    shared.places.read_attachments();
    if let Some(ambient) = ambient {
        // A client of its own: the pauses between watches are those of one watch. And before
        // the first pod is known.
        let client = api::client(settings.credentials.clone(), shared.namespaces_watch.clone());
        let hears = agent.clone();
        let changed = move |changed: &[String]| hears.namespaces_changed(changed);
        ambient.run(&shared, client.map_err(RunError::Credentials)?, changed);
    }
    tokio::spawn(watch(agent.clone()));
    for lack in preflight::node(settings) {
        shared.metrics.error("preflight", &lack.text);
        error!("{}", lack.text);
        if lack.keeps_pods {
            agent.is_not_capable(lack.text);
        }
    }
    tokio::spawn(check_account(shared.clone()));
    tokio::spawn(collect(shared.clone()));
    tokio::spawn(give_back(shared.clone()));
    tokio::spawn(beat(shared.clone()));
    let teller = settings.condition.then(|| tokio::spawn(tell_condition(agent.clone())));
    let own = settings.daemon_set.clone().map(|name| Arc::new(OwnDaemonSet::new(name)));
    if let Some(own) = own.clone() {
        // A client of its own, as for ambient mode. Whether this watch hangs decides nothing about
        // the agent's health: without it the agent keeps what is on the node.
        let pulse = Arc::<WatchPulse>::default();
        let client = api::client(settings.credentials.clone(), pulse.clone()).map_err(RunError::Credentials)?;
        let shared = shared.clone();
        tokio::spawn(async move { own.watch(client, &shared.metrics, &pulse).await });
    }
    if settings.policy_reports {
        tokio::spawn(reports::keep(shared.clone()));
    }
    let hears = agent.clone();
    let keeper =
        Keeper::start(settings.installation.clone(), move |look| hears.installed(look)).map_err(RunError::Start)?;
    info!(node = settings.node, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // The keeper would put back what is removed now.
    keeper.stop();
    if let Some(own) = own
        && own.is_removed(&client).await
    {
        info!("podweir is removed from this node");
        if let Some(teller) = teller {
            teller.abort();
            last_word(&client, &settings.node).await;
        }
        if let Some(ambient) = &agent.ambient {
            ambient::leave_node(ambient).await;
        }
        return removal::remove_and_answer(&settings.installation, &settings.run_dir).await;
    }
    info!("the agent ends; everything it installed stays, and pods that start wait for the next one");
    Ok(())
}

/// Beats now and then while pods' rules can still be looked at. A thread is started for it like for
/// other work, since work that never ends keeps its place from all.
async fn beat(shared: Arc<Shared>) {
    loop {
        if shared.workers.are_alive().await {
            shared.verifier.beat();
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Logs once which rights the agent's account lacks, as soon as the API server answers.
async fn check_account(shared: Arc<Shared>) {
    loop {
        match preflight::account(&shared.client, &shared.settings).await {
            Ok(missing) => {
                for problem in missing {
                    shared.metrics.error("rbac", &problem);
                    error!("{problem}");
                }
                return;
            }
            // That the API server is away is told by the watch.
            Err(_) => tokio::time::sleep(Duration::from_secs(10)).await,
        }
    }
}

/// Forgets the attachments of pods that are gone, for which the runtime did not call DEL.
async fn collect(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        if !shared.cache.is_synced() {
            continue;
        }
        let shared = shared.clone();
        // Files are blocking work.
        let work = tokio::task::spawn_blocking(move || {
            let store = Store::new(&shared.settings.run_dir);
            store.keep_pods(COLLECT_EVERY, |pod, uid| {
                let (namespace, name) = pod.split_once('/').unwrap_or_default();
                matches!(shared.cache.find(namespace, name, uid), Found::Pod(_))
            })
        });
        match work.await {
            Ok((0, problems)) if problems.is_empty() => {}
            Ok((removed, problems)) => {
                info!(removed, "forgot the attachments of pods that are gone");
                problems.iter().for_each(|problem| warn!("{problem}"));
            }
            Err(e) => warn!("attachments cannot be collected: {e}"),
        }
    }
}

/// Gives back the memory that reading every pod of the node and the first looks took; and now and then
/// what bursts took since.
async fn give_back(shared: Arc<Shared>) {
    while !shared.cache.is_synced() {
        tokio::time::sleep(SETTLES).await;
    }
    let mut pause = SETTLES;
    loop {
        tokio::time::sleep(pause).await;
        // A millisecond for each ten megabytes: not on the thread that answers.
        let _ = tokio::task::spawn_blocking(memory::give_back).await;
        pause = (pause * 2).min(COLLECT_EVERY);
    }
}

/// Waits until this is the only agent on the node.
async fn only_one(run_dir: &Path) -> Result<Flock<File>, RunError> {
    let mut file = removal::open_lock(run_dir)?;
    let mut said = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) => {
                file = back;
                if !std::mem::replace(&mut said, true) {
                    warn!("another agent works on this node; waiting for it to end");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err((_, errno)) => {
                return Err(RunError::RunDir { path: run_dir.display().to_string(), source: errno.into() });
            }
        }
    }
}

async fn watch(agent: Arc<Agent>) {
    let changed = {
        let agent = agent.clone();
        move |change| agent.changed(change)
    };
    let (client, node) = (agent.shared.client.clone(), agent.shared.settings.node.clone());
    let (cache, metrics, pulse) =
        (agent.shared.cache.clone(), agent.shared.metrics.clone(), agent.shared.pods_watch.clone());
    api::watch_pods(client, node, cache, metrics, pulse, changed).await;
}

/// Answers on the agent's socket for ever.
async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let run_dir = &agent.shared.settings.run_dir;
    let path = cni::agent::socket(run_dir);
    let bind = || {
        // The folder may have gone with the socket.
        crate::sys::trust::make_directory(run_dir)
            .map_err(|e| SocketError::Io { path: path.display().to_string(), source: e.into() })?;
        socket::bind(&path)
    };
    let answers = Arc::new(OnSocket(agent.clone()));
    let serve = |listener| socket::serve(listener, answers.clone());
    kept_socket::serve(&path, "the agent's socket", listener, bind, serve, &agent.shared.lost_sockets).await;
}

/// Writes the condition that pods are not intercepted any more. The agent mostly has no right for it
/// then.
async fn last_word(client: &kube::Client, node: &str) {
    let mut reporter = Reporter::new(node.into());
    let told = reporter.tell(client, Condition::fails("Removed", "podweir was removed from this node"));
    let problem = match tokio::time::timeout(LAST_WORD, told).await {
        Ok(Ok(())) => return,
        Ok(Err(problem)) => problem,
        Err(_) => TellError::NoAnswer,
    };
    warn!("{problem}; it stays what it was told last, until somebody removes it from the node's status");
}

/// Keeps the node's condition. An agent that starts knows nothing yet and leaves the condition of the
/// agent before it: a controller would take each upgrade for a failure.
async fn tell_condition(agent: Arc<Agent>) {
    let starts = async {
        while !agent.knows_how_things_stand() {
            tokio::time::sleep(STARTING).await;
        }
    };
    let _ = tokio::time::timeout(STARTS, starts).await;
    let mut reporter = Reporter::new(agent.shared.settings.node.clone());
    let mut said: Option<TellError> = None;
    loop {
        let problem = reporter.tell(&agent.shared.client, agent.condition()).await.err();
        agent.node_is_unknown(matches!(problem, Some(TellError::UnknownNode(_))));
        if let Some(problem) = problem.as_ref().filter(|problem| said.as_ref() != Some(problem)) {
            warn!("{problem}");
            agent.shared.metrics.error("condition", problem);
        }
        said = problem;
        tokio::time::sleep(CONDITION_EVERY).await;
    }
}
