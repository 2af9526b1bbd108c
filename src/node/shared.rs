//! What the parts of the agent share: its settings, what is known of the node's pods, and the ways to
//! the kernel, to the API server and to people.

use std::sync::{Arc, Mutex};

use crate::sys::mutex::lock;

use super::cache::Cache;
use super::events::Teller;
use super::installed::Installed;
use super::inventory::{Inventory, Place, TrackedPod};
use super::kept_socket::LostSockets;
use super::metrics::Metrics;
use super::on_failure::Evictions;
use super::places::Places;
use super::pulse::{Pulse, WatchPulse};
use super::settings::AgentSettings;
use super::worker::Workers;

/// What the parts of the agent share.
pub(super) struct Shared {
    pub settings: AgentSettings,
    pub client: kube::Client,
    pub cache: Arc<Cache>,
    pub inventory: Inventory,
    pub places: Arc<Places>,
    pub installed: Installed,
    pub metrics: Arc<Metrics>,
    pub events: Teller,
    pub workers: Workers,
    pub evictions: Evictions,
    pub lost_sockets: LostSockets,
    /// Beats while the watch of pods does not hang.
    pub pods_watch: Arc<WatchPulse>,
    /// Beats while the watch of namespaces, which ambient mode has, does not hang.
    pub namespaces_watch: Arc<WatchPulse>,
    /// Beats while pods' rules can be looked at.
    pub verifier: Pulse,
    random: Mutex<u32>,
}

impl Shared {
    /// The shared parts of an agent with these settings. `pods_watch` is beaten by what arrives by
    /// `client`.
    pub(super) fn new(
        settings: AgentSettings,
        client: kube::Client,
        pods_watch: Arc<WatchPulse>,
        metrics: Arc<Metrics>,
        events: Teller,
    ) -> Self {
        Self {
            places: Arc::new(Places::new(&settings.run_dir, &settings.host_proc)),
            settings,
            client,
            cache: Arc::default(),
            inventory: Inventory::default(),
            installed: Installed::default(),
            metrics,
            events,
            workers: Workers::default(),
            evictions: Evictions::default(),
            lost_sockets: LostSockets::default(),
            pods_watch,
            namespaces_watch: Arc::default(),
            verifier: Pulse::default(),
            random: Mutex::new(std::process::id() | 1),
        }
    }

    /// A random number, to spread in time what would otherwise happen at once (xorshift32).
    pub(super) fn random(&self) -> u32 {
        let mut state = lock(&self.random);
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        *state
    }

    /// The namespace of a pod: as ADD told it, as it was kept on disk while there was no agent,
    /// or that of one of its processes.
    pub(super) async fn place_of(&self, tracked: &TrackedPod) -> Option<Place> {
        if let Some(place) = tracked.inner().place.clone() {
            return Some(place);
        }
        let place = self.place_by_uid(&tracked.known().uid).await?;
        tracked.inner().place = Some(place.clone());
        Some(place)
    }

    /// The namespace of a pod by its UID: as it was kept on disk while there was no agent, or
    /// that of one of its processes.
    pub(super) async fn place_by_uid(&self, uid: &str) -> Option<Place> {
        if let Some((attachment, place)) = self.places.kept(uid) {
            if let Some(tracked) = self.inventory.get(uid) {
                tracked.inner().attachment = Some(attachment);
            }
            return Some(place);
        }
        self.places.of_processes(uid).await
    }
}
