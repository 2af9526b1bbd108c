//! Heartbeats: when a loop last came round. One that has not for long hangs.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sys::mutex::lock;

/// When a loop last came round, whether it succeeded or not.
#[derive(Debug)]
pub struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    pub fn beat(&self) {
        *lock(&self.0) = Instant::now();
    }

    pub fn age(&self) -> Duration {
        lock(&self.0).elapsed()
    }
}

/// The heartbeats of a watch: that it came round, even if it was refused, and that the API server sent
/// something on it.
#[derive(Debug, Default)]
pub struct WatchPulse {
    pub round: Pulse,
    pub heard: Pulse,
}

/// The longest time between two beats of a watch that does not hang: a silent watch is given up after
/// 295 s (kube's watcher), the next is begun after a pause of at most 60 s, and its answer has to begin
/// within 20 s. A watch whose API server is away does not hang: a request that is refused or given up, a
/// list as well, is tried again, and each try counts.
pub(super) const LONGEST_WATCH: Duration = Duration::from_secs(420);
/// The longest time between two beats of a verifier that does not hang: it is asked every ten
/// seconds, behind two repairs at most that may take 20 s each.
pub(super) const LONGEST_VERIFIER: Duration = Duration::from_secs(120);

/// The sentence that the watch of `what` hangs, if its last beat is too long ago.
pub(super) fn hanging_watch(what: &str, age: Duration) -> Option<String> {
    (age > LONGEST_WATCH).then(|| format!("the watch of {what} has not come round for {} s", age.as_secs()))
}

/// The sentences about the watch of pods and the verifier that hang, by how long ago each last came
/// round.
pub(super) fn hanging(watch: Duration, verifier: Duration) -> Vec<String> {
    let late = |age: Duration, longest, what: &str| {
        (age > longest).then(|| format!("{what} has not come round for {} s", age.as_secs()))
    };
    [late(watch, LONGEST_WATCH, "the watch of pods"), late(verifier, LONGEST_VERIFIER, "the verifier of pods' rules")]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_of_the_two_that_hangs_is_named() {
        let (fine, second) = (Duration::from_secs(5), Duration::from_secs(1));
        assert!(hanging(fine, fine).is_empty());
        assert!(hanging(LONGEST_WATCH, LONGEST_VERIFIER).is_empty());
        let one = hanging(LONGEST_WATCH + second, fine);
        assert_eq!(one, ["the watch of pods has not come round for 421 s"]);
        let other = hanging(fine, LONGEST_VERIFIER + second);
        assert_eq!(other, ["the verifier of pods' rules has not come round for 121 s"]);
        assert_eq!(hanging(LONGEST_WATCH + second, LONGEST_VERIFIER + second).len(), 2);
    }
}
