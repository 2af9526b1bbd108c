//! The pauses after what fails: they grow until the API server has told, or taken, something.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{DefaultBackoff, Event};

/// The longest pause: kube's 30 s, and as much again by chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A pause after this many failures in a row: the first, then twice as long each time, up to the longest.
pub(super) fn growing((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest)
}

/// How long one waits after each failure of the API server: 0.8 s to 1.6 s at first, 30 s to 60 s at last.
#[derive(Default)]
pub(super) struct ServerBackoff(DefaultBackoff);

impl ServerBackoff {
    /// The pause after one more failure.
    pub(super) fn failed(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST_PAUSE)
    }

    /// The API server has answered as it should: the next pause is a short one.
    pub(super) fn answered(&mut self) {
        self.0.reset();
    }

    /// The pause after what the watch told. That a list begins is told by the watch itself,
    /// before it asks: only what the API server answered shows that nothing fails any more.
    pub(super) fn after<K, E>(&mut self, told: &Result<Event<K>, E>) -> Duration {
        match told {
            Ok(Event::Init | Event::InitApply(_)) => Duration::ZERO,
            Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                self.answered();
                Duration::ZERO
            }
            Err(_) => self.failed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Result<Event<()>, ()>;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = |failures| growing((Duration::from_secs(1), Duration::from_secs(60)), failures).as_secs();
        assert_eq!([0, 1, 2, 3, 6, 7, 40].map(seconds), [1, 1, 2, 4, 32, 60, 60]);
    }

    #[test]
    fn pauses_grow_until_the_api_server_has_told_something() {
        let mut backoff = ServerBackoff::default();
        let refused = |backoff: &mut ServerBackoff| {
            let begins: Told = Ok(Event::Init);
            let none: Told = Ok(Event::InitApply(()));
            assert_eq!((backoff.after(&begins), backoff.after(&none)), (Duration::ZERO, Duration::ZERO));
            backoff.after(&Told::Err(())).as_secs_f64()
        };
        for told in [Ok(Event::InitDone), Ok(Event::Apply(())), Ok(Event::Delete(()))] {
            for least in [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0] {
                let pause = refused(&mut backoff);
                assert!(pause >= least && pause <= 2.0 * least, "{pause} s, and not {least} s to twice that");
                assert!(pause <= LONGEST_PAUSE.as_secs_f64());
            }
            assert_eq!(backoff.after::<(), ()>(&told), Duration::ZERO);
        }
    }
}
