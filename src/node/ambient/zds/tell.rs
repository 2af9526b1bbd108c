//! The requests about pods, and the facts about pods that decide them: the types that the book and its
//! ledgers share.

use std::sync::Arc;
use std::time::Instant;

/// A network namespace: device and inode.
pub type Identity = (u64, u64);

/// The facts about a pod that decide what ztunnels are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToldPod {
    /// The pod's namespace, once that is found and has its rules.
    pub identity: Option<Identity>,
    /// Whether the pod's namespace has been looked for at least once.
    pub searched: bool,
    /// The time before which the pod is not announced, since connections were lost over it.
    pub not_before: Option<Instant>,
}

/// The pods that ztunnels are told of.
pub(super) trait Pods {
    fn get(&self, uid: &Uid) -> Option<ToldPod>;
    /// Whether no pod is missing, and each was looked for.
    fn is_complete(&self) -> bool;
}

/// A pod's UID.
pub type Uid = Arc<str>;

/// A request to a ztunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// Take the traffic of a pod, in this namespace.
    Add(Uid, Identity),
    /// Keep a pod whose namespace was not found.
    Keep(Uid),
    /// Drop a pod.
    Del(Uid),
    SnapshotSent,
}

impl Tell {
    /// The name of the request in metrics and the log.
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
