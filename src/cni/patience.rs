//! Asking again while it may still work: whoever starts a pod on a node that is starting
//! itself, or beside an API server that is, would rather wait than fail.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::sys::text::rounded;

use super::request::Deadline;

/// However long a try took, there is a breath before the next.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What is left of a call's time when the last try has to end: enough to say so before
/// somebody says it in its place.
fn margin(deadline: &Deadline) -> Duration {
    (deadline.timeout / 5).min(Duration::from_millis(500))
}

/// How one asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub tries: u32,
    /// From the beginning of one try to that of the next.
    pub pause: Duration,
    /// How long one try may take.
    pub patience: Duration,
}

/// Why a try did not work.
pub(super) trait Failure: Display {
    /// How often to try in all when this is what comes of it: 1 where it is of no use to
    /// try again.
    fn tries(&self, most: u32) -> u32;
}

/// The last try's failure, and what was tried.
#[derive(Debug)]
pub(super) struct GaveUp<F> {
    pub failure: F,
    pub tries: u32,
    pub took: Duration,
}

impl<F: Failure> GaveUp<F> {
    /// What was tried, where it was more than once or could have been.
    pub(super) fn effort(&self) -> Option<String> {
        let tries = if self.tries == 1 { "try" } else { "tries" };
        (self.failure.tries(2) > 1).then(|| format!("{} {tries} in {}", self.tries, rounded(self.took)))
    }
}

/// Asks until there is an answer, a failure that lasts, or no time left. What fails is
/// logged at once when it is something new: whoever waits for the pod can look it up.
/// `once` is told how long it may take.
///
/// # Errors
/// The last failure.
pub(super) async fn ask<T, F: Failure>(
    what: &str,
    how: Patience,
    deadline: &Deadline,
    mut once: impl AsyncFnMut(Duration) -> Result<T, F>,
) -> Result<T, GaveUp<F>> {
    let (started, margin) = (Instant::now(), margin(deadline));
    let (mut tries, mut said) = (0, String::new());
    loop {
        tries += 1;
        let began = Instant::now();
        let limit = how.patience.min(deadline.remaining().saturating_sub(margin));
        let failure = match once(limit).await {
            Ok(found) => return Ok(found),
            Err(failure) => failure,
        };
        if tries >= failure.tries(how.tries) || deadline.remaining() < how.pause + margin {
            return Err(GaveUp { failure, tries, took: started.elapsed() });
        }
        let text = failure.to_string();
        match text == said {
            false => warn!("{what} yet: {text}; trying again"),
            true => debug!(tries, "{what} yet: {text}"),
        }
        said = text;
        tokio::time::sleep(how.pause.saturating_sub(began.elapsed()).max(SHORTEST_PAUSE.min(how.pause))).await;
    }
}
