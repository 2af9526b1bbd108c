//! The one answer a call gives, whoever comes first: the work, or the deadline.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::protocol::{self, CniError, Version};

/// The right to answer, to be had once.
#[derive(Debug, Default)]
pub struct Answer {
    /// Held while an answer is written, so that whoever comes second finds it whole.
    said: Mutex<Said>,
    version: OnceLock<Version>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    Result,
    Error,
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

    fn say(&self, what: Said, text: &str) -> Given {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != Said::Nothing {
            return Given::TooLate;
        }
        *said = what;
        match protocol::write(text) {
            Ok(()) => Given::Written,
            Err(error) => Given::Failed(error),
        }
    }

    /// Answers with a result (no text where the verb has none), unless there is an answer.
    pub fn give(&self, text: &str) -> Given {
        self.say(Said::Result, text)
    }

    /// Answers with an error object.
    pub fn fail(&self, error: &CniError) -> Given {
        self.say(Said::Error, &error.object(self.version()))
    }

    /// Whether the answer was an error object.
    pub fn has_failed(&self) -> bool {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) == Said::Error
    }
}
