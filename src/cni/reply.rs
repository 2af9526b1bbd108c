//! The one answer of a call, given by the work or by the deadline's thread, whichever is first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::sys::mutex::lock;
use crate::sys::text::rounded;

use super::protocol::{self, CniError, CniVersion, Code};
use super::request::Deadline;

/// How long work may take to put everything back after the deadline.
const GRACE: Duration = Duration::from_secs(3);

/// The answer of a call, which can be given once.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// What was answered; locked while an answer is written, so that a second one finds it complete.
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

/// The result of an attempt to answer.
#[derive(Debug)]
pub(crate) enum Delivery {
    Written,
    /// There was an answer already.
    TooLate,
    Failed(CniError),
}

impl Reply {
    /// Sets the version of the netconf, in which errors are written.
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

    /// Answers with a result (an empty text for verbs without one), unless there is an answer.
    pub(crate) fn give(&self, text: &str) -> Delivery {
        self.say(Said::Result, text)
    }

    /// Answers with an error object.
    pub(crate) fn fail(&self, error: &CniError) -> Delivery {
        self.say(Said::Error, &error.object(self.version()))
    }

    /// Starts the thread that answers in place of work which is not done by the deadline, and then ends
    /// the process. The work, if it is done a little later, finds that there is an answer and undoes its
    /// changes.
    ///
    /// # Errors
    /// The thread cannot be started.
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
