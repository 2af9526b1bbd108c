//! How things stand with the runtime's chain.

use std::fmt;
use std::path::PathBuf;

/// How things stand with the chain after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainState {
    /// The runtime's chain has our entry, in this file. `written`: this look put it there.
    Effective { file: PathBuf, written: bool },
    /// There is nothing yet that the entry could be added to.
    Waiting { reason: String },
    /// Something is there that a person has to mend; it was left as it is.
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
            Self::Waiting { reason } => f.write_str(reason),
            Self::Broken { file, reason } => write!(f, "{}: {reason}", file.display()),
        }
    }
}
