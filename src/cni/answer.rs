//! The one answer a call gives, whoever comes first: the work, or the deadline.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::protocol::{self, CniError, Version};

/// The right to answer, to be had once.
#[derive(Debug, Default)]
pub struct Answer {
    taken: AtomicBool,
    version: OnceLock<Version>,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Given {
    Written,
    /// Somebody else has answered.
    TooLate,
    Failed(CniError),
}

impl Answer {
    /// From now on the netconf's version is known.
    pub fn speak(&self, version: Version) {
        let _ = self.version.set(version);
    }

    pub fn version(&self) -> Version {
        self.version.get().copied().unwrap_or(Version::LATEST)
    }

    /// Answers, unless that was done already.
    pub fn give(&self, text: &str) -> Given {
        if self.taken.swap(true, Ordering::SeqCst) {
            return Given::TooLate;
        }
        match protocol::write(text) {
            Ok(()) => Given::Written,
            Err(error) => Given::Failed(error),
        }
    }

    /// Answers with an error object.
    pub fn fail(&self, error: &CniError) -> Given {
        self.give(&error.object(self.version()))
    }

    /// Answers a success that has no result.
    pub fn succeed(&self) -> Given {
        self.give("")
    }
}
