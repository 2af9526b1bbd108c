//! How often something may be done for one pod, so that a pod which keeps asking for it
//! takes nothing from the others.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, and one more every `refill`.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    burst: u32,
    refill: Duration,
    tokens: u32,
    /// The time up to which tokens have been given.
    since: Instant,
}

impl Budget {
    pub(super) fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self { burst, refill, tokens: burst, since: now }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none: how long it is until the next.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.since);
        let periods = passed.as_nanos() / self.refill.as_nanos().max(1);
        let new = u32::try_from(periods).unwrap_or(u32::MAX);
        if new >= self.burst - self.tokens {
            self.tokens = self.burst;
            self.since = now;
        } else {
            self.tokens += new;
            self.since += self.refill * new;
        }
        if self.tokens == 0 {
            return Err((self.since + self.refill).saturating_duration_since(now));
        }
        self.tokens -= 1;
        Ok(())
    }

    /// Gives a token back that was not used.
    pub(super) fn give_back(&mut self) {
        self.tokens = self.burst.min(self.tokens + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_had_at_once_and_then_one_a_period() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut budget = Budget::new(3, 10 * second, start);
        assert!((0..3).all(|_| budget.take(start).is_ok()));
        assert_eq!(budget.take(start), Err(10 * second));
        assert_eq!(budget.take(start + 4 * second), Err(6 * second));
        assert_eq!(budget.take(start + 10 * second), Ok(()));
        assert_eq!(budget.take(start + 10 * second), Err(10 * second));
        assert!((0..3).all(|_| budget.take(start + 1000 * second).is_ok()));
        assert!(budget.take(start + 1000 * second).is_err());
        budget.give_back();
        assert_eq!(budget.take(start + 1000 * second), Ok(()));
        assert!(budget.take(start + 1000 * second).is_err());
        let mut full = Budget::new(1, second, start);
        full.give_back();
        assert!(full.take(start).is_ok() && full.take(start).is_err());
        // A clock that stands still or goes back gives nothing and breaks nothing.
        assert!(budget.take(start).is_err());
    }
}
