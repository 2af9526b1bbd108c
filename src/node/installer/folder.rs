//! The folder of network configurations as a container runtime reads it (libcni's `ConfFiles`; go-cni's
//! `loadFromConfDir`): the files that end with `.conf`, `.conflist` or `.json`, in byte order of their
//! names, of which the first one is used. If the first file is damaged, the runtime fails and does not
//! use another one, and neither does podweir.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::atomic::named;
use super::chain::Form;

/// The most bytes of a network configuration, which has a few kilobytes.
const LONGEST: u64 = 1 << 20;

/// The format of a file, by the ending of its name; `None` for a name that no runtime reads.
pub(super) fn form(path: &Path) -> Option<Form> {
    match path.extension()?.as_bytes() {
        b"conflist" => Some(Form::List),
        b"conf" | b"json" => Some(Form::Single),
        _ => None,
    }
}

/// The configurations in a folder, in the order in which a runtime looks at them.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn configurations(folder: &Path) -> io::Result<Vec<(PathBuf, Form)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // A name that is a link counts as what it leads to, also when that is not there.
        let is_folder = fs::metadata(&path).is_ok_and(|meta| meta.is_dir());
        if let Some(form) = form(&path).filter(|_| !is_folder) {
            found.push((path, form));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.file_name().cmp(&b.file_name()));
    Ok(found)
}

/// The content of a configuration.
///
/// # Errors
/// It cannot be read, is no regular file, or is longer than a configuration can be.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file of at most 1 MiB"));
    }
    fs::read(path)
}

/// The content of a configuration that a runtime could use too; `None` for one that is gone, or
/// cannot be one.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn read_if_usable(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        Err(e) => Err(named(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_come_in_byte_order_and_nothing_else_does() {
        let folder = std::env::temp_dir().join(format!("podweir-folder-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("05-dir.conf")).unwrap();
        for name in ["10-b.conflist", "10-a.conf", "Z.json", "10-a.conf.bak", ".10-b.conflist.podweir-unfinished", "x"]
        {
            fs::write(folder.join(name), "{}").unwrap();
        }
        let found = configurations(&folder).unwrap();
        let names: Vec<&str> = found.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["10-a.conf", "10-b.conflist", "Z.json"]);
        assert_eq!(found[0].1, Form::Single);
        assert_eq!(found[1].1, Form::List);
        fs::write(folder.join("huge.conf"), vec![b' '; (LONGEST + 1) as usize]).unwrap();
        assert!(read(&folder.join("huge.conf")).is_err());
        assert!(read(&folder.join("05-dir.conf")).is_err());
        fs::remove_dir_all(&folder).unwrap();
        assert!(configurations(&folder).is_err());
    }
}
