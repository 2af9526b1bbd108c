//! What becomes of a pod that cannot be repaired, where more is wanted than an event.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::cache::Known;
use super::settings::OnFailure;

/// The label, and its value.
pub(super) const LABEL: (&str, &str) = ("podweir.dev/interception", "failed");
/// The shortest time between two evictions on a node.
const BETWEEN_EVICTIONS: Duration = Duration::from_secs(60);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// When the last pod was evicted.
#[derive(Debug, Default)]
pub struct Evictions(Mutex<Option<Instant>>);

impl Evictions {
    /// Takes the right to evict one pod, at most one a minute.
    fn take(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_EVICTIONS);
        if may {
            *last = Some(now);
        }
        may
    }
}

/// Does what is wanted, and says what was done; `None`: nothing.
///
/// # Errors
/// The API server refuses, in words: a disruption budget, a right that is missing.
pub(super) async fn act(
    what: OnFailure,
    client: &kube::Client,
    pod: &Arc<Known>,
    evictions: &Evictions,
) -> Result<Option<&'static str>, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let done = match what {
        OnFailure::Leave => return Ok(None),
        OnFailure::Evict if !evictions.take(Instant::now()) => return Ok(None),
        OnFailure::Evict => {
            // A pod of the same name that has come meanwhile is not meant.
            let same = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
            let delete = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            let evict = EvictParams { delete_options: Some(delete), ..EvictParams::default() };
            let asked = tokio::time::timeout(PATIENCE, pods.evict(&pod.name, &evict)).await;
            asked.map(|answer| answer.map(|_| "it is evicted"))
        }
        OnFailure::Label => {
            let (name, value) = LABEL;
            let patch = json!({ "metadata": { "uid": pod.uid, "labels": { name: value } } });
            let params = PatchParams::default();
            let asked =
                tokio::time::timeout(PATIENCE, pods.patch_metadata(&pod.name, &params, &Patch::Merge(&patch))).await;
            asked.map(|answer| answer.map(|_| "it has the label podweir.dev/interception=failed"))
        }
    };
    match done {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(error)) => Err(crate::cni::client::chain(&error)),
        Err(_) => Err("the API server does not answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_pod_a_minute_is_evicted() {
        let (evictions, now) = (Evictions::default(), Instant::now());
        assert!(evictions.take(now));
        assert!(!evictions.take(now + Duration::from_secs(59)));
        assert!(evictions.take(now + Duration::from_secs(60)));
        assert!(!evictions.take(now));
    }
}
