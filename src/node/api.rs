//! The agent's way to the API server, and its one watch of this node's pods.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use kube::Api;
use kube::core::Status;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use serde::de::DeserializeOwned;
use tower::service_fn;
use tracing::{debug, info, warn};

use crate::cni::access::Problem;
use crate::cni::client as connection;

use super::cache::{Cache, Change, WatchedPod};
use super::credentials::Credentials;
use super::metrics::Metrics;
use super::pulse::WatchPulse;
use super::wire::Wire;

/// How many pods come in one answer of a list.
const PAGE: u32 = 250;

/// A client that shows the newest token with every request, waits for no answer longer than
/// it is worth, and tells the pulse of everything that it hears on the watch.
///
/// # Errors
/// The credentials cannot be used.
pub fn client(credentials: Credentials, pulse: Arc<WatchPulse>) -> Result<kube::Client, Problem> {
    let access = credentials.access()?;
    let https = connection::https(&access)?;
    let wire = Arc::new(Wire::new(https, credentials, &access, pulse));
    Ok(kube::Client::new(service_fn(move |request| wire.clone().send(request)), "default"))
}

/// Watches the pods of a node for ever: one list from the API server's cache at the start,
/// then a watch with bookmarks that goes on where it was when the connection is lost, and a
/// list again only where the API server says that it has forgotten (410).
pub async fn watch_pods(
    client: kube::Client,
    node: String,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    changed: impl Fn(Change),
) {
    let pods: Api<WatchedPod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE).any_semantic();
    watch_all(pods, config, "pods", &metrics, |event| cache.apply(event).into_iter().for_each(&changed)).await;
}

/// Watches objects for ever; `what` they are, in the plural.
pub async fn watch_all<K>(
    all: Api<K>,
    config: watcher::Config,
    what: &'static str,
    metrics: &Metrics,
    take: impl Fn(Event<K>),
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut said = String::new();
    loop {
        // Each request of it ends in time (see `wire`), and so does a silent watch, which kube
        // takes up again where it was: nothing here may begin anew with a list because of it.
        let stream = watch(all.clone(), config.clone()).backoff(DefaultBackoff::default());
        pin_mut!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    if !said.is_empty() && !matches!(event, Event::Init) {
                        info!("the watch of {what} goes on");
                        said.clear();
                    }
                    take(event);
                }
                Err(error) => {
                    metrics.watch_restarted(cause(&error));
                    let text = words(&error, what);
                    match text == said {
                        true => debug!("the watch of {what}: {text}"),
                        false => warn!("the watch of {what}: {text}; what is known stays known, and it is tried again"),
                    }
                    said = text;
                }
            }
        }
    }
}

/// What interrupted a watch: a word for the metrics.
fn cause(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::WatchError(status) if status.code == 410 => "expired",
        watcher::Error::WatchError(_) | watcher::Error::WatchFailed(kube::Error::Api(_)) => "refused",
        watcher::Error::InitialListFailed(_) => "list-failed",
        watcher::Error::WatchStartFailed(_) => "start-failed",
        watcher::Error::WatchFailed(_) => "broken",
        watcher::Error::NoResourceVersion => "nonsense",
    }
}

/// What the API server answered, where an error is its answer.
fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error of the watch, with what helps.
fn words(error: &watcher::Error, what: &str) -> String {
    let status = status(error);
    let text = match status {
        Some(status) => format!("the API server refuses it: {} ({})", status.message, status.code),
        None => connection::chain(error),
    };
    match status.map(|status| status.code) {
        Some(401) => format!(
            "{text}; the agent's token is not accepted any more: delete the agent's pod, so that it gets a new one"
        ),
        Some(403) => {
            format!("{text}; the agent's account may not list and watch {what}: apply the chart's ClusterRole again")
        }
        _ => text,
    }
}

/// Looks one pod up, for when the watch does not have it.
///
/// # Errors
/// The API server's answer in words; no pod is no error.
pub async fn look_up(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    patience: Duration,
) -> Result<Option<WatchedPod>, String> {
    let pods: Api<WatchedPod> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(patience, pods.get_opt(name)).await {
        Ok(Ok(pod)) => Ok(pod),
        Ok(Err(error)) => Err(connection::chain(&error)),
        Err(_) => Err(format!("the API server has not answered within {} s", patience.as_secs())),
    }
}
