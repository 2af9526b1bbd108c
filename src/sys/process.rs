//! Child processes.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, getpid, getppid, setresgid, setresuid};

/// Raises the process's soft limit of open files to `most`, or to the hard limit if that is lower.
///
/// # Errors
/// The kernel's (setrlimit(2)).
pub fn raise_descriptor_limit(most: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(most);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}

/// Gives a child its input and waits for it to end; gives its status, and whether it took
/// all of the input. One that does not end within `deadline` is killed, be it that it leaves
/// its input unread: a pipe holds some 64 KiB (pipe(7)), and writing more would wait for it.
///
/// # Errors
///
/// `TimedOut`, with the child gone; what the kernel says of the child otherwise.
pub fn feed(child: &mut Child, input: &[u8], deadline: Duration) -> io::Result<(ExitStatus, io::Result<()>)> {
    let start = Instant::now();
    let written = child.stdin.take().map_or(Ok(()), |stdin| write_within(stdin, input, deadline));
    let status = wait(child, deadline.saturating_sub(start.elapsed()))?;
    Ok((status, written))
}

/// Writes to a pipe, for as long as `deadline` at most.
fn write_within(mut pipe: ChildStdin, mut bytes: &[u8], deadline: Duration) -> io::Result<()> {
    let start = Instant::now();
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK))?;
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
                // An interruption only means that the loop goes on.
                let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits for a child to end; kills it after `deadline`.
///
/// # Errors
///
/// `TimedOut`, with the child gone; what the kernel says of the child otherwise.
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

/// Makes system calls in a child process, and waits for it at most until the deadline. For
/// calls that no signal interrupts but one that ends the process: a netlink transaction is
/// taken back when its sender is killed (`nfnetlink_rcv_batch` looks for a fatal signal
/// before every message, net/netfilter/nfnetlink.c), and then only.
///
/// `calls` runs after fork(2) in a process that may have had other threads: it must not
/// allocate or lock anything.
///
/// # Errors
///
/// The error of `calls`; `TimedOut`, with the child gone; or why no child could be started.
pub fn in_child(deadline: Duration, calls: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    let start = Instant::now();
    let parent = getpid();
    // SAFETY: the child makes system calls only, as `calls` has to, and ends by _exit(2).
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Whoever kills the parent means the work. If it is gone already, so are we.
            let _ = set_pdeathsig(Signal::SIGKILL);
            let result = if getppid() == parent { calls() } else { Err(Errno::EINTR) };
            // SAFETY: ends the process at once, without anything of the parent's being run.
            unsafe { libc::_exit(result.err().map_or(0, |errno| errno as i32)) }
        }
    };
    let late = io::Error::new(io::ErrorKind::TimedOut, format!("it was still not done after {deadline:?}"));
    if let Ok(pidfd) = pidfd(child.as_raw() as u32) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // An interruption only means that the loop below waits on.
        let _ = poll(&mut fds, PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX));
    }
    let mut killed = false;
    loop {
        let flag = if killed { None } else { Some(WaitPidFlag::WNOHANG) };
        match waitpid(child, flag) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(WaitStatus::Signaled(..)) if killed => return Err(late),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(io::Error::other(format!("it was ended by {signal}")));
            }
            Ok(_) if start.elapsed() >= deadline => {
                let _ = kill(child, Signal::SIGKILL);
                killed = true;
            }
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
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

/// Tells whether so many more descriptors can be opened, for code that panics where they cannot.
///
/// # Errors
///
/// The kernel's reason why not, such as `EMFILE`.
pub fn spare_descriptors(pairs: usize) -> io::Result<()> {
    (0..pairs).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>().map(drop)
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
    use std::process::{Command, Stdio};

    #[test]
    fn calls_in_a_child_give_their_error_or_are_ended() {
        let long = Duration::from_secs(60);
        in_child(long, || Ok(())).unwrap();
        assert_eq!(in_child(long, || Err(Errno::EPERM)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let never = || loop {
            nix::unistd::pause();
        };
        assert_eq!(in_child(Duration::from_millis(5), never).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_child_that_leaves_its_input_unread_is_ended() {
        let large = vec![b'x'; 1 << 20];
        let start = |program: &str, argument: &str| {
            Command::new(program).arg(argument).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
        };
        // No signal ends this wait but the one at the deadline.
        let mut deaf = start("sleep", "infinity");
        let error = feed(&mut deaf, &large, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(deaf.try_wait().unwrap().is_some());
        let long = Duration::from_secs(60);
        let (status, written) = feed(&mut start("cat", "-"), &large, long).unwrap();
        assert!(status.success() && written.is_ok(), "{status} {written:?}");
        // One that has enough of it: its status tells more than the broken pipe.
        let (status, written) = feed(&mut start("false", "-"), &large, long).unwrap();
        assert_eq!((status.code(), written.unwrap_err().kind()), (Some(1), io::ErrorKind::BrokenPipe));
    }

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
