//! The annotation of a pod in ambient mode: which value it should have, and which one it has, which the
//! watch reports a little later than it was written. Pure: nothing is written here.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sys::mutex::lock;

use super::super::cache::Known;
use super::standing::REDIRECTION;

/// For how long a value that was written counts, although the watch still reports another one.
const TRUST: Duration = Duration::from_secs(2);
/// The pauses between two attempts to write the annotation: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A value of the annotation; `None` if the pod has no annotation.
pub(super) type Value = Option<&'static str>;

#[derive(Debug)]
struct Written {
    value: Value,
    /// The pod as it was known when the value was written.
    known: Arc<Known>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Slot {
    /// The value that is to be written; a newer order replaces an older one.
    ordered: Option<Value>,
    /// The value that is being written.
    under_way: Option<Value>,
    written: Option<Written>,
    /// Whether the pod is on the list of those whose annotations are to be written.
    listed: bool,
    /// How many times in a row writing the annotation failed.
    failures: u32,
}

/// A pod's annotation: what is ordered, what is being written, and what was written last.
#[derive(Debug, Default)]
pub(super) struct Annotation(Mutex<Slot>);

impl Annotation {
    /// Orders a value to be written. Whether the pod has to be put on the list for that.
    #[must_use]
    pub(super) fn order(&self, value: Value) -> bool {
        let mut slot = lock(&self.0);
        slot.ordered = Some(value);
        !std::mem::replace(&mut slot.listed, true)
    }

    /// Drops an order that has not been begun, unless it is to remove the annotation: the pod leaves, so
    /// that the value would not be true.
    pub(super) fn take_back(&self) {
        let mut slot = lock(&self.0);
        if slot.ordered != Some(None) {
            slot.ordered = None;
        }
    }

    /// Drops the order of a pod that is gone, whose annotation nobody reads.
    pub(super) fn forget(&self) {
        lock(&self.0).ordered = None;
    }

    /// Begins writing: the value to be written; `None` if nothing is ordered.
    pub(super) fn begin(&self) -> Option<Value> {
        let mut slot = lock(&self.0);
        slot.listed = false;
        slot.under_way = slot.ordered.take();
        slot.under_way
    }

    /// Ends writing: `done` if that succeeded, and `known` is the pod as it was known. Gives the pause
    /// after which the pod has to be put on the list again; `None` if that is not needed.
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

    /// Whether a value is ordered or being written.
    pub(super) fn is_ordered(&self) -> bool {
        let slot = lock(&self.0);
        slot.ordered.or(slot.under_way).is_some()
    }

    /// The value that the annotation has, or will have when the order is written.
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

    /// How long it is until the watch counts again instead of the value that was written; `None` if the
    /// watch counts already.
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

    /// Orders a value and writes it at once.
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
