//! What is told of pods, and as much of pods as decides it: the words that the book and its
//! ledgers share.

use std::sync::Arc;
use std::time::Instant;

/// A network namespace: device and inode.
pub type Identity = (u64, u64);

/// As much of a pod as decides what is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToldPod {
    /// Its namespace, once that is found and has its rules.
    pub identity: Option<Identity>,
    /// Its namespace has been looked for at least once.
    pub searched: bool,
    /// It is not told of before: connections were lost over it.
    pub not_before: Option<Instant>,
}

/// The pods that there are.
pub(super) trait Pods {
    fn get(&self, uid: &Uid) -> Option<ToldPod>;
    /// Whether these are all of them.
    fn is_complete(&self) -> bool;
}

/// A pod's UID.
pub type Uid = Arc<str>;

/// What to tell a ztunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// To take a pod that is in this namespace.
    Add(Uid, Identity),
    /// To keep a pod, whose namespace was not found.
    Keep(Uid),
    /// To let go of a pod.
    Del(Uid),
    SnapshotSent,
}

impl Tell {
    /// A word for metrics and the log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Add(..) => "add",
            Self::Keep(_) => "keep",
            Self::Del(_) => "del",
            Self::SnapshotSent => "snapshot-sent",
        }
    }

    pub fn uid(&self) -> Option<&Uid> {
        match self {
            Self::Add(uid, _) | Self::Keep(uid) | Self::Del(uid) => Some(uid),
            Self::SnapshotSent => None,
        }
    }
}
