//! Events about pods, as `kubectl describe pod` shows them. They are told through a queue,
//! aggregated by kube's recorder, and limited: a pod that makes many takes nothing from
//! the API server. What the API server does not take is kept, of each pod and kind the newest,
//! and sent again (see [`unsent`]).

mod unsent;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::{debug, warn};

use super::budget::Budget;
use super::cache::{Cache, Known};
use super::metrics::Metrics;
use unsent::{Key, Unsent, Waiting};

/// As whom events are told (`reportingController`).
pub(super) const CONTROLLER: &str = "podweir";
/// What became of an event that is never sent, in the metrics.
const DROPPED: &str = "dropped";
/// How many events may wait to be looked at.
const QUEUE: usize = 256;
/// How many events of one kind a pod may have at once, and the time after which it may have one more:
/// the limit is for each kind, so that many of one kind do not keep the others from being sent.
const PER_POD: (u32, Duration) = (2, Duration::from_secs(30));
/// For how many causes of one kind a pod may have events of their own at once, and the time after which
/// it may for one more: the others share one event.
const CAUSES_PER_POD: (u32, Duration) = (4, Duration::from_secs(300));
/// How long the recorder knows an event, to which it adds the next of the same reason and action
/// (kube-runtime, `CACHE_TTL`).
const RECORDED: Duration = Duration::from_secs(360);
/// How long sending one event may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of a note: the API server takes at most 1 KiB (events.k8s.io/v1, `note`).
const LONGEST_NOTE: usize = 1000;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rules were missing, and were made.
    Repaired,
    /// Rules differed from what they should be.
    Drifted,
    /// The pod's rules cannot be verified or repaired.
    Failed,
    /// Rules have to be repaired so often that the next repair waits. Its reason is that of a failure.
    Waits,
    /// An action was taken for a pod that cannot be repaired. Its reason is that of a failure.
    Acted,
}

impl Kind {
    /// The event's reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Repaired => "InterceptionRepaired",
            Self::Drifted => "InterceptionDrifted",
            Self::Failed | Self::Waits | Self::Acted => "InterceptionFailed",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::Repaired => "Repair",
            Self::Drifted => "Verify",
            Self::Failed => "Intercept",
            Self::Waits => "Wait",
            Self::Acted => "Act",
        }
    }
}

/// Something that happened to a pod, of which an event is sent.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub pod: Arc<Known>,
    pub kind: Kind,
    /// What tells it from others of its kind: the note without what differs each time.
    pub cause: String,
    pub note: String,
}

/// The limits and the sent events of one pod and kind.
struct Told {
    budget: Budget,
    causes: Budget,
    /// The causes for which the recorder has an event of its own: a digest of each, and when it was last
    /// sent.
    recorded: Vec<(u64, Instant)>,
}

impl Told {
    fn new(now: Instant) -> Self {
        Self {
            budget: Budget::new(PER_POD.0, PER_POD.1, now),
            causes: Budget::new(CAUSES_PER_POD.0, CAUSES_PER_POD.1, now),
            recorded: Vec::new(),
        }
    }

    /// Takes the right to tell one more; without it there are too many.
    fn may_be_told(&mut self, now: Instant) -> bool {
        self.budget.take(now).is_ok()
    }

    /// The action to be told for a cause. The recorder puts events of the same reason and action
    /// together, and keeps the first one's note: each cause has an action of its own, as far as the
    /// budget goes.
    fn action(&mut self, kind: Kind, cause: &str, now: Instant) -> String {
        self.recorded.retain(|(_, at)| now.saturating_duration_since(*at) < RECORDED);
        let mut hasher = DefaultHasher::new();
        cause.hash(&mut hasher);
        let digest = hasher.finish();
        match self.recorded.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, at)) => *at = now,
            None if self.causes.take(now).is_ok() => self.recorded.push((digest, now)),
            None => return kind.action().into(),
        }
        format!("{}-{digest:016x}", kind.action())
    }
}

/// Where happenings are told.
#[derive(Clone)]
pub(super) struct Teller {
    queue: Sender<Happened>,
    metrics: Arc<Metrics>,
}

impl Teller {
    /// A teller, and the queue that is sent from.
    pub(super) fn new(metrics: Arc<Metrics>) -> (Self, Receiver<Happened>) {
        let (queue, receiver) = channel(QUEUE);
        (Self { queue, metrics }, receiver)
    }

    /// Queues an event without waiting. An event for which the queue has no place is in the log all the
    /// same.
    pub(super) fn tell(&self, happened: Happened) {
        match self.queue.try_send(happened) {
            Ok(()) => {}
            Err(TrySendError::Full(happened) | TrySendError::Closed(happened)) => {
                self.metrics.event(happened.kind.reason(), DROPPED);
                warn!(pod = %happened.pod, "an event is not sent, since too many wait: {}", happened.note);
            }
        }
    }
}

/// Sends what is told, for ever.
pub(super) async fn send(
    client: kube::Client,
    node: String,
    mut queue: Receiver<Happened>,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
) {
    let recorder = Recorder::new(client, Reporter { controller: CONTROLLER.into(), instance: Some(node) });
    let mut sending = Sending { recorder, metrics, cache, told: HashMap::new(), unsent: Unsent::default() };
    loop {
        let due = sending.unsent.next_try();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            happened = queue.recv() => match happened {
                Some(happened) => sending.hear(happened).await,
                None => return,
            },
            () = wait => sending.send_again().await,
        }
    }
}

/// The time by the clock that sleeps go by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What sends.
struct Sending {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
    told: HashMap<Key, Told>,
    unsent: Unsent,
}

impl Sending {
    /// Sends what happened, unless there are too many of its kind, or keeps it.
    async fn hear(&mut self, happened: Happened) {
        let now = now();
        if self.told.len() > 4 * QUEUE {
            self.told.clear();
        }
        let (kind, reason) = (happened.kind, happened.kind.reason());
        let key = (happened.pod.uid.clone(), kind);
        let of_pod = self.told.entry(key.clone()).or_insert_with(|| Told::new(now));
        // One that waits has been allowed already, and nothing of it was told: the newer one goes.
        let waits = self.unsent.has(&key);
        if !waits && !of_pod.may_be_told(now) {
            return self.metrics.event(reason, "limited");
        }
        let action = of_pod.action(kind, &happened.cause, now);
        if waits {
            self.unsent.replace(&key, happened, action);
            return self.metrics.event(reason, "replaced");
        }
        let waiting = Waiting::new(happened, action, now);
        match self.unsent.pauses(now) {
            true => self.keep(key, waiting),
            false => self.send(key, waiting).await,
        }
    }

    /// Sends the one whose time came first.
    async fn send_again(&mut self) {
        let now = now();
        for waiting in self.unsent.remove_of_the_past(&self.cache, now) {
            self.give_up(&waiting, "its pod is gone for long");
        }
        if let Some((key, waiting)) = self.unsent.take_due(now) {
            self.send(key, waiting).await;
        }
    }

    /// Sends one, and keeps it if it is not taken.
    async fn send(&mut self, key: Key, mut waiting: Waiting) {
        let (pod, reason) = (waiting.happened.pod.clone(), waiting.happened.kind.reason());
        let (event, about) = (event(&waiting.happened, &waiting.action), reference(&pod));
        let sent = tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &about)).await;
        let (problem, is_of_server) = match sent {
            Ok(Ok(())) => {
                self.metrics.event(reason, "sent");
                return self.unsent.is_taken();
            }
            Ok(Err(error)) => (crate::cni::client::chain(&error), unsent::is_of_server(&error)),
            Err(_) => ("the API server does not answer".to_owned(), true),
        };
        self.metrics.event(reason, "failed");
        self.metrics.error("events", &problem);
        let text = format!("cannot send the event {reason}: {problem}; it is kept, and sent again");
        match waiting.is_new() {
            true => warn!(pod = %pod, "{text}"),
            false => debug!(pod = %pod, "{text}"),
        }
        let now = now();
        waiting.is_refused(now);
        if is_of_server {
            self.unsent.pause(now);
        }
        self.keep(key, waiting);
    }

    fn keep(&mut self, key: Key, waiting: Waiting) {
        if let Some(dropped) = self.unsent.keep(key, waiting) {
            self.give_up(&dropped, "too many wait");
        }
    }

    fn give_up(&self, waiting: &Waiting, why: &str) {
        let Happened { pod, kind, note, .. } = &waiting.happened;
        self.metrics.event(kind.reason(), DROPPED);
        warn!(pod = %pod, "an event is not sent, since {why}: {note}");
    }
}

fn event(happened: &Happened, action: &str) -> Event {
    Event {
        type_: if happened.kind == Kind::Repaired { EventType::Normal } else { EventType::Warning },
        reason: happened.kind.reason().into(),
        note: Some(shortened(&happened.note)),
        action: action.into(),
        secondary: None,
    }
}

fn reference(pod: &Known) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// As much of a note as the API server takes, cut between characters.
fn shortened(note: &str) -> String {
    if note.len() <= LONGEST_NOTE {
        return note.to_owned();
    }
    let end = (0..=LONGEST_NOTE - 3).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The action of what is told; `None`: it is too much.
    struct Limited(Told);

    impl Limited {
        fn action(&mut self, kind: Kind, cause: &str, now: Instant) -> Option<String> {
            self.0.may_be_told(now).then(|| self.0.action(kind, cause, now))
        }
    }

    #[test]
    fn each_cause_has_an_action_of_its_own_within_a_budget() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut told = Limited(Told::new(start));
        let one = told.action(Kind::Drifted, "one", start).unwrap();
        let other = told.action(Kind::Drifted, "other", start).unwrap();
        assert!(one != other && one.starts_with("Verify-") && one.len() <= 128, "{one}, {other}");
        assert_eq!(told.action(Kind::Drifted, "one", start), None, "there are too many at once");
        assert_eq!(told.action(Kind::Drifted, "one", start + 30 * second), Some(one.clone()));
        // Whoever makes up causes for an hour has few events of their own; the rest are told in one.
        let hour: Vec<String> = (2..=120u32)
            .filter_map(|at| told.action(Kind::Drifted, &format!("cause {at}"), start + 30 * second * at))
            .collect();
        let of_their_own = hour.iter().filter(|action| *action != "Verify").count();
        assert_eq!(hour.len(), 119);
        assert!((12..=16).contains(&of_their_own), "{of_their_own}");
        assert!(told.0.recorded.len() <= 6, "{:?}", told.0.recorded);
        // What was told all the time needs none of that.
        let mut told = Limited(Told::new(start));
        let again = (0..120u32).filter_map(|at| told.action(Kind::Drifted, "one", start + 30 * second * at));
        assert!(again.into_iter().all(|action| action == one));
        assert!((0..4).all(|at| {
            told.action(Kind::Drifted, &at.to_string(), start + 36_000 * second + 30 * second * at).unwrap() != "Verify"
        }));
    }

    #[test]
    fn notes_fit_what_the_api_server_takes() {
        assert_eq!(shortened("short"), "short");
        for letter in ["a", "ä", "…", "🦀"] {
            let cut = shortened(&letter.repeat(2000));
            assert!(cut.len() <= LONGEST_NOTE && cut.ends_with('…'), "{}", cut.len());
        }
    }
}
