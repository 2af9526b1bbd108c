//! A pod's annotation: what it is to say, and what it says, which the watch tells a little
//! later than it was written. Pure: nothing is written here.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sys::mutex::lock;

use super::super::cache::Known;
use super::standing::REDIRECTION;

/// For how long what was written is believed against the watch.
const TRUST: Duration = Duration::from_secs(2);
/// The pauses between two tries to write it: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the annotation says; `None`: there is none.
pub(super) type Value = Option<&'static str>;

#[derive(Debug)]
struct Written {
    value: Value,
    /// The pod as it was known then.
    known: Arc<Known>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Slot {
    /// What it is to say: the newest counts.
    ordered: Option<Value>,
    /// What is being written.
    under_way: Option<Value>,
    written: Option<Written>,
    /// Somebody has it on the list of those to be written.
    listed: bool,
    /// How many times in a row it could not be written.
    failures: u32,
}

/// The annotation, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Annotation(Mutex<Slot>);

impl Annotation {
    /// It is to say this from now on. Whether it has to be put on the list for that.
    #[must_use]
    pub(super) fn order(&self, value: Value) -> bool {
        let mut slot = lock(&self.0);
        slot.ordered = Some(value);
        !std::mem::replace(&mut slot.listed, true)
    }

    /// The pod leaves: what was ordered and not begun is not true any more.
    pub(super) fn take_back(&self) {
        let mut slot = lock(&self.0);
        if slot.ordered != Some(None) {
            slot.ordered = None;
        }
    }

    /// The pod is gone: nobody reads what was ordered.
    pub(super) fn forget(&self) {
        lock(&self.0).ordered = None;
    }

    /// Its turn has come: what is to be written, if anything.
    pub(super) fn begin(&self) -> Option<Value> {
        let mut slot = lock(&self.0);
        slot.listed = false;
        slot.under_way = slot.ordered.take();
        slot.under_way
    }

    /// It was written, `known` being what was known of the pod. Gives the pause after which it has to
    /// be on the list again.
    pub(super) fn end(&self, done: bool, known: &Arc<Known>, now: Instant) -> Option<Duration> {
        let mut slot = lock(&self.0);
        let value = slot.under_way.take()?;
        if done {
            slot.failures = 0;
            slot.written = Some(Written { value, known: known.clone(), at: now });
            return None;
        }
        slot.failures = slot.failures.saturating_add(1);
        slot.ordered.get_or_insert(value);
        let (first, longest) = PAUSES;
        let doubled = 1u32.checked_shl(slot.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        (!std::mem::replace(&mut slot.listed, true)).then(|| first.saturating_mul(doubled).min(longest))
    }

    /// Whether something is still to be written.
    pub(super) fn is_ordered(&self) -> bool {
        let slot = lock(&self.0);
        slot.ordered.or(slot.under_way).is_some()
    }

    /// What it says, or will.
    pub(super) fn value(&self, known: &Arc<Known>) -> Option<String> {
        self.value_at(known, Instant::now())
    }

    fn value_at(&self, known: &Arc<Known>, now: Instant) -> Option<String> {
        let slot = lock(&self.0);
        let told = known.pod.annotation(REDIRECTION);
        let said = match (slot.ordered.or(slot.under_way), &slot.written) {
            (Some(value), _) => value,
            // The watch has said nothing since, or may be about to say what it says late.
            (None, Some(written))
                if Arc::ptr_eq(&written.known, known) || now.saturating_duration_since(written.at) < TRUST =>
            {
                written.value
            }
            _ => told,
        };
        said.map(str::to_owned)
    }

    /// When to look again whether the watch agrees; `None`: it is believed already.
    pub(super) fn recheck(&self) -> Option<Duration> {
        let left = TRUST.saturating_sub(lock(&self.0).written.as_ref()?.at.elapsed());
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::standing::{ENABLED, PENDING};
    use super::*;

    fn known(value: Option<&str>) -> Arc<Known> {
        let mut pod = json!({ "metadata": { "namespace": "shop", "name": "web-0", "uid": "7", "annotations": {} } });
        if let Some(value) = value {
            pod["metadata"]["annotations"][REDIRECTION] = value.into();
        }
        Arc::new(Known::of(serde_json::from_value(pod).unwrap()).unwrap())
    }

    /// Orders and writes it, at once.
    fn write(annotation: &Annotation, value: Value, known: &Arc<Known>) {
        assert!(annotation.order(value));
        assert_eq!(annotation.begin(), Some(value));
        assert_eq!(annotation.end(true, known, Instant::now()), None);
    }

    fn value(annotation: &Annotation, known: &Arc<Known>, after: u64) -> Option<String> {
        annotation.value_at(known, Instant::now() + Duration::from_secs(after))
    }

    #[test]
    fn what_was_written_counts_until_the_watch_could_have_told() {
        let annotation = Annotation::default();
        let (none, enabled) = (known(None), known(Some(ENABLED)));
        assert_eq!(value(&annotation, &none, 0), None);
        assert_eq!(value(&annotation, &enabled, 0).as_deref(), Some(ENABLED));
        assert_eq!(annotation.recheck(), None);
        write(&annotation, Some(ENABLED), &none);
        // Without news it stays so, however long that takes.
        assert_eq!(value(&annotation, &none, 3600).as_deref(), Some(ENABLED));
        // News that were on their way are not believed; later ones are.
        let stale = known(None);
        assert_eq!(value(&annotation, &stale, 0).as_deref(), Some(ENABLED));
        assert_eq!(value(&annotation, &stale, 5), None);
        assert!(annotation.recheck().is_some());
        write(&annotation, None, &enabled);
        assert_eq!(value(&annotation, &enabled, 3600), None);
    }

    #[test]
    fn the_newest_order_is_what_is_written() {
        let annotation = Annotation::default();
        let none = known(None);
        assert!(!annotation.is_ordered());
        assert!(annotation.order(Some(PENDING)));
        // It is on the list already.
        assert!(!annotation.order(Some(ENABLED)));
        assert_eq!(value(&annotation, &none, 0).as_deref(), Some(ENABLED));
        assert_eq!(annotation.begin(), Some(Some(ENABLED)));
        // Another order while that is under way has a turn of its own.
        assert!(annotation.order(None));
        assert_eq!(value(&annotation, &none, 0), None);
        assert_eq!(annotation.end(true, &none, Instant::now()), None);
        assert!(annotation.is_ordered());
        assert_eq!(annotation.begin(), Some(None));
        annotation.end(true, &none, Instant::now());
        assert!(!annotation.is_ordered());
        assert_eq!(annotation.begin(), None);
    }

    #[test]
    fn what_could_not_be_written_is_ordered_again_unless_there_is_something_newer() {
        let annotation = Annotation::default();
        let none = known(None);
        assert!(annotation.order(Some(PENDING)));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(annotation.begin(), Some(Some(PENDING)));
            pauses.extend(annotation.end(false, &none, Instant::now()).map(|pause| pause.as_secs()));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(value(&annotation, &none, 0).as_deref(), Some(PENDING));
        assert_eq!(annotation.begin(), Some(Some(PENDING)));
        assert!(annotation.order(Some(ENABLED)));
        assert_eq!(annotation.end(false, &none, Instant::now()), None, "it is on the list already");
        assert_eq!(annotation.begin(), Some(Some(ENABLED)));
    }

    #[test]
    fn a_pod_that_leaves_is_not_said_to_be_in() {
        let annotation = Annotation::default();
        let none = known(None);
        // What is under way cannot be taken back, and counts until something else is ordered.
        assert!(annotation.order(Some(PENDING)));
        assert_eq!(annotation.begin(), Some(Some(PENDING)));
        assert!(annotation.order(Some(ENABLED)));
        annotation.take_back();
        assert_eq!(value(&annotation, &none, 0).as_deref(), Some(PENDING));
        assert!(annotation.is_ordered());
        annotation.end(true, &none, Instant::now());
        assert_eq!(annotation.begin(), None);
        // That it is removed stays.
        assert!(annotation.order(None));
        annotation.take_back();
        assert_eq!(annotation.begin(), Some(None));
    }
}
