//! What becomes of a pod that cannot be repaired, where more is wanted than an event.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::json;

use crate::sys::mutex::lock;

use super::backoff::growing;
use super::cache::Known;
use super::settings::OnFailure;

/// The label of a pod that cannot be repaired, and its value.
pub(super) const LABEL: (&str, &str) = ("podweir.dev/interception", "failed");
/// How many repairs in a row have to fail before the configured action is taken.
const FAILURES_BEFORE_ACTING: u32 = 3;
/// The shortest time between two evictions on a node.
const BETWEEN_EVICTIONS: Duration = Duration::from_secs(60);
/// The pauses after the API server's refusals, such as those of a disruption budget: the first, and the
/// longest.
const AFTER_REFUSAL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));
/// How long a request to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod's repairs that failed in a row, and what was done about it.
#[derive(Debug, Default)]
pub(super) struct FailedRepairs {
    count: u32,
    /// The configured action is done, or none is configured: nothing is tried any more.
    acted: bool,
    refusals: u32,
    /// The action is not tried before this time.
    not_before: Option<Instant>,
}

impl FailedRepairs {
    /// Counts one more failed repair.
    pub(super) fn add(&mut self) {
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// How long it is until the configured action is due; `None`: too few repairs have failed, or
    /// nothing is left to do.
    pub(super) fn acting_in(&self, now: Instant) -> Option<Duration> {
        let is_wanted = self.count >= FAILURES_BEFORE_ACTING && !self.acted;
        is_wanted.then(|| self.not_before.map_or(Duration::ZERO, |then| then.saturating_duration_since(now)))
    }

    /// Records that the configured action needs no retry: it is done, or none is configured.
    pub(super) fn acted(&mut self) {
        self.acted = true;
    }

    /// Postpones the action by `pause`, since another pod was evicted shortly before.
    pub(super) fn wait(&mut self, now: Instant, pause: Duration) {
        self.not_before = Some(now + pause);
    }

    /// The API server refused the action, or did not answer. Gives how long it is until the next try.
    pub(super) fn refused(&mut self, now: Instant) -> Duration {
        self.refusals = self.refusals.saturating_add(1);
        let pause = growing(AFTER_REFUSAL, self.refusals);
        self.wait(now, pause);
        pause
    }
}

/// When the last pod was evicted.
#[derive(Debug, Default)]
pub(super) struct Evictions(Mutex<Option<Instant>>);

impl Evictions {
    /// Takes the right to evict one pod, at most one a minute.
    ///
    /// # Errors
    /// How long it is until there is one again.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut last = lock(&self.0);
        let passed = last.map_or(BETWEEN_EVICTIONS, |last| now.saturating_duration_since(last));
        match BETWEEN_EVICTIONS.checked_sub(passed) {
            Some(left) if !left.is_zero() => Err(left),
            _ => {
                *last = Some(now);
                Ok(())
            }
        }
    }

    /// Gives back the right that was taken at `taken`, since no pod was evicted by it.
    fn give_back(&self, taken: Instant) {
        let mut last = lock(&self.0);
        if *last == Some(taken) {
            *last = None;
        }
    }
}

/// The result of the configured action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acted {
    /// No action is configured.
    Nothing,
    /// The action was taken; what it was, in words.
    Done(&'static str),
    /// Another pod was evicted so short a time ago that this one waits as long as this.
    Later(Duration),
}

/// The eviction of exactly this pod, and not of another one that has got its name since.
fn eviction(pod: &Known) -> Eviction {
    let same = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    Eviction {
        delete_options: Some(DeleteOptions { preconditions: Some(same), ..DeleteOptions::default() }),
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
    }
}

/// Takes the configured action.
///
/// # Errors
/// The API server refuses, in words (a disruption budget, a right that is missing), or does not answer.
pub(super) async fn act(
    what: OnFailure,
    client: &kube::Client,
    pod: &Arc<Known>,
    evictions: &Evictions,
) -> Result<Acted, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let done = match what {
        OnFailure::Leave => return Ok(Acted::Nothing),
        OnFailure::Evict if pod.mirror => {
            return Err("it is a static pod, which cannot be evicted: change its manifest on the node".into());
        }
        OnFailure::Evict => {
            let now = Instant::now();
            if let Err(left) = evictions.take(now) {
                return Ok(Acted::Later(left));
            }
            // Not by `Api::evict`: kube 4.0 writes `delete_options`, which the API server knows as
            // `deleteOptions`, so that it would not see whose UID is meant.
            let (params, eviction) = (PostParams::default(), eviction(pod));
            let asked = pods.create_subresource::<Eviction, Status>("eviction", &pod.name, &params, &eviction);
            let asked = tokio::time::timeout(PATIENCE, asked).await;
            if matches!(asked, Ok(Err(kube::Error::Api(_)))) {
                evictions.give_back(now);
            }
            asked.map(|answer| answer.map(|_| "it is evicted"))
        }
        OnFailure::Label => {
            let (name, value) = LABEL;
            let mut patch = json!({ "metadata": { "labels": { name: value } } });
            if !pod.mirror {
                // The UID that is known of a static pod is not the one that the API server has.
                patch["metadata"]["uid"] = pod.uid.clone().into();
            }
            let params = PatchParams::default();
            let asked =
                tokio::time::timeout(PATIENCE, pods.patch_metadata(&pod.name, &params, &Patch::Merge(&patch))).await;
            asked.map(|answer| answer.map(|_| "it has the label podweir.dev/interception=failed"))
        }
    };
    match done {
        Ok(Ok(done)) => Ok(Acted::Done(done)),
        Ok(Err(error)) => Err(crate::cni::client::chain(&error)),
        Err(_) => Err("the API server does not answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_pod_a_minute_is_evicted() {
        let (evictions, now, second) = (Evictions::default(), Instant::now(), Duration::from_secs(1));
        assert_eq!(evictions.take(now), Ok(()));
        assert_eq!(evictions.take(now + 59 * second), Err(second));
        assert_eq!(evictions.take(now + 60 * second), Ok(()));
        assert_eq!(evictions.take(now), Err(BETWEEN_EVICTIONS));
        // A refusal evicted nobody; it takes nothing from who was evicted since.
        evictions.give_back(now);
        assert!(evictions.take(now + 61 * second).is_err());
        evictions.give_back(now + 60 * second);
        assert_eq!(evictions.take(now + 61 * second), Ok(()));
    }

    #[test]
    fn what_is_refused_is_tried_again_with_growing_pauses_and_what_is_done_is_not() {
        let (mut failed, now, second) = (FailedRepairs::default(), Instant::now(), Duration::from_secs(1));
        for _ in 1..FAILURES_BEFORE_ACTING {
            failed.add();
            assert_eq!(failed.acting_in(now), None);
        }
        failed.add();
        assert_eq!(failed.acting_in(now), Some(Duration::ZERO));
        let mut at = now;
        for pause in [60, 120, 240, 300, 300] {
            assert_eq!(failed.refused(at), pause * second);
            // More repairs fail meanwhile.
            failed.add();
            assert_eq!(failed.acting_in(at + second), Some((pause - 1) * second));
            at += pause * second;
            assert_eq!(failed.acting_in(at), Some(Duration::ZERO));
        }
        failed.wait(at, second);
        assert_eq!(failed.acting_in(at), Some(second));
        failed.acted();
        failed.add();
        assert_eq!(failed.acting_in(at + second), None);
    }
}
