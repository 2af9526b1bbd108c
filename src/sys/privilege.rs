//! Least privilege: a process gives up what it will not need, before it reads what others
//! wrote (capabilities(7), prctl(2)).

#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::libc;
use tracing::debug;

use super::caps::{CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN};

/// `CAP_CHOWN`: gives files to other users and groups.
pub const CAP_CHOWN: u32 = 0;
/// `CAP_DAC_READ_SEARCH`: reads files whoever they belong to.
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_SETGID` and `CAP_SETUID`: acts as other groups and users.
pub const CAP_SETGID: u32 = 6;
pub const CAP_SETUID: u32 = 7;
/// `CAP_NET_BIND_SERVICE`: listens on ports below 1024.
pub const CAP_NET_BIND_SERVICE: u32 = 10;
/// `CAP_SYS_MODULE`: loads kernel modules, which iptables' own programs do by modprobe.
pub const CAP_SYS_MODULE: u32 = 16;
/// `CAP_SYS_PTRACE` shows which process a socket belongs to.
pub const CAP_SYS_PTRACE: u32 = 19;

/// Capabilities to keep, of those that the process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep(u64);

impl Keep {
    /// Keeps no capability: for whoever only reads and writes files of its own user.
    pub const NOTHING: Keep = Keep(0);
    /// What programming rules takes: CAP_NET_ADMIN, and CAP_NET_RAW for iptables-legacy
    /// and for probes.
    pub const RULES: Keep = Keep(1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW);

    /// Keeps in addition what entering network namespaces takes.
    pub const fn and_namespaces(self) -> Keep {
        self.and(CAP_SYS_ADMIN)
    }

    /// Keeps one more capability, by its number.
    pub const fn and(self, capability: u32) -> Keep {
        Keep(self.0 | 1 << capability)
    }
}

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h): 64 capabilities in two halves.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: 32 of the 64 capabilities, in the three sets of a process.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but those to keep, as `try_keep_only` does. A process that
/// cannot give them up (a sandbox that knows nothing of it) goes on with what it has.
pub fn keep_only(keep: Keep) {
    if let Err(e) = try_keep_only(keep) {
        debug!("capabilities cannot be given up: {e}");
    }
}

/// Gives up all capabilities but those to keep, and every way to gain others: the thread and
/// all that it starts get `no_new_privs`, by which execve(2) gives nothing that the caller
/// does not have, be it to root or by a file's mode (`cap_bprm_creds_from_file`,
/// security/commoncap.c). So the bounding set, which takes a system call for each of some 40
/// capabilities (0.05 ms, as much as all the rest), says no more than that and stays.
///
/// Only the calling thread gives them up: no other may be running yet.
///
/// # Errors
///
/// The kernel's refusal, which no process gets for giving capabilities up.
fn try_keep_only(keep: Keep) -> io::Result<()> {
    // SAFETY: prctl(2) takes numbers only for this request.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let header = Header { version: VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: the pointers are to locals of the layout that this version of the call has.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()) })?;
    for (half, shift) in halves.iter_mut().zip([0, 32]) {
        let kept = (keep.0 >> shift) as u32;
        half.permitted &= kept;
        half.effective &= kept;
        // What stays inheritable here stays ambient where it is.
        half.inheritable &= kept;
    }
    // SAFETY: as above; the kernel only reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::caps::has;

    #[test]
    fn what_is_given_up_does_not_come_back_with_a_program() {
        let status = |keep: Keep| {
            let text = std::thread::spawn(move || {
                try_keep_only(keep).unwrap();
                std::process::Command::new("cat").arg("/proc/self/status").output().unwrap().stdout
            });
            let text = String::from_utf8(text.join().unwrap()).unwrap();
            let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            let capabilities = |name: &str| u64::from_str_radix(&value(name), 16).unwrap();
            (value("NoNewPrivs:"), capabilities("CapPrm:") | capabilities("CapEff:") | capabilities("CapInh:"))
        };
        let own = [CAP_NET_ADMIN, CAP_NET_RAW].into_iter().filter(|capability| has(*capability).unwrap());
        let own = own.fold(0, |all, capability| all | 1 << capability);
        // Root's programs get all that there are, unless this keeps them from it.
        assert_eq!(status(Keep::RULES), ("1".to_owned(), own));
        assert_eq!(status(Keep::NOTHING), ("1".to_owned(), 0));
    }
}
