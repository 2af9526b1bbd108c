//! Files that root alone has a say in. Whoever may write to a folder decides what its
//! files are: they can be replaced, or be links to others, pipes that never end, devices.
//! So a path is followed step by step, and nothing on it may be in others' hands.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::geteuid;

/// How many links are followed at most: as many as the kernel does (path_resolution(7)).
const MOST_LINKS: u32 = 40;
/// The owner that a user namespace shows for everybody outside it (user_namespaces(7)).
const OVERFLOW: u32 = 65534;
/// The bits of a mode that let the group and others write.
const OTHERS_WRITE: u32 = 0o022;
/// The bit of a folder's mode by which only the owner of a file may rename or remove it (inode(7)).
const STICKY: u32 = 0o1000;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is not trusted: it belongs to user {owner}, not to root; chown root {0}", .path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error(
        "{0} is not trusted: it can be written by others than root (mode {mode:04o}); chmod go-w {0}", .path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} is no regular file", .0.display())]
    NoFile(PathBuf),
    #[error("{} is another file too (a hard link)", .0.display())]
    Linked(PathBuf),
    #[error("{} is longer than {limit} bytes", .path.display())]
    TooLong { path: PathBuf, limit: u64 },
}

impl TrustError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    /// Whether the file is missing, rather than refused.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether somebody has to change an owner or a mode before it can be used.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Owner { .. } | Self::Writable { .. })
    }
}

impl From<TrustError> for io::Error {
    fn from(error: TrustError) -> Self {
        let kind = match &error {
            TrustError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

/// What a path leads to; nobody else may change any part of the path.
struct Resolved {
    /// The path without symbolic links.
    path: PathBuf,
    meta: Metadata,
}

/// The bytes of a file that was read, and its path without links.
#[derive(Debug)]
pub struct TrustedFile {
    /// The path without symbolic links.
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// Whether an owner is trusted: root, and the process's own user.
fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == geteuid().as_raw()
}

/// Whether the process is in a user namespace that does not map all users. There, the folders above the
/// process's own seem to belong to nobody ([`OVERFLOW`]), who may be root of the machine.
fn sees_few_users() -> bool {
    // The first namespace's only line is "0 0 4294967295".
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.contains("4294967295"))
}

fn check_owner(path: &Path, meta: &Metadata) -> Result<(), TrustError> {
    let owner = meta.uid();
    match is_trusted(owner) || (meta.is_dir() && owner == OVERFLOW && sees_few_users()) {
        true => Ok(()),
        false => Err(TrustError::Owner { path: path.into(), owner }),
    }
}

/// Checks the end of a path: its owner is trusted and nobody else may write to it.
fn check_end(Resolved { path, meta }: &Resolved) -> Result<(), TrustError> {
    if !is_trusted(meta.uid()) {
        return Err(TrustError::Owner { path: path.clone(), owner: meta.uid() });
    }
    match meta.mode() & OTHERS_WRITE {
        0 => Ok(()),
        _ => Err(TrustError::Writable { path: path.clone(), mode: meta.mode() & 0o7777 }),
    }
}

/// Checks a folder on the way to a file: others may write to it only if it is sticky, so that they
/// cannot replace what belongs to root in it.
fn check_way(path: &Path, meta: &Metadata) -> Result<(), TrustError> {
    if !meta.is_dir() {
        return Err(TrustError::Io { path: path.into(), source: Errno::ENOTDIR.into() });
    }
    match meta.mode() & OTHERS_WRITE != 0 && meta.mode() & STICKY == 0 {
        false => Ok(()),
        true => Err(TrustError::Writable { path: path.into(), mode: meta.mode() & 0o7777 }),
    }
}

/// Follows a path, the links on it included. Since nobody else may change any part of it, the result
/// still holds when the file is opened.
fn resolve(path: &Path) -> Result<Resolved, TrustError> {
    let names = |path: &Path| -> Vec<OsString> {
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let look = |path: &Path| fs::symlink_metadata(path).map_err(TrustError::io(path));
    let mut at = Resolved { path: "/".into(), meta: look(Path::new("/"))? };
    check_owner(&at.path, &at.meta)?;
    let mut rest: VecDeque<OsString> = names(path).into();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        check_way(&at.path, &at.meta)?;
        if name == ".." {
            // It was on the way already.
            at.path.pop();
            at.meta = look(&at.path)?;
            continue;
        }
        let next = at.path.join(&name);
        let meta = look(&next)?;
        check_owner(&next, &meta)?;
        if !meta.is_symlink() {
            at = Resolved { path: next, meta };
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(TrustError::Io { path: next, source: Errno::ELOOP.into() });
        }
        let target = fs::read_link(&next).map_err(TrustError::io(&next))?;
        names(&target).into_iter().rev().for_each(|name| rest.push_front(name));
        if target.is_absolute() {
            at = Resolved { path: "/".into(), meta: look(Path::new("/"))? };
        }
    }
    Ok(at)
}

/// Makes sure that a folder and the way to it are root's; gives its path without links.
///
/// # Errors
/// When it is not there, is no folder, or others may write to it or replace it.
pub fn directory(path: &Path) -> Result<PathBuf, TrustError> {
    let found = resolve(path)?;
    check_way(&found.path, &found.meta)?;
    check_end(&found)?;
    Ok(found.path)
}

/// Makes what is missing of a folder, so that only its owner may write to it whatever the process's
/// umask is, and makes sure that the folder and the way to it are root's; gives its path without
/// links.
///
/// # Errors
/// As for [`directory`], and when it cannot be made.
pub fn make_directory(path: &Path) -> Result<PathBuf, TrustError> {
    match directory(path) {
        Err(error) if error.is_missing() => {
            // What there is of the path has been looked at: nobody leads this elsewhere.
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(TrustError::io(path))?;
            directory(path)
        }
        other => other,
    }
}

/// Opens a file as `options` say, if it is a regular one: no link is followed, nothing is
/// waited for, no device is touched.
fn open(path: &Path, options: &mut OpenOptions) -> Result<File, TrustError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => return Err(TrustError::NoFile(path.into())),
        _ => {}
    }
    let options = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(TrustError::io(path))?;
    match file.metadata().map_err(TrustError::io(path))?.is_file() {
        true => Ok(file),
        false => Err(TrustError::NoFile(path.into())),
    }
}

/// Opens a file to append to it, and makes it where it is missing, in a folder that was made or checked
/// before.
///
/// # Errors
/// When it is not a regular file of root's alone, by this one name.
pub fn append(path: &Path, mode: u32) -> Result<File, TrustError> {
    let file = open(path, File::options().create(true).append(true).mode(mode))?;
    let found = Resolved { path: path.into(), meta: file.metadata().map_err(TrustError::io(path))? };
    check_end(&found)?;
    match found.meta.nlink() {
        // Or none any more: somebody has put it aside.
        0 | 1 => Ok(file),
        _ => Err(TrustError::Linked(found.path)),
    }
}

/// Reads a file whole.
///
/// # Errors
/// When it is not there, others may write to it or replace it, it is no regular file, or
/// it is longer than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<TrustedFile, TrustError> {
    let found = resolve(path)?;
    if !found.meta.is_file() {
        return Err(TrustError::NoFile(found.path));
    }
    check_end(&found)?;
    let Resolved { path, .. } = found;
    let file = open(&path, File::options().read(true))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(TrustError::io(&path))?;
    match bytes.len() as u64 > limit {
        false => Ok(TrustedFile { path, bytes }),
        true => Err(TrustError::TooLong { path, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("podweir-trust-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_is_read_by_way_of_links_of_our_own() {
        let top = folder("links");
        fs::create_dir(top.join("real")).unwrap();
        fs::write(top.join("real/file"), "text").unwrap();
        symlink("real", top.join("relative")).unwrap();
        symlink(top.join("relative/../real/file"), top.join("absolute")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        for name in ["real/file", "relative/file", "absolute", "./real/../relative/./file"] {
            let content = read(&top.join(name), 4).unwrap();
            assert_eq!((content.path, content.bytes), (top.join("real/file"), b"text".to_vec()), "{name}");
        }
        assert!(matches!(read(&top.join("absolute"), 3), Err(TrustError::TooLong { limit: 3, .. })));
        assert!(matches!(read(&top.join("loop"), 9), Err(TrustError::Io { .. })));
        assert!(read(&top.join("nothing"), 9).unwrap_err().is_missing());
        assert!(read(&top.join("real/file/x"), 9).is_err());
        assert!(matches!(read(&top.join("real"), 9), Err(TrustError::NoFile(_))));
        assert!(matches!(read(Path::new("/dev/zero"), 9), Err(TrustError::NoFile(_))));
        let fifo = top.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(read(&fifo, 9), Err(TrustError::NoFile(_))));
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn what_others_may_write_to_or_own_is_named_and_refused() {
        let top = folder("others");
        let (run, file) = (top.join("a/run"), top.join("a/run/file"));
        fs::create_dir_all(&run).unwrap();
        fs::write(&file, "").unwrap();
        let refused = |what: &Path| {
            let named = |error: TrustError| error.is_distrust() && error.to_string().contains(what.to_str().unwrap());
            assert!(read(&file, 9).is_err_and(named), "{}", what.display());
        };
        assert_eq!(directory(&run).unwrap(), run);
        for (path, mode) in [(&top.join("a"), 0o777), (&run, 0o775), (&file, 0o602), (&file, 0o660)] {
            let before = fs::metadata(path).unwrap().mode();
            chmod(path, mode);
            refused(path);
            chmod(path, before);
        }
        // A sticky folder is fine on the way, not as the one that is asked for.
        chmod(&run, 0o1777);
        assert!(read(&file, 9).is_ok());
        assert!(matches!(directory(&run), Err(TrustError::Writable { mode: 0o1777, .. })));
        chmod(&run, 0o755);
        if !geteuid().is_root() {
            return fs::remove_dir_all(&top).unwrap();
        }
        for path in [&top.join("a"), &run, &file] {
            chown(path, Some(1000), None).unwrap();
            refused(path);
            chown(path, Some(0), None).unwrap();
        }
        symlink("file", run.join("link")).unwrap();
        std::os::unix::fs::lchown(run.join("link"), Some(1000), None).unwrap();
        assert!(matches!(read(&run.join("link"), 9), Err(TrustError::Owner { owner: 1000, .. })));
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn what_is_added_to_is_a_file_of_ours_alone() {
        let top = folder("append");
        let (file, other) = (top.join("file"), top.join("other"));
        for _ in 0..2 {
            std::io::Write::write_all(&mut append(&file, 0o640).unwrap(), b"line\n").unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "line\nline\n");
        chmod(&file, 0o646);
        assert!(append(&file, 0o640).unwrap_err().is_distrust());
        chmod(&file, 0o640);
        fs::hard_link(&file, &other).unwrap();
        assert!(matches!(append(&file, 0o640), Err(TrustError::Linked(_))));
        fs::remove_file(&other).unwrap();
        symlink("file", &other).unwrap();
        assert!(matches!(append(&other, 0o640), Err(TrustError::NoFile(_))));
        fs::remove_file(&other).unwrap();
        nix::unistd::mkfifo(&other, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(append(&other, 0o640), Err(TrustError::NoFile(_))));
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn folders_are_made_where_nobody_else_could_have_made_them() {
        let top = folder("make");
        let deep = top.join("x/y");
        assert_eq!(make_directory(&deep).unwrap(), deep);
        assert_eq!(fs::metadata(&deep).unwrap().mode() & OTHERS_WRITE, 0);
        chmod(&top, 0o777);
        assert!(make_directory(&top.join("z")).unwrap_err().is_distrust());
        assert!(!top.join("z").exists());
        fs::remove_dir_all(&top).unwrap();
    }
}
