//! As whom the agent asks the API server.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cni::access::{Access, Problem};
use crate::cni::kubeconfig;

/// As whom the agent asks.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// As the pod that it runs in: the account's folder with token and authority.
    ServiceAccount { server: String, folder: PathBuf },
    /// As a kubeconfig says.
    Kubeconfig(PathBuf),
}

impl Credentials {
    /// Reads them. Tokens are read again now and then, since they are renewed.
    ///
    /// # Errors
    /// A file is missing or damaged; no content of it is told.
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
