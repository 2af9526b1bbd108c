//! Repeats requests while they may still succeed: a node or an API server that is just starting delays
//! pods rather than failing them.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::sys::text::rounded;

use super::request::Deadline;

/// The shortest pause between two tries, however long the first one took.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The time that must be left when the last try ends: enough to answer before the deadline's thread
/// does.
fn margin(deadline: &Deadline) -> Duration {
    (deadline.timeout / 5).min(Duration::from_millis(500))
}

/// How often and how long to try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub tries: u32,
    /// From the beginning of one try to that of the next.
    pub pause: Duration,
    /// How long one try may take.
    pub patience: Duration,
}

/// The failure of a try.
pub(super) trait Failure: Display {
    /// How often to try in all after this failure, `most` at most: 1 if a repetition is of no use.
    fn tries(&self, most: u32) -> u32;
}

/// The failure of the last try, after so many of them.
#[derive(Debug)]
pub(super) struct GaveUp<F> {
    pub failure: F,
    pub tries: u32,
    pub took: Duration,
}

impl<F: Failure> GaveUp<F> {
    /// How many tries there were, in words, if repeating is of use for this failure.
    pub(super) fn effort(&self) -> Option<String> {
        let tries = if self.tries == 1 { "try" } else { "tries" };
        (self.failure.tries(2) > 1).then(|| format!("{} {tries} in {}", self.tries, rounded(self.took)))
    }
}

/// Tries until there is an answer, a failure that lasts, or no time left. A new failure is logged at
/// once, so that whoever waits for the pod can see it. `once` gets the time that a try may take.
///
/// # Errors
/// The failure of the last try.
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
