//! Replacing a file in one step: written beside its place under a name that no container
//! runtime reads, synced, renamed, and the folder synced, so that whoever reads meanwhile,
//! or after a power failure, finds the old content or the new one, whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
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
    // Before the owner: mode and label of somebody else's file would take CAP_FOWNER.
    file.set_permissions(fs::Permissions::from_mode(attributes.mode))?;
    if let Some(label) = &attributes.label {
        xattr::set(path, SELINUX, label)?;
    }
    if let Some(owner) = attributes.owner {
        give(&file, owner)?;
    }
    file.sync_all()
}

/// Gives a file to a user and a group, where it is not theirs yet: without a change this takes
/// no capability, and with one CAP_CHOWN (chown(2)).
fn give(file: &File, (user, group): (u32, u32)) -> io::Result<()> {
    let meta = file.metadata()?;
    let (new_user, new_group) = (Some(user).filter(|u| *u != meta.uid()), Some(group).filter(|g| *g != meta.gid()));
    if new_user.is_none() && new_group.is_none() {
        return Ok(());
    }
    fchown(file, new_user, new_group).map_err(|e| {
        let cure = "add CHOWN to securityContext.capabilities of the agent's container (who runs podweir by hand needs CAP_CHOWN), or give the file to root: chown 0:0";
        io::Error::new(
            e.kind(),
            format!("it belongs to user {user} and group {group}, to whom its successor cannot be given ({e}); {cure}"),
        )
    })
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
    use std::os::unix::fs::chown;
    use std::thread;

    use crate::sys::caps::has;
    use crate::sys::privilege::{self, CAP_CHOWN, Keep};

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

    /// As [`replace`] with what a file has, by a thread that keeps only these capabilities.
    fn replace_with(keep: Keep, path: &Path, content: &'static [u8]) -> io::Result<()> {
        let path = path.to_owned();
        let replaced = thread::spawn(move || {
            privilege::keep_only(keep);
            replace(&path, content, &Attributes::of_file(&path)?)
        });
        replaced.join().unwrap()
    }

    #[test]
    fn a_file_of_another_group_or_user_stays_theirs_and_who_may_not_give_it_to_them_is_told() {
        let folder = folder("owner");
        let path = folder.join("10-pods.conflist");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // What is one's own already takes nothing.
        replace_with(Keep::NOTHING, &path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        if !has(CAP_CHOWN).unwrap() {
            return fs::remove_dir_all(folder).unwrap();
        }
        for (user, group) in [(0, 1234), (1235, 0), (1235, 1234)] {
            fs::write(&path, "two").unwrap();
            chown(&path, Some(user), Some(group)).unwrap();
            // Only CAP_CHOWN: what the agent has of those that are for others' files.
            replace_with(Keep::NOTHING.and(CAP_CHOWN).and(privilege::CAP_DAC_READ_SEARCH), &path, b"three").unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (user, group, 0o640));
            let error = replace_with(Keep::NOTHING, &path, b"four").unwrap_err().to_string();
            let words = format!("10-pods.conflist: it belongs to user {user} and group {group}");
            assert!(error.contains(&words) && error.contains("add CHOWN to securityContext.capabilities"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), b"three");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
        }
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
