//! `--chain drop-in`: our entry as a file in the folder of drop-ins, so that nothing of
//! others is rewritten. libcni reads `<conf-dir>/<network name>/*.conf` since 1.3, after the
//! plugins of the list, unless the list says `loadOnlyInlinedPlugins` (CNI specification
//! 1.1), and for a list alone, not where the first file is a single plugin's (`.conf`,
//! `.json`; `NetworkConfFromFile`). Whether the runtime's libcni is new enough cannot be
//! asked for; the agent sees it by the ADDs that come.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::atomic::{self, Attributes, UNFINISHED, named};
use super::chain::{Conflist, Form};
use super::state::ChainState;
use super::{folder, merge, own_file};

/// The file's name, which comes after the drop-ins of other programs in byte order.
const FILE: &str = "zz-podweir.conf";

/// What to do about a single plugin's file.
const OF_LISTS_ALONE: &str = "use --chain merge, or have the network plugin write a .conflist";

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
    let Some((path, form)) = found.into_iter().find(|(path, _)| !own_file::is_own(conf_dir, path)) else {
        let reason = format!("waiting for a network configuration in {}, whose drop-in to be", conf_dir.display());
        return Ok(ChainState::Waiting { reason });
    };
    let broken = |reason: String| Ok(ChainState::Broken { file: path.clone(), reason });
    let chain = match Conflist::parse(&folder::read(&path).map_err(|e| named(&path, e))?, form) {
        Ok(chain) => chain,
        Err(error) => return broken(error.to_string()),
    };
    if form == Form::Single {
        return broken(format!(
            "it is a single plugin's file, and runtimes read drop-ins of a .conflist alone; {OF_LISTS_ALONE}"
        ));
    }
    match chain.only_inlined() {
        Ok(false) => {}
        Ok(true) => {
            return broken("its loadOnlyInlinedPlugins is true, so drop-ins are not read; use --chain merge".into());
        }
        Err(error) => return broken(format!("{error}, so a runtime that reads drop-ins refuses it; put it right")),
    }
    // What an agent with --chain merge wrote goes when the drop-in is there.
    let inlined = chain.has_entry();
    let Some(folder) = folder_of(conf_dir, &chain) else {
        return broken(format!("its name {:?} cannot be the name of a folder; use --chain merge", chain.name()));
    };
    let others = chain.without_agents(entry);
    if others.has_entry() {
        return broken(
            "it has an entry of podweir that was not written by this agent, and with the drop-in the plugin would run twice; remove that entry, or use --chain merge".into(),
        );
    }
    if inlined && let Some(single) = merge::was_single(&path, &others) {
        let single = single.display();
        return broken(format!(
            "--chain merge made it of {single}, a single plugin's file, of which runtimes read no drop-ins; {OF_LISTS_ALONE}"
        ));
    }
    let file = folder.join(FILE);
    match fs::read(&file) {
        Ok(there) if there == content(entry).as_bytes() => Ok(ChainState::Effective { file, written: false }),
        Ok(_) => Ok(ChainState::Absent { file }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ChainState::Absent { file }),
        Err(e) => Err(named(&file, e)),
    }
}

/// The folder of a list's drop-ins; `None` where its name cannot be a folder's.
pub(super) fn folder_of(conf_dir: &Path, chain: &Conflist) -> Option<PathBuf> {
    let name = chain.name();
    let is_name = !name.is_empty() && !name.contains('/') && !matches!(name.as_str(), "." | "..");
    is_name.then(|| conf_dir.join(name))
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
        // On a file system for reading, removing what is not there fails as well.
        if fs::symlink_metadata(&file).is_err_and(|e| is_absence(&e)) {
            continue;
        }
        match fs::remove_file(&file) {
            Ok(()) => {
                // Ours alone, if it is empty now; somebody's, if not.
                let _ = fs::remove_dir(&folder);
                removed.push(file);
            }
            Err(e) if is_absence(&e) => {}
            Err(e) => return Err(named(&file, e)),
        }
    }
    if !removed.is_empty() {
        notice(conf_dir)?;
    }
    Ok(removed)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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
        for only in [r#","loadOnlyInlinedPlugins":true"#, r#","loadOnlyInlinedPlugins":"True""#] {
            fs::write(&list, text(only)).unwrap();
            assert!(matches!(keep(), ChainState::Broken { reason, .. } if reason.contains("merge")));
        }
        fs::write(&list, r#"{"cniVersion":"1.1.0","name":"..","plugins":[{"type":"bridge"}]}"#).unwrap();
        assert!(matches!(keep(), ChainState::Broken { .. }));
        assert_eq!(remove(&conf_dir).unwrap(), [file]);
        assert!(remove(&conf_dir).unwrap().is_empty());
        assert!(!conf_dir.join("pods").exists());
        fs::remove_dir_all(conf_dir).unwrap();
    }

    /// libcni reads no drop-in there: the plugin would never run.
    #[test]
    fn a_single_plugins_file_has_no_drop_ins_which_is_said() {
        let conf_dir = std::env::temp_dir().join(format!("podweir-drop-in-single-{}", std::process::id()));
        let _ = fs::remove_dir_all(&conf_dir);
        fs::create_dir_all(&conf_dir).unwrap();
        for name in ["10-pods.conf", "05-pods.json"] {
            fs::write(conf_dir.join(name), r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#).unwrap();
            fs::write(
                conf_dir.join("20-other.conflist"),
                r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a"}]}"#,
            )
            .unwrap();
            let ChainState::Broken { file, reason } = keep(&conf_dir, &json!({ "type": "podweir" })).unwrap() else {
                panic!("{name} is taken for a list")
            };
            assert!(
                file.ends_with(name) && reason.contains(".conflist") && reason.contains("--chain merge"),
                "{reason}"
            );
            assert!(!conf_dir.join("pods").exists(), "nothing is written that nobody reads");
        }
        fs::remove_dir_all(conf_dir).unwrap();
    }
}
