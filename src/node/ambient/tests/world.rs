//! The simulated world of the tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::super::super::cache::Known;
use super::super::super::events::Kind;
use super::super::super::inventory::{Place, State};
use super::super::standing::Options;
use super::super::world::{Programmed, World};
use super::super::{Entries, EntryChanges};
use crate::node::worker::Urgency;
use crate::sys::mutex::lock;
use crate::sys::netns::Netns;

pub(super) struct Played {
    /// The name of the backend by which rules are made.
    pub backend: String,
    /// The namespace of each pod that runs, by the pod's UID: its inode.
    pub places: BTreeMap<String, u64>,
    pub rules: BTreeMap<u64, Options>,
    /// The addresses of those namespaces that have another one than the usual.
    pub addresses: BTreeMap<u64, IpAddr>,
    pub sets: Entries,
    pub annotations: BTreeMap<String, String>,
    pub states: BTreeMap<String, String>,
    /// The operations that were done, in order.
    pub done: Vec<String>,
    /// The operations that are to fail, and how many times.
    pub fail: BTreeMap<&'static str, usize>,
    /// How many annotations are being written, and the most that there were at once.
    pub writing: (usize, usize),
    /// The urgency of each making of rules, in order.
    pub urgencies: Vec<Urgency>,
    /// The states of pods when their namespaces were looked at, in order.
    pub looks: Vec<String>,
}

impl Default for Played {
    fn default() -> Self {
        Self {
            backend: "nftables".into(),
            places: BTreeMap::new(),
            rules: BTreeMap::new(),
            addresses: BTreeMap::new(),
            sets: Entries::new(),
            annotations: BTreeMap::new(),
            states: BTreeMap::new(),
            done: Vec::new(),
            fail: BTreeMap::new(),
            writing: (0, 0),
            urgencies: Vec::new(),
            looks: Vec::new(),
        }
    }
}

/// A world whose state outlives an agent.
#[derive(Clone, Default)]
pub(super) struct Fake {
    state: Arc<Mutex<Played>>,
    pub changes: Arc<Notify>,
    /// A lock that keeps the API server from answering while it is held.
    pub api: Arc<tokio::sync::Mutex<()>>,
}

impl Fake {
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Played) -> T) -> T {
        work(&mut lock(&self.state))
    }

    fn does(&self, what: &'static str, detail: &str) -> Result<(), String> {
        self.with(|played| {
            played.done.push(format!("{what} {detail}"));
            match played.fail.get_mut(what) {
                Some(left) if *left > 0 => {
                    *left -= 1;
                    Err(format!("{what} fails"))
                }
                _ => Ok(()),
            }
        })
    }
}

/// A place with this inode as its identity: the descriptor is of this process's own namespace.
pub(super) fn place(inode: u64) -> Place {
    let netns = Netns::open(&PathBuf::from("/proc/self/ns/net")).unwrap();
    Place { netns: Arc::new(netns), identity: (0, inode) }
}

impl World for Fake {
    type Ears = Arc<Notify>;

    async fn find(&self, uid: &str) -> Option<Place> {
        self.with(|played| played.places.get(uid).copied()).map(place)
    }

    fn is_there(&self, place: &Place) -> bool {
        self.with(|played| played.places.values().any(|inode| *inode == place.identity.1))
    }

    async fn program(&self, urgency: Urgency, place: &Place, options: &Options) -> Result<Programmed, String> {
        // Not at once: others get their turn.
        tokio::task::yield_now().await;
        if !self.is_there(place) {
            return Err("no such namespace".into());
        }
        self.with(|played| played.urgencies.push(urgency));
        self.does("program", &place.identity.1.to_string())?;
        let changed =
            self.with(|played| played.rules.insert(place.identity.1, options.clone())) != Some(options.clone());
        // A kernel tells of it like of any other change.
        self.changes.notify_one();
        let backend = self.with(|played| played.backend.clone());
        Ok(Programmed { backend, changed, warnings: Vec::new() })
    }

    async fn verify(&self, place: &Place, options: &Options) -> Result<Vec<String>, String> {
        // Another thread does it: others get their turn.
        tokio::task::yield_now().await;
        if !self.is_there(place) {
            return Err("no such namespace".into());
        }
        let same = self.with(|played| {
            played.looks.push(format!("{:?}", played.states));
            played.rules.get(&place.identity.1) == Some(options)
        });
        Ok(if same { Vec::new() } else { vec!["missing rule".into()] })
    }

    async fn unprogram(&self, place: &Place) -> Result<bool, String> {
        tokio::task::yield_now().await;
        self.does("unprogram", &place.identity.1.to_string())?;
        Ok(self.with(|played| played.rules.remove(&place.identity.1)).is_some())
    }

    async fn addresses(&self, _: Urgency, place: &Place) -> Vec<IpAddr> {
        let own = self.with(|played| played.addresses.get(&place.identity.1).copied());
        vec![own.unwrap_or_else(|| "10.9.9.9".parse().unwrap())]
    }

    async fn listen(&self, _: Urgency, _: &Place) -> Option<Arc<Notify>> {
        Some(self.changes.clone())
    }

    fn hear_all_of(_: &Arc<Notify>, backend: &str) -> bool {
        backend == "nftables"
    }

    async fn heard(ears: &Arc<Notify>) {
        ears.notified().await;
    }

    async fn change_sets(&self, difference: EntryChanges) -> Result<(), String> {
        self.does("sets", &format!("+{} -{}", difference.add.len(), difference.delete.len()))?;
        self.with(|played| {
            for (address, uid) in &difference.delete {
                if played.sets.get(address) == Some(uid) {
                    played.sets.remove(address);
                }
            }
            played.sets.extend(difference.add);
        });
        Ok(())
    }

    async fn annotate(&self, known: &Known, value: Option<&'static str>) -> Result<(), String> {
        tokio::task::yield_now().await;
        self.does("annotate", value.unwrap_or("nothing"))?;
        self.with(|played| {
            played.writing.0 += 1;
            played.writing.1 = played.writing.1.max(played.writing.0);
        });
        let _answers = self.api.lock().await;
        self.with(|played| {
            played.writing.0 -= 1;
            match value {
                Some(value) => drop(played.annotations.insert(known.uid.clone(), value.into())),
                None => drop(played.annotations.remove(&known.uid)),
            }
        });
        Ok(())
    }

    fn show(&self, uid: &str, state: State) -> bool {
        let word = state.word().to_owned();
        self.with(|played| played.states.insert(uid.into(), word.clone())) != Some(word)
    }

    fn note(&self, _: &str, _: String) {}

    fn tell(&self, _: &Arc<Known>, _: Kind, _: String, text: String) {
        self.with(|played| played.done.push(format!("tell {text}")));
    }
}
