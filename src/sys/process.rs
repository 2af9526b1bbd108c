//! Child processes.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
