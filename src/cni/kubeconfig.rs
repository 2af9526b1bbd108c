//! The agent's kubeconfig in the run directory: finding it, and refusing one that
//! anybody could have written.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// Its name; the second is what other agents of the field write.
const NAMES: [&str; 2] = ["kubeconfig", "istio-cni-kubeconfig"];

/// Why there is no usable kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error(
        "there is no kubeconfig in {}; the agent writes it: is the podweir-node pod on this node running?", .0.display()
    )]
    Missing(PathBuf),
    #[error("cannot read {}: {source}; the plugin runs as root and needs to", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} can be written by anybody (mode {mode:04o}), so it is not trusted: it is a credential; chmod 0600 it", .path.display()
    )]
    WorldWritable { path: PathBuf, mode: u32 },
    #[error("{} is no usable kubeconfig: {source}; the agent writes it anew when it restarts", .path.display())]
    Invalid { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The kubeconfig's path, after a look at the file.
pub fn find(run_dir: &Path) -> Result<PathBuf, KubeconfigError> {
    for path in NAMES.map(|name| run_dir.join(name)) {
        match std::fs::metadata(&path) {
            Ok(meta) if meta.permissions().mode() & 0o002 != 0 => {
                return Err(KubeconfigError::WorldWritable { path, mode: meta.permissions().mode() & 0o7777 });
            }
            Ok(meta) if !meta.is_file() => {
                return Err(KubeconfigError::Read { path, source: io::Error::other("it is no file") });
            }
            Ok(_) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(KubeconfigError::Read { path, source }),
        }
    }
    Err(KubeconfigError::Missing(run_dir.into()))
}

/// Reads it, with everything it refers to: the token too may be a new one every time.
pub async fn load(run_dir: &Path) -> Result<kube::Config, KubeconfigError> {
    let path = find(run_dir)?;
    let invalid =
        |source: Box<dyn std::error::Error + Send + Sync>| KubeconfigError::Invalid { path: path.clone(), source };
    let kubeconfig = match Kubeconfig::read_from(&path) {
        Ok(kubeconfig) => kubeconfig,
        Err(kube::config::KubeconfigError::ReadConfig(source, path)) => {
            return Err(KubeconfigError::Read { path, source });
        }
        Err(error) => return Err(invalid(error.into())),
    };
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|e| invalid(e.into()))
}
