//! The agent: what its parts share, and its answers.

mod answers;
mod missed;
mod pages;
mod places;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::info;

use crate::cni::agent::message::{AttachmentName, Done, FAILED};
use crate::cni::state::KeptNetns;

use super::ambient::{Ambient, Real};
use super::cache::{Cache, Change, Found, Known, Phase};
use super::caretaker;
use super::condition::{Condition, TellError};
use super::decide::{PodDecision, Policy, decide};
use super::events::Teller;
use super::http::Metered;
use super::installer::keeper::Inspection;
use super::installer::{ChainState, Placed};
use super::inventory::{Inventory, Place, State, TrackedPod};
use super::kept_socket::LostSockets;
use super::metrics::Metrics;
use super::on_failure::Evictions;
use super::pulse::{self, Pulse, WatchPulse};
use super::settings::AgentSettings;
use super::worker::Workers;
pub(super) use answers::OnSocket;
use missed::Missed;
use places::Places;

/// The agent.
pub struct Agent {
    pub settings: AgentSettings,
    pub policy: Policy,
    pub cache: Arc<Cache>,
    pub inventory: Inventory,
    pub places: Arc<Places>,
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
    pub lost_sockets: LostSockets,
    installed: Mutex<Installed>,
    random: Mutex<u32>,
}

/// What the installer told last, and what came of it.
#[derive(Default)]
struct Installed {
    look: Option<Inspection>,
    /// Since when the chain has had our entry.
    effective: Option<SystemTime>,
    /// A pod that should have been intercepted and for which no ADD came, since then.
    missed: Option<Missed>,
    /// The API server knows no node of the name that the agent was given.
    unknown_node: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    pub fn new(settings: AgentSettings, client: kube::Client, watch: Arc<WatchPulse>, events: Teller) -> Self {
        let places = Arc::new(Places::new(&settings.run_dir, &settings.host_proc));
        Self {
            policy: settings.policy.clone(),
            settings,
            cache: Arc::default(),
            inventory: Inventory::default(),
            places,
            metrics: Arc::default(),
            events,
            workers: Workers::default(),
            watch,
            verifier: Pulse::default(),
            client,
            evictions: Evictions::default(),
            ambient: OnceLock::new(),
            namespaces_watch: Arc::default(),
            lost_sockets: LostSockets::default(),
            installed: Mutex::default(),
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
    pub fn installed(&self, look: &Inspection) {
        let effective = matches!(&look.chain, Ok(state) if state.is_effective());
        self.metrics.chain(effective, look.rewritten);
        // A look that finds everything in its place installs nothing.
        match &look.binary {
            Ok(Placed::New | Placed::Replaced) => self.metrics.installed("binary", "done"),
            Ok(Placed::Same) => {}
            Err(problem) => self.metrics.install_failed("binary", problem),
        }
        match &look.chain {
            Ok(ChainState::Effective { written: true, .. }) => self.metrics.installed("chain", "done"),
            Ok(_) => {}
            Err(problem) => self.metrics.install_failed("chain", problem),
        }
        let mut installed = lock(&self.installed);
        match (effective, installed.effective) {
            // While others had taken it out, pods may have started without.
            (true, _) if look.rewritten => installed.effective = Some(SystemTime::now()),
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

    /// Hears of a pod that a look found without any rules, though the plugin should have made
    /// them: if the chain had our entry when it was made and no ADD came for it, the runtime
    /// uses another chain.
    pub fn has_no_rules(&self, tracked: &TrackedPod) {
        let known = tracked.known();
        let mut inner = tracked.inner();
        let mut installed = lock(&self.installed);
        // A pod is judged once: what is not repaired is looked at again and again.
        if inner.attachment.is_some() || std::mem::replace(&mut inner.judged, true) {
            return;
        }
        if let (Some(effective), Some(created)) = (installed.effective, known.created)
            && missed::is_made_after(created, effective)
        {
            installed.missed = Some(Missed::new(&known, Instant::now()));
        }
    }

    /// Whether it is known how things stand: the chain and the binary have been looked at, and
    /// the node's pods are known.
    pub fn knows_how_things_stand(&self) -> bool {
        lock(&self.installed).look.is_some() && self.cache.is_synced()
    }

    /// Hears of changes of the watch.
    pub fn changed(self: &Arc<Self>, change: Change) {
        match change {
            Change::Set(known) if known.phase == Phase::Ended => {
                drop(self.inventory.forget(&known.uid));
                self.is_gone(&known);
                if let Some(ambient) = self.ambient.get() {
                    ambient.consider(&known);
                }
            }
            Change::Set(known) => drop(self.track(&known)),
            Change::Gone(known) => {
                drop(self.inventory.forget(&known.uid));
                self.is_gone(&known);
                self.places.forget(&known.uid);
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

    /// A pod has ended, or is gone: what was missed of it says nothing of the next one.
    fn is_gone(&self, known: &Known) {
        lock(&self.installed).missed.take_if(|missed| missed.is_of(known));
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
    fn track(self: &Arc<Self>, known: &Arc<Known>) -> Arc<TrackedPod> {
        let (tracked, _) = self.inventory.track(known);
        match decide(known, &self.policy) {
            PodDecision::LeaveAlone(why) => {
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

    /// The namespace of a pod: as ADD told it, as it was kept on disk while there was no agent,
    /// or that of one of its processes.
    pub async fn place_of(&self, tracked: &TrackedPod) -> Option<Place> {
        if let Some(place) = tracked.inner().place.clone() {
            return Some(place);
        }
        let uid = tracked.known().uid.clone();
        let place = match self.places.kept(&uid) {
            Some((attachment, place)) => {
                tracked.inner().attachment = Some(attachment);
                place
            }
            None => self.places.of_processes(&uid).await?,
        };
        tracked.inner().place = Some(place.clone());
        Some(place)
    }

    /// The namespace of a pod by its UID: as it was kept on disk while there was no agent, or
    /// that of one of its processes.
    pub async fn place_by_uid(&self, uid: &str) -> Option<Place> {
        if let Some((attachment, place)) = self.places.kept(uid) {
            if let Some(tracked) = self.inventory.get(uid) {
                tracked.inner().attachment = Some(attachment);
            }
            return Some(place);
        }
        self.places.of_processes(uid).await
    }

    /// What keeps pods on this node from being intercepted, as a condition of the node.
    pub fn condition(&self) -> Condition {
        if let Some(problem) = self.lost_sockets.problem() {
            return Condition::fails("SocketLost", problem);
        }
        let mut installed = lock(&self.installed);
        match &installed.look {
            None => return Condition::fails("Starting", "the agent is starting"),
            Some(look) => {
                if let Some(problem) = look.problem() {
                    let taken_out = matches!(look.chain, Ok(ChainState::TakenOut { .. }));
                    return Condition::fails(if taken_out { "TakenOut" } else { "NotInstalled" }, problem);
                }
            }
        }
        installed.missed.take_if(|missed| missed.is_old(Instant::now()));
        if let Some(missed) = &installed.missed {
            let message = format!(
                "pod {missed} was started without the plugin although the entry is in the chain: the runtime uses another folder or file; compare its configuration with --cni-conf-dir {}",
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

    /// Hears what the plugin has done.
    fn done(self: &Arc<Self>, done: Done) {
        if done.action == FAILED {
            return self.metrics.added("intercepted", "failed");
        }
        self.metrics.added(if done.why.is_some() { "left-alone" } else { "intercepted" }, "done");
        for (phase, milliseconds) in &done.phases {
            self.metrics.add_phase(phase, *milliseconds);
        }
        lock(&self.installed).missed = None;
        let place = self.places.open(Path::new(&done.netns));
        let kept = |place: &Place| KeptNetns { path: done.netns.clone().into(), identity: place.identity };
        let Found::Pod(known) = self.cache.find(&done.namespace, &done.name, done.uid.as_deref()) else {
            // The watch is behind: what is known of the pod's place waits for it.
            if let (Some(uid), Ok(place)) = (&done.uid, &place) {
                self.places.keep(uid.clone(), done.attachment.clone(), kept(place));
            }
            return;
        };
        let (tracked, _) = self.inventory.track(&known);
        // Also that of a pod which is left alone: its labels may change while it runs.
        if let Ok(place) = &place {
            self.places.keep(known.uid.clone(), done.attachment.clone(), kept(place));
        }
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
            self.places.forget(&tracked.known().uid);
            if let Some(ambient) = self.ambient.get() {
                ambient.sandbox_gone(&tracked.known().uid);
            }
            tracked.note("its sandbox is gone");
            tracked.wake.notify_one();
        }
    }
}

impl Metered for Agent {
    fn metrics(&self) -> String {
        self.metrics.cache(self.watch_age(), self.cache.len());
        if let Some(ambient) = self.ambient.get() {
            self.metrics.ambient.namespaces(ambient.open_namespaces());
        }
        for (state, count) in self.inventory.counts() {
            self.metrics.pods(state, count);
        }
        self.metrics.pods_left_alone(&self.inventory.left_alone(&self.policy));
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
