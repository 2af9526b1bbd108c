//! The agent: what its parts share, and its answers.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tracing::{info, warn};

use crate::cni::agent::message::{Answer, AttachmentName, Decide, Done, Request, Setting};
use crate::cni::netconf::option_name;
use crate::cni::protocol::{CniError, Code};
use crate::cni::state::{KeptNetns, Store};
use crate::config::given::Given;
use crate::sys::netns::{self, Netns};
use crate::sys::text::shortened;

use super::ambient::standing::Standing;
use super::ambient::{Ambient, Joined, Real};
use super::api;
use super::cache::{Cache, Change, Found, Known, Phase};
use super::caretaker;
use super::condition::{Condition, TellError};
use super::decide::{Decision, Policy, Programmer, decide};
use super::events::Teller;
use super::http::Told;
use super::installer::keeper::Look;
use super::inventory::{Inventory, Place, State, Tracked, timestamp};
use super::metrics::Metrics;
use super::on_failure::Evictions;
use super::processes;
use super::pulse::{self, Pulse, WatchPulse};
use super::settings::Settings;
use super::socket::Answers;
use super::worker::Workers;

/// How long the plugin waits for the watch to bring a pod, and then for the API server.
const WATCH_PATIENCE: Duration = Duration::from_secs(2);
const API_PATIENCE: Duration = Duration::from_millis(2500);
/// How long a pod's start waits for a ztunnel: less than the plugin waits for the agent.
const ZTUNNEL_PATIENCE: Duration = Duration::from_millis(4500);
/// The most characters of a reason in a list: a line holds some hundred pods.
const LONGEST_REASON: usize = 80;
/// How long a look into the node's /proc is good for.
const PROCESSES_AGE: Duration = Duration::from_secs(1);

/// The paths of pods' network namespaces, by the pods' UIDs.
type Namespaces = HashMap<String, PathBuf>;

/// The agent.
pub struct Agent {
    pub settings: Settings,
    pub policy: Policy,
    pub cache: Arc<Cache>,
    pub inventory: Inventory,
    pub metrics: Arc<Metrics>,
    pub events: Teller,
    pub workers: Workers,
    /// Beats while the watch of pods, and the verifier, do not hang.
    pub watch: Arc<WatchPulse>,
    pub verifier: Pulse,
    pub client: kube::Client,
    pub evictions: Evictions,
    /// Ambient mode, where that is on.
    pub ambient: OnceLock<Arc<Ambient<Real>>>,
    pub namespaces_watch: Arc<WatchPulse>,
    installed: Mutex<Installed>,
    /// The namespaces of pods that have processes, and when that was looked up.
    processes: Mutex<Option<(Instant, Arc<Namespaces>)>>,
    /// Attachments that were kept on disk and whose pods have not been looked at yet, by UID.
    kept: Mutex<HashMap<String, (AttachmentName, KeptNetns)>>,
    random: Mutex<u32>,
}

/// What the installer told last, and what came of it.
#[derive(Default)]
struct Installed {
    look: Option<Look>,
    /// Since when the chain has had our entry.
    effective: Option<SystemTime>,
    /// A pod that should have been intercepted and for which no ADD came, since then.
    missed: Option<String>,
    /// The API server knows no node of the name that the agent was given.
    unknown_node: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    pub fn new(settings: Settings, client: kube::Client, watch: Arc<WatchPulse>, events: Teller) -> Self {
        Self {
            policy: settings.policy.clone(),
            settings,
            cache: Arc::default(),
            inventory: Inventory::default(),
            metrics: Arc::default(),
            events,
            workers: Workers::default(),
            watch,
            verifier: Pulse::default(),
            client,
            evictions: Evictions::default(),
            ambient: OnceLock::new(),
            namespaces_watch: Arc::default(),
            installed: Mutex::default(),
            processes: Mutex::default(),
            kept: Mutex::default(),
            random: Mutex::new(std::process::id() | 1),
        }
    }

    /// A number that spreads what would otherwise come together (xorshift32).
    pub fn random(&self) -> u32 {
        let mut state = lock(&self.random);
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        *state
    }

    /// How long ago the API server last said anything on the watch, a bookmark included.
    fn watch_age(&self) -> Option<Duration> {
        self.cache.is_synced().then(|| self.watch.heard.age())
    }

    /// Hears of a look of the installer.
    pub fn installed(&self, look: &Look) {
        let effective = matches!(&look.chain, Ok(state) if state.is_effective());
        self.metrics.chain(effective, look.rewritten);
        for (part, problem) in [("chain", look.chain.is_err()), ("binary", look.binary.is_err())] {
            self.metrics.installed(part, if problem { "failed" } else { "done" });
        }
        let mut installed = lock(&self.installed);
        match (effective, installed.effective) {
            (true, None) => installed.effective = Some(SystemTime::now()),
            (false, Some(_)) => installed.effective = None,
            _ => {}
        }
        installed.look = Some(look.clone());
    }

    /// Hears whether the API server knows the node.
    pub fn node_is_unknown(&self, unknown: bool) {
        lock(&self.installed).unknown_node = unknown;
    }

    /// Hears of a pod that runs without rules though it should have them: if the chain had
    /// our entry when it was made and no ADD came for it, the runtime uses another chain.
    pub fn missed(&self, tracked: &Tracked) {
        let known = tracked.known();
        let mut installed = lock(&self.installed);
        let Some(effective) = installed.effective else { return };
        let since = effective.duration_since(SystemTime::UNIX_EPOCH).map_or(i64::MAX, |t| t.as_secs() as i64);
        let after = known.created.is_some_and(|created| created > since);
        if after && tracked.inner().attachment.is_none() {
            installed.missed = Some(known.to_string());
        }
    }

    /// Hears of changes of the watch.
    pub fn changed(self: &Arc<Self>, change: Change) {
        match change {
            Change::Set(known) if known.phase == Phase::Ended => {
                drop(self.inventory.forget(&known.uid));
                if let Some(ambient) = self.ambient.get() {
                    ambient.consider(&known);
                }
            }
            Change::Set(known) => drop(self.track(&known)),
            Change::Gone(known) => {
                drop(self.inventory.forget(&known.uid));
                if let Some(ambient) = self.ambient.get() {
                    ambient.gone(&known.uid);
                }
            }
            Change::Synced => {
                info!(pods = self.cache.len(), "every pod of the node is known");
                self.maybe_complete();
            }
        }
    }

    /// Hears of changes of the watch of namespaces: these are in ambient mode now, or are not.
    pub fn namespaces_changed(self: &Arc<Self>, changed: &[String]) {
        let Some(ambient) = self.ambient.get() else { return };
        // Before all was known, nothing was decided about any.
        let first = !ambient.is_complete() && ambient.knows_namespaces();
        for known in self.cache.all() {
            if known.phase != Phase::Ended && (first || changed.contains(&known.namespace)) {
                self.track(&known);
            }
        }
        self.maybe_complete();
    }

    /// Says that ztunnels may be told that they know everything, as soon as they may.
    fn maybe_complete(self: &Arc<Self>) {
        if let Some(ambient) = self.ambient.get()
            && self.cache.is_synced()
            && ambient.knows_namespaces()
            && !ambient.is_complete()
        {
            ambient.complete();
        }
    }

    /// Looks after a pod from now on, or looks again.
    fn track(self: &Arc<Self>, known: &Arc<Known>) -> Arc<Tracked> {
        let (tracked, _) = self.inventory.track(known);
        match decide(known, &self.policy) {
            Decision::LeaveAlone(why) => {
                // Nobody is going to look at its namespace for a sidecar's rules.
                tracked.inner().place = None;
                let standing = self.ambient.get().and_then(|ambient| {
                    ambient.consider(known);
                    ambient.standing(known)
                });
                if !standing.is_some_and(|standing| standing.is_in()) {
                    tracked.set(State::LeftAlone { why });
                }
                tracked.wake.notify_one();
            }
            _ => {
                let mut inner = tracked.inner();
                match &inner.task {
                    Some(_) => tracked.wake.notify_one(),
                    None => {
                        let task = tokio::spawn(caretaker::look_after(self.clone(), tracked.clone()));
                        inner.task = Some(task.abort_handle());
                    }
                }
            }
        }
        tracked
    }

    /// Takes note of the attachments that the plugin kept on disk while no agent ran.
    pub fn read_attachments(&self) {
        let (found, problems) = Store::new(&self.settings.run_dir).all();
        problems.iter().for_each(|problem| warn!("an attachment cannot be used: {problem}"));
        let mut kept = lock(&self.kept);
        for (attachment, state) in found {
            let (Some(uid), Some(netns)) = (state.uid, state.netns) else { continue };
            let name = AttachmentName { container: attachment.container_id, interface: attachment.ifname };
            // Of several the newest is the pod's sandbox of today.
            kept.insert(uid, (name, netns));
        }
    }

    /// The namespace of a pod's attachment as it was kept on disk, if the path still leads to it.
    fn kept_place(&self, uid: &str) -> Option<(AttachmentName, Place)> {
        let (attachment, netns) = lock(&self.kept).remove(uid)?;
        let place = self.open(&netns.path).ok()?;
        (place.identity == netns.identity).then_some((attachment, place))
    }

    /// The resolv.conf of a pod, once it has a process.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub async fn resolv_conf(
        self: &Arc<Self>,
        tracked: &Tracked,
        identity: (u64, u64),
    ) -> std::io::Result<Option<String>> {
        let (agent, uid) = (self.clone(), tracked.known().uid.clone());
        let work = move || match agent.processes().get(&uid) {
            Some(netns) => match processes::resolv_conf(netns, identity) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                read => read.map(Some),
            },
            None => Ok(None),
        };
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
    }

    /// The namespace of a pod: as ADD told it, as it was kept on disk while there was no agent,
    /// or that of one of its processes.
    pub async fn place_of(self: &Arc<Self>, tracked: &Tracked) -> Option<Place> {
        if let Some(place) = tracked.inner().place.clone() {
            return Some(place);
        }
        let uid = tracked.known().uid.clone();
        if let Some((attachment, place)) = self.kept_place(&uid) {
            let mut inner = tracked.inner();
            inner.attachment = Some(attachment);
            inner.place = Some(place.clone());
            return Some(place);
        }
        let place = self.find_place(&uid).await?;
        tracked.inner().place = Some(place.clone());
        Some(place)
    }

    /// The namespace of a pod by its UID: as it was kept on disk while there was no agent, or
    /// that of one of its processes.
    pub async fn place_by_uid(self: &Arc<Self>, uid: &str) -> Option<Place> {
        if let Some((attachment, place)) = self.kept_place(uid) {
            if let Some(tracked) = self.inventory.get(uid) {
                tracked.inner().attachment = Some(attachment);
            }
            return Some(place);
        }
        self.find_place(uid).await
    }

    /// The namespace that one of a pod's processes is in.
    pub async fn find_place(self: &Arc<Self>, uid: &str) -> Option<Place> {
        let (agent, wanted) = (self.clone(), uid.to_owned());
        let found =
            tokio::task::spawn_blocking(move || agent.processes().get(&wanted).cloned()).await.ok().flatten()?;
        self.open(&found).inspect_err(|e| warn!(pod = uid, "{e}")).ok()
    }

    fn processes(&self) -> Arc<Namespaces> {
        let mut processes = lock(&self.processes);
        if let Some((at, known)) = &*processes
            && at.elapsed() < PROCESSES_AGE
        {
            return known.clone();
        }
        let found = Arc::new(processes::namespaces(&self.settings.host_proc));
        *processes = Some((Instant::now(), found.clone()));
        found
    }

    /// Opens a namespace; never the node's own.
    fn open(&self, path: &Path) -> Result<Place, String> {
        let netns = Netns::open(path).map_err(|e| e.to_string())?;
        let identity = netns.identity().map_err(|e| format!("cannot look at {}: {e}", path.display()))?;
        let host = Netns::open(&self.settings.host_proc.join("1/ns/net"))
            .and_then(|host| host.identity().map_err(|source| netns::NetnsError::Open { path: path.into(), source }));
        match host {
            Ok(host) if host == identity => Err(format!("{} is the node's own network namespace", path.display())),
            Err(e) => Err(format!("cannot tell the node's own network namespace: {e}")),
            Ok(_) => Ok(Place { netns: Arc::new(netns), identity }),
        }
    }

    /// What keeps pods on this node from being intercepted, as a condition of the node.
    pub fn condition(&self) -> Condition {
        let installed = lock(&self.installed);
        match &installed.look {
            None => return Condition::fails("Starting", "the agent is starting"),
            Some(look) => {
                if let Some(problem) = look.problem() {
                    return Condition::fails("NotInstalled", problem);
                }
            }
        }
        if let Some(pod) = &installed.missed {
            let message = format!(
                "pod {pod} was started without the plugin although the entry is in the chain: the runtime uses another folder or file; compare its configuration with --cni-conf-dir {}",
                self.settings.installation.conf_dir.display()
            );
            return Condition::fails("ChainNotUsed", message);
        }
        if installed.unknown_node {
            return Condition::fails("NodeUnknown", TellError::UnknownNode(self.settings.node.clone()).to_string());
        }
        if !self.cache.is_synced() {
            return Condition::fails("NotSynced", "the API server has not told the pods of this node yet");
        }
        Condition::works()
    }

    async fn decide(self: &Arc<Self>, asked: Decide) -> Answer {
        let started = Instant::now();
        let known = match self.find(&asked).await {
            Ok(known) => known,
            Err(error) => return refusal(&error),
        };
        let decision = decide(&known, &self.policy);
        if let (Decision::LeaveAlone(_), Some(ambient)) = (&decision, self.ambient.get())
            && let Some(answer) = self.join(ambient, &known, &asked, started).await
        {
            return answer;
        }
        match decision {
            Decision::LeaveAlone(why) => Answer::LeaveAlone { why },
            // Its own init container makes its rules.
            Decision::Intercept { by: Programmer::Init, why, .. } => Answer::LeaveAlone { why: why.into() },
            Decision::Intercept { options, why, warnings, .. } => {
                Answer::Intercept { why: why.into(), options: settings(&options), warnings }
            }
            Decision::Refuse(error) => refusal(&error),
        }
    }

    /// Has a pod of ambient mode taken by ztunnel before it starts. `None`: it is none.
    async fn join(
        self: &Arc<Self>,
        ambient: &Arc<Ambient<Real>>,
        known: &Arc<Known>,
        asked: &Decide,
        started: Instant,
    ) -> Option<Answer> {
        let left = || ZTUNNEL_PATIENCE.saturating_sub(started.elapsed());
        while !ambient.knows_namespaces() && !left().is_zero() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match ambient.standing(known) {
            Some(Standing::Out { .. }) => return None,
            Some(Standing::In { .. }) | None => {}
        }
        let (tracked, _) = self.inventory.track(known);
        tracked.inner().attachment = Some(asked.attachment.clone());
        let joined = match self.open(Path::new(&asked.netns)) {
            Ok(place) => ambient.join(known, place, left()).await,
            Err(e) => Err(format!(
                "{e}; the agent's container needs the runtime's folder of network namespaces, such as /var/run/netns"
            )),
        };
        match joined {
            Ok(Joined::Out) => None,
            Ok(Joined::Enrolled) => {
                Some(Answer::LeaveAlone { why: "it is in ambient mode, and ztunnel takes its traffic".into() })
            }
            Err(why) => {
                self.metrics.added("refused");
                let message = format!("pod {known} is in ambient mode, and ztunnel does not take its traffic: {why}");
                let error = CniError::new(Code::TryAgainLater, message).details(
                    "it must not start outside of the mesh; the runtime tries again by itself, and podweir node status says how ztunnel is",
                );
                Some(refusal(&error))
            }
        }
    }

    /// The pod that is asked for: from the watch, which may be a little behind, then from
    /// the API server.
    async fn find(&self, asked: &Decide) -> Result<Arc<Known>, CniError> {
        let Decide { namespace, name, uid, .. } = asked;
        let uid = uid.as_deref();
        if let Found::Pod(known) = self.cache.wait_for(namespace, name, uid, WATCH_PATIENCE).await {
            return Ok(known);
        }
        let later = |problem: String| {
            CniError::new(
                Code::TryAgainLater,
                format!("podweir's agent does not know pod {namespace}/{name} yet: {problem}"),
            )
            .details("the runtime tries again by itself")
        };
        let gone = || {
            CniError::new(Code::LookUp, format!("there is no such pod any more: {namespace}/{name}"))
                .details("it was deleted meanwhile; the kubelet gives it up by itself")
        };
        match api::look_up(&self.client, namespace, name, API_PATIENCE).await {
            Ok(Some(pod)) => match self.cache.learn(pod) {
                Some(known) if uid.is_none_or(|uid| uid == known.uid) => Ok(known),
                Some(_) => Err(gone()),
                None => Err(later("the API server's answer makes no sense".into())),
            },
            Ok(None) => Err(gone()),
            Err(problem) => Err(later(problem)),
        }
    }

    /// Hears what the plugin has done.
    fn done(self: &Arc<Self>, done: Done) {
        self.metrics.added(if done.why.is_some() { "left-alone" } else { "intercepted" });
        for (phase, milliseconds) in &done.phases {
            self.metrics.add_phase(phase, *milliseconds);
        }
        lock(&self.installed).missed = None;
        let Found::Pod(known) = self.cache.find(&done.namespace, &done.name, done.uid.as_deref()) else {
            // The watch is behind: what is known of the pod's place waits for it.
            if let (Some(uid), Ok(place)) = (&done.uid, self.open(Path::new(&done.netns))) {
                let netns = KeptNetns { path: done.netns.clone().into(), identity: place.identity };
                lock(&self.kept).insert(uid.clone(), (done.attachment.clone(), netns));
            }
            return;
        };
        let (tracked, _) = self.inventory.track(&known);
        let place = self.open(Path::new(&done.netns));
        {
            let mut inner = tracked.inner();
            inner.attachment = Some(done.attachment.clone());
            // Where the path cannot be seen from here, a process of the pod will tell.
            inner.place = place.ok();
        }
        tracked.note(match &done.why {
            Some(why) => format!("the plugin left it alone: {why}"),
            None => {
                format!("the plugin made {} rules in {}", done.rules, done.backend.as_deref().unwrap_or("the kernel"))
            }
        });
        self.track(&known);
    }

    fn forget(&self, attachment: &AttachmentName) {
        if let Some(tracked) = self.inventory.by_attachment(attachment) {
            let mut inner = tracked.inner();
            inner.attachment = None;
            inner.place = None;
            drop(inner);
            if let Some(ambient) = self.ambient.get() {
                ambient.sandbox_gone(&tracked.known().uid);
            }
            tracked.note("its sandbox is gone");
            tracked.wake.notify_one();
        }
    }

    fn status(&self) -> Value {
        let installed = lock(&self.installed);
        let chain = installed.look.as_ref().map(|look| match &look.chain {
            Ok(state) => state.to_string(),
            Err(e) => e.clone(),
        });
        let effective = installed.effective.map(timestamp);
        drop(installed);
        let problems = self.not_ready();
        json!({
            "ready": problems.is_empty(),
            "problems": problems,
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.settings.node,
            "chain": chain,
            "chainSince": effective,
            "watchAgeSeconds": self.watch_age().map(|age| age.as_secs()),
            "knownPods": self.cache.len(),
            "pods": self.inventory.counts(),
            "ambient": self.ambient.get().map(|ambient| ambient.report()),
        })
    }

    fn why(&self, namespace: &str, name: &str) -> Answer {
        let Found::Pod(known) = self.cache.find(namespace, name, None) else {
            let text = format!("no pod {namespace}/{name} is known on node {}", self.settings.node);
            let details = "kubectl get pod -o wide tells the node it is on".into();
            return Answer::Error { code: Code::LookUp.number(), message: text, details };
        };
        let mut report = match self.inventory.get(&known.uid) {
            Some(tracked) => tracked.report(),
            None => json!({ "namespace": known.namespace, "name": known.name, "uid": known.uid,
                "state": "ended", "sentence": "all its containers have ended" }),
        };
        let standing = self.ambient.get().and_then(|ambient| ambient.standing(&known));
        report["decision"] = match decide(&known, &self.policy) {
            Decision::LeaveAlone(_) if let Some(Standing::In { why, options, warnings }) = &standing => json!({
                "intercept": false, "ambient": true, "why": why, "warnings": warnings,
                "options": ambient_options(options) }),
            Decision::LeaveAlone(why) => json!({ "intercept": false, "why": why }),
            Decision::Refuse(error) => json!({ "intercept": false, "why": error.to_string() }),
            Decision::Intercept { options, why, warnings, .. } => {
                json!({ "intercept": true, "why": why, "warnings": warnings, "options": settings(&options) })
            }
        };
        Answer::Report { report }
    }
}

/// Options by name, with their sources.
fn settings(options: &Given) -> BTreeMap<String, Setting> {
    let one = |(opt, origin, text): (crate::config::options::Opt, &crate::config::given::Origin, &str)| {
        (option_name(opt.spec()).to_owned(), Setting { value: text.into(), source: origin.to_string() })
    };
    options.iter().map(one).collect()
}

/// What a pod of ambient mode asks for, in the words of `podweir ambient`.
fn ambient_options(options: &super::ambient::standing::Options) -> Value {
    let interfaces: Vec<String> = options
        .virtual_interfaces
        .iter()
        .map(|i| format!("{}{}", i.name, if i.any_ending { "+" } else { "" }))
        .collect();
    let setting = |value: String| json!({ "value": value, "source": "annotations and the agent's default" });
    json!({ "dns": setting(options.dns.to_string()), "ingress": setting(options.ingress.to_string()),
        "virtual-interfaces": setting(interfaces.join(",")) })
}

fn refusal(error: &CniError) -> Answer {
    Answer::Error { code: error.code.number(), message: error.msg.clone(), details: error.details.clone() }
}

/// The agent on its socket.
pub struct OnSocket(pub Arc<Agent>);

impl Answers for OnSocket {
    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Decide(asked) => self.0.decide(asked).await,
            Request::Done(done) => {
                self.0.done(done);
                Answer::Heard {}
            }
            Request::Forget(attachment) => {
                self.0.forget(&attachment);
                Answer::Heard {}
            }
            Request::Status {} => Answer::Report { report: self.0.status() },
            Request::List {} => {
                let pods = self.0.inventory.all();
                // A line holds some hundred pods; who wants more of one asks why.
                let short = |tracked: &Arc<Tracked>| {
                    let (known, inner) = (tracked.known(), tracked.inner());
                    let (why, escapes) = match &inner.state {
                        State::Drifted { first, escapes } => (Some(shortened(first, LONGEST_REASON)), *escapes),
                        State::Failed { why } => (Some(shortened(why, LONGEST_REASON)), false),
                        _ => (None, false),
                    };
                    json!([known.namespace, known.name, inner.state.word(), known.uid, why, escapes])
                };
                Answer::Report { report: json!({ "pods": pods.iter().map(short).collect::<Vec<Value>>() }) }
            }
            Request::Why { namespace, name } => self.0.why(&namespace, &name),
        }
    }

    fn heard(&self, request: &'static str, result: &'static str) {
        self.0.metrics.request(request, result);
    }
}

impl Told for Agent {
    fn metrics(&self) -> String {
        self.metrics.cache(self.watch_age(), self.cache.len());
        if let Some(ambient) = self.ambient.get() {
            self.metrics.ambient.namespaces(ambient.open_namespaces());
        }
        for (state, count) in self.inventory.counts() {
            self.metrics.pods(state, count);
        }
        self.metrics.text()
    }

    fn not_ready(&self) -> Vec<String> {
        let condition = self.condition();
        if condition.holds { Vec::new() } else { vec![condition.message] }
    }

    fn not_healthy(&self) -> Vec<String> {
        let mut hanging = pulse::hanging(self.watch.round.age(), self.verifier.age());
        if self.ambient.get().is_some() {
            hanging.extend(pulse::hanging_watch("namespaces", self.namespaces_watch.round.age()));
        }
        hanging
    }
}
