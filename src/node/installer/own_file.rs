//! `--chain standalone`: a list of our own with our entry alone, for Multus, which runs it after the
//! pod's own network for pods that name it in their annotation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::atomic::{self, Attributes, named};
use super::chain::{Conflist, Form};
use super::folder;
use super::state::ChainState;

/// The file of our list, whose network is called `podweir`.
const FILE: &str = "podweir.conflist";

/// Makes the folder hold our list.
///
/// A folder in which no other configuration stands before ours could be the one that a
/// container runtime reads: it would take our list for the whole network of every pod, and
/// pods would have none. So the list is written only where another one comes first, or
/// where the folder is called as Multus' own.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn keep(conf_dir: &Path, entry: &Value, version: &str) -> io::Result<ChainState> {
    let file = match find(conf_dir, entry, version)? {
        ChainState::Absent { file } => file,
        state => return Ok(state),
    };
    atomic::replace(&file, content(entry, version).as_bytes(), &Attributes::of_mode(0o644))?;
    Ok(ChainState::Effective { file, written: true })
}

fn content(entry: &Value, version: &str) -> String {
    let list = json!({ "cniVersion": version, "name": "podweir", "plugins": [entry] });
    format!("{list:#}\n")
}

/// Looks whether the folder holds our list, and writes nothing.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn find(conf_dir: &Path, entry: &Value, version: &str) -> io::Result<ChainState> {
    let file = conf_dir.join(FILE);
    let is_multus = conf_dir.components().any(|part| part.as_os_str() == "multus");
    let found = match folder::configurations(conf_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let reason = format!("waiting for the folder {}, which is not there", conf_dir.display());
            return Ok(ChainState::Waiting { reason });
        }
        Err(e) => return Err(named(conf_dir, e)),
    };
    let is_first = found.first().is_none_or(|(first, _)| *first >= file);
    if is_first && !is_multus {
        let reason = format!(
            "waiting for a network configuration in {} that a runtime takes before ours: alone, ours would be taken for the whole network of every pod",
            conf_dir.display()
        );
        return Ok(ChainState::Waiting { reason });
    }
    match fs::read(&file) {
        Ok(there) if there == content(entry, version).as_bytes() => Ok(ChainState::Effective { file, written: false }),
        Ok(_) => Ok(ChainState::Absent { file }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ChainState::Absent { file }),
        Err(e) => Err(named(&file, e)),
    }
}

/// The plugins of the file of this name; `None` where there is none that can be read.
fn there(conf_dir: &Path) -> Option<Conflist> {
    let text = folder::read(&conf_dir.join(FILE)).ok()?;
    Conflist::plugins_of(&text, Form::List).ok()
}

/// Whether this file of the folder is our list: somebody's could be called like it.
pub(super) fn is_own(conf_dir: &Path, file: &Path) -> bool {
    *file == conf_dir.join(FILE) && there(conf_dir).is_some_and(|chain| chain.is_ours_alone())
}

/// Takes our list away, where the entry now reaches the runtime by another mode.
///
/// # Errors
/// As [`remove`].
pub(super) fn leave(conf_dir: &Path, entry: &Value) -> io::Result<Vec<PathBuf>> {
    let is_agents = |chain: Conflist| chain.is_ours_alone() && chain.without_agents(entry).is_empty();
    if there(conf_dir).is_some_and(is_agents) { remove(conf_dir) } else { Ok(Vec::new()) }
}

/// Takes our list away; it may be gone already. One of this name that has plugins of others stays.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn remove(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let file = conf_dir.join(FILE);
    if there(conf_dir).is_some_and(|chain| !chain.is_ours_alone()) {
        return Ok(Vec::new());
    }
    match fs::remove_file(&file) {
        Ok(()) => atomic::sync_folder_of(&file).map(|()| vec![file]),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(named(&file, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_never_the_one_that_a_runtime_would_take_for_the_network() {
        let top = std::env::temp_dir().join(format!("podweir-own-file-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let entry = json!({ "type": "podweir" });
        let (runtime, multus) = (top.join("cni/net.d"), top.join("cni/multus/net.d"));
        assert!(matches!(keep(&multus, &entry, "1.0.0").unwrap(), ChainState::Waiting { .. }));
        for folder in [&runtime, &multus] {
            fs::create_dir_all(folder).unwrap();
        }
        assert!(matches!(keep(&runtime, &entry, "1.0.0").unwrap(), ChainState::Waiting { .. }));
        fs::write(runtime.join("zz.conf"), "{}").unwrap();
        assert!(matches!(keep(&runtime, &entry, "1.0.0").unwrap(), ChainState::Waiting { .. }));
        fs::write(runtime.join("00-multus.conf"), "{}").unwrap();
        for folder in [&runtime, &multus] {
            assert!(matches!(keep(folder, &entry, "1.0.0").unwrap(), ChainState::Effective { written: true, .. }));
            assert!(matches!(keep(folder, &entry, "1.0.0").unwrap(), ChainState::Effective { written: false, .. }));
            assert_eq!(remove(folder).unwrap().len(), 1);
            assert!(remove(folder).unwrap().is_empty());
        }
        fs::remove_dir_all(top).unwrap();
    }
}
