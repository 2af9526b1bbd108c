//! The pods of this node, from one watch of the API server, trimmed to the fields that decide: 500 pods
//! of 20 KiB of YAML each are kept in less than 1 MiB.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::config::pod::model::{MIRROR_OF, Pod};
use crate::sys::mutex::lock;

pub(super) use super::watched::WatchedPod;

/// The phase of a pod's life (`status.phase`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    /// All its containers have ended, for good.
    Ended,
    Unknown,
}

impl Phase {
    fn of(text: &str) -> Self {
        match text {
            "Pending" => Self::Pending,
            "Running" => Self::Running,
            "Succeeded" | "Failed" => Self::Ended,
            _ => Self::Unknown,
        }
    }
}

/// What is known of a pod.
#[derive(Debug)]
pub struct Known {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The fields of the pod that decide about its interception.
    pub pod: Pod,
    pub host_network: bool,
    pub phase: Phase,
    pub ips: Vec<IpAddr>,
    /// Whether the pod is being deleted.
    pub ending: bool,
    /// When the pod was made, in seconds since 1970.
    pub created: Option<i64>,
    /// Whether the pod's init containers have ended, or it has none.
    pub init_done: bool,
    pub service_account: String,
    /// Whether the pod is from a file on the node: the API server knows it by another UID.
    pub mirror: bool,
    /// Whether the pod is itself a ztunnel.
    pub ztunnel: bool,
}

impl std::fmt::Display for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Known {
    /// Takes the fields of a pod that decide; `None` for a pod without a name or UID, which the API
    /// server does not deliver.
    pub fn of(watched: WatchedPod) -> Option<Self> {
        let WatchedPod { metadata, mut spec, status } = watched;
        let labelled = |name| metadata.labels.as_ref()?.get(name).map(String::as_str);
        let ztunnel = ["app", "app.kubernetes.io/name"].into_iter().any(|name| labelled(name) == Some("ztunnel"));
        let mirror = metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR_OF));
        let service_account = spec.service_account_name.take().unwrap_or_default();
        let ips = status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
        Some(Self {
            namespace: metadata.namespace?,
            name: metadata.name?,
            // A pod from a file on the node is known to the kubelet by another UID.
            uid: metadata.annotations.as_ref().and_then(|a| a.get(MIRROR_OF)).cloned().or(metadata.uid)?,
            host_network: spec.host_network == Some(true),
            pod: Pod::trimmed(metadata.annotations, metadata.labels, spec),
            phase: Phase::of(&status.phase),
            ips,
            ending: metadata.deletion_timestamp.is_some(),
            init_done: status.conditions.iter().any(|c| c.kind == "Initialized" && c.status == "True"),
            created: metadata.creation_timestamp.map(|time| time.0.as_second()),
            service_account,
            mirror,
            ztunnel,
        })
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// What a watch event changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pod is new, or has changed.
    Set(Arc<Known>),
    /// A pod is gone.
    Gone(Arc<Known>),
    /// Every pod of the node has been delivered.
    Synced,
}

type Key = (String, String);

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<Key, Arc<Known>>,
    /// The pods of a list that is still being delivered.
    listing: Option<HashMap<Key, Arc<Known>>>,
    synced: bool,
}

/// The pods of this node.
#[derive(Debug)]
pub struct Cache {
    inner: Mutex<Inner>,
    /// Counts the events, so that whoever waits for a pod looks again.
    events: watch::Sender<u64>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { inner: Mutex::default(), events: watch::Sender::new(0) }
    }
}

/// The result of looking for a pod in the cache.
#[derive(Debug, Clone)]
pub enum Found {
    Pod(Arc<Known>),
    /// There is a pod of that name with another UID.
    Another(Arc<Known>),
    /// No pod of that name is known.
    No,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Takes an event of the watch in, and says what it changed.
    pub fn apply(&self, event: Event<WatchedPod>) -> Vec<Change> {
        let changes = self.lock().apply(event);
        self.events.send_modify(|count| *count = count.wrapping_add(1));
        changes
    }

    /// Whether every pod of the node has been delivered once.
    pub fn is_synced(&self) -> bool {
        self.lock().synced
    }

    pub fn len(&self) -> usize {
        self.lock().pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every pod, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Known>> {
        let pods: BTreeMap<Key, Arc<Known>> =
            self.lock().pods.iter().map(|(key, known)| (key.clone(), known.clone())).collect();
        pods.into_values().collect()
    }

    /// Finds a pod by its name and, if that is given, its UID.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Found {
        match self.lock().pods.get(&(namespace.to_owned(), name.to_owned())) {
            Some(known) if uid.is_none_or(|uid| uid == known.uid) => Found::Pod(known.clone()),
            Some(known) => Found::Another(known.clone()),
            None => Found::No,
        }
    }

    /// Finds a pod, and waits for it at most for `patience`: the kubelet may be ahead of the watch.
    pub async fn wait_for(&self, namespace: &str, name: &str, uid: Option<&str>, patience: Duration) -> Found {
        let mut events = self.events.subscribe();
        let until = tokio::time::Instant::now() + patience;
        loop {
            events.mark_unchanged();
            let found = self.find(namespace, name, uid);
            if matches!(found, Found::Pod(_)) {
                return found;
            }
            if tokio::time::timeout_at(until, events.changed()).await.is_err() {
                return found;
            }
        }
    }

    /// Takes in a pod that was asked from the API server, unless the watch has delivered one of that
    /// name.
    pub fn learn(&self, pod: WatchedPod) -> Option<Arc<Known>> {
        let known = Arc::new(Known::of(pod)?);
        self.lock().pods.entry(known.key()).or_insert_with(|| known.clone());
        Some(known)
    }
}

impl Inner {
    fn apply(&mut self, event: Event<WatchedPod>) -> Vec<Change> {
        match event {
            Event::Init => {
                self.listing = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(pod) => {
                if let (Some(known), Some(listing)) = (Known::of(pod).map(Arc::new), &mut self.listing) {
                    listing.insert(known.key(), known);
                }
                Vec::new()
            }
            Event::InitDone => self.replace(),
            Event::Apply(pod) => Known::of(pod).map(Arc::new).map(|known| self.set(known)).unwrap_or_default(),
            Event::Delete(pod) => {
                let Some(known) = Known::of(pod) else { return Vec::new() };
                match self.pods.get(&known.key()) {
                    // The older of two pods of one name goes late.
                    Some(other) if other.uid != known.uid => Vec::new(),
                    _ => self.pods.remove(&known.key()).map(Change::Gone).into_iter().collect(),
                }
            }
        }
    }

    fn set(&mut self, known: Arc<Known>) -> Vec<Change> {
        let before = self.pods.insert(known.key(), known.clone());
        let other = before.filter(|before| before.uid != known.uid).map(Change::Gone);
        other.into_iter().chain([Change::Set(known)]).collect()
    }

    /// Replaces the known pods by those of a list that is complete.
    fn replace(&mut self) -> Vec<Change> {
        let listed = self.listing.take().unwrap_or_default();
        self.synced = true;
        let before = std::mem::replace(&mut self.pods, listed);
        let gone = before.into_values().filter(|old| {
            let now = self.pods.get(&old.key());
            now.is_none_or(|now| now.uid != old.uid)
        });
        let mut changes: Vec<Change> = gone.map(Change::Gone).collect();
        changes.extend(self.pods.values().cloned().map(Change::Set));
        changes.push(Change::Synced);
        changes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> WatchedPod {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name, "uid": uid,
                "annotations": { "sidecar.istio.io/status": "a long text", "other": "x".repeat(10_000) } },
            "spec": { "containers": [{ "name": "app", "image": "x", "env": [{ "name": "A", "value": "x".repeat(10_000) }] },
                { "name": "istio-proxy", "args": ["proxy", "sidecar"] }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] }
        }))
        .unwrap()
    }

    fn told(changes: &[Change]) -> Vec<String> {
        let one = |change: &Change| match change {
            Change::Set(known) => format!("set {} {}", known.name, known.uid),
            Change::Gone(known) => format!("gone {} {}", known.name, known.uid),
            Change::Synced => "synced".to_owned(),
        };
        let mut told: Vec<String> = changes.iter().map(one).collect();
        told.sort();
        told
    }

    #[test]
    fn a_list_replaces_what_was_known_and_tells_who_is_gone() {
        let cache = Cache::default();
        assert!(!cache.is_synced());
        for event in [Event::Init, Event::InitApply(pod("a", "1")), Event::InitApply(pod("b", "2"))] {
            assert!(cache.apply(event).is_empty());
        }
        assert_eq!(told(&cache.apply(Event::InitDone)), ["set a 1", "set b 2", "synced"]);
        assert!(cache.is_synced());
        cache.apply(Event::Init);
        // Until the list is whole, what was known is still what is known.
        assert!(matches!(cache.find("shop", "b", None), Found::Pod(_)));
        cache.apply(Event::InitApply(pod("a", "3")));
        assert_eq!(told(&cache.apply(Event::InitDone)), ["gone a 1", "gone b 2", "set a 3", "synced"]);
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_pod() {
        let cache = Cache::default();
        assert_eq!(told(&cache.apply(Event::Apply(pod("web-0", "1")))), ["set web-0 1"]);
        assert_eq!(told(&cache.apply(Event::Apply(pod("web-0", "2")))), ["gone web-0 1", "set web-0 2"]);
        // The deletion of the older one comes late.
        assert!(cache.apply(Event::Delete(pod("web-0", "1"))).is_empty());
        assert!(matches!(cache.find("shop", "web-0", Some("2")), Found::Pod(_)));
        assert!(matches!(cache.find("shop", "web-0", Some("1")), Found::Another(_)));
        assert!(matches!(cache.find("shop", "web-1", None), Found::No));
        assert_eq!(told(&cache.apply(Event::Delete(pod("web-0", "2")))), ["gone web-0 2"]);
        assert!(cache.is_empty());
    }

    #[test]
    fn only_what_decides_is_kept() {
        let cache = Cache::default();
        cache.apply(Event::Apply(pod("a", "1")));
        let Found::Pod(known) = cache.find("shop", "a", None) else { panic!() };
        assert!(format!("{known:?}").len() < 1000, "{known:?}");
        assert!(known.pod.select().is_ok());
        assert_eq!((known.phase, known.ips.len(), known.ending), (Phase::Running, 2, false));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_waits_for_a_pod_gets_it_when_the_watch_brings_it() {
        let cache = Arc::new(Cache::default());
        let waiting = {
            let cache = cache.clone();
            tokio::spawn(async move { cache.wait_for("shop", "a", Some("2"), Duration::from_secs(60)).await })
        };
        tokio::task::yield_now().await;
        cache.apply(Event::Apply(pod("a", "1")));
        tokio::task::yield_now().await;
        cache.apply(Event::Apply(pod("a", "2")));
        assert!(matches!(waiting.await.unwrap(), Found::Pod(known) if known.uid == "2"));
        assert!(matches!(cache.wait_for("shop", "a", Some("3"), Duration::ZERO).await, Found::Another(_)));
        assert!(matches!(cache.wait_for("shop", "b", None, Duration::ZERO).await, Found::No));
    }
}
