//! Network namespaces (network_namespaces(7)).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is no network namespace")]
    NotOne { path: PathBuf },
    #[error("cannot enter the network namespace {path}: {source}{hint}")]
    Enter { path: PathBuf, source: io::Error, hint: String },
}

/// Moves the calling thread into a network namespace, for good. Only for a process that
/// does its one job there, before it has started any other thread.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    let file = File::open(path).map_err(|source| NetnsError::Open { path: path.into(), source })?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        nix::errno::Errno::EINVAL | nix::errno::Errno::ENOTTY => NetnsError::NotOne { path: path.into() },
        errno => {
            let denied = errno == nix::errno::Errno::EPERM;
            let hint = if denied { format!("; {}", super::caps::SYS_ADMIN_HINT) } else { String::new() };
            NetnsError::Enter { path: path.into(), source: errno.into(), hint }
        }
    })
}

/// The network namespace the calling thread is in.
pub struct Current {
    /// Stands for the namespace: the same file for everybody in it.
    pub file: File,
    /// The number by which the kernel knows it.
    pub inode: u64,
}

/// The network namespace the calling thread is in.
pub fn current() -> io::Result<Current> {
    let file = File::open("/proc/thread-self/ns/net")?;
    let inode = file.metadata()?.ino();
    Ok(Current { file, inode })
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
