//! Events that the API server has not taken yet: of each pod and kind the newest, so many at most.
//! Each is tried again after pauses of its own, which grow. While it is the API server itself that
//! fails, and not one event that it refuses, all wait for one pause, and one of them is
//! tried after it: a node with many such events asks no more often than one with a single one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kube::core::Status;

use crate::node::backoff::{ServerBackoff, growing};
use crate::node::cache::{Cache, Found};

use super::{Happened, Kind};

/// How many are kept.
const MOST: usize = 256;
/// The pauses after each refusal of one event.
const AFTER_REFUSAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long after its pod was seen to be gone an event is still worth telling: an eviction is told of a
/// pod that is gone, and an API server may be away for minutes.
const GONE: Duration = Duration::from_secs(600);

/// A pod's UID, and what kind of event.
pub(super) type Key = (String, Kind);

/// An event that is not taken yet.
pub(super) struct Waiting {
    pub(super) happened: Happened,
    pub(super) action: String,
    since: Instant,
    refusals: u32,
    not_before: Instant,
    /// When its pod was first seen to be gone.
    gone: Option<Instant>,
}

impl Waiting {
    pub(super) fn new(happened: Happened, action: String, now: Instant) -> Self {
        Self { happened, action, since: now, refusals: 0, not_before: now, gone: None }
    }

    /// Whether it has never been refused.
    pub(super) fn is_new(&self) -> bool {
        self.refusals == 0
    }

    /// It was not taken.
    pub(super) fn is_refused(&mut self, now: Instant) {
        self.refusals = self.refusals.saturating_add(1);
        self.not_before = now + growing(AFTER_REFUSAL, self.refusals);
    }

    /// Whether its pod is gone for so long that nobody asks for it.
    fn is_of_the_past(&mut self, cache: &Cache, now: Instant) -> bool {
        let pod = &self.happened.pod;
        if matches!(cache.find(&pod.namespace, &pod.name, Some(&pod.uid)), Found::Pod(_)) {
            self.gone = None;
            return false;
        }
        now.saturating_duration_since(*self.gone.get_or_insert(now)) >= GONE
    }
}

/// What is not taken yet.
#[derive(Default)]
pub(super) struct Unsent {
    waiting: HashMap<Key, Waiting>,
    /// Nothing is sent before.
    paused: Option<Instant>,
    backoff: ServerBackoff,
}

impl Unsent {
    pub(super) fn has(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// Takes a newer happening in the place of one that waits, which keeps its place.
    pub(super) fn replace(&mut self, key: &Key, happened: Happened, action: String) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            (waiting.happened, waiting.action) = (happened, action);
        }
    }

    /// Keeps one; what there is no place for is given back: the one that has waited longest.
    pub(super) fn keep(&mut self, key: Key, waiting: Waiting) -> Option<Waiting> {
        self.waiting.insert(key, waiting);
        if self.waiting.len() <= MOST {
            return None;
        }
        let oldest = self.waiting.iter().min_by_key(|(_, waiting)| waiting.since).map(|(key, _)| key.clone())?;
        self.waiting.remove(&oldest)
    }

    /// Removes those whose pods are gone for long, and gives them back.
    pub(super) fn remove_of_the_past(&mut self, cache: &Cache, now: Instant) -> Vec<Waiting> {
        self.waiting.extract_if(|_, waiting| waiting.is_of_the_past(cache, now)).map(|(_, waiting)| waiting).collect()
    }

    /// Whether the API server is left alone for now.
    pub(super) fn pauses(&self, now: Instant) -> bool {
        self.paused.is_some_and(|until| now < until)
    }

    /// The API server failed: it is left alone, each time longer.
    pub(super) fn pause(&mut self, now: Instant) {
        self.paused = Some(now + self.backoff.failed());
    }

    /// The API server took one.
    pub(super) fn is_taken(&mut self) {
        self.paused = None;
        self.backoff.answered();
    }

    /// When the next one is to be tried; `None`: nothing waits.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let first = self.waiting.values().map(|waiting| waiting.not_before).min()?;
        Some(self.paused.map_or(first, |until| first.max(until)))
    }

    /// Takes the one out whose time came first, if it has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Key, Waiting)> {
        if self.next_try()? > now {
            return None;
        }
        let first = self.waiting.iter().min_by_key(|(_, waiting)| waiting.not_before)?.0.clone();
        self.waiting.remove_entry(&first)
    }
}

/// Whether an error says that the API server takes no event at all just now, and not that it
/// refuses this one.
pub(super) fn is_of_server(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => !is_of_namespace(status),
            401 | 408 | 429 => true,
            code => code >= 500,
        },
        _ => true,
    }
}

/// Whether something is refused because its namespace is being deleted.
fn is_of_namespace(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use kube::runtime::watcher::Event as Watched;
    use serde_json::{Value, json};
    use tokio::time::{Instant as Clock, sleep};
    use tower::{BoxError, service_fn};

    use super::super::{Teller, send};
    use super::*;
    use crate::node::cache::Known;
    use crate::node::metrics::Metrics;

    /// What was asked for: when, the note, and whether it was taken.
    type Asked = Arc<Mutex<Vec<(Clock, String, bool)>>>;

    struct World {
        teller: Teller,
        asked: Asked,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
    }

    /// Sends to an API server that answers each note as told; 201: it takes it.
    fn world(answer: impl Fn(&str) -> u16 + Send + Sync + 'static) -> World {
        let (asked, answer) = (Asked::default(), Arc::new(answer));
        let kept = asked.clone();
        let service = service_fn(move |request: Request<Body>| {
            let (kept, answer) = (kept.clone(), answer.clone());
            async move {
                let bytes = request.into_body().collect_bytes().await?;
                let body: Value = serde_json::from_slice(&bytes)?;
                let note = body["note"].as_str().unwrap_or_default().to_owned();
                let code = answer(&note);
                kept.lock().unwrap().push((Clock::now(), note, code == 201));
                let text = match code {
                    201 => body.to_string(),
                    code => json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "no", "reason": "No", "code": code })
                    .to_string(),
                };
                Ok::<_, BoxError>(Response::builder().status(code).body(Body::from(text.into_bytes()))?)
            }
        });
        let (metrics, cache) = (Arc::<Metrics>::default(), Arc::<Cache>::default());
        let (teller, queue) = Teller::new(metrics.clone());
        let client = kube::Client::new(service, "default");
        tokio::spawn(send(client, "node1".into(), queue, metrics.clone(), cache.clone()));
        World { teller, asked, cache, metrics }
    }

    impl World {
        /// A pod that is there.
        fn pod(&self, name: &str) -> Arc<Known> {
            let watched = json!({ "metadata": { "namespace": "shop", "name": name, "uid": name },
                "spec": { "containers": [] }, "status": { "phase": "Running" } });
            let watched: crate::node::cache::WatchedPod = serde_json::from_value(watched).unwrap();
            self.cache.apply(Watched::Apply(watched.clone()));
            Arc::new(Known::of(watched).unwrap())
        }

        fn tell(&self, pod: &Arc<Known>, kind: Kind, note: &str) {
            self.teller.tell(Happened { pod: pod.clone(), kind, cause: note.into(), note: note.into() });
        }

        fn taken(&self) -> Vec<String> {
            let asked = self.asked.lock().unwrap();
            asked.iter().filter(|(_, _, taken)| *taken).map(|(_, note, _)| note.clone()).collect()
        }

        fn counted(&self, reason: &str, result: &str) -> u64 {
            let name = format!("podweir_events_total{{reason=\"{reason}\",result=\"{result}\"}} ");
            let text = self.metrics.text();
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_newest_of_each_kind_is_sent_when_the_api_server_takes_events_again() {
        let begin = Clock::now();
        let world = world(move |_| if begin.elapsed() < Duration::from_secs(3600) { 503 } else { 201 });
        let (web, db) = (world.pod("web"), world.pod("db"));
        for at in 1..=5 {
            world.tell(&web, Kind::Repaired, &format!("repaired {at}"));
            sleep(Duration::from_secs(1)).await;
        }
        world.tell(&web, Kind::Failed, "it cannot be repaired");
        world.tell(&db, Kind::Failed, "it cannot be looked at");
        sleep(Duration::from_secs(3600)).await;
        // All together ask no more often than one watch does.
        let tries = world.asked.lock().unwrap().iter().filter(|(_, _, taken)| !taken).count();
        assert!((3600 / 61..=10 + 3600 / 30).contains(&tries), "{tries}");
        sleep(Duration::from_secs(65)).await;
        let mut taken = world.taken();
        taken.sort();
        assert_eq!(taken, ["it cannot be looked at", "it cannot be repaired", "repaired 5"]);
        assert_eq!(world.counted("InterceptionRepaired", "replaced"), 4);
        assert_eq!(
            (world.counted("InterceptionFailed", "sent"), world.counted("InterceptionRepaired", "sent")),
            (2, 1)
        );
        // The limit of a pod counts what waited: one of its two was told.
        for at in 6..=9 {
            world.tell(&web, Kind::Repaired, &format!("repaired {at}"));
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.counted("InterceptionRepaired", "limited"), 2);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn one_event_that_is_refused_keeps_no_other_from_being_sent() {
        let world = world(|note| if note == "bad" { 422 } else { 201 });
        world.tell(&world.pod("bad"), Kind::Failed, "bad");
        let notes: Vec<String> = (0..100).map(|number| format!("good {number}")).collect();
        for note in &notes {
            sleep(Duration::from_secs(1)).await;
            world.tell(&world.pod(note), Kind::Failed, note);
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(world.taken(), notes);
        let refused = world.asked.lock().unwrap().iter().filter(|(_, note, _)| note == "bad").count();
        assert!((4..=8).contains(&refused), "{refused}");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_is_never_taken_is_dropped_and_counted_when_its_pod_is_gone_or_too_many_wait() {
        let world = world(|_| 503);
        let mut pods = Vec::new();
        for number in 0..MOST + 10 {
            pods.push(world.pod(&number.to_string()));
            world.tell(&pods[number], Kind::Failed, "failed");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(world.counted("InterceptionFailed", "dropped"), 10);
        sleep(Duration::from_secs(12 * 3600)).await;
        assert_eq!(world.counted("InterceptionFailed", "dropped"), 10, "their pods are there");
        // A list without any of them.
        [Watched::Init, Watched::InitDone].into_iter().for_each(|event| drop(world.cache.apply(event)));
        sleep(GONE - Duration::from_secs(1)).await;
        assert_eq!(world.counted("InterceptionFailed", "dropped"), 10, "they went just now");
        sleep(Duration::from_secs(200)).await;
        assert_eq!(world.counted("InterceptionFailed", "dropped"), MOST as u64 + 10);
        let tries = world.asked.lock().unwrap().len();
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(world.asked.lock().unwrap().len(), tries, "nothing waits any more");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_does_not_fit_the_queue_is_counted() {
        let (metrics, pod) = (Arc::<Metrics>::default(), world(|_| 201).pod("web"));
        let (teller, queue) = Teller::new(metrics.clone());
        for _ in 0..300 {
            teller.tell(Happened { pod: pod.clone(), kind: Kind::Failed, cause: String::new(), note: String::new() });
        }
        let text = metrics.text();
        let counted = "podweir_events_total{reason=\"InterceptionFailed\",result=\"dropped\"} 44";
        assert!(text.lines().any(|line| line == counted), "{text}");
        drop(queue);
    }

    #[test]
    fn a_namespace_that_is_being_deleted_says_nothing_of_the_api_server() {
        let error = |code: u16, cause: &str| {
            let status = json!({ "kind": "Status", "metadata": {}, "status": "Failure", "message": "no", "reason": "No",
                "code": code, "details": { "causes": [{ "reason": cause, "message": "", "field": "" }] } });
            kube::Error::Api(serde_json::from_value(status).unwrap())
        };
        assert!(!is_of_server(&error(403, "NamespaceTerminating")) && is_of_server(&error(403, "")));
        assert!([401, 429, 500, 503].iter().all(|code| is_of_server(&error(*code, ""))));
        assert!([400, 404, 409, 422].iter().all(|code| !is_of_server(&error(*code, ""))));
    }
}
