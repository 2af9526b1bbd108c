//! Child processes.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

/// Waits for a child to end; kills it after `deadline`.
///
/// Errors: `TimedOut`, with the child gone.
pub fn wait(child: &mut Child, deadline: Duration) -> io::Result<ExitStatus> {
    let start = Instant::now();
    if let Ok(pidfd) = pidfd(child.id()) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // An interruption only means that the loop below waits on.
        let _ = poll(&mut fds, PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX));
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it was still running after {deadline:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A descriptor that becomes readable when a process ends (pidfd_open(2), Linux 5.3).
fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved; the result is checked before it is used.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    match i32::try_from(raw) {
        // SAFETY: a descriptor that was just made and that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a child start inside a user namespace, as its user 0. Matches on packet owners
/// can be written only from the user namespace that owns the network namespace.
pub fn in_user_namespace(command: &mut Command, namespace: Arc<File>) {
    let enter = move || {
        setns(&*namespace, CloneFlags::CLONE_NEWUSER)?;
        // All capabilities are there on entering; user 0 keeps them through execve(2).
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
        Ok(())
    };
    // SAFETY: only system calls are made between fork and execve, nothing is allocated.
    unsafe { command.pre_exec(enter) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_that_does_not_end_is_ended() {
        let mut quick = Command::new("true").spawn().unwrap();
        assert!(wait(&mut quick, Duration::from_secs(10)).unwrap().success());
        let mut slow = Command::new("sleep").arg("60").spawn().unwrap();
        let error = wait(&mut slow, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(slow.try_wait().unwrap().is_some());
    }
}
