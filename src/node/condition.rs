//! The node's condition `podweir.dev/Intercepting`, which controllers of node readiness
//! and people follow. The agent touches no taint.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::inventory::timestamp;

/// The condition's type.
pub(super) const TYPE: &str = "podweir.dev/Intercepting";
/// A condition that has not changed is told again after this long, so that nobody takes it for old.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How long telling may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether pods on this node are intercepted, as far as the agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub holds: bool,
    /// One word (`lastTransitionTime`, `reason` and `message` as in core/v1 NodeCondition).
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    /// Everything works.
    pub fn works() -> Self {
        let message = "podweir is in the runtime's chain and answers it".into();
        Self { holds: true, reason: "PodweirReady", message }
    }

    /// Something does not.
    pub fn fails(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: false, reason, message: message.into() }
    }

    /// The change of the node's status that tells it. Conditions are merged by their type.
    fn patch(&self, now: SystemTime, since: SystemTime) -> Value {
        json!({ "status": { "conditions": [{
            "type": TYPE,
            "status": if self.holds { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "lastHeartbeatTime": timestamp(now),
            "lastTransitionTime": timestamp(since),
        }] } })
    }
}

/// Why a condition could not be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TellError {
    #[error(
        "the API server knows no node {0}: --node-name, or the variable NODE_NAME, has to be the name that kubectl get nodes shows"
    )]
    UnknownNode(String),
    #[error("cannot tell the node's condition {TYPE} of {node}: {problem}")]
    Refused { node: String, problem: String },
    #[error("cannot tell the node's condition {TYPE}: the API server does not answer")]
    NoAnswer,
}

/// What was told last.
pub(super) struct Reporter {
    node: String,
    told: Option<(Condition, SystemTime)>,
    since: SystemTime,
}

impl Reporter {
    pub(super) fn new(node: String) -> Self {
        Self { node, told: None, since: SystemTime::now() }
    }

    /// Whether a condition is to be told now.
    fn is_due(&self, condition: &Condition, now: SystemTime) -> bool {
        match &self.told {
            Some((told, at)) => told != condition || now.duration_since(*at).is_ok_and(|age| age >= HEARTBEAT),
            None => true,
        }
    }

    /// Tells a condition, if it is new or old enough.
    ///
    /// # Errors
    /// The API server did not take it; it is told again at the next call.
    pub(super) async fn tell(&mut self, client: &kube::Client, condition: Condition) -> Result<(), TellError> {
        let now = SystemTime::now();
        if !self.is_due(&condition, now) {
            return Ok(());
        }
        if self.told.as_ref().is_none_or(|(told, _)| told.holds != condition.holds) {
            self.since = now;
        }
        let nodes: Api<Node> = Api::all(client.clone());
        let patch = Patch::Strategic(condition.patch(now, self.since));
        let params = PatchParams::default();
        let patched = tokio::time::timeout(PATIENCE, nodes.patch_status(&self.node, &params, &patch));
        match patched.await {
            Ok(Ok(_)) => {
                self.told = Some((condition, now));
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(TellError::UnknownNode(self.node.clone())),
            Ok(Err(error)) => {
                Err(TellError::Refused { node: self.node.clone(), problem: crate::cni::client::chain(&error) })
            }
            Err(_) => Err(TellError::NoAnswer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_told_when_it_changes_and_now_and_then() {
        let mut reporter = Reporter::new("node1".into());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(reporter.is_due(&Condition::works(), now));
        reporter.told = Some((Condition::works(), now));
        assert!(!reporter.is_due(&Condition::works(), now + Duration::from_secs(60)));
        assert!(reporter.is_due(&Condition::works(), now + HEARTBEAT));
        assert!(reporter.is_due(&Condition::fails("ChainMissing", "x"), now));
        // A clock that went back does not make it tell for ever.
        assert!(!reporter.is_due(&Condition::works(), now - Duration::from_secs(60)));
        let patch = Condition::fails("ChainMissing", "why").patch(now, now);
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["lastTransitionTime"], "1970-01-12T13:46:40Z");
    }
}
