//! The node's own rules and sets, which tell the kubelet's probes from other traffic: made at the start,
//! and verified again after every change by anybody, and now and then.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::backend::BackendKind;
use crate::backend::conditions::Conditions;
use crate::backend::host::{HostError, HostProbes};
use crate::config::ambient::HostOptions;
use crate::config::settings::BackendChoice;
use crate::sys::mutex::lock;

use super::super::ears::Ears;
use super::claims::EntryChanges;
use super::world::World;
use super::{Ambient, Entries};

/// Changes come in bursts, and others change a node's rules all the time.
const BURST: Duration = Duration::from_millis(20);
const BETWEEN: Duration = Duration::from_millis(500);
/// Where the kernel reports every change, how many times longer than the usual interval passes between
/// two looks that nothing called for.
const TOLD_FACTOR: u32 = 5;

/// The node's rules and sets, made when they are needed first.
pub(super) struct Host {
    choice: BackendChoice,
    options: HostOptions,
    conditions: Conditions,
    probes: Arc<std::sync::Mutex<Option<HostProbes>>>,
    /// Held during a change: one is made at a time, in the order in which they were decided.
    turn: tokio::sync::Mutex<()>,
    /// Whether rules and sets were removed for good.
    removed: AtomicBool,
}

/// What came of making rules and sets what they should be.
#[derive(Debug, Default)]
struct Asserted {
    written: bool,
    /// The backend that has the rules and sets; `None` if they were removed for good.
    backend: Option<BackendKind>,
}

impl Asserted {
    fn by(
        probes: &mut HostProbes,
        work: impl FnOnce(&mut HostProbes) -> Result<bool, HostError>,
    ) -> Result<Self, HostError> {
        Ok(Self { written: work(probes)?, backend: Some(probes.kind()) })
    }
}

impl Host {
    pub(super) fn new(choice: BackendChoice, options: HostOptions, conditions: Conditions) -> Self {
        Self {
            choice,
            options,
            conditions,
            probes: Arc::default(),
            turn: tokio::sync::Mutex::default(),
            removed: AtomicBool::new(false),
        }
    }

    /// Runs `work` on rules and sets, in another thread than the agent's own.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut HostProbes) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, String> {
        let (probes, choice, options) = (self.probes.clone(), self.choice, self.options);
        let conditions = self.conditions.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let mut held = lock(&probes);
            let probes = match &mut *held {
                Some(probes) => probes,
                None => held.insert(HostProbes::open(choice, options, conditions).map_err(|e| e.to_string())?),
            };
            let result = work(probes).map_err(|e| e.to_string());
            if result.is_err() {
                // A socket that failed is not used again.
                *held = None;
            }
            result
        });
        worked.await.unwrap_or_else(|e| Err(format!("the work on the node's rules was lost: {e}")))
    }

    /// Adds and deletes entries of the sets; rules and all other entries stay.
    pub(super) async fn change(&self, difference: EntryChanges) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        self.work(move |probes| {
            let EntryChanges { add, delete } = &difference;
            let add: Vec<(IpAddr, &str)> = add.iter().map(|(ip, uid)| (*ip, uid.as_str())).collect();
            let delete: Vec<(IpAddr, &str)> = delete.iter().map(|(ip, uid)| (*ip, uid.as_str())).collect();
            probes.change(&add, &delete).map(drop)
        })
        .await
    }

    /// Makes rules and sets, and keeps the entries that are there.
    async fn set_up(&self) -> Result<Asserted, String> {
        let _turn = self.turn.lock().await;
        if self.removed.load(Ordering::Relaxed) {
            return Ok(Asserted::default());
        }
        self.work(|probes| Asserted::by(probes, HostProbes::set_up)).await
    }

    /// Removes rules and sets for good.
    pub(super) async fn remove(&self) -> Result<bool, String> {
        let _turn = self.turn.lock().await;
        self.removed.store(true, Ordering::Relaxed);
        self.work(HostProbes::remove).await
    }

    /// Makes rules and sets with exactly the entries that `entries` gives when it is their turn.
    async fn hold(&self, entries: impl FnOnce() -> Entries) -> Result<Asserted, String> {
        let _turn = self.turn.lock().await;
        if self.removed.load(Ordering::Relaxed) {
            return Ok(Asserted::default());
        }
        let entries = entries();
        self.work(move |probes| Asserted::by(probes, |probes| probes.hold(&entries))).await
    }

    /// The entries that an agent before this one left.
    async fn entries(&self) -> Result<Entries, String> {
        let _turn = self.turn.lock().await;
        self.work(HostProbes::entries).await
    }
}

/// Keeps the node's rules and sets for ever. Until every pod was looked for, entries of an
/// agent before this one stay: probes pass while the agent starts anew.
pub(super) async fn keep<W: World>(ambient: Arc<Ambient<W>>, host: Arc<Host>) {
    let ears = Ears::here("the node");
    let mut interval = ambient.settings.verify_interval;
    let mut said = String::new();
    let mut left: Option<Entries> = None;
    let mut failures = 0u32;
    loop {
        ears.forget();
        let result = match (&mut left, ambient.book.has_searched_all()) {
            (None, _) | (_, false) => {
                left = host.entries().await.ok().or(left);
                host.set_up().await
            }
            (Some(left), true) => {
                // Of what is left, what belongs to a pod that is still looked for stays. A pod that
                // has claims of its own speaks for itself, also when it gives them up again.
                left.retain(|_, uid| !ambient.has_claims(uid));
                let left = left.clone();
                host.hold(|| {
                    let mut entries = ambient.entries();
                    for (address, uid) in left {
                        if ambient.book.contains(&uid.as_str().into()) && !ambient.has_claims(&uid) {
                            entries.entry(address).or_insert(uid);
                        }
                    }
                    entries
                })
                .await
            }
        };
        match result {
            Ok(Asserted { written, backend }) => {
                let told = backend.is_some_and(|backend| ears.hear_all_of(backend.name()));
                interval = ambient.settings.verify_interval * if told { TOLD_FACTOR } else { 1 };
                if written {
                    info!("the node's rules and sets for probes are as they should be");
                }
                ambient.figures.host_set(if written { "written" } else { "same" });
                (failures, said) = (0, String::new());
            }
            Err(problem) => {
                ambient.figures.host_set("failed");
                failures = failures.saturating_add(1);
                if problem != said {
                    warn!("the node's rules for probes cannot be made: {problem}; probes of pods in ambient mode fail");
                    said = problem;
                }
            }
        }
        let searched = ambient.book.has_searched_all();
        let longest = match failures {
            0 if !searched => Duration::from_millis(200),
            0 => interval,
            _ => super::zds::pause(failures).max(BETWEEN),
        };
        let looked = Instant::now();
        tokio::select! {
            () = ears.heard() => tokio::time::sleep(BURST).await,
            () = tokio::time::sleep(longest) => {}
        }
        if let Some(rest) = BETWEEN.checked_sub(looked.elapsed()) {
            tokio::time::sleep(rest.min(longest)).await;
        }
    }
}
