//! The state of the runtime's chain.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What to do about a program that rewrites the chain again and again.
pub(super) const REWRITTEN_CURE: &str = "a network plugin that keeps the folder for itself has to be told not to (Cilium: cni.exclusive=false), or use --chain drop-in";

/// The state of the chain after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainState {
    /// The runtime's chain has our entry, in this file. `written`: this look put it there.
    Effective { file: PathBuf, written: bool },
    /// The runtime's chain, in this file, does not have our entry, and the look was not to write it.
    Absent { file: PathBuf },
    /// The runtime's chain, in this file, does not have our entry, since another program took it
    /// out again and again; it is written again within this time.
    TakenOut { file: PathBuf, within: Duration },
    /// There is nothing yet that the entry could be added to.
    Waiting { reason: String },
    /// This file or folder has a problem that a person has to solve; nothing was written.
    Broken { file: PathBuf, reason: String },
}

impl ChainState {
    pub fn is_effective(&self) -> bool {
        matches!(self, Self::Effective { .. })
    }
}

impl fmt::Display for ChainState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Effective { file, .. } => write!(f, "the entry is in {}", file.display()),
            Self::Absent { file } => write!(f, "the entry is not in {}", file.display()),
            Self::TakenOut { file, within } => write!(
                f,
                "podweir's entry was taken out of {} by another program; it is written again within {} s: {REWRITTEN_CURE}",
                file.display(),
                within.as_secs()
            ),
            Self::Waiting { reason } => f.write_str(reason),
            Self::Broken { file, reason } => write!(f, "{}: {reason}", file.display()),
        }
    }
}
