//! The installer: puts the plugin's binary and its entry in the runtime's chain on the node, and
//! restores them whenever another program removes them. Nothing is removed when the agent ends: only
//! [`super::removal::uninstall`] and the end of an agent whose DaemonSet is gone do that.
//!
//! | file | what it owns |
//! |---|---|
//! | `binary` | the plugin's binary in the runtime's folder |
//! | `folder` | which file a runtime reads |
//! | `chain` | editing a list of plugins: text in, text out |
//! | `merge`, `drop_in`, `own_file` | the ways in which the entry reaches the runtime |
//! | `names_us` | which files still name the plugin |
//! | `other_modes` | taking away what another of these ways left |
//! | `keeper` | looking again, when something changes and now and then |
//! | `atomic`, `pauses` | replacing a file in one step; waiting longer each time |

mod atomic;
mod binary;
mod chain;
mod drop_in;
mod folder;
pub mod keeper;
mod merge;
mod names_us;
mod other_modes;
mod own_file;
mod pauses;
mod state;

use std::io;
use std::path::PathBuf;

use serde_json::Value;

pub use binary::Placed;
pub use chain::TYPE;
pub use state::ChainState;

/// How the entry reaches the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainMode {
    /// Our entry is added to the list that the runtime uses.
    Merge,
    /// Our entry is a file in the folder of drop-ins, which libcni reads since 1.3.
    DropIn,
    /// A list of our own, for Multus.
    Standalone,
    /// Somebody else manages the chain; it is only looked at.
    None,
}

impl ChainMode {
    pub const NAMES: [&str; 4] = ["merge", "drop-in", "standalone", "none"];

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "merge" => Self::Merge,
            "drop-in" => Self::DropIn,
            "standalone" => Self::Standalone,
            "none" => Self::None,
            _ => return None,
        })
    }
}

/// What is installed, and where to.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The agent's own executable, which is the plugin as well.
    pub executable: PathBuf,
    pub bin_dir: PathBuf,
    pub conf_dir: PathBuf,
    pub mode: ChainMode,
    /// The entry of the plugin in the chain.
    pub entry: Value,
    /// The version of the specification for a list of our own.
    pub own_version: String,
}

impl Installation {
    /// Makes the chain have our entry, unless somebody else manages it. Writes only what
    /// differs. Once it does, what an agent with another mode left is taken away.
    ///
    /// # Errors
    /// The operating system's, naming the file; what was there is then what it was.
    pub fn keep_chain(&self) -> io::Result<ChainState> {
        let state = match self.mode {
            ChainMode::Merge => merge::keep(&self.conf_dir, &self.entry),
            ChainMode::DropIn => drop_in::keep(&self.conf_dir, &self.entry),
            ChainMode::Standalone => own_file::keep(&self.conf_dir, &self.entry, &self.own_version),
            ChainMode::None => merge::look(&self.conf_dir, &self.entry),
        }?;
        if let ChainState::Effective { file, .. } = &state {
            other_modes::clear(self, file)?;
        }
        Ok(state)
    }

    /// Looks at the chain, and writes nothing: where [`Installation::keep_chain`] would write, the entry
    /// is reported as absent.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn look_at_chain(&self) -> io::Result<ChainState> {
        match self.mode {
            ChainMode::Merge => merge::find(&self.conf_dir, &self.entry),
            ChainMode::DropIn => drop_in::find(&self.conf_dir, &self.entry),
            ChainMode::Standalone => own_file::find(&self.conf_dir, &self.entry, &self.own_version),
            ChainMode::None => merge::look(&self.conf_dir, &self.entry),
        }
    }

    /// The plugins of other meshes in the chain that the runtime uses.
    pub fn other_meshes(&self) -> Vec<String> {
        merge::other_meshes(&self.conf_dir)
    }

    /// Makes the runtime's folder hold our binary.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn keep_binary(&self) -> io::Result<Placed> {
        binary::place(&self.executable, &self.bin_dir)
    }

    /// Takes the entry out of the chain, wherever an agent may have put it, unless somebody
    /// else manages the chain. The binary
    /// stays: the runtime may read the chain a little later, and a chain that names a
    /// plugin without a binary fails for every pod.
    ///
    /// # Errors
    /// All entries that could not be removed; the others are.
    pub fn remove_entry(&self) -> Result<Vec<PathBuf>, Vec<io::Error>> {
        if self.mode == ChainMode::None {
            return Ok(Vec::new());
        }
        let (mut changed, mut problems) = (Vec::new(), Vec::new());
        for removed in
            [merge::remove(&self.conf_dir), drop_in::remove(&self.conf_dir), own_file::remove(&self.conf_dir)]
        {
            match removed {
                Ok(files) => changed.extend(files),
                Err(error) => problems.push(error),
            }
        }
        if problems.is_empty() { Ok(changed) } else { Err(problems) }
    }

    /// The files that still name the plugin, whoever wrote them: as long as there is one, the
    /// binary has to stay.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn still_named(&self) -> io::Result<Vec<PathBuf>> {
        names_us::files(&self.conf_dir)
    }

    /// Where the plugin's binary is.
    pub fn binary(&self) -> PathBuf {
        binary::path(&self.bin_dir)
    }

    /// Takes the binary away; only after the entry is out of the chain and the runtime
    /// has had time to read that.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn remove_binary(&self) -> io::Result<bool> {
        binary::remove(&self.bin_dir)
    }
}
