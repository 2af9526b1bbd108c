//! ZDS, the protocol by which the node's ztunnels are told which pods' traffic to take: the
//! agent listens, ztunnel dials, and gets each pod's network namespace as a descriptor.
//!
//! | file | what it owns |
//! |---|---|
//! | `message` | the bytes |
//! | `tell` | the requests about pods, and the facts about pods that decide them |
//! | `ledger` | what one ztunnel was told and is told next: pure |
//! | `book` | the pods, for all ztunnels |
//! | `connection` | the connection of one ztunnel: deadlines, and what ends it |

pub mod book;
mod connection;
mod ledger;
pub mod message;
mod tell;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::sys::seqpacket::Listener;

use super::super::accept;

pub use connection::ServerContext;
pub use ledger::pause;
pub use tell::{Identity, Uid};

/// How long a greeting, a write and an acknowledgement may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How many ztunnels may be connected at once: during an upgrade there are two.
const AT_ONCE: usize = 8;

/// Why the socket for ztunnels cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{path} is there and is no socket; remove it, or choose another --ztunnel-socket")]
    Taken { path: String },
    #[error(
        "cannot listen for ztunnels at {path}: {source}; its folder has to be on the node, and mounted for writing here and in ztunnel's pod"
    )]
    Io { path: String, source: io::Error },
}

/// Makes the socket for ztunnels. A socket that is there already was left by an agent that has ended:
/// the caller holds the lock that only one agent has.
///
/// # Errors
/// The path is taken by something that is no socket, or the socket cannot be made.
pub fn listen(path: &Path) -> Result<Listener, ListenError> {
    let shown = || path.display().to_string();
    let failed = |source| ListenError::Io { path: shown(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(ListenError::Taken { path: shown() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let listener = Listener::bind(path).map_err(failed)?;
    // Whoever gets in before has to be root all the same.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves one ztunnel, on a connection that a test made.
#[cfg(test)]
pub async fn serve_one(connection: crate::sys::seqpacket::Connection, shared: ServerContext) {
    connection::serve(connection, shared).await;
}

/// Serves ztunnels for ever.
pub async fn serve(listener: Listener, shared: ServerContext) {
    accept::serve(listener, "of a ztunnel", AT_ONCE, |connection| {
        let shared = shared.clone();
        async move {
            match connection.peer() {
                Ok((0, _)) => connection::serve(connection, shared).await,
                peer => {
                    shared.figures.disconnected("not-root");
                    warn!(?peer, "somebody who is not root connected as a ztunnel");
                }
            }
        }
    })
    .await;
}
