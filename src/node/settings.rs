//! The settings of the agent.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::settings::BackendChoice;
use crate::config::types::Families;

use super::credentials::Credentials;
use super::decide::Policy;
use super::http::Listen;
use super::installer::Installation;

/// What happens to a pod that cannot be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The pod goes on running; its event says what is wrong.
    Leave,
    /// The pod is evicted, at most one of the node a minute.
    Evict,
    /// The pod gets a label.
    Label,
}

impl OnFailure {
    pub const NAMES: [&str; 3] = ["leave", "evict", "label"];

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "leave" => Self::Leave,
            "evict" => Self::Evict,
            "label" => Self::Label,
            _ => return None,
        })
    }
}

/// The name of an object of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

/// The agent's flags about ambient mode.
#[derive(Debug, Clone)]
pub struct AmbientFlags {
    /// The socket to which ztunnels connect.
    pub socket: PathBuf,
    /// Whether DNS is taken of a pod that does not say.
    pub dns: bool,
    pub backend: BackendChoice,
    /// The families for which rules are made.
    pub families: Families,
    /// The user that the kubelet runs as; `None` if the agent is to find that out.
    pub kubelet_uid: Option<u32>,
}

/// The settings of an agent.
pub struct AgentSettings {
    pub node: String,
    /// Where the socket, the attachments and the log are.
    pub run_dir: PathBuf,
    /// Where the node's proc(5) is mounted.
    pub host_proc: PathBuf,
    pub credentials: Credentials,
    pub installation: Installation,
    pub policy: Policy,
    /// Whether rules that are missing or differ are repaired.
    pub heal: bool,
    /// Whether missing rules of a pod are made only after the connections that they would break are
    /// gone; otherwise these are ended.
    pub wait_for_older: bool,
    pub on_failure: OnFailure,
    /// How often the rules of pods are verified where the kernel does not report every change.
    pub verify_interval: Duration,
    /// The address for metrics and probes; `None` if there is none.
    pub listen: Option<Listen>,
    /// The DaemonSet to which the agent belongs.
    pub daemon_set: Option<ObjectName>,
    /// Whether the node's condition is written.
    pub condition: bool,
    /// Whether PolicyReport objects are kept.
    pub policy_reports: bool,
    /// The flags about ambient mode; `None` if that is off.
    pub ambient: Option<AmbientFlags>,
}
