//! What is known of each pod of this node: where its namespace is, which state it is in, and what
//! happened to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cni::agent::message::AttachmentName;
use crate::sys::mutex::lock;
use crate::sys::netns::Netns;

use super::cache::Known;
use super::decide::{Policy, left_alone_by};

/// What the last look at a pod found, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The pod has not been looked at yet.
    New,
    /// The pod is left alone on purpose.
    LeftAlone { why: String },
    /// The pod has exactly the rules that it should have.
    Intercepted { backend: String },
    /// The pod has other rules than it should have, and they are not repaired (yet).
    Drifted { first: String, escapes: bool },
    /// The pod has none of the rules that it should have, and they are not made (yet).
    Unguarded,
    /// The pod has none of its rules, and they are not made before older connections are gone, which
    /// they would break.
    Waiting,
    /// The pod's rules cannot be looked at or repaired; the reason says what would help.
    Failed { why: String },
    /// The pod's network namespace is not known: the pod has no process yet, or none any more.
    NoNamespace,
    /// In ambient mode: a ztunnel takes the pod's traffic.
    Enrolled,
    /// In ambient mode: the pod has its rules, and no ztunnel has taken it yet.
    Pending { why: String },
}

impl State {
    /// The name of the state in metrics and listings.
    pub fn word(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::LeftAlone { .. } => "left-alone",
            Self::Intercepted { .. } => "intercepted",
            Self::Drifted { .. } => "drifted",
            Self::Unguarded => "unguarded",
            Self::Waiting => "waiting",
            Self::Failed { .. } => "failed",
            Self::NoNamespace => "no-namespace",
            Self::Enrolled => "enrolled",
            Self::Pending { .. } => "pending",
        }
    }

    /// Every word of [`Self::word`].
    pub const WORDS: [&str; 10] = [
        "new",
        "left-alone",
        "intercepted",
        "drifted",
        "unguarded",
        "waiting",
        "failed",
        "no-namespace",
        "enrolled",
        "pending",
    ];

    /// The state in a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::New => "it has not been looked at yet".into(),
            Self::LeftAlone { why } => format!("it is left alone: {why}"),
            Self::Intercepted { backend } => format!("its rules are in {backend}, as they should be"),
            Self::Drifted { first, escapes: true } => format!("its rules differ, and traffic escapes: {first}"),
            Self::Drifted { first, .. } => format!("its rules differ: {first}"),
            Self::Unguarded => "it should have rules and has none".into(),
            Self::Waiting => {
                "it should have rules and has none yet: older connections are open that they would break, and --heal-established=wait waits for their end, at most 2 minutes".into()
            }
            Self::Failed { why } => why.clone(),
            Self::NoNamespace => "its network namespace is not known: none of its processes is running".into(),
            Self::Enrolled => "it is in ambient mode, and ztunnel takes its traffic".into(),
            Self::Pending { why } => format!("it is in ambient mode, and waits for ztunnel: {why}"),
        }
    }
}

/// Something that happened to a pod, for `podweir node why`.
#[derive(Debug, Clone)]
pub(super) struct Happening {
    pub at: SystemTime,
    pub what: String,
}

/// The most happenings that are kept of a pod.
const MOST_HAPPENINGS: usize = 16;

/// Where a pod's namespace is.
#[derive(Debug, Clone)]
pub struct Place {
    pub netns: Arc<Netns>,
    /// Device and inode, which identify a namespace.
    pub identity: (u64, u64),
}

/// A pod, its state, and the task that looks after it.
#[derive(Debug)]
pub(super) struct TrackedPod {
    pub known: Mutex<Arc<Known>>,
    pub inner: Mutex<Inner>,
    /// Wakes the task that looks after the pod.
    pub wake: Notify,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub state: State,
    pub since: SystemTime,
    pub place: Option<Place>,
    pub attachment: Option<AttachmentName>,
    pub happenings: Vec<Happening>,
    pub verified: Option<SystemTime>,
    /// Whether it was judged already if the plugin missed the pod.
    pub judged: bool,
    pub task: Option<AbortHandle>,
}

impl TrackedPod {
    pub(super) fn new(known: Arc<Known>) -> Self {
        let inner = Inner {
            state: State::New,
            since: SystemTime::now(),
            place: None,
            attachment: None,
            happenings: Vec::new(),
            verified: None,
            judged: false,
            task: None,
        };
        Self { known: Mutex::new(known), inner: Mutex::new(inner), wake: Notify::new() }
    }

    pub(super) fn known(&self) -> Arc<Known> {
        lock(&self.known).clone()
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Sets the pod's state; whether that is a new one.
    pub(super) fn set(&self, state: State) -> bool {
        let mut inner = self.inner();
        let is_new = inner.state != state;
        if is_new {
            inner.since = SystemTime::now();
            inner.state = state;
        }
        is_new
    }

    /// Adds a happening to the pod's history.
    pub(super) fn note(&self, what: impl Into<String>) {
        let mut inner = self.inner();
        if inner.happenings.len() == MOST_HAPPENINGS {
            inner.happenings.remove(0);
        }
        inner.happenings.push(Happening { at: SystemTime::now(), what: what.into() });
    }

    /// The pod as people and programs are shown it.
    pub(super) fn report(&self) -> Value {
        let known = self.known();
        let inner = self.inner();
        let happenings: Vec<Value> =
            inner.happenings.iter().map(|h| json!({ "time": timestamp(h.at), "what": h.what })).collect();
        json!({
            "namespace": known.namespace,
            "name": known.name,
            "uid": known.uid,
            "state": inner.state.word(),
            "sentence": inner.state.sentence(),
            "since": timestamp(inner.since),
            "verified": inner.verified.map(timestamp),
            "container": inner.attachment.as_ref().map(|a| a.container.clone()),
            "history": happenings,
        })
    }
}

/// A time as RFC 3339 writes it.
pub(super) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| format!("{time:.0}")).unwrap_or_default()
}

/// Every pod that is looked after, by UID.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pods: Mutex<HashMap<String, Arc<TrackedPod>>>,
}

impl Inventory {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<TrackedPod>>> {
        lock(&self.pods)
    }

    /// A pod by its UID, made if it is not there; whether it was made.
    pub(super) fn track(&self, known: &Arc<Known>) -> (Arc<TrackedPod>, bool) {
        let mut pods = self.pods();
        if let Some(tracked) = pods.get(&known.uid) {
            *lock(&tracked.known) = known.clone();
            return (tracked.clone(), false);
        }
        let tracked = Arc::new(TrackedPod::new(known.clone()));
        pods.insert(known.uid.clone(), tracked.clone());
        (tracked, true)
    }

    pub(super) fn get(&self, uid: &str) -> Option<Arc<TrackedPod>> {
        self.pods().get(uid).cloned()
    }

    /// Forgets a pod: its task ends, and its namespace is let go of.
    pub(super) fn forget(&self, uid: &str) -> Option<Arc<TrackedPod>> {
        let tracked = self.pods().remove(uid)?;
        let mut inner = tracked.inner();
        inner.place = None;
        if let Some(task) = inner.task.take() {
            task.abort();
        }
        drop(inner);
        Some(tracked)
    }

    /// The pod to which this attachment belongs.
    pub(super) fn by_attachment(&self, attachment: &AttachmentName) -> Option<Arc<TrackedPod>> {
        let pods = self.pods();
        pods.values().find(|tracked| tracked.inner().attachment.as_ref() == Some(attachment)).cloned()
    }

    /// Every pod, in the order of their names; pods of one name in the order of their UIDs.
    pub(super) fn all(&self) -> Vec<Arc<TrackedPod>> {
        let mut all: Vec<Arc<TrackedPod>> = self.pods().values().cloned().collect();
        all.sort_by_key(|tracked| {
            let known = tracked.known();
            (known.namespace.clone(), known.name.clone(), known.uid.clone())
        });
        all
    }

    /// How many pods are left alone, by the reason.
    pub(super) fn left_alone(&self, policy: &Policy) -> HashMap<&'static str, usize> {
        let mut counts = HashMap::new();
        for tracked in self.pods().values() {
            if matches!(tracked.inner().state, State::LeftAlone { .. }) {
                *counts.entry(left_alone_by(&tracked.known(), policy)).or_default() += 1;
            }
        }
        counts
    }

    /// How many pods are in each state.
    pub(super) fn counts(&self) -> HashMap<&'static str, usize> {
        let mut counts: HashMap<&'static str, usize> = State::WORDS.into_iter().map(|word| (word, 0)).collect();
        for tracked in self.pods().values() {
            *counts.entry(tracked.inner().state.word()).or_default() += 1;
        }
        counts
    }
}
