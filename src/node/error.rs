//! Why the agent cannot start, or cannot be removed from the node.

use std::io;

use crate::cni::access::Problem;

use super::ambient::zds::ListenError;
use super::socket::SocketError;

/// Why the agent cannot start, or cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the agent's credentials cannot be used: {0}")]
    Credentials(Problem),
    #[error(
        "cannot use the run directory {path}: {source}; it has to be a folder of root's on the node, mounted for writing"
    )]
    RunDir { path: String, source: io::Error },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Ztunnel(#[from] ListenError),
    #[error("{0}")]
    Listen(io::Error),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error(
        "podweir's agent runs on this node and would put everything back; nothing was removed. Remove its DaemonSet first (helm uninstall, or kubectl delete daemonset), wait until its pod is gone, and run this again"
    )]
    AgentRuns,
    #[error("not everything could be removed: {0}")]
    Uninstall(String),
}
