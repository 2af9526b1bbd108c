//! The plugin's binary in the runtime's folder: our own executable, put there in one step.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::atomic::{self, Attributes, named};
use super::chain::TYPE;

/// How much of a file is in memory at a time, in bytes.
const PIECE: usize = 64 << 10;

/// What was done about the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The binary was there already, with the same content: nothing was written.
    Same,
    /// There was no binary.
    New,
    /// There was a binary with other content, older or newer: a roll-back rolls back the binary, too.
    Replaced,
}

/// The path of the binary.
pub(super) fn path(bin_dir: &Path) -> PathBuf {
    bin_dir.join(TYPE)
}

/// Puts `executable` into the folder. A plugin that is running goes on with its own copy.
///
/// # Errors
/// The operating system's, naming the file; the binary is then what it was.
pub(super) fn place(executable: &Path, bin_dir: &Path) -> io::Result<Placed> {
    let path = path(bin_dir);
    let open = || File::open(executable).map_err(|e| named(executable, e));
    let length = open()?.metadata().map_err(|e| named(executable, e))?.len();
    let placed = match fs::symlink_metadata(&path) {
        // A link could lead anywhere; the rename puts a file in its place.
        Ok(meta) if meta.is_file() && meta.len() == length => {
            let there = File::open(&path).map_err(|e| named(&path, e))?;
            if same(open()?, there).map_err(|e| named(&path, e))? { Placed::Same } else { Placed::Replaced }
        }
        Ok(_) => Placed::Replaced,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Placed::New,
        Err(e) => return Err(named(&path, e)),
    };
    let attributes = Attributes::of_mode(0o755);
    match placed {
        Placed::Same if is_executable(&path)? => {}
        _ => atomic::replace_by(&path, open()?, &attributes)?,
    }
    Ok(placed)
}

/// Whether two files have the same content, compared a piece at a time: the agent's memory
/// is counted in megabytes.
fn same(one: File, other: File) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::with_capacity(PIECE, one), BufReader::with_capacity(PIECE, other));
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let length = a.len().min(b.len());
        if a[..length] != b[..length] || a.is_empty() != b.is_empty() {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
        one.consume(length);
        other.consume(length);
    }
}

fn is_executable(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path).map_err(|e| named(path, e))?.permissions().mode() & 0o111 == 0o111)
}

/// Removes the binary, which may be gone already; whether it was there.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn remove(bin_dir: &Path) -> io::Result<bool> {
    let path = path(bin_dir);
    match fs::remove_file(&path) {
        Ok(()) => atomic::sync_folder_of(&path).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(named(&path, e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn the_binary_is_placed_once_replaced_when_it_differs_and_removed() {
        let folder = std::env::temp_dir().join(format!("podweir-binary-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let (one, two) = (folder.join("one"), folder.join("two"));
        fs::write(&one, "release one").unwrap();
        fs::write(&two, "release 222").unwrap();
        assert_eq!(place(&one, &bin).unwrap(), Placed::New);
        let inode = fs::metadata(path(&bin)).unwrap().ino();
        assert_eq!(place(&one, &bin).unwrap(), Placed::Same);
        assert_eq!(fs::metadata(path(&bin)).unwrap().ino(), inode, "nothing was written");
        assert_eq!(place(&two, &bin).unwrap(), Placed::Replaced);
        assert_eq!(place(&one, &bin).unwrap(), Placed::Replaced);
        assert_eq!(fs::read(path(&bin)).unwrap(), b"release one");
        fs::set_permissions(path(&bin), fs::Permissions::from_mode(0o600)).unwrap();
        place(&one, &bin).unwrap();
        assert_eq!(fs::metadata(path(&bin)).unwrap().mode() & 0o7777, 0o755);
        assert!(remove(&bin).unwrap());
        assert!(!remove(&bin).unwrap());
        assert!(place(&one, &folder.join("none")).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
