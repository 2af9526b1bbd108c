//! Files that somebody else put where they are, such as those of a pod that is looked at
//! from its node: read without being led elsewhere, without waiting, and only so much.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;

/// How long reading one file may take. O_NONBLOCK does not help against a file system
/// that a program serves (fuse(4)) and that never answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads a text file below a directory, which counts as the root of all links on the way
/// (`RESOLVE_IN_ROOT`, openat2(2)).
///
/// # Errors
///
/// `NotFound` where there is none. Otherwise the error says what is wrong with the file:
/// that it is no regular file, longer than `limit` bytes, no text, or not read in time.
pub fn read_below(root: &Path, path: &Path, limit: u64) -> io::Result<String> {
    let (root, path) = (root.to_owned(), path.to_owned());
    in_time(move || {
        let directory = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&root)?;
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        let found = open_in_root(&directory, &path, how).map_err(|errno| match errno {
            Errno::ENOSYS => io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no openat2 (Linux 5.6), without which links in it would be followed out of the pod",
            ),
            errno => errno.into(),
        })?;
        read_regular(&File::from(found), limit)
    })
}

/// openat2(2), repeated on `EAGAIN`: the kernel gives that for a path with `..` in it when anything on
/// the system was renamed or mounted meanwhile, since it cannot tell whether the path left the root.
fn open_in_root(directory: &File, path: &Path, how: OpenHow) -> nix::Result<OwnedFd> {
    const ATTEMPTS: usize = 1000;
    let mut attempts = (0..ATTEMPTS).map(|_| openat2(directory, path, how));
    attempts.find(|opened| !matches!(opened, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
}

/// Reads a text file of the process's own file system, with the checks of [`read_below`] but for the
/// time; symbolic links lead where they do for every program.
///
/// # Errors
///
/// As of [`read_below`].
pub fn read(path: &Path, limit: u64) -> io::Result<String> {
    read_regular(&File::options().read(true).custom_flags(libc::O_PATH).open(path)?, limit)
}

/// Reads a file that was opened with O_PATH. Its type is checked before it is opened for reading:
/// opening a pipe would wait, and opening a device may have effects.
fn read_regular(found: &File, limit: u64) -> io::Result<String> {
    let meta = found.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(again)?;
    let mut bytes = Vec::with_capacity(meta.len().min(limit) as usize);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {} KiB", limit >> 10)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
}

/// Runs `work` on a thread of its own; after [`PATIENCE`] gives `TimedOut` and leaves that thread
/// behind.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (give, take) = sync_channel(1);
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        // Whoever has stopped waiting has no use for it.
        let _ = give.send(work());
    })?;
    match take.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it could not be read within {} s", PATIENCE.as_secs()),
        )),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("reading it ended without a result")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("podweir-file-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("root/etc")).unwrap();
        path
    }

    #[test]
    fn links_stay_below_the_root() {
        let directory = directory("links");
        let root = directory.join("root");
        fs::write(directory.join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink("../../../../secret", root.join("etc/upwards")).unwrap();
        symlink(directory.join("secret"), root.join("etc/named")).unwrap();
        let read = |name: &str| read_below(&root, &Path::new("etc").join(name), 100);
        assert_eq!(read("absolute").unwrap(), "inside");
        assert_eq!(read("upwards").unwrap(), "inside");
        assert_eq!(read("named").unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_link_upwards_is_followed_while_others_rename_files() {
        let directory = directory("renames");
        let root = directory.join("root");
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("../../secret", root.join("etc/upwards")).unwrap();
        let (a, b) = (directory.join("a"), directory.join("b"));
        fs::write(&a, "").unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&a, &b).unwrap();
                    fs::rename(&b, &a).unwrap();
                }
            });
            let read: Vec<_> = (0..2000).map(|_| read_below(&root, "etc/upwards".as_ref(), 100)).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            let failed = read.iter().filter_map(|read| read.as_ref().err()).next();
            assert!(failed.is_none(), "{failed:?}");
        });
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn only_regular_files_of_the_length_allowed_are_read() {
        let directory = directory("kinds");
        nix::unistd::mkfifo(&directory.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        symlink("/dev/zero", directory.join("endless")).unwrap();
        fs::write(directory.join("long"), "x".repeat(2049)).unwrap();
        fs::write(directory.join("fits"), "x".repeat(2048)).unwrap();
        fs::write(directory.join("bytes"), [0xff]).unwrap();
        for (name, problem) in [
            ("pipe", "no regular file"),
            ("root", "no regular file"),
            ("endless", "no regular file"),
            ("long", "longer than 2 KiB"),
            ("bytes", "no text"),
        ] {
            assert!(read(&directory.join(name), 2048).unwrap_err().to_string().contains(problem), "{name}");
        }
        assert_eq!(read(&directory.join("fits"), 2048).unwrap().len(), 2048);
        assert_eq!(read(&directory.join("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(directory).unwrap();
    }
}
