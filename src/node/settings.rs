//! What an agent is told to do.

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
    /// It goes on running; its event says what is wrong.
    Leave,
    /// It is evicted, one pod at a time and at most one a minute.
    Evict,
    /// It gets a label.
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

/// An object of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

/// What the agent is told about ambient mode.
#[derive(Debug, Clone)]
pub struct AmbientFlags {
    /// Where ztunnels connect to.
    pub socket: PathBuf,
    /// Whether DNS is taken of a pod that does not say.
    pub dns: bool,
    pub backend: BackendChoice,
    /// The families to program.
    pub families: Families,
    /// As whom the kubelet runs, where that is not to be found out.
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
    /// Repair what is not as it should be.
    pub heal: bool,
    /// Before a pod's missing rules are made, wait until connections that they would break
    /// are gone; without this these are ended.
    pub wait_for_older: bool,
    pub on_failure: OnFailure,
    /// How often pods are looked at of which the kernel does not tell.
    pub verify_interval: Duration,
    /// Where metrics and probes are asked for; `None`: nowhere.
    pub listen: Option<Listen>,
    /// The DaemonSet that this agent is of.
    pub daemon_set: Option<ObjectName>,
    /// Tell the node's condition.
    pub condition: bool,
    /// Keep PolicyReport objects.
    pub policy_reports: bool,
    /// Ambient mode, where that is on.
    pub ambient: Option<AmbientFlags>,
}
