//! Events about pods, as `kubectl describe pod` shows them. They are told through a queue,
//! aggregated by kube's recorder, and limited: a pod that makes many takes nothing from
//! the API server.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tracing::warn;

use super::budget::Budget;
use super::cache::Known;
use super::metrics::Metrics;

/// How many events may wait to be sent.
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

    /// The action to be sent for a cause; `None` if there are too many events. The recorder merges
    /// events of the same reason and action and keeps the first one's note, so each cause has an action
    /// of its own, as far as the limit allows.
    fn action(&mut self, kind: Kind, cause: &str, now: Instant) -> Option<String> {
        self.budget.take(now).ok()?;
        self.recorded.retain(|(_, at)| now.saturating_duration_since(*at) < RECORDED);
        let mut hasher = DefaultHasher::new();
        cause.hash(&mut hasher);
        let digest = hasher.finish();
        match self.recorded.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, at)) => *at = now,
            None if self.causes.take(now).is_ok() => self.recorded.push((digest, now)),
            None => return Some(kind.action().into()),
        }
        Some(format!("{}-{digest:016x}", kind.action()))
    }
}

/// The queue to which events are given.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    queue: Sender<Happened>,
}

impl Teller {
    /// Makes a queue of events: the end that takes them, and the end from which they are sent.
    pub(super) fn new() -> (Self, Receiver<Happened>) {
        let (queue, receiver) = channel(QUEUE);
        (Self { queue }, receiver)
    }

    /// Queues an event without waiting. An event for which the queue has no place is in the log all the
    /// same.
    pub(super) fn tell(&self, happened: Happened) {
        match self.queue.try_send(happened) {
            Ok(()) => {}
            Err(TrySendError::Full(happened) | TrySendError::Closed(happened)) => {
                warn!(pod = %happened.pod, "an event is not sent, since too many wait: {}", happened.note);
            }
        }
    }
}

/// Sends the events of the queue, for ever.
pub(super) async fn send(client: kube::Client, node: String, mut queue: Receiver<Happened>, metrics: Arc<Metrics>) {
    let recorder = Recorder::new(client, Reporter { controller: "podweir".into(), instance: Some(node) });
    let mut told: HashMap<(String, Kind), Told> = HashMap::new();
    while let Some(happened) = queue.recv().await {
        let now = Instant::now();
        if told.len() > 4 * QUEUE {
            told.clear();
        }
        let reason = happened.kind.reason();
        let of_pod = told.entry((happened.pod.uid.clone(), happened.kind)).or_insert_with(|| Told::new(now));
        let Some(action) = of_pod.action(happened.kind, &happened.cause, now) else {
            metrics.event(reason, "limited");
            continue;
        };
        let event = Event {
            type_: if happened.kind == Kind::Repaired { EventType::Normal } else { EventType::Warning },
            reason: reason.into(),
            note: Some(shortened(&happened.note)),
            action,
            secondary: None,
        };
        let sent = tokio::time::timeout(PATIENCE, recorder.publish(&event, &reference(&happened.pod))).await;
        let problem = match sent {
            Ok(Ok(())) => {
                metrics.event(reason, "sent");
                continue;
            }
            Ok(Err(error)) => crate::cni::client::chain(&error),
            Err(_) => "the API server does not answer".to_owned(),
        };
        metrics.event(reason, "failed");
        metrics.error("events", &problem);
        warn!(pod = %happened.pod, "cannot send the event {reason}: {problem}");
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

    #[test]
    fn each_cause_has_an_action_of_its_own_within_a_budget() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut told = Told::new(start);
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
        assert!(told.recorded.len() <= 6, "{:?}", told.recorded);
        // What was told all the time needs none of that.
        let mut told = Told::new(start);
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
