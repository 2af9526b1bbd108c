//! Network namespaces (network_namespaces(7)), and the user namespaces that own them.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::caps;

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {path}: {source}{}", open_hint(.source))]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is no network namespace")]
    NotOne { path: PathBuf },
    #[error("cannot enter the network namespace {path}: {source}{hint}")]
    Enter { path: PathBuf, source: io::Error, hint: String },
}

/// What to do about a namespace that may not be looked at (ptrace(2), proc(5)).
fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; looking at another process's namespaces takes CAP_SYS_PTRACE: run as root"
        }
        _ => "",
    }
}

/// Moves the calling thread into a network namespace, for good. Only for a process that
/// does its one job there, before it has started any other thread.
///
/// # Errors
///
/// The namespace that cannot be entered, why, and what to grant.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    Netns::open(path)?.enter()
}

/// A network namespace known by a path, not entered yet.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

// ioctl_ns(2).
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

impl Netns {
    /// Opens a namespace, and makes sure that it is one.
    ///
    /// # Errors
    ///
    /// There is nothing at the path, it is no network namespace, or it may not be opened.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // Without O_NONBLOCK a path that leads to a pipe would be waited on for ever.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|source| NetnsError::Open { path: path.into(), source })?;
        // SAFETY: these requests take no argument; what is no namespace refuses them.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
        match kind == libc::CLONE_NEWNET {
            true => Ok(Self { file, path: path.into() }),
            false => Err(NetnsError::NotOne { path: path.into() }),
        }
    }

    /// Moves the calling thread into it, for good: for a thread that ends after its work.
    ///
    /// # Errors
    ///
    /// The namespace that cannot be entered, why, and what to grant.
    pub fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let lacks = || !caps::has(caps::CAP_SYS_ADMIN).unwrap_or(false);
            let denied = errno == Errno::EPERM && lacks();
            let hint = if denied { format!("; {}", caps::SYS_ADMIN_HINT) } else { String::new() };
            NetnsError::Enter { path: self.path.clone(), source: errno.into(), hint }
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode: the same for every path that leads to the namespace.
    ///
    /// # Errors
    ///
    /// fstat(2)'s.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|meta| (meta.dev(), meta.ino()))
    }

    /// Whether the path that it was opened by still leads to it.
    pub fn is_where_it_was(&self) -> bool {
        let there = std::fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        matches!((there, self.identity()), (Ok(there), Ok(own)) if there == own)
    }

    /// The user namespace that owns it, where that is another than the process's own.
    ///
    /// # Errors
    ///
    /// ioctl(2)'s, of `NS_GET_USERNS` (ioctl_ns(2)); `EPERM` where the owner is not to be seen from
    /// here.
    pub fn foreign_owner(&self) -> io::Result<Option<File>> {
        match self.owner()? {
            // It is none of ours to look at, so it is no child of ours to enter.
            None => Ok(None),
            Some(owner) if is_own(&owner)? => Ok(None),
            Some(owner) => Ok(Some(owner)),
        }
    }

    /// The user namespace that owns it; `None`: one above the process's own.
    fn owner(&self) -> io::Result<Option<File>> {
        // SAFETY: the request takes no argument, and gives a new descriptor or an error.
        let raw = unsafe { libc::ioctl(self.file.as_raw_fd(), NS_GET_USERNS as _) };
        if raw < 0 {
            return match Errno::last() {
                Errno::EPERM => Ok(None),
                errno => Err(errno.into()),
            };
        }
        // SAFETY: a descriptor that was just made and that nobody else has.
        Ok(Some(unsafe { File::from_raw_fd(raw) }))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether a user namespace is the process's own.
fn is_own(namespace: &File) -> io::Result<bool> {
    let (theirs, own) = (namespace.metadata()?, std::fs::metadata("/proc/self/ns/user")?);
    Ok((theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
}

/// What to do about a refusal in the network namespace that the calling thread is in, where it is
/// the capability that is missing: the process lacks it, or has it only in a user namespace that
/// does not own the network namespace. `None`: the refusal has another cause.
pub fn net_admin_hint() -> Option<&'static str> {
    let owned = || {
        let current = Netns::open(Path::new("/proc/thread-self/ns/net")).ok()?;
        current.owner().ok()?.map(|owner| is_own(&owner).unwrap_or(false))
    };
    let has = caps::has(caps::CAP_NET_ADMIN).unwrap_or(false);
    (!has || owned() != Some(true)).then_some(caps::NET_ADMIN_HINT)
}

/// What to do about a kernel that refuses to have its rules looked at: the capability may be
/// missing; where it is there, files of proc(5) may be refused, which are root's (EACCES).
pub(crate) fn hint_of_refusal(error: &io::Error) -> Option<&'static str> {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let as_root = "the process has CAP_NET_ADMIN: run it as user 0, whose alone some files of proc(5) are";
    denied.then(|| net_admin_hint().unwrap_or(as_root))
}

/// The number by which the kernel knows the network namespace that the calling thread is in.
///
/// # Errors
///
/// That proc(5) does not tell.
pub fn current() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// How it was found out that this is the node's own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCheck {
    pub inode: u64,
    pub why: &'static str,
}

/// Whether a namespace is the one the node booted with, by its inode number: newer
/// kernels fix it (`NET_NS_INIT_INO`, include/uapi/linux/nsfs.h), on older ones it
/// usually is the first number given out for namespaces.
pub fn is_host(inode: u64) -> Option<HostCheck> {
    let why = match inode {
        4026531833 => "the number that this kernel fixes for the first network namespace",
        4026531840 => "the number that the first network namespace usually gets",
        _ => return None,
    };
    Some(HostCheck { inode, why })
}
