//! Events about pods, as `kubectl describe pod` shows them. They are told through a queue,
//! aggregated by kube's recorder, and limited: a pod that makes many takes nothing from
//! the API server.

use std::collections::HashMap;
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
/// How many events of one kind a pod may have at once, and how often after that: many of one
/// kind must not keep the other from being told.
const PER_POD: (u32, Duration) = (2, Duration::from_secs(30));
/// How long sending one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The API server takes a note of at most 1 KiB (events.k8s.io/v1, `note`).
const LONGEST_NOTE: usize = 1000;

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Rules were missing, and were made.
    Repaired,
    /// Rules differed from what they should be.
    Drifted,
    /// Something cannot be mended.
    Failed,
    /// Something has to be mended so often that it waits. It has the reason of what fails, and an
    /// action of its own, since the recorder puts events of the same reason and action together
    /// and keeps the first one's note.
    Waits,
}

impl Kind {
    /// The event's reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Repaired => "InterceptionRepaired",
            Self::Drifted => "InterceptionDrifted",
            Self::Failed | Self::Waits => "InterceptionFailed",
        }
    }

    fn action(self) -> &'static str {
        match self {
            Self::Repaired => "Repair",
            Self::Drifted => "Verify",
            Self::Failed => "Intercept",
            Self::Waits => "Wait",
        }
    }
}

/// Something that happened to a pod.
#[derive(Debug, Clone)]
pub struct Happened {
    pub pod: Arc<Known>,
    pub kind: Kind,
    pub note: String,
}

/// Where happenings are told.
#[derive(Debug, Clone)]
pub struct Teller {
    queue: Sender<Happened>,
}

impl Teller {
    /// A teller, and the queue that is sent from.
    pub fn new() -> (Self, Receiver<Happened>) {
        let (queue, receiver) = channel(QUEUE);
        (Self { queue }, receiver)
    }

    /// Tells, without waiting. What does not fit the queue is in the log all the same.
    pub fn tell(&self, happened: Happened) {
        match self.queue.try_send(happened) {
            Ok(()) => {}
            Err(TrySendError::Full(happened) | TrySendError::Closed(happened)) => {
                warn!(pod = %happened.pod, "an event is not sent, since too many wait: {}", happened.note);
            }
        }
    }
}

/// Sends what is told, for ever.
pub(super) async fn send(client: kube::Client, node: String, mut queue: Receiver<Happened>, metrics: Arc<Metrics>) {
    let recorder = Recorder::new(client, Reporter { controller: "podweir".into(), instance: Some(node) });
    let mut budgets: HashMap<(String, Kind), Budget> = HashMap::new();
    while let Some(happened) = queue.recv().await {
        let now = Instant::now();
        if budgets.len() > 4 * QUEUE {
            budgets.clear();
        }
        let reason = happened.kind.reason();
        let budget = budgets.entry((happened.pod.uid.clone(), happened.kind));
        let budget = budget.or_insert_with(|| Budget::new(PER_POD.0, PER_POD.1, now));
        if budget.take(now).is_err() {
            metrics.event(reason, "limited");
            continue;
        }
        let event = Event {
            type_: if happened.kind == Kind::Repaired { EventType::Normal } else { EventType::Warning },
            reason: reason.into(),
            note: Some(shortened(&happened.note)),
            action: happened.kind.action().into(),
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

/// At most as much as the API server takes, cut between letters.
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
    fn notes_fit_what_the_api_server_takes() {
        assert_eq!(shortened("short"), "short");
        for letter in ["a", "ä", "…", "🦀"] {
            let cut = shortened(&letter.repeat(2000));
            assert!(cut.len() <= LONGEST_NOTE && cut.ends_with('…'), "{}", cut.len());
        }
    }
}
