//! Replacing a file in one step: written beside its place under a name that no container
//! runtime reads, synced, renamed, and the folder synced, so that whoever reads meanwhile,
//! or after a power failure, finds the old content or the new one, whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::sys::xattr;

/// How temporary files end: container runtimes read `.conf`, `.conflist` and `.json`, and
/// start plugins by their exact names.
pub(super) const UNFINISHED: &str = "podweir-unfinished";

/// The extended attribute in which SELinux keeps a file's label.
const SELINUX: &str = "security.selinux";

/// The attributes of a new file.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub mode: u32,
    /// User and group; `None`: the process's own.
    pub owner: Option<(u32, u32)>,
    /// SELinux's label, where there is one.
    pub label: Option<Vec<u8>>,
}

impl Attributes {
    /// The attributes of a file that was not there before.
    pub(super) fn of_mode(mode: u32) -> Self {
        Self { mode, owner: None, label: None }
    }

    /// The owner, mode and label of a file that is to be replaced.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub(super) fn of_file(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(path)?;
        let label = xattr::get(path, SELINUX)?;
        Ok(Self { mode: meta.permissions().mode() & 0o7777, owner: Some((meta.uid(), meta.gid())), label })
    }
}

/// Puts a file with this content in the place of `path`.
///
/// # Errors
/// The operating system's, naming the file; nothing is left beside `path`, which has the old content,
/// unless only syncing its folder failed.
pub(super) fn replace(path: &Path, content: &[u8], attributes: &Attributes) -> io::Result<()> {
    replace_by(path, content, attributes)
}

/// Puts a file with what `content` gives in the place of `path`, a piece at a time.
///
/// # Errors
/// As [`replace`].
pub(super) fn replace_by(path: &Path, content: impl Read, attributes: &Attributes) -> io::Result<()> {
    let unfinished = beside(path);
    // A killed run may have left one; nobody else writes under this name.
    let _ = fs::remove_file(&unfinished);
    let written = write(&unfinished, content, attributes).and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = written {
        // The first error is the one to tell.
        let _ = fs::remove_file(&unfinished);
        return Err(named(path, error));
    }
    sync_folder_of(path)
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{UNFINISHED}"))
}

fn write(path: &Path, mut content: impl Read, attributes: &Attributes) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    io::copy(&mut content, &mut file)?;
    if let Some((user, group)) = attributes.owner {
        chown(path, Some(user), Some(group))?;
    }
    // After the owner, since a change of owner takes set-id bits away.
    file.set_permissions(fs::Permissions::from_mode(attributes.mode))?;
    if let Some(label) = &attributes.label {
        xattr::set(path, SELINUX, label)?;
    }
    file.sync_all()
}

/// Makes a rename or removal in the folder of `path` last over a power failure.
///
/// # Errors
/// The operating system's, naming the folder.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| named(folder, e))
}

/// Adds the name of the file to an error.
pub(super) fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("podweir-atomic-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_nothing_stays_beside_it() {
        let folder = folder("mode");
        let path = folder.join("10-pods.conflist");
        replace(&path, b"one", &Attributes::of_mode(0o640)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let before = Attributes::of_file(&path).unwrap();
        replace(&path, b"two", &before).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_everything_as_it_was() {
        let folder = folder("failure");
        let path = folder.join("taken");
        fs::create_dir(&path).unwrap();
        let error = replace(&path, b"x", &Attributes::of_mode(0o600)).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(path.is_dir());
        let gone = folder.join("no/such/folder");
        assert!(replace(&gone, b"x", &Attributes::of_mode(0o600)).is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_is_in_nobodys_way() {
        let folder = folder("killed");
        let path = folder.join("podweir");
        fs::write(beside(&path), "half").unwrap();
        replace(&path, b"whole", &Attributes::of_mode(0o755)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let ending = beside(&path).extension().unwrap().to_owned();
        assert!(!["conf", "conflist", "json"].iter().any(|read| ending == *read));
        fs::remove_dir_all(folder).unwrap();
    }
}
