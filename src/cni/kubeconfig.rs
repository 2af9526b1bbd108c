//! The kubeconfig in the run directory: finding it, and refusing one that others than root could have
//! written. Errors never contain its text, since they become events of pods, which many can read: they
//! name the place in the file or the key.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sys::trust::{self, TrustError};

use super::access::{Access, Problem};

/// The names of kubeconfigs; the second is the one that Istio's agent writes.
const NAMES: [&str; 2] = ["kubeconfig", "istio-cni-kubeconfig"];
/// The longest kubeconfig, in bytes: it may hold a chain of certificates or two.
const LONGEST: u64 = 1 << 20;

/// Where a kubeconfig is looked for, and whether it may name a server without TLS.
#[derive(Debug, Clone)]
pub(crate) struct KubeconfigPlace {
    pub run_dir: PathBuf,
    /// The netconf's `allow_http`: whether a server without TLS is allowed.
    pub allow_http: bool,
}

/// Why there is no usable kubeconfig.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    #[error(
        "there is no kubeconfig in {}, and without one no pod can be looked up; put one there as podweir's cni-conf/by-hand.md says (step 3)", .0.display()
    )]
    Missing(PathBuf),
    #[error("the kubeconfig cannot be used: {0}")]
    Unread(#[source] TrustError),
    #[error(
        "{} is no usable kubeconfig: {problem}; make it anew as podweir's cni-conf/by-hand.md says (steps 2 and 3)", .path.display()
    )]
    Invalid { path: PathBuf, problem: Problem },
}

impl KubeconfigError {
    /// Whether a repetition cannot succeed.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Missing(_) => false,
            Self::Unread(error) => error.is_distrust(),
            Self::Invalid { problem, .. } => problem.is_final,
        }
    }
}

/// Reads the kubeconfig and every file that it names: the token too may have been replaced.
///
/// # Errors
/// There is no kubeconfig, others than root may write to it or to its folder, or it is not valid.
pub(crate) fn load(place: &KubeconfigPlace) -> Result<(PathBuf, Access), KubeconfigError> {
    let missing = || KubeconfigError::Missing(place.run_dir.clone());
    let folder = match trust::directory(&place.run_dir) {
        Ok(folder) => folder,
        Err(e) if e.is_missing() => return Err(missing()),
        Err(e) => return Err(KubeconfigError::Unread(e)),
    };
    for path in NAMES.map(|name| place.run_dir.join(name)) {
        let content = match trust::read(&path, LONGEST) {
            Ok(content) => content,
            Err(e) if e.is_missing() => continue,
            Err(e) => return Err(KubeconfigError::Unread(e)),
        };
        let access = parse(&content.bytes).and_then(|value| Access::read(&value, &folder, place.allow_http));
        return match access {
            Ok(access) => Ok((path, access)),
            Err(problem) => Err(KubeconfigError::Invalid { path, problem }),
        };
    }
    Err(missing())
}

/// Whether there is a kubeconfig, valid or not.
pub(crate) fn is_there(place: &KubeconfigPlace) -> bool {
    NAMES.iter().any(|name| place.run_dir.join(name).exists())
}

/// The content of a kubeconfig that is named by its path, as plain values.
///
/// # Errors
/// It cannot be read, others than root may write to it, or it is no YAML.
pub(crate) fn value(path: &Path) -> Result<Value, Problem> {
    let content = trust::read(path, LONGEST).map_err(|e| Problem::new(e.to_string()))?;
    parse(&content.bytes)
}

/// Parses YAML. The parser's messages quote the file, so only the place of the error is told.
fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let text = str::from_utf8(bytes)
        .map_err(|e| Problem::new(format!("it is no text (UTF-8) after {} bytes", e.valid_up_to())))?;
    serde_saphyr::from_str(text).map_err(|e| match e.location() {
        Some(at) => Problem::new(format!("it is no YAML at line {}, column {}", at.line(), at.column())),
        None => Problem::new("it is no YAML"),
    })
}
