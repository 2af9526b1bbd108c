//! When a problem was noticed, for the message when it is over.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use crate::sys::text::rounded;

use super::inventory::timestamp;

/// When something was noticed. How long that is ago does not depend on the node's clock, which may jump.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noticed {
    at: SystemTime,
    since: Instant,
}

impl Noticed {
    pub(super) fn now() -> Self {
        Self { at: SystemTime::now(), since: Instant::now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} after it was noticed at {}", rounded(self.elapsed()), timestamp(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_changes_nothing_of_how_long_it_took() {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let far_ahead = SystemTime::now() + Duration::from_secs(1_000_000_000);
        for at in [long_ago, far_ahead] {
            let noticed = Noticed { at, since: Instant::now() };
            assert!(noticed.elapsed() < Duration::from_secs(900_000));
            let said = noticed.to_string();
            assert!(said.ends_with(&format!("after it was noticed at {}", timestamp(at))), "{said}");
        }
    }
}
