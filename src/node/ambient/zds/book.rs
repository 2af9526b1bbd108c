//! The pods whose traffic every ztunnel is to take, and what each ztunnel has been told of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::sys::mutex::lock;
use crate::sys::netns::Netns;

use super::super::super::inventory::Place;
use super::ledger::{Ledger, Next, pause};
use super::message::{self, AddWorkload, DelWorkload, KeepWorkload, RequestKind, SnapshotSent, WorkloadInfo};
use super::tell::{Identity, Pods, Tell, ToldPod, Uid};

/// How far a pod's announcement to ztunnels has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// No ztunnel has answered.
    Waiting,
    /// A ztunnel takes the pod's traffic.
    Taken,
    /// No ztunnel takes the pod's traffic, and this is why the last one did not.
    Refused(String),
}

#[derive(Debug)]
struct Announced {
    info: WorkloadInfo,
    place: Option<Place>,
    searched: bool,
    /// How many connections in a row were lost while the pod was announced on them.
    lost: u32,
    not_before: Option<Instant>,
    progress: watch::Sender<Progress>,
}

impl Announced {
    fn new(info: WorkloadInfo) -> Self {
        let progress = watch::Sender::new(Progress::Waiting);
        Self { info, place: None, searched: false, lost: 0, not_before: None, progress }
    }

    fn becomes(&self, now: Progress) {
        self.progress.send_if_modified(|progress| {
            let news = *progress != now;
            *progress = now;
            news
        });
    }
}

#[derive(Debug, Default)]
struct Workloads {
    pods: HashMap<Uid, Announced>,
    unsearched: usize,
    complete: bool,
}

impl Pods for Workloads {
    fn get(&self, uid: &Uid) -> Option<ToldPod> {
        let pod = self.pods.get(uid)?;
        let identity = pod.place.as_ref().map(|place| place.identity);
        Some(ToldPod { identity, searched: pod.searched, not_before: pod.not_before })
    }

    fn is_complete(&self) -> bool {
        self.complete && self.unsearched == 0
    }
}

#[derive(Debug)]
struct Subscriber {
    ledger: Ledger,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    workloads: Workloads,
    lines: BTreeMap<u64, Subscriber>,
    /// How many ztunnels have greeted so far.
    count: u64,
}

impl Inner {
    fn changed(&mut self, uid: &Uid) {
        for line in self.lines.values_mut() {
            line.ledger.changed(uid);
            line.wake.notify_one();
        }
    }

    /// Whether a ztunnel that is connected takes a pod's traffic in this namespace.
    fn has(&self, uid: &Uid, identity: Identity) -> bool {
        self.lines.values().any(|line| line.ledger.has(uid, identity))
    }

    fn wake_all(&self) {
        self.lines.values().for_each(|line| line.wake.notify_one());
    }

    fn mark_searched(&mut self, uid: &Uid) {
        if let Some(pod) = self.workloads.pods.get_mut(uid)
            && !std::mem::replace(&mut pod.searched, true)
        {
            self.workloads.unsearched -= 1;
            if self.workloads.unsearched == 0 {
                // Somebody may wait to say that this was all.
                self.wake_all();
            }
        }
    }
}

/// A request to be sent, an Add with the namespace's descriptor, which stays open until the
/// acknowledgement.
#[derive(Debug)]
pub struct Letter {
    pub tell: Tell,
    pub packet: Vec<u8>,
    pub netns: Option<Arc<Netns>>,
}

/// What a connection is to do.
#[derive(Debug)]
pub enum Do {
    Send(Letter),
    Wait(Option<Instant>),
}

/// The pods for ztunnels, shared by all connections and by the tasks that look after pods.
#[derive(Debug)]
pub struct Book {
    inner: Mutex<Inner>,
    /// Counts acknowledgements, connections and new pods; whoever waits for one of these watches it.
    news: watch::Sender<u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self { inner: Mutex::default(), news: watch::Sender::new(0) }
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn tell_news(&self) {
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Adds a pod that is in ambient mode and whose namespace is being looked for. No snapshot is
    /// complete until that is found, or not found.
    pub fn expect(&self, uid: &Uid, info: WorkloadInfo) {
        let mut inner = self.lock();
        if inner.workloads.pods.contains_key(uid) {
            return;
        }
        inner.workloads.pods.insert(uid.clone(), Announced::new(info));
        inner.workloads.unsearched += 1;
        drop(inner);
        // Somebody may wait until it is let go of, which it is not any more.
        self.tell_news();
    }

    /// Records that a pod's namespace was not found (yet). A namespace that was known before is closed
    /// here; ztunnels that have it keep it.
    pub fn not_found(&self, uid: &Uid) {
        self.not_announced(uid, None);
    }

    /// Records that the rules of a pod's namespace cannot be made (yet): if this namespace was announced
    /// before, it stays so; no other one does.
    pub fn has_no_rules(&self, uid: &Uid, identity: Identity) {
        self.not_announced(uid, Some(identity));
    }

    fn not_announced(&self, uid: &Uid, found: Option<Identity>) {
        let mut inner = self.lock();
        if let Some(pod) = inner.workloads.pods.get_mut(uid)
            && pod.place.as_ref().map(|place| place.identity) != found
        {
            pod.place = None;
        }
        inner.mark_searched(uid);
        inner.changed(uid);
    }

    /// Announces a pod, with a namespace that has its rules, to every ztunnel. Gives how far that has
    /// got: a ztunnel that has the pod in this namespace already, and was not told to drop it since,
    /// still takes it.
    pub fn announce(&self, uid: &Uid, info: WorkloadInfo, place: Place) -> watch::Receiver<Progress> {
        let mut inner = self.lock();
        let is_taken = inner.has(uid, place.identity);
        let Inner { workloads, .. } = &mut *inner;
        if !workloads.pods.contains_key(uid) {
            workloads.unsearched += 1;
        }
        let pod = workloads.pods.entry(uid.clone()).or_insert_with(|| Announced::new(info));
        if pod.place.as_ref().is_none_or(|known| known.identity != place.identity) {
            pod.becomes(if is_taken { Progress::Taken } else { Progress::Waiting });
            (pod.lost, pod.not_before) = (0, None);
            pod.place = Some(place);
        }
        let progress = pod.progress.subscribe();
        inner.mark_searched(uid);
        inner.changed(uid);
        progress
    }

    /// Has every ztunnel drop a pod.
    pub fn remove(&self, uid: &Uid) {
        let mut inner = self.lock();
        inner.mark_searched(uid);
        inner.workloads.pods.remove(uid);
        inner.changed(uid);
    }

    /// Waits until every ztunnel that is connected has dropped a pod that was removed, or until the pod
    /// is added again.
    pub async fn let_go(&self, uid: &Uid) {
        let mut news = self.news.subscribe();
        let is_held = |inner: &Inner| {
            !inner.workloads.pods.contains_key(uid) && inner.lines.values().any(|line| line.ledger.knows(uid))
        };
        while is_held(&self.lock()) {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Records that every pod of the node is known: a snapshot may end as soon as each was looked for.
    pub fn complete(&self) {
        let mut inner = self.lock();
        inner.workloads.complete = true;
        inner.wake_all();
    }

    /// Ends the search for namespaces, which has taken long enough: snapshots may end without those that
    /// are not found.
    pub fn search_is_over(&self) {
        let mut inner = self.lock();
        let late: Vec<Uid> =
            inner.workloads.pods.iter().filter(|(_, pod)| !pod.searched).map(|(uid, _)| uid.clone()).collect();
        for uid in late {
            inner.mark_searched(&uid);
            inner.changed(&uid);
        }
    }

    /// How many ztunnels are connected, and how many of them have had a complete snapshot.
    pub fn ztunnels(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.lines.len(), inner.lines.values().filter(|line| line.ledger.snapshot_sent()).count())
    }

    /// Whether every pod of the node is known, and each was looked for.
    pub fn has_searched_all(&self) -> bool {
        self.lock().workloads.is_complete()
    }

    /// Whether a pod is to be taken by ztunnels.
    pub fn contains(&self, uid: &Uid) -> bool {
        self.lock().workloads.pods.contains_key(uid)
    }

    /// The namespaces that are kept open for ztunnels.
    pub fn namespaces(&self) -> Vec<Identity> {
        self.lock().workloads.pods.values().filter_map(|pod| pod.place.as_ref()).map(|place| place.identity).collect()
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.lock().workloads.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a ztunnel that has greeted: gives its number, and what wakes its connection.
    pub(super) fn join(&self) -> (u64, Arc<Notify>) {
        let mut inner = self.lock();
        inner.count += 1;
        let (number, wake) = (inner.count, Arc::new(Notify::new()));
        let ledger = Ledger::new(inner.workloads.pods.keys());
        inner.lines.insert(number, Subscriber { ledger, wake: wake.clone() });
        drop(inner);
        self.tell_news();
        (number, wake)
    }

    /// Removes a connection that has ended; `in_flight` is the request that was not acknowledged.
    pub(super) fn leave(&self, number: u64, in_flight: Option<&Tell>, why: &str, now: Instant) {
        let mut inner = self.lock();
        inner.lines.remove(&number);
        if let Some(Tell::Add(uid, identity)) = in_flight
            && let Some(pod) = inner.workloads.pods.get_mut(uid)
            && pod.place.as_ref().is_some_and(|place| place.identity == *identity)
        {
            pod.lost = pod.lost.saturating_add(1);
            pod.not_before = Some(now + pause(pod.lost));
            // What another one has, or had before all of them ended, stays so.
            if *pod.progress.borrow() != Progress::Taken {
                let why = format!("the connection to ztunnel was lost while it was told of the pod: {why}");
                pod.becomes(Progress::Refused(why));
            }
        }
        drop(inner);
        self.tell_news();
    }

    /// What a connection is to do next.
    pub(super) fn next(&self, number: u64, now: Instant) -> Do {
        let mut inner = self.lock();
        let Inner { workloads, lines, .. } = &mut *inner;
        let Some(line) = lines.get_mut(&number) else { return Do::Wait(None) };
        let tell = match line.ledger.next(workloads, now) {
            Next::Tell(tell) => tell,
            Next::Wait(until) => return Do::Wait(until),
        };
        let (mut netns, name) = (None, |uid: &Uid| uid.to_string());
        let request = match &tell {
            Tell::Add(uid, _) => {
                let pod = workloads.pods.get(uid);
                netns = pod.and_then(|pod| pod.place.as_ref()).map(|place| place.netns.clone());
                let info = pod.map(|pod| pod.info.clone()).unwrap_or_default();
                RequestKind::Add(AddWorkload { uid: name(uid), workload_info: Some(info) })
            }
            Tell::Keep(uid) => RequestKind::Keep(KeepWorkload { uid: name(uid) }),
            Tell::Del(uid) => RequestKind::Del(DelWorkload { uid: name(uid) }),
            Tell::SnapshotSent => RequestKind::SnapshotSent(SnapshotSent {}),
        };
        Do::Send(Letter { tell, packet: message::encode(request), netns })
    }

    /// Records a ztunnel's answer to a request.
    pub(super) fn acknowledged(&self, number: u64, tell: &Tell, result: Result<(), String>, now: Instant) {
        let mut inner = self.lock();
        if let Some(line) = inner.lines.get_mut(&number) {
            line.ledger.acknowledged(tell, result.is_ok(), now);
        }
        let is_taken = matches!(tell, Tell::Add(uid, identity) if inner.has(uid, *identity));
        let Inner { workloads, .. } = &mut *inner;
        if let Tell::Add(uid, identity) = tell
            && let Some(pod) = workloads.pods.get_mut(uid)
            && pod.place.as_ref().is_some_and(|place| place.identity == *identity)
        {
            match result {
                Ok(()) => {
                    (pod.lost, pod.not_before) = (0, None);
                    pod.becomes(Progress::Taken);
                }
                // Also of a pod that ztunnels had that are gone: whoever is here now does not take it.
                Err(why) if !is_taken => pod.becomes(Progress::Refused(why)),
                Err(_) => {}
            }
        }
        drop(inner);
        self.tell_news();
    }
}
