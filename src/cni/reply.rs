//! The one answer a call gives, whoever comes first: the work, or the deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::sys::mutex::lock;
use crate::sys::text::rounded;

use super::protocol::{self, CniError, CniVersion, Code};
use super::request::Deadline;

/// How long work may take to put everything back after the deadline.
const GRACE: Duration = Duration::from_secs(3);

/// The right to answer, to be had once.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// Held while an answer is written, so that whoever comes second finds it whole.
    said: Mutex<Said>,
    version: OnceLock<CniVersion>,
    watched: AtomicBool,
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
pub(crate) enum Delivery {
    Written,
    /// Somebody else has answered.
    TooLate,
    Failed(CniError),
}

impl Reply {
    /// From now on the netconf's version is known.
    pub(crate) fn speak(&self, version: CniVersion) {
        let _ = self.version.set(version);
    }

    pub(crate) fn version(&self) -> CniVersion {
        self.version.get().copied().unwrap_or(CniVersion::LATEST)
    }

    fn say(&self, what: Said, text: &str) -> Delivery {
        let mut said = lock(&self.said);
        if *said != Said::Nothing {
            return Delivery::TooLate;
        }
        *said = what;
        match protocol::write(text) {
            Ok(()) => Delivery::Written,
            Err(error) => Delivery::Failed(error),
        }
    }

    /// Answers with a result (no text where the verb has none), unless there is an answer.
    pub(crate) fn give(&self, text: &str) -> Delivery {
        self.say(Said::Result, text)
    }

    /// Answers with an error object.
    pub(crate) fn fail(&self, error: &CniError) -> Delivery {
        self.say(Said::Error, &error.object(self.version()))
    }

    /// From now on, answers in place of work that is not done by the deadline, and ends
    /// the process. The work, if it is done a little later, finds that there is an answer
    /// and takes itself back.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub(crate) fn watch(self: &Arc<Self>, deadline: Deadline) -> Result<(), CniError> {
        if self.watched.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let late = CniError::new(Code::TryAgainLater, format!("not done within {}", rounded(deadline.timeout)))
            .details("the netconf's timeout says how long an ADD may take; the node may be overloaded");
        let answer = self.clone();
        let thread = std::thread::Builder::new().name("deadline".into()).spawn(move || {
            std::thread::sleep(deadline.remaining());
            if let Delivery::TooLate = answer.fail(&late) {
                return;
            }
            tracing::error!(code = late.code.number(), "{late}");
            std::thread::sleep(GRACE);
            std::process::exit(1);
        });
        thread.map(drop).map_err(|e| CniError::new(Code::Io, format!("cannot start a thread: {e}")))
    }

    /// Whether the answer was an error object.
    pub(crate) fn has_failed(&self) -> bool {
        *lock(&self.said) == Said::Error
    }
}
