//! Locks: the one that keeps podweir runs in one network namespace apart, and who
//! holds a lock file.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A held lock; released when dropped, or when the process ends in any way.
pub struct Lock {
    _file: Flock<File>,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot lock {name}: {source}")]
    Lock { name: String, source: io::Error },
    #[error("{name} is locked by {holder}, still after {waited:?}; end it or allow more time with --lock-timeout")]
    Held { name: String, holder: String, waited: Duration },
}

/// Locks a file, waiting at most `deadline`. flock(2) works on the file that stands for
/// a namespace as on any other. `name`: what a message calls it.
pub fn acquire(mut file: File, name: &str, deadline: Duration) -> Result<Lock, LockError> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Lock { _file: lock }),
            Err((back, Errno::EWOULDBLOCK)) if start.elapsed() < deadline => {
                file = back;
                std::thread::sleep(pause.min(deadline.saturating_sub(start.elapsed())));
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err((back, Errno::EWOULDBLOCK)) => {
                return Err(LockError::Held { name: name.into(), holder: holder_of(&back), waited: deadline });
            }
            Err((back, Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(LockError::Lock { name: name.into(), source: errno.into() }),
        }
    }
}

fn holder_of(file: &File) -> String {
    file.metadata().ok().and_then(|meta| holder(meta.ino())).unwrap_or_else(|| "another process".into())
}

/// Who holds a flock(2) on the file with this inode, as "name (pid N)", if it is to be
/// seen in proc(5)'s locks.
pub fn holder(inode: u64) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; a waiter's line has an arrow.
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file.rsplit(':').next()?.parse() == Ok(inode)).then_some(pid)
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(match name {
        Some(name) => format!("{} (pid {pid})", name.trim()),
        None => format!("pid {pid}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_waits_and_is_told_who_holds_it() {
        let path = std::env::temp_dir().join(format!("podweir-lock-{}", std::process::id()));
        let open = || File::options().create(true).write(true).truncate(false).open(&path).unwrap();
        let held = acquire(open(), "it", Duration::ZERO).unwrap();
        let error = acquire(open(), "it", Duration::from_millis(30)).err().unwrap().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(held);
        assert!(acquire(open(), "it", Duration::ZERO).is_ok());
        std::fs::remove_file(&path).unwrap();
    }
}
