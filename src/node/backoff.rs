//! The pauses of a watch that fails: they grow until the API server has answered.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{DefaultBackoff, Event};

/// The longest pause: kube's 30 s, and as much again by chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a watch waits after each failure: 0.8 s to 1.6 s at first, 30 s to 60 s at last.
#[derive(Default)]
pub(super) struct WatchBackoff(DefaultBackoff);

impl WatchBackoff {
    /// The pause after what the watch reported. The beginning of a list is reported by the watch itself
    /// before it asks the API server, so it does not show that requests succeed again.
    pub(super) fn after<K, E>(&mut self, told: &Result<Event<K>, E>) -> Duration {
        match told {
            Ok(Event::Init | Event::InitApply(_)) => Duration::ZERO,
            Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                self.0.reset();
                Duration::ZERO
            }
            Err(_) => self.0.next().unwrap_or(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Result<Event<()>, ()>;

    #[test]
    fn pauses_grow_until_the_api_server_has_told_something() {
        let mut backoff = WatchBackoff::default();
        let refused = |backoff: &mut WatchBackoff| {
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
