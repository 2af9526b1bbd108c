//! `--chain merge`: our entry at the end of the list that the runtime uses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::atomic::{self, Attributes, named};
use super::chain::{Conflist, EntryState, Form, TYPE};
use super::folder;
use super::state::ChainState;

/// The ending that the name of a `.conf` gets when a `.conflist` takes its place. No runtime reads such
/// a name.
const PUT_ASIDE: &str = "before-podweir";

/// How many times to try again when another program writes the file at the same time.
const ATTEMPTS: usize = 5;

/// The configuration that the runtime uses, or why there is none.
enum Current {
    Usable { path: PathBuf, form: Form, text: Vec<u8>, chain: Conflist },
    Not(ChainState),
}

fn current(conf_dir: &Path) -> io::Result<Current> {
    let found = match folder::configurations(conf_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let reason = format!("waiting for the folder {}, which is not there", conf_dir.display());
            return Ok(Current::Not(ChainState::Waiting { reason }));
        }
        Err(e) => return Err(named(conf_dir, e)),
    };
    let Some((path, form)) = found.into_iter().next() else {
        let reason = format!(
            "waiting for a network configuration in {}: the node's network plugin has not written one yet",
            conf_dir.display()
        );
        return Ok(Current::Not(ChainState::Waiting { reason }));
    };
    let text = match folder::read(&path) {
        Ok(text) => text,
        // It went between the two looks; the next one sees what there is then.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let reason = format!("waiting for {}, which is being replaced", path.display());
            return Ok(Current::Not(ChainState::Waiting { reason }));
        }
        Err(e) => return Err(named(&path, e)),
    };
    Ok(match Conflist::parse(&text, form) {
        Ok(chain) => Current::Usable { path, form, text, chain },
        Err(error) => {
            let effect = if error.stops_pods() { ", and a runtime that reads it starts no pod" } else { "" };
            let reason = format!("{error}; it is left as it is{effect}");
            Current::Not(ChainState::Broken { file: path, reason })
        }
    })
}

/// Looks whether the chain that the runtime uses ends with our entry, and writes nothing.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn find(conf_dir: &Path, entry: &Value) -> io::Result<ChainState> {
    Ok(match current(conf_dir)? {
        Current::Usable { path, form: Form::List, chain, .. } if chain.standing(entry) == EntryState::Effective => {
            ChainState::Effective { file: path, written: false }
        }
        Current::Usable { path, .. } => ChainState::Absent { file: path },
        Current::Not(state) => state,
    })
}

/// Looks at a chain that somebody else manages, who has to put right what is wrong with it.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn look(conf_dir: &Path, entry: &Value) -> io::Result<ChainState> {
    let (path, chain) = match current(conf_dir)? {
        Current::Usable { path, chain, .. } => (path, chain),
        Current::Not(state) => return Ok(state),
    };
    Ok(match chain.standing(entry) {
        EntryState::Effective => ChainState::Effective { file: path, written: false },
        other => ChainState::Broken {
            file: path,
            reason: format!("{other}; --chain none leaves the chain to somebody else, who has to put it right"),
        },
    })
}

/// The plugins of other meshes in the chain that the runtime uses.
pub(super) fn other_meshes(conf_dir: &Path) -> Vec<String> {
    match current(conf_dir) {
        Ok(Current::Usable { chain, .. }) => chain.other_meshes().into_iter().map(str::to_owned).collect(),
        // What is wrong with the chain is told where it is kept.
        Ok(Current::Not(_)) | Err(_) => Vec::new(),
    }
}

/// Makes the chain that the runtime uses end with our entry.
///
/// # Errors
/// The operating system's, naming the file; the file is then what it was.
pub(super) fn keep(conf_dir: &Path, entry: &Value) -> io::Result<ChainState> {
    for _ in 0..ATTEMPTS {
        let (path, form, text, chain) = match current(conf_dir)? {
            Current::Usable { path, form, text, chain } => (path, form, text, chain),
            Current::Not(state) => return Ok(state),
        };
        if form == Form::List && chain.standing(entry) == EntryState::Effective {
            return Ok(ChainState::Effective { file: path, written: false });
        }
        let new = chain.with(entry).render();
        let written = match form {
            Form::List => replace_unless_changed(&path, &text, &new)?.then_some(path),
            Form::Single => match from_single(&path, &new)? {
                Ok(list) => Some(list),
                Err(state) => return Ok(state),
            },
        };
        if let Some(file) = written {
            return Ok(ChainState::Effective { file, written: true });
        }
    }
    let reason = "another program keeps writing it while the entry is being added".to_owned();
    Ok(ChainState::Broken { file: conf_dir.to_owned(), reason })
}

/// Replaces a list, unless somebody has written it since it was read.
fn replace_unless_changed(path: &Path, read: &[u8], new: &str) -> io::Result<bool> {
    // What the name leads to is replaced, not a link to it: somebody keeps it elsewhere.
    let target = fs::canonicalize(path).map_err(|e| named(path, e))?;
    let attributes = Attributes::of_file(&target).map_err(|e| named(path, e))?;
    if folder::read(&target).map_err(|e| named(path, e))? != read {
        return Ok(false);
    }
    atomic::replace(&target, new.as_bytes(), &attributes)?;
    Ok(true)
}

fn put_aside(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(".");
    name.push(PUT_ASIDE);
    name.into()
}

/// Puts a list in the place of a single plugin's file. The list is written before the file is renamed:
/// in between the runtime still uses the file.
fn from_single(single: &Path, list: &str) -> io::Result<Result<PathBuf, ChainState>> {
    let path = single.with_extension("conflist");
    match folder::read(&path) {
        Ok(text) if !is_from_single(&text) => {
            let reason = format!(
                "it would become {}, which is there already and is somebody else's; remove one of the two",
                path.display()
            );
            return Ok(Err(ChainState::Broken { file: single.to_owned(), reason }));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(named(&path, e)),
    }
    let attributes = Attributes::of_file(single).map_err(|e| named(single, e))?;
    atomic::replace(&path, list.as_bytes(), &attributes)?;
    fs::rename(single, put_aside(single)).map_err(|e| named(single, e))?;
    atomic::sync_folder_of(single)?;
    Ok(Ok(path))
}

/// Whether a list is one plugin and our entry, as one made from a single plugin's file.
fn is_from_single(text: &[u8]) -> bool {
    let list: Option<Value> = serde_json::from_slice(text).ok();
    let plugins = list.as_ref().and_then(|list| list["plugins"].as_array());
    plugins.is_some_and(|plugins| plugins.len() == 2 && plugins[1]["type"] == TYPE)
}

/// Removes our entry from every list of the folder. A single plugin's file that became a list is
/// restored, unless others have changed the list since.
///
/// # Errors
/// The operating system's, naming the first file that could not be changed; later ones are tried all the same.
pub(super) fn remove(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    take_out(conf_dir, Conflist::without)
}

/// Takes out of every list of the folder what this mode put there, as [`remove`] does, where
/// the entry now reaches the runtime by another mode. A list of our entry alone is
/// [`super::own_file`]'s.
///
/// # Errors
/// As [`remove`].
pub(super) fn leave(conf_dir: &Path, entry: &Value) -> io::Result<Vec<PathBuf>> {
    take_out(conf_dir, |chain| if chain.is_ours_alone() { chain } else { chain.without_agents(entry) })
}

fn take_out(conf_dir: &Path, take: impl Fn(Conflist) -> Conflist) -> io::Result<Vec<PathBuf>> {
    let found = match folder::configurations(conf_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(named(conf_dir, e)),
    };
    let (mut changed, mut problem) = (Vec::new(), None);
    for (path, form) in found.into_iter().filter(|(_, form)| *form == Form::List) {
        match take_out_of(&path, form, &take) {
            Ok(true) => changed.push(path),
            Ok(false) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    problem.map_or(Ok(changed), Err)
}

fn take_out_of(path: &Path, form: Form, take: impl Fn(Conflist) -> Conflist) -> io::Result<bool> {
    for _ in 0..ATTEMPTS {
        let Some(text) = folder::read_if_usable(path)? else { return Ok(false) };
        // A file that nobody understands has no entry of ours: we would not have written it.
        let Ok(chain) = Conflist::plugins_of(&text, form) else { return Ok(false) };
        let plugins = chain.len();
        let without = take(chain);
        if without.len() == plugins {
            return Ok(false);
        }
        if let Some(single) = was_single(path, &without) {
            // The file first: in byte order it stands before the list.
            fs::rename(put_aside(&single), &single).map_err(|e| named(&single, e))?;
            fs::remove_file(path).map_err(|e| named(path, e))?;
            atomic::sync_folder_of(path)?;
            return Ok(true);
        }
        if without.is_empty() {
            fs::remove_file(path).map_err(|e| named(path, e))?;
            atomic::sync_folder_of(path)?;
            return Ok(true);
        }
        if replace_unless_changed(path, &text, &without.render())? {
            return Ok(true);
        }
    }
    Err(named(path, io::Error::other("another program keeps writing it")))
}

/// The file of a single plugin that became this list, which without our entry is still the same.
pub(super) fn was_single(list: &Path, without: &Conflist) -> Option<PathBuf> {
    let mut singles = ["conf", "json"].map(|ending| list.with_extension(ending)).into_iter();
    singles.find(|single| {
        let old = folder::read(&put_aside(single)).ok();
        let old = old.and_then(|old| Conflist::plugins_of(&old, Form::Single).ok());
        old.is_some_and(|old| same(&old, without))
    })
}

/// Whether two lists say the same, however they are written.
fn same(a: &Conflist, b: &Conflist) -> bool {
    let value = |chain: &Conflist| serde_json::from_str::<Value>(&chain.render()).ok();
    value(a).is_some_and(|a| Some(a) == value(b))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
    const SINGLE: &str = r#"{"cniVersion":"0.3.1","name":"pods","type":"bridge","mtu":1500}"#;

    fn entry() -> Value {
        json!({ "type": "podweir" })
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podweir-merge-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn keep(&self) -> ChainState {
            keep(&self.0, &entry()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_entry_is_added_once_and_taken_out_without_a_trace() {
        let folder = Folder::new("list");
        folder.write("10-pods.conflist", LIST);
        folder.write("20-other.conflist", LIST);
        fs::set_permissions(folder.0.join("10-pods.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
        let file = folder.0.join("10-pods.conflist");
        assert_eq!(folder.keep(), ChainState::Effective { file: file.clone(), written: true });
        assert_eq!(folder.keep(), ChainState::Effective { file: file.clone(), written: false });
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(folder.text("20-other.conflist"), LIST);
        assert_eq!(remove(&folder.0).unwrap(), [file]);
        assert_eq!(folder.text("10-pods.conflist"), LIST);
        assert!(remove(&folder.0).unwrap().is_empty());
        assert_eq!(folder.names(), ["10-pods.conflist", "20-other.conflist"]);
    }

    #[test]
    fn a_single_plugins_file_becomes_a_list_and_comes_back() {
        let folder = Folder::new("single");
        folder.write("10-pods.conf", SINGLE);
        let list = folder.0.join("10-pods.conflist");
        assert_eq!(folder.keep(), ChainState::Effective { file: list.clone(), written: true });
        assert_eq!(folder.names(), ["10-pods.conf.before-podweir", "10-pods.conflist"]);
        assert_eq!(folder.keep(), ChainState::Effective { file: list, written: false });
        // The network plugin's own installer writes its file again.
        folder.write("10-pods.conf", SINGLE);
        assert!(matches!(folder.keep(), ChainState::Effective { written: true, .. }));
        assert_eq!(folder.names(), ["10-pods.conf.before-podweir", "10-pods.conflist"]);
        remove(&folder.0).unwrap();
        assert_eq!(folder.names(), ["10-pods.conf"]);
        assert_eq!(folder.text("10-pods.conf"), SINGLE);
    }

    #[test]
    fn a_list_of_somebody_else_is_not_overwritten_by_a_single_plugins() {
        let folder = Folder::new("both");
        folder.write("10-pods.conf", SINGLE);
        folder.write("10-pods.conflist", LIST);
        assert!(matches!(folder.keep(), ChainState::Broken { reason, .. } if reason.contains("somebody else's")));
        assert_eq!(folder.text("10-pods.conflist"), LIST);
        assert_eq!(folder.text("10-pods.conf"), SINGLE);
    }

    #[test]
    fn a_damaged_first_file_is_named_and_no_other_is_taken_for_it() {
        let folder = Folder::new("damaged");
        for damaged in ["", "{", &LIST[..40], "\u{0}\u{0}"] {
            folder.write("05-first.conflist", damaged);
            folder.write("10-pods.conflist", LIST);
            let state = folder.keep();
            assert!(
                matches!(&state, ChainState::Broken { file, .. } if file.ends_with("05-first.conflist")),
                "{state}"
            );
            assert_eq!(folder.text("05-first.conflist"), damaged);
            assert_eq!(folder.text("10-pods.conflist"), LIST);
        }
    }

    #[test]
    fn a_list_of_a_version_that_the_plugin_would_refuse_is_left_alone_and_the_cure_is_told() {
        let folder = Folder::new("version");
        for version in ["1.2.0", "0.3.2", "0.2.0"] {
            let list = LIST.replace("1.0.0", version);
            folder.write("10-pods.conflist", &list);
            let ChainState::Broken { file, reason } = folder.keep() else { panic!("{version} is taken") };
            assert!(file.ends_with("10-pods.conflist") && reason.contains(version), "{reason}");
            assert!(reason.contains("1.0.0 or 1.1.0") && !reason.contains("starts no pod"), "{reason}");
            assert_eq!(folder.text("10-pods.conflist"), list);
        }
        // An entry that is in one goes all the same.
        folder.write("10-pods.conflist", LIST);
        folder.keep();
        folder.write("10-pods.conflist", &folder.text("10-pods.conflist").replace("1.0.0", "1.2.0"));
        remove(&folder.0).unwrap();
        assert_eq!(folder.text("10-pods.conflist"), LIST.replace("1.0.0", "1.2.0"));
    }

    #[test]
    fn without_a_folder_or_a_file_it_waits_and_says_for_what() {
        let folder = Folder::new("none");
        assert!(matches!(folder.keep(), ChainState::Waiting { reason } if reason.contains("network plugin")));
        fs::remove_dir_all(&folder.0).unwrap();
        assert!(matches!(folder.keep(), ChainState::Waiting { reason } if reason.contains("folder")));
        assert!(remove(&folder.0).unwrap().is_empty());
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = Folder::new("link");
        let elsewhere = Folder::new("link-target");
        elsewhere.write("real", LIST);
        std::os::unix::fs::symlink(elsewhere.0.join("real"), folder.0.join("10-pods.conflist")).unwrap();
        assert!(matches!(folder.keep(), ChainState::Effective { written: true, .. }));
        assert!(folder.0.join("10-pods.conflist").is_symlink());
        assert!(elsewhere.text("real").contains("podweir"));
    }

    #[test]
    fn who_only_looks_writes_nothing() {
        let folder = Folder::new("look");
        folder.write("10-pods.conflist", LIST);
        assert!(matches!(look(&folder.0, &entry()).unwrap(), ChainState::Broken { .. }));
        assert_eq!(folder.text("10-pods.conflist"), LIST);
        folder.keep();
        assert!(matches!(look(&folder.0, &entry()).unwrap(), ChainState::Effective { written: false, .. }));
    }
}
