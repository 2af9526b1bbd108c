//! The agent: what it does with news from the API server, the installer and the plugin, and how it
//! answers requests.

mod answers;
mod pages;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::info;

use crate::cni::agent::message::{AttachmentName, Done, FAILED};
use crate::cni::state::KeptNetns;

use super::ambient::{Ambient, Real};
use super::cache::{Change, Found, Known, Phase};
use super::caretaker;
use super::condition::{Condition, TellError};
use super::decide::{PodDecision, decide};
use super::http::Metered;
use super::installer::keeper::Inspection;
use super::installer::{ChainState, Placed};
use super::inventory::{Place, State, TrackedPod};
use super::pulse;
use super::shared::Shared;
pub(super) use answers::OnSocket;

/// The agent: what its parts share, and how it reacts to news.
pub(super) struct Agent {
    pub shared: Arc<Shared>,
    /// Ambient mode; `None` if that is off.
    pub ambient: Option<Arc<Ambient<Real>>>,
    /// Whether the API server knows no node of the name that the agent was given.
    node_is_unknown: AtomicBool,
    /// What the agent lacks, without which pods cannot be started as they should be.
    lacks: OnceLock<String>,
}

impl Agent {
    pub(super) fn new(shared: Arc<Shared>, ambient: Option<Arc<Ambient<Real>>>) -> Self {
        Self { shared, ambient, node_is_unknown: AtomicBool::new(false), lacks: OnceLock::new() }
    }

    /// How long ago the API server last sent anything on the watch of pods, a bookmark included; `None`
    /// if not every pod of the node is known yet.
    fn watch_age(&self) -> Option<Duration> {
        self.shared.cache.is_synced().then(|| self.shared.pods_watch.heard.age())
    }

    /// Takes note of what a look of the installer found.
    pub(super) fn installed(&self, look: &Inspection) {
        let effective = matches!(&look.chain, Ok(state) if state.is_effective());
        self.shared.metrics.chain(effective, look.rewritten);
        // A look that finds everything in its place installs nothing.
        match &look.binary {
            Ok(Placed::New | Placed::Replaced) => self.shared.metrics.installed("binary", "done"),
            Ok(Placed::Same) => {}
            Err(problem) => self.shared.metrics.install_failed("binary", problem),
        }
        match &look.chain {
            Ok(ChainState::Effective { written: true, .. }) => self.shared.metrics.installed("chain", "done"),
            Ok(_) => {}
            Err(problem) => self.shared.metrics.install_failed("chain", problem),
        }
        self.shared.installed.looked(look);
    }

    /// Takes note of whether the API server knows the node.
    pub(super) fn node_is_unknown(&self, unknown: bool) {
        self.node_is_unknown.store(unknown, Ordering::Relaxed);
    }

    /// Hears of something that the agent lacks for as long as it runs; the first is told.
    pub(super) fn is_not_capable(&self, problem: String) {
        self.lacks.get_or_init(|| problem);
    }

    /// Whether it is known how things stand: the chain and the binary have been looked at, and
    /// the node's pods are known.
    pub(super) fn knows_how_things_stand(&self) -> bool {
        self.shared.installed.is_looked_at() && self.shared.cache.is_synced()
    }

    /// Reacts to a change that the watch of pods delivered.
    pub(super) fn changed(self: &Arc<Self>, change: Change) {
        match change {
            Change::Set(known) if known.phase == Phase::Ended => {
                drop(self.shared.inventory.forget(&known.uid));
                self.shared.installed.is_gone(&known);
                if let Some(ambient) = &self.ambient {
                    ambient.consider(&known);
                }
            }
            Change::Set(known) => drop(self.track(&known)),
            Change::Gone(known) => {
                drop(self.shared.inventory.forget(&known.uid));
                self.shared.installed.is_gone(&known);
                self.shared.places.forget(&known.uid);
                if let Some(ambient) = &self.ambient {
                    ambient.gone(&known.uid);
                }
            }
            Change::Synced => {
                info!(pods = self.shared.cache.len(), "every pod of the node is known");
                self.maybe_complete();
            }
        }
    }

    /// Reacts to namespaces whose label for ambient mode was added or removed.
    pub(super) fn namespaces_changed(self: &Arc<Self>, changed: &[String]) {
        let Some(ambient) = &self.ambient else { return };
        // Before all was known, nothing was decided about any.
        let first = !ambient.is_complete() && ambient.knows_namespaces();
        for known in self.shared.cache.all() {
            if known.phase != Phase::Ended && (first || changed.contains(&known.namespace)) {
                self.track(&known);
            }
        }
        self.maybe_complete();
    }

    /// Lets ztunnels have their complete snapshot once the node's pods and the labels of namespaces are
    /// known.
    fn maybe_complete(self: &Arc<Self>) {
        if let Some(ambient) = &self.ambient
            && self.shared.cache.is_synced()
            && ambient.knows_namespaces()
            && !ambient.is_complete()
        {
            ambient.complete();
        }
    }

    /// Begins to look after a pod, or wakes the task that looks after it already.
    fn track(self: &Arc<Self>, known: &Arc<Known>) -> Arc<TrackedPod> {
        let (tracked, _) = self.shared.inventory.track(known);
        match decide(known, &self.shared.settings.policy) {
            PodDecision::LeaveAlone(why) => {
                // Nobody is going to look at its namespace for a sidecar's rules.
                tracked.inner().place = None;
                let standing = self.ambient.as_ref().and_then(|ambient| {
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
                        let task = tokio::spawn(caretaker::look_after(self.shared.clone(), tracked.clone()));
                        inner.task = Some(task.abort_handle());
                    }
                }
            }
        }
        tracked
    }

    /// What keeps pods on this node from being intercepted, as a condition of the node.
    pub(super) fn condition(&self) -> Condition {
        if let Some(problem) = self.shared.lost_sockets.problem() {
            return Condition::fails("SocketLost", problem);
        }
        if let Some(problem) = self.lacks.get() {
            return Condition::fails("NotCapable", problem.as_str());
        }
        if let Some(problem) = self.shared.installed.problem(&self.shared.settings.installation) {
            return problem;
        }
        if self.node_is_unknown.load(Ordering::Relaxed) {
            return Condition::fails(
                "NodeUnknown",
                TellError::UnknownNode(self.shared.settings.node.clone()).to_string(),
            );
        }
        if !self.shared.cache.is_synced() {
            return Condition::fails("NotSynced", "the API server has not told the pods of this node yet");
        }
        Condition::works()
    }

    /// Takes note of what the plugin reports to have done for a pod.
    fn done(self: &Arc<Self>, done: Done) {
        if done.action == FAILED {
            return self.shared.metrics.added("intercepted", "failed");
        }
        self.shared.metrics.added(if done.why.is_some() { "left-alone" } else { "intercepted" }, "done");
        for (phase, milliseconds) in &done.phases {
            self.shared.metrics.add_phase(phase, *milliseconds);
        }
        self.shared.installed.is_used();
        let place = self.shared.places.open(Path::new(&done.netns));
        let kept = |place: &Place| KeptNetns { path: done.netns.clone().into(), identity: place.identity };
        let Found::Pod(known) = self.shared.cache.find(&done.namespace, &done.name, done.uid.as_deref()) else {
            // The watch is behind: what is known of the pod's place waits for it.
            if let (Some(uid), Ok(place)) = (&done.uid, &place) {
                self.shared.places.keep(uid.clone(), done.attachment.clone(), kept(place));
            }
            return;
        };
        let (tracked, _) = self.shared.inventory.track(&known);
        // Also that of a pod which is left alone: its labels may change while it runs.
        if let Ok(place) = &place {
            self.shared.places.keep(known.uid.clone(), done.attachment.clone(), kept(place));
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
        if let Some(tracked) = self.shared.inventory.by_attachment(attachment) {
            let mut inner = tracked.inner();
            inner.attachment = None;
            inner.place = None;
            drop(inner);
            self.shared.places.forget(&tracked.known().uid);
            if let Some(ambient) = &self.ambient {
                ambient.sandbox_gone(&tracked.known().uid);
            }
            tracked.note("its sandbox is gone");
            tracked.wake.notify_one();
        }
    }
}

impl Metered for Agent {
    fn metrics(&self) -> String {
        self.shared.metrics.intercepting(self.condition().holds);
        self.shared.metrics.cache(self.watch_age(), self.shared.cache.len());
        if let Some(ambient) = &self.ambient {
            self.shared.metrics.ambient.namespaces(ambient.open_namespaces());
        }
        for (state, count) in self.shared.inventory.counts() {
            self.shared.metrics.pods(state, count);
        }
        self.shared.metrics.pods_left_alone(&self.shared.inventory.left_alone(&self.shared.settings.policy));
        self.shared.metrics.text()
    }

    fn not_ready(&self) -> Vec<String> {
        let condition = self.condition();
        if condition.holds { Vec::new() } else { vec![condition.message] }
    }

    fn not_healthy(&self) -> Vec<String> {
        let mut hanging = pulse::hanging(self.shared.pods_watch.round.age(), self.shared.verifier.age());
        if self.ambient.is_some() {
            hanging.extend(pulse::hanging_watch("namespaces", self.shared.namespaces_watch.round.age()));
        }
        hanging
    }
}
