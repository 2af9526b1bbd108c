//! The pauses before an action is repeated that another program keeps undoing.

use std::time::{Duration, Instant};

/// Pauses that grow while something keeps happening, and start over after a quiet time.
#[derive(Debug, Clone)]
pub(super) struct Pauses {
    first: Duration,
    longest: Duration,
    /// How many times the event happened again without a quiet time between.
    in_a_row: u32,
    last: Option<Instant>,
}

impl Pauses {
    /// Pauses of `first`, twice that and so on, up to `longest`; a quiet time is twice `longest` without
    /// the event.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, in_a_row: 0, last: None }
    }

    /// Records that the event happened at `now`, and gives how long to wait: nothing the first time.
    pub(super) fn after(&mut self, now: Instant) -> Duration {
        let quiet = self.last.is_none_or(|last| now.saturating_duration_since(last) > 2 * self.longest);
        self.in_a_row = if quiet { 0 } else { self.in_a_row.saturating_add(1) };
        self.last = Some(now);
        match self.in_a_row {
            0 => Duration::ZERO,
            n => self.first.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(self.longest),
        }
    }

    /// How many times the event happened again without a quiet time between.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_start_over_after_a_quiet_time() {
        let second = Duration::from_secs(1);
        let mut pauses = Pauses::new(second, 60 * second);
        let start = Instant::now();
        let got: Vec<u64> = (0..9).map(|n| pauses.after(start + n * second).as_secs()).collect();
        assert_eq!(got, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.in_a_row(), 8);
        let mut many = pauses.clone();
        for n in 0..100 {
            many.after(start + n * second);
        }
        assert_eq!(many.after(start + 101 * second), 60 * second);
        assert_eq!(pauses.after(start + 8 * second + 121 * second), Duration::ZERO);
    }
}
