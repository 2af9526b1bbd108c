//! The lock that keeps podweir runs in one network namespace apart; also tells who holds a lock that is
//! another program's.
//!
//! Runs that must exclude each other share a network namespace and nothing else: an init
//! container, a plugin started by the container runtime and a node agent have file
//! systems, process and user namespaces of their own. What any process of the pod can
//! take is no lock: it would stop pods. flock(2) works on every file that can be opened,
//! and everybody can open his own namespace's; abstract socket names (unix(7)), netlink
//! ports (netlink(7)) and TCP ports go to who asks first. What only a network
//! administrator of the namespace can do in it, without leaving anything behind when
//! killed, is little: own a table (`NFT_TABLE_F_OWNER`; its end takes a grace period of
//! RCU, some 14 ms, and bumps the generation that others' transactions rely on), bind a
//! queue or log group (modules that not every kernel has), or join a multicast group of
//! `NETLINK_NETFILTER`, which takes CAP_NET_ADMIN in the user namespace that owns the
//! network namespace (`netlink_allowed`, net/netlink/af_netlink.c; only families with
//! `NL_CFG_F_NONROOT_RECV` let others in, and this is none).
//!
//! So membership is the lock. A socket joins a group to which nothing is ever sent, then
//! lists the namespace's sockets (`NETLINK_SOCK_DIAG`, or proc(5)'s `net/netlink`): it
//! holds the lock if no other one is a member, and leaves again otherwise. Of two that
//! join at the same time at least one sees the other, since each joins before it looks;
//! both may have to leave, and try again after pauses of random length.

use std::fs::{DirEntry, File, Metadata};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::stat::{fstat, major, minor};

use super::mutex::lock;
use super::netlink::{Netlink, attributes};
use super::netns;

/// The multicast group. `NFNLGRP_MAX` is 9 (linux/netfilter/nfnetlink.h), while 32 groups
/// can be joined (`__netlink_kernel_create`); the kernel has no name for this one.
const GROUP: u32 = 31;

/// A held lock; released when dropped, or when the process ends in any way.
pub struct Lock {
    member: Option<Socket>,
    /// Where the socket is kept for the next time, out of the group, when the lock is released.
    spare: Option<Spare>,
}

/// A socket kept for taking the lock again; `None` while the lock is held.
type Spare = Arc<Mutex<Option<Socket>>>;

impl Drop for Lock {
    fn drop(&mut self) {
        let Some((spare, member)) = self.spare.take().zip(self.member.take()) else { return };
        // What does not leave the group is closed, which leaves it as well.
        if member.drop_membership(GROUP).is_ok() {
            *lock(&spare) = Some(member);
        }
    }
}

/// The lock of one network namespace for a caller that takes it repeatedly, with one socket that leaves
/// the group and stays open: closing a socket of `NETLINK_NETFILTER` waits until the kernel has freed
/// what a transaction took away (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c), which is a grace
/// period of RCU, 10 ms and more.
#[derive(Default)]
pub struct KeptLock {
    spare: Spare,
}

impl KeptLock {
    /// Takes the lock as [`acquire`] does; the calling thread is to be in the same network namespace
    /// each time.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`].
    pub fn acquire(&self, deadline: Duration) -> Result<Lock, LockError> {
        let kept = lock(&self.spare).take();
        Ok(Lock { member: join(kept, deadline)?, spare: Some(self.spare.clone()) })
    }
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot lock the network namespace: {source}{}", hint(.source))]
    Lock { source: io::Error },
    #[error(
        "the network namespace is locked by {holder}, still after {waited:?}; end it or allow more time with --lock-timeout"
    )]
    Held { holder: String, waited: Duration },
}

/// What to do about a refused lock: the kernel asks for CAP_NET_ADMIN in the user namespace that owns
/// the network namespace.
fn hint(error: &io::Error) -> String {
    let denied = error.raw_os_error() == Some(Errno::EPERM as i32);
    netns::net_admin_hint().filter(|_| denied).map(|hint| format!("; {hint}")).unwrap_or_default()
}

/// A netlink socket that is a member of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LockSocket {
    inode: u64,
    port: u32,
}

/// Takes the lock of the network namespace that the calling thread is in, waiting at most
/// `deadline`. A kernel without nfnetlink (a sandbox that has iptables-legacy at most)
/// has nothing to lock with, and nothing that other programs' own locks do not cover.
///
/// # Errors
///
/// That the process may not take it, or that somebody held it all the time.
pub fn acquire(deadline: Duration) -> Result<Lock, LockError> {
    Ok(Lock { member: join(None, deadline)?, spare: None })
}

/// The socket that holds the lock: the one `kept`, which is in no group, or a new one.
fn join(mut kept: Option<Socket>, deadline: Duration) -> Result<Option<Socket>, LockError> {
    let failed = |source: io::Error| LockError::Lock { source };
    let start = Instant::now();
    let mut members = Members::open();
    let mut pause = Duration::from_micros(200);
    loop {
        let socket = match kept.take() {
            Some(socket) => socket.add_membership(GROUP).map(|()| socket),
            None => Socket::new(Netlink::NETFILTER).and_then(|mut socket| {
                // One call gives the socket a port and joins.
                socket.bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
                Ok(socket)
            }),
        };
        let socket = match socket {
            Ok(socket) => socket,
            Err(e) if is_unsupported(&e) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let own = fstat(&socket).map_err(|e| failed(e.into()))?.st_ino;
        let others = members.list().map_err(failed)?;
        let Some(mut other) = others.into_iter().find(|member| member.inode != own) else {
            return Ok(Some(socket));
        };
        drop(socket);
        // Whoever waits stays out, so that others who try do not see each other only.
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(LockError::Held { holder: name_of(other), waited: deadline });
            }
            std::thread::sleep(about(pause).min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
            match members.list().map_err(failed)?.first() {
                Some(member) => other = *member,
                None => break,
            }
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EPROTONOSUPPORT, Errno::EAFNOSUPPORT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Half to one and a half times as long, so that two who meet do not meet again.
fn about(pause: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let mixed = (now ^ std::process::id().rotate_left(16)).wrapping_mul(0x9e37_79b1) >> 16;
    pause / 2 + pause * mixed / (1 << 16)
}

/// The way to list who is a member.
struct Members {
    /// `None` where the kernel cannot list its netlink sockets; proc(5) can.
    diagnosis: Option<Netlink>,
}

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NDIAG_SHOW_GROUPS: u32 = 2;
const NETLINK_DIAG_GROUPS: u16 = 1;

impl Members {
    fn open() -> Self {
        Self { diagnosis: Netlink::open(NETLINK_SOCK_DIAG).ok() }
    }

    fn list(&mut self) -> io::Result<Vec<LockSocket>> {
        if let Some(netlink) = &mut self.diagnosis {
            match listed(netlink) {
                Ok(members) => return Ok(members),
                // Its module is not there, or may not be used.
                Err(_) => self.diagnosis = None,
            }
        }
        from_proc(BufReader::new(File::open("/proc/thread-self/net/netlink")?))
    }
}

/// Asks the kernel (`struct netlink_diag_req` and `netlink_diag_msg`, linux/netlink_diag.h).
fn listed(netlink: &mut Netlink) -> io::Result<Vec<LockSocket>> {
    let mut request = Vec::with_capacity(36);
    request.extend(36u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([nix::libc::AF_NETLINK as u8, Netlink::NETFILTER as u8, 0, 0]);
    request.extend([0; 4]);
    request.extend(NDIAG_SHOW_GROUPS.to_ne_bytes());
    request.extend([0; 8]);
    let mut members = Vec::new();
    netlink.dump(&request, |received| {
        let word = |at: usize| received.payload.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        let groups = received
            .payload
            .get(28..)
            .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == NETLINK_DIAG_GROUPS).map(|(_, groups)| groups));
        if received.kind == SOCK_DIAG_BY_FAMILY
            && let (Some(port), Some(inode)) = (word(4), word(16))
            && groups.is_some_and(is_member)
        {
            members.push(LockSocket { inode: inode.into(), port });
        }
    })?;
    Ok(members)
}

/// A bitmap of longs, of which group 1 is the first bit.
fn is_member(groups: &[u8]) -> bool {
    let first = groups.get(..8).map(|b| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    let first = first.or_else(|| groups.get(..4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]).into()));
    first.is_some_and(|bits| bits >> (GROUP - 1) & 1 == 1)
}

/// Lines such as `00000000b053b2e8 12  14108  40000000 0 0 0 2 0 1321465`: the protocol,
/// the port, the first 32 groups, and the inode at the end.
fn from_proc(listing: impl BufRead) -> io::Result<Vec<LockSocket>> {
    let mut members = Vec::new();
    for line in listing.lines().skip(1) {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "12", port, groups, .., inode] = fields[..] else { continue };
        let groups = u32::from_str_radix(groups, 16).unwrap_or(0);
        if groups >> (GROUP - 1) & 1 == 1 {
            let number = |text: &str| text.parse().map_err(|_| io::Error::other(format!("odd line: {line}")));
            members.push(LockSocket { inode: number(inode)?, port: number(port)? as u32 });
        }
    }
    Ok(members)
}

/// Who has a socket, as "name (pid N)": a socket's port is its process's number, as long
/// as that process has no other and is seen from here.
fn name_of(member: LockSocket) -> String {
    let pid = member.port;
    match has_socket(pid, member.inode) {
        true => described(&pid.to_string()),
        false => format!("a process that is not seen from here (netlink port {pid}, socket {})", member.inode),
    }
}

/// Whether a socket is a process's. What it has open is for those to see who could trace it
/// (proc(5), `/proc/pid/fd`), which nobody can who is confined by Landlock, or who has fewer
/// capabilities than it. They can see the sockets of the network namespaces that its threads
/// are in: a process there, of the very number that the socket has for a port, is the one.
fn has_socket(pid: u32, inode: u64) -> bool {
    match opens_socket(pid, inode) {
        Ok(opens) => opens,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let sees_it = |thread: DirEntry| {
                let listing = File::open(thread.path().join("net/netlink")).map(BufReader::new);
                let members = listing.and_then(from_proc).unwrap_or_default();
                members.contains(&LockSocket { inode, port: pid })
            };
            std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.flatten().any(sees_it))
        }
        Err(_) => false,
    }
}

/// Whether a socket is among what a process has open. The folder may be there to be listed
/// while its links are not to be followed.
fn opens_socket(pid: u32, inode: u64) -> io::Result<bool> {
    let link = format!("socket:[{inode}]");
    let mut refused = None;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        match std::fs::read_link(entry.path()) {
            Ok(to) if to.as_os_str() == &*link => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => refused = Some(e),
            // Of another file, or closed since.
            Ok(_) | Err(_) => {}
        }
    }
    refused.map_or(Ok(false), Err)
}

fn described(pid: &str) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim()),
        Err(_) => format!("pid {pid}"),
    }
}

/// Who holds a flock(2) on a file, as "name (pid N)", if it is to be seen in proc(5)'s locks.
pub fn holder(file: &Metadata) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    Some(described(holder_in(&locks, file.dev(), file.ino())?))
}

/// The number of the process that a listing names. Files of different file systems may share an
/// inode, so the one with the device counts; file systems that are made of others (overlayfs,
/// btrfs) tell a device here that stat(2) does not.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<&str> {
    let mut any = None;
    for line in locks.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; a waiter's line has an arrow.
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { continue };
        let Some((on, number)) = file.rsplit_once(':') else { continue };
        if number.parse() != Ok(inode) {
            continue;
        }
        if on == format!("{:02x}:{:02x}", major(device), minor(device)) {
            return Some(pid);
        }
        any.get_or_insert(pid);
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_from_others_in_both_listings() {
        let text = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n\
            00000000b053b2e8 12  14108      40000000 0        0        0     2        0        1321465\n\
            00000000f2f05280 12  77         00000040 0        0        0     2        0        1321005\n\
            00000000486c3ba6 0   78         40000000 0        0        0     2        0        1320999\n";
        assert_eq!(from_proc(text.as_bytes()).unwrap(), [LockSocket { inode: 1321465, port: 14108 }]);
        assert!(from_proc("\n0 12 x 40000000 0 0 0 2 0 y\n".as_bytes()).is_err());
        assert!(is_member(&0x4000_0000u64.to_ne_bytes()) && !is_member(&[0; 8]) && !is_member(&[]));
    }

    #[test]
    fn the_holder_of_a_file_is_told_by_its_device_where_that_is_the_same() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 2 00:1c:7 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 4 00:1c:7 0 EOF\n3: FLOCK  ADVISORY  WRITE 3 fe:00:7 0 EOF\nFLOCK\n";
        let device = nix::sys::stat::makedev;
        assert_eq!(holder_in(locks, device(0xfe, 0), 7), Some("3"));
        assert_eq!(holder_in(locks, device(0, 0x1c), 7), Some("2"));
        assert_eq!(holder_in(locks, device(9, 9), 7), Some("2"));
        assert_eq!(holder_in(locks, device(0xfe, 0), 8), None);
    }

    #[test]
    fn pauses_differ_and_stay_in_bounds() {
        let pause = Duration::from_millis(10);
        for _ in 0..100 {
            assert!((pause / 2..=pause * 3 / 2).contains(&about(pause)));
        }
    }
}
