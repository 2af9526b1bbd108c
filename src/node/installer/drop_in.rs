//! `--chain drop-in`: our entry as a file in the folder of drop-ins, so that nothing of
//! others is rewritten. libcni reads `<conf-dir>/<network name>/*.conf` since 1.3, after the
//! plugins of the list, unless the list says `loadOnlyInlinedPlugins` (CNI specification
//! 1.1). Whether the runtime's libcni is new enough cannot be asked for; the agent sees it
//! by the ADDs that come.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::atomic::{self, Attributes, UNFINISHED, named};
use super::chain::{Conflist, EntryState};
use super::folder;
use super::state::ChainState;

/// The file's name, which comes after the drop-ins of other programs in byte order.
const FILE: &str = "zz-podweir.conf";

/// Makes the folder of drop-ins of the runtime's list hold our entry.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn keep(conf_dir: &Path, entry: &Value) -> io::Result<ChainState> {
    let file = match find(conf_dir, entry)? {
        ChainState::Absent { file } => file,
        state => return Ok(state),
    };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(|e| named(folder, e))?;
    }
    atomic::replace(&file, content(entry).as_bytes(), &Attributes::of_mode(0o644))?;
    notice(conf_dir)?;
    Ok(ChainState::Effective { file, written: true })
}

fn content(entry: &Value) -> String {
    format!("{entry:#}\n")
}

/// Looks whether the folder of drop-ins holds our entry, and writes nothing.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn find(conf_dir: &Path, entry: &Value) -> io::Result<ChainState> {
    let found = match folder::configurations(conf_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(named(conf_dir, e)),
    };
    let Some((path, form)) = found.into_iter().next() else {
        let reason = format!("waiting for a network configuration in {}, whose drop-in to be", conf_dir.display());
        return Ok(ChainState::Waiting { reason });
    };
    let broken = |reason: String| Ok(ChainState::Broken { file: path.clone(), reason });
    let chain = match Conflist::parse(&folder::read(&path).map_err(|e| named(&path, e))?, form) {
        Ok(chain) => chain,
        Err(error) => return broken(error.to_string()),
    };
    if chain.only_inlined() {
        return broken("its loadOnlyInlinedPlugins is true, so drop-ins are not read; use --chain merge".into());
    }
    if chain.standing(entry) != EntryState::Absent {
        return broken(
            "it has an entry of podweir, which with the drop-in would make two; remove it, or use --chain merge".into(),
        );
    }
    let name = chain.name();
    if name.contains('/') || matches!(name.as_str(), "." | "..") {
        return broken(format!("its name {name:?} cannot be the name of a folder; use --chain merge"));
    }
    let file = conf_dir.join(name).join(FILE);
    match fs::read(&file) {
        Ok(there) if there == content(entry).as_bytes() => Ok(ChainState::Effective { file, written: false }),
        Ok(_) => Ok(ChainState::Absent { file }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ChainState::Absent { file }),
        Err(e) => Err(named(&file, e)),
    }
}

/// Makes the runtime read the folder again: containerd watches the top folder alone, and
/// passes creations over, but not renames (its `cni_conf_syncer`).
fn notice(conf_dir: &Path) -> io::Result<()> {
    let [one, other] = ["one", "other"].map(|name| conf_dir.join(format!(".{name}.{UNFINISHED}")));
    let renamed = fs::write(&one, "").and_then(|()| fs::rename(&one, &other));
    let _ = fs::remove_file(&one);
    let _ = fs::remove_file(&other);
    renamed.map_err(|e| named(conf_dir, e))
}

/// Takes our drop-in away from every network of the folder.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn remove(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(conf_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(named(conf_dir, e)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let folder = entry.map_err(|e| named(conf_dir, e))?.path();
        let file = folder.join(FILE);
        match fs::remove_file(&file) {
            Ok(()) => {
                // Ours alone, if it is empty now; somebody's, if not.
                let _ = fs::remove_dir(&folder);
                removed.push(file);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(named(&file, e)),
        }
    }
    if !removed.is_empty() {
        notice(conf_dir)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_drop_in_is_written_once_and_leaves_the_list_alone() {
        let conf_dir = std::env::temp_dir().join(format!("podweir-drop-in-{}", std::process::id()));
        let _ = fs::remove_dir_all(&conf_dir);
        let entry = json!({ "type": "podweir" });
        let keep = || keep(&conf_dir, &entry).unwrap();
        assert!(matches!(keep(), ChainState::Waiting { .. }));
        fs::create_dir_all(&conf_dir).unwrap();
        let list = conf_dir.join("10-pods.conflist");
        let text =
            |extra: &str| format!(r#"{{"cniVersion":"1.1.0","name":"pods"{extra},"plugins":[{{"type":"bridge"}}]}}"#);
        fs::write(&list, text("")).unwrap();
        let file = conf_dir.join("pods/zz-podweir.conf");
        assert_eq!(keep(), ChainState::Effective { file: file.clone(), written: true });
        assert_eq!(keep(), ChainState::Effective { file: file.clone(), written: false });
        assert_eq!(fs::read_to_string(&list).unwrap(), text(""));
        assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 2, "nothing stays of what makes the runtime look");
        fs::write(&list, text(r#","loadOnlyInlinedPlugins":true"#)).unwrap();
        assert!(matches!(keep(), ChainState::Broken { reason, .. } if reason.contains("merge")));
        fs::write(&list, r#"{"cniVersion":"1.1.0","name":"..","plugins":[{"type":"bridge"}]}"#).unwrap();
        assert!(matches!(keep(), ChainState::Broken { .. }));
        assert_eq!(remove(&conf_dir).unwrap(), [file]);
        assert!(remove(&conf_dir).unwrap().is_empty());
        assert!(!conf_dir.join("pods").exists());
        fs::remove_dir_all(conf_dir).unwrap();
    }
}
