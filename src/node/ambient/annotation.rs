//! What a pod's annotation says, which the watch tells a little later than it was written:
//! pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::cache::Known;
use super::standing::REDIRECTION;

/// For how long what was written is believed against the watch.
const TRUST: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Written {
    value: Option<String>,
    /// The pod as it was known then.
    known: Arc<Known>,
    at: Instant,
}

/// The annotation, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Annotation {
    written: Option<Written>,
}

impl Annotation {
    /// It was written.
    pub(super) fn wrote(&mut self, value: Option<&str>, known: &Arc<Known>) {
        let value = value.map(str::to_owned);
        self.written = Some(Written { value, known: known.clone(), at: Instant::now() });
    }

    /// What it says.
    pub(super) fn value(&self, known: &Arc<Known>) -> Option<String> {
        self.value_at(known, Instant::now())
    }

    fn value_at(&self, known: &Arc<Known>, now: Instant) -> Option<String> {
        let told = known.pod.annotation(REDIRECTION);
        match &self.written {
            // The watch has said nothing since, or may be about to say what it says late.
            Some(written) if Arc::ptr_eq(&written.known, known) || now.duration_since(written.at) < TRUST => {
                written.value.clone()
            }
            _ => told.map(str::to_owned),
        }
    }

    /// When to look again whether the watch agrees; `None`: it is believed already.
    pub(super) fn recheck(&self) -> Option<Duration> {
        let left = TRUST.saturating_sub(self.written.as_ref()?.at.elapsed());
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(value: Option<&str>) -> Arc<Known> {
        let mut pod = json!({ "metadata": { "namespace": "shop", "name": "web-0", "uid": "7", "annotations": {} } });
        if let Some(value) = value {
            pod["metadata"]["annotations"][REDIRECTION] = value.into();
        }
        Arc::new(Known::of(serde_json::from_value(pod).unwrap()).unwrap())
    }

    #[test]
    fn what_was_written_counts_until_the_watch_could_have_told() {
        let mut annotation = Annotation::default();
        let (none, enabled) = (known(None), known(Some("enabled")));
        let value = |a: &Annotation, known: &Arc<Known>, after: u64| {
            a.value_at(known, Instant::now() + Duration::from_secs(after))
        };
        assert_eq!(value(&annotation, &none, 0), None);
        assert_eq!(value(&annotation, &enabled, 0).as_deref(), Some("enabled"));
        assert_eq!(annotation.recheck(), None);
        annotation.wrote(Some("enabled"), &none);
        // Without news it stays so, however long that takes.
        assert_eq!(value(&annotation, &none, 3600).as_deref(), Some("enabled"));
        // News that were on their way are not believed; later ones are.
        let stale = known(None);
        assert_eq!(value(&annotation, &stale, 0).as_deref(), Some("enabled"));
        assert_eq!(value(&annotation, &stale, 5), None);
        assert!(annotation.recheck().is_some());
        annotation.wrote(None, &enabled);
        assert_eq!(value(&annotation, &enabled, 3600), None);
    }
}
