//! The agent's kubeconfig in the run directory: finding it, and refusing one that
//! anybody could have written.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use nix::libc;

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

/// Something that a kubeconfig may say and that the plugin has no use for. It does not go
/// away by waiting.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(pub &'static str);

impl KubeconfigError {
    /// Whether trying again is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            Self::WorldWritable { .. } => true,
            Self::Invalid { source, .. } => source.is::<Unsupported>(),
            Self::Missing(_) | Self::Read { .. } => false,
        }
    }
}

/// Opens the kubeconfig, after a look at the file.
pub fn open(run_dir: &Path) -> Result<(PathBuf, File), KubeconfigError> {
    for path in NAMES.map(|name| run_dir.join(name)) {
        let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(KubeconfigError::Read { path, source }),
        };
        return match file.metadata() {
            Ok(meta) if meta.permissions().mode() & 0o002 != 0 => {
                Err(KubeconfigError::WorldWritable { path, mode: meta.permissions().mode() & 0o7777 })
            }
            Ok(meta) if !meta.is_file() => {
                Err(KubeconfigError::Read { path, source: io::Error::other("it is no file") })
            }
            Ok(_) => Ok((path, file)),
            Err(source) => Err(KubeconfigError::Read { path, source }),
        };
    }
    Err(KubeconfigError::Missing(run_dir.into()))
}

/// Reads it, with everything it refers to: the token too may be a new one every time.
pub async fn load(run_dir: &Path) -> Result<(PathBuf, kube::Config), KubeconfigError> {
    let (path, mut file) = open(run_dir)?;
    let mut text = String::new();
    if let Err(source) = file.read_to_string(&mut text) {
        return Err(KubeconfigError::Read { path, source });
    }
    let invalid =
        |source: Box<dyn std::error::Error + Send + Sync>| KubeconfigError::Invalid { path: path.clone(), source };
    let mut kubeconfig = parse(&text).map_err(invalid)?;
    if kubeconfig.clusters.iter().any(|named| named.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some())) {
        const PROXY_URL: Unsupported =
            Unsupported("proxy-url is not supported; the API server must be reachable from the node itself");
        return Err(invalid(PROXY_URL.into()));
    }
    relative_to(&mut kubeconfig, run_dir);
    match kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await {
        Ok(config) => Ok((path, config)),
        Err(e) => Err(invalid(e.into())),
    }
}

/// By way of plain values: a YAML reader made for each of the kubeconfig's types would be
/// a tenth of the program.
fn parse(text: &str) -> Result<Kubeconfig, Box<dyn std::error::Error + Send + Sync>> {
    let value: serde_json::Value = serde_saphyr::from_str(text)?;
    Ok(serde_json::from_value(value)?)
}

/// Paths in a kubeconfig start from where it is.
fn relative_to(kubeconfig: &mut Kubeconfig, directory: &Path) {
    let mut paths = Vec::new();
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        paths.push(&mut cluster.certificate_authority);
    }
    for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        let AuthInfo { client_certificate, client_key, token_file, .. } = user;
        paths.extend([client_certificate, client_key, token_file]);
    }
    for path in paths.into_iter().filter_map(Option::as_mut) {
        // An absolute path stays what it is.
        *path = directory.join(&*path).to_string_lossy().into_owned();
    }
}
