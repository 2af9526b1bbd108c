//! Which files still name the plugin, whoever wrote them: a runtime that reads one of them starts
//! the plugin, and fails where it has no binary.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::named;
use super::chain::{Conflist, Form};
use super::{drop_in, folder};

/// The network configurations of a folder, and the drop-ins of its lists, that have an entry of
/// ours.
///
/// # Errors
/// The operating system's, naming the file: what cannot be read may name the plugin.
pub(super) fn files(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut naming = Vec::new();
    for (path, form) in listed(conf_dir)? {
        let Some(chain) = plugins(&path, form)? else { continue };
        if chain.has_entry() {
            naming.push(path);
        }
        let drop_ins = drop_in::folder_of(conf_dir, &chain).filter(|_| form == Form::List);
        if let Some(folder) = drop_ins.filter(|_| chain.only_inlined() != Ok(true)) {
            naming.extend(drop_ins_that_name_us(&folder)?);
        }
    }
    Ok(naming)
}

fn drop_ins_that_name_us(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut naming = Vec::new();
    for (path, form) in listed(folder)?.into_iter().filter(|(path, _)| path.extension() == Some(OsStr::new("conf"))) {
        if plugins(&path, form)?.is_some_and(|plugin| plugin.has_entry()) {
            naming.push(path);
        }
    }
    Ok(naming)
}

fn listed(folder: &Path) -> io::Result<Vec<(PathBuf, Form)>> {
    match folder::configurations(folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        found => found.map_err(|e| named(folder, e)),
    }
}

/// The plugins of a file; `None` where no runtime would find any.
fn plugins(path: &Path, form: Form) -> io::Result<Option<Conflist>> {
    Ok(folder::read_if_usable(path)?.and_then(|text| Conflist::plugins_of(&text, form).ok()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_a_runtime_may_read_is_found_and_no_other() {
        let conf_dir = std::env::temp_dir().join(format!("podweir-names-us-{}", std::process::id()));
        let _ = fs::remove_dir_all(&conf_dir);
        assert!(files(&conf_dir).unwrap().is_empty());
        fs::create_dir_all(conf_dir.join("pods")).unwrap();
        fs::create_dir_all(conf_dir.join("backup")).unwrap();
        let write = |name: &str, text: &str| fs::write(conf_dir.join(name), text).unwrap();
        let ours = r#"{"type":"podweir"}"#;
        for (name, text) in [
            ("10-pods.conflist", r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#),
            ("10-pods.conflist.bak", r#"{"name":"pods","plugins":[{"type":"podweir"}]}"#),
            ("backup/10-pods.conf", ours),
            ("pods/notes.txt", ours),
            ("15-damaged.conflist", "{"),
        ] {
            write(name, text);
        }
        std::os::unix::fs::symlink("nowhere", conf_dir.join("05-dangling.conflist")).unwrap();
        assert!(files(&conf_dir).unwrap().is_empty());
        // Of any version, without a name, of somebody's own drop-in, and of a single plugin.
        write("20-old.conflist", r#"{"cniVersion":"1.2.0","plugins":[{"type":"a"},{"type":"podweir"}]}"#);
        write("pods/50-theirs.conf", ours);
        write("30-single.conf", ours);
        let found = ["pods/50-theirs.conf", "20-old.conflist", "30-single.conf"].map(|name| conf_dir.join(name));
        assert_eq!(files(&conf_dir).unwrap(), found);
        fs::remove_dir_all(conf_dir).unwrap();
    }
}
