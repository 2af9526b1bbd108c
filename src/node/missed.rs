//! Pods for which no ADD came, though the chain had our entry when they were made: a sign that
//! the runtime uses another chain.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use super::cache::Known;

/// How far the clocks of the API server, which says when a pod was made, and of the node may be
/// apart. A pod that was made less than this after the entry came into the chain says nothing.
const CLOCKS: Duration = Duration::from_secs(60);
/// How long a pod that was missed counts. Where the condition keeps pods away from the node, no
/// other comes that could show that all is well again, or that it is not.
const COUNTS: Duration = Duration::from_secs(300);

/// Whether a pod was made, by the API server's clock, after the chain had our entry, by the node's.
pub(super) fn is_made_after(created: i64, effective: SystemTime) -> bool {
    let since = (effective + CLOCKS).duration_since(SystemTime::UNIX_EPOCH);
    since.is_ok_and(|since| u64::try_from(created).is_ok_and(|created| created > since.as_secs()))
}

/// A pod for which no ADD came.
#[derive(Debug)]
pub(super) struct MissedPod {
    name: String,
    uid: String,
    noticed: Instant,
}

impl MissedPod {
    pub(super) fn new(known: &Known, now: Instant) -> Self {
        Self { name: known.to_string(), uid: known.uid.clone(), noticed: now }
    }

    pub(super) fn is_of(&self, known: &Known) -> bool {
        self.uid == known.uid
    }

    /// Whether the pod was noticed so long ago that it does not count any more.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.noticed) >= COUNTS
    }
}

impl fmt::Display for MissedPod {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_seconds_accuse_nobody_and_a_pod_counts_for_minutes() {
        let effective = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(is_made_after(1_000_061, effective));
        for created in [1_000_060, 1_000_001, 1_000_000, 0, -1] {
            assert!(!is_made_after(created, effective), "{created}");
        }
        let now = Instant::now();
        let missed = MissedPod { name: "shop/web".into(), uid: "u".into(), noticed: now };
        assert!(!missed.is_old(now) && !missed.is_old(now + COUNTS - Duration::from_secs(1)));
        assert!(missed.is_old(now + COUNTS));
    }
}
