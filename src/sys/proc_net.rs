//! The files of proc(5) about the network namespace that the calling thread is in.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

const DIRECTORY: &str = "/proc/thread-self/net";

thread_local! {
    /// The thread's directory. Finding it takes longer than reading a file of it, and every
    /// pod's start waits for several. What is opened from it is of the namespace that the
    /// thread is in by then (`proc_tgid_net_lookup`, fs/proc/proc_net.c).
    static OPEN: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// Whether IPv6 is off on an interface of the namespace that the calling thread is in
/// (`disable_ipv6`, Documentation/networking/ip-sysctl.rst); a kernel without IPv6 says nothing
/// of it. The files of /proc/sys/net, too, are those of the thread's namespace.
pub fn is_without_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

/// Reads a file of /proc/net, such as `sockstat`.
///
/// # Errors
/// What kept the file from being opened or read; `NotFound` where the kernel has no such file.
pub fn read(name: &str) -> io::Result<String> {
    OPEN.with(|cell| {
        let directory = match cell.get() {
            Some(directory) => directory,
            None => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let opened = open(DIRECTORY, flags, Mode::empty())?;
                cell.get_or_init(|| opened)
            }
        };
        let file = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // `std` would ask for the size first, which these files do not have.
        let mut bytes = vec![0; 1024];
        let mut length = 0;
        loop {
            match nix::unistd::read(&file, &mut bytes[length..])? {
                0 => break,
                more => length += more,
            }
            if length == bytes.len() {
                bytes.resize(2 * length, 0);
            }
        }
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    })
}
