//! The identity with which the agent asks the API server.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cni::access::{Access, Problem};
use crate::cni::kubeconfig;

/// The identity with which the agent asks the API server.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// That of the agent's own pod: the service account's folder with token and authority.
    ServiceAccount { server: String, folder: PathBuf },
    /// That of a kubeconfig file.
    Kubeconfig(PathBuf),
}

impl Credentials {
    /// Reads the credentials, and the current token with them, since tokens are renewed.
    ///
    /// # Errors
    /// A file is missing or damaged; the message has nothing of its content.
    pub fn access(&self) -> Result<Access, Problem> {
        let (config, folder) = match self {
            Self::Kubeconfig(path) => {
                let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
                (kubeconfig::value(path)?, folder)
            }
            Self::ServiceAccount { server, folder } => {
                let config = json!({
                    "current-context": "pod",
                    "contexts": [{ "name": "pod", "context": { "cluster": "pod", "user": "pod" } }],
                    "clusters": [{ "name": "pod", "cluster": { "server": server, "certificate-authority": "ca.crt" } }],
                    "users": [{ "name": "pod", "user": { "tokenFile": "token" } }],
                });
                (config, folder.clone())
            }
        };
        Access::read(&config, &folder, false)
    }
}
