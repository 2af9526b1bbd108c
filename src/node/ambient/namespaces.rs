//! Which namespaces of Kubernetes are in ambient mode, by a watch of those that have the label; nothing
//! else of them is kept. There is this watch only where ambient mode is on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use serde::Deserialize;

use crate::sys::mutex::lock;

use super::super::api;
use super::super::shared::Shared;
use super::Ambient;
use super::real::Real;

/// The selector of the watch, by which a namespace that loses the label is reported as deleted.
pub(super) const SELECTOR: &str = "istio.io/dataplane-mode=ambient";

/// A namespace as the watch delivers it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct WatchedNamespace {
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl kube::Resource for WatchedNamespace {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "Namespace".into()
    }

    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "namespaces".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What an event of the watch says about labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LabelNews {
    /// One namespace has the label now, or does not have it any more.
    One(String, bool),
    /// Exactly these namespaces have the label.
    All(HashSet<String>),
}

/// Collects a list of namespaces that the watch delivers one by one.
#[derive(Debug, Default)]
pub(super) struct LabelList(Mutex<HashSet<String>>);

impl LabelList {
    /// What an event says about labels; `None` while a list is incomplete.
    pub(super) fn told(&self, event: Event<WatchedNamespace>) -> Option<LabelNews> {
        match event {
            Event::Init => {
                lock(&self.0).clear();
                None
            }
            Event::InitApply(namespace) => {
                lock(&self.0).extend(namespace.metadata.name);
                None
            }
            Event::InitDone => Some(LabelNews::All(std::mem::take(&mut *lock(&self.0)))),
            Event::Apply(namespace) => namespace.metadata.name.map(|name| LabelNews::One(name, true)),
            Event::Delete(namespace) => namespace.metadata.name.map(|name| LabelNews::One(name, false)),
        }
    }
}

/// Watches the namespaces that have the label, for ever. `changed` is called with those that got or lost
/// it.
pub(super) async fn watch(
    shared: Arc<Shared>,
    ambient: Arc<Ambient<Real>>,
    client: kube::Client,
    changed: impl Fn(&[String]),
) {
    let all: Api<WatchedNamespace> = Api::all(client);
    let config = watcher::Config::default().labels(SELECTOR);
    let listing = LabelList::default();
    let take = |event| match listing.told(event) {
        None => {}
        Some(LabelNews::One(name, labelled)) => {
            let is_new = ambient.namespace_is(&name, labelled);
            changed(if is_new { std::slice::from_ref(&name) } else { &[] });
        }
        Some(LabelNews::All(names)) => changed(&ambient.namespaces_are(names)),
    };
    api::watch_all(all, config, api::Watch::Namespaces, &shared.metrics, &shared.namespaces_watch, take).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_told_when_it_is_whole() {
        let namespace =
            |name: &str| WatchedNamespace { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() } };
        let listing = LabelList::default();
        for event in [Event::Init, Event::InitApply(namespace("a")), Event::InitApply(namespace("b"))] {
            assert_eq!(listing.told(event), None);
        }
        assert_eq!(listing.told(Event::InitDone), Some(LabelNews::All(["a", "b"].map(str::to_owned).into())));
        assert_eq!(listing.told(Event::Apply(namespace("c"))), Some(LabelNews::One("c".into(), true)));
        assert_eq!(listing.told(Event::Delete(namespace("a"))), Some(LabelNews::One("a".into(), false)));
        // One that was interrupted says nothing of what it had.
        listing.told(Event::Init);
        listing.told(Event::InitApply(namespace("x")));
        listing.told(Event::Init);
        assert_eq!(listing.told(Event::InitDone), Some(LabelNews::All(HashSet::new())));
    }
}
