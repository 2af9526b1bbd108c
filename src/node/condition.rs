//! The node's condition `podweir.dev/Intercepting`, which controllers of node readiness
//! and people follow. The agent touches no taint.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::debug;

use super::inventory::timestamp;

/// The condition's type.
pub(super) const TYPE: &str = "podweir.dev/Intercepting";
/// The time after which a condition is written again although it has not changed, so that nobody takes
/// it for old.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How long writing the condition may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether pods on this node are intercepted, as far as the agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub holds: bool,
    /// The reason in one word (`lastTransitionTime`, `reason` and `message` as in core/v1
    /// NodeCondition).
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    /// The condition of a node on which pods are intercepted.
    pub(super) fn works() -> Self {
        let message = "podweir is in the runtime's chain and answers it".into();
        Self { holds: true, reason: "PodweirReady", message }
    }

    /// The condition of a node on which pods may not be intercepted, and why.
    pub(super) fn fails(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: false, reason, message: message.into() }
    }

    fn status(&self) -> &'static str {
        if self.holds { "True" } else { "False" }
    }

    /// The patch of the node's status that writes the condition. Conditions are merged by their type.
    fn patch(&self, now: SystemTime, since: SystemTime) -> Value {
        json!({ "status": { "conditions": [{
            "type": TYPE,
            "status": self.status(),
            "reason": self.reason,
            "message": self.message,
            "lastHeartbeatTime": timestamp(now),
            "lastTransitionTime": timestamp(since),
        }] } })
    }
}

/// Why a condition could not be written.
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

/// Writes the node's condition, and remembers what was written last.
pub(super) struct Reporter {
    node: String,
    /// The condition that was written last, and when, by a clock that does not jump: a clock set back by
    /// an hour would delay the next writing by an hour.
    told: Option<(Condition, Instant)>,
    /// The status of the condition that the API server has, and since when.
    present: Option<(String, SystemTime)>,
}

/// The status of the condition, and since when, that an agent before this one wrote.
fn present(node: &Node) -> Option<(String, SystemTime)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == TYPE)?;
    Some((condition.status.clone(), condition.last_transition_time.as_ref()?.0.into()))
}

impl Reporter {
    pub(super) fn new(node: String) -> Self {
        Self { node, told: None, present: None }
    }

    /// Whether a condition is to be written now.
    fn is_due(&self, condition: &Condition, now: Instant) -> bool {
        self.told.as_ref().is_none_or(|(told, at)| told != condition || now.duration_since(*at) >= HEARTBEAT)
    }

    /// Writes a condition if it differs from the last one, or that one is old.
    ///
    /// # Errors
    /// The API server did not take the condition; the next call tries again.
    pub(super) async fn tell(&mut self, client: &kube::Client, condition: Condition) -> Result<(), TellError> {
        if !self.is_due(&condition, Instant::now()) {
            return Ok(());
        }
        let now = SystemTime::now();
        let asked = tokio::time::timeout(PATIENCE, async {
            let (nodes, params) = (Api::<Node>::all(client.clone()), PatchParams::default());
            if self.told.is_none() {
                // A change of nothing is answered with what is there; nodes may not be read.
                let node = nodes.patch_status(&self.node, &params, &Patch::Strategic(json!({}))).await?;
                self.present = present(&node);
            }
            let present = self.present.as_ref().filter(|(status, _)| status == condition.status());
            let since = present.map_or(now, |(_, since)| *since);
            nodes.patch_status(&self.node, &params, &Patch::Strategic(condition.patch(now, since))).await?;
            Ok(since)
        });
        match asked.await {
            Ok(Ok(since)) => {
                debug!("the node's condition {TYPE} is {} ({})", condition.status(), condition.reason);
                self.present = Some((condition.status().into(), since));
                self.told = Some((condition, Instant::now()));
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
        let now = Instant::now();
        assert!(reporter.is_due(&Condition::works(), now));
        reporter.told = Some((Condition::works(), now));
        assert!(!reporter.is_due(&Condition::works(), now + Duration::from_secs(60)));
        assert!(reporter.is_due(&Condition::works(), now + HEARTBEAT));
        assert!(reporter.is_due(&Condition::fails("ChainMissing", "x"), now));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let of =
            |conditions| present(&serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap());
        assert_eq!(
            of(json!([{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }])),
            None
        );
        let there = json!([{ "type": TYPE, "status": "Unknown", "lastTransitionTime": "1970-01-12T13:46:40Z" }]);
        assert_eq!(of(there), Some(("Unknown".into(), now)));
        let patch = Condition::fails("ChainMissing", "why").patch(now, now);
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["lastTransitionTime"], "1970-01-12T13:46:40Z");
    }
}
