//! The agent's way to the API server, and its one watch of this node's pods.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use kube::Api;
use kube::api::ListParams;
use kube::client::Body;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use secrecy::ExposeSecret;
use serde_json::json;
use tower::ServiceBuilder;
use tracing::{debug, info, warn};

use crate::cni::access::{Access, Problem};
use crate::cni::{client as connection, kubeconfig};

use super::cache::{Cache, Change, WatchedPod};
use super::metrics::Metrics;

/// The kubelet renews a service account's token in its file long before it expires.
const TOKEN_AGE: Duration = Duration::from_secs(30);
/// A watch says something every minute at least (a bookmark), and ends after 5 minutes.
const SILENCE: Duration = Duration::from_secs(330);
/// How many pods come in one answer of a list.
const PAGE: u32 = 250;

/// As whom the agent asks.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// As the pod that it runs in: the account's folder with token and authority.
    ServiceAccount { server: String, folder: PathBuf },
    /// As a kubeconfig says.
    Kubeconfig(PathBuf),
}

impl Credentials {
    /// Reads them. Tokens are read again now and then, since they are renewed.
    ///
    /// # Errors
    /// A file is missing or damaged; no content of it is told.
    fn access(&self) -> Result<Access, Problem> {
        let (config, folder) = match self {
            Self::Kubeconfig(path) => {
                let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
                (kubeconfig::value(path)?, folder)
            }
            Self::ServiceAccount { server, folder } => {
                let config = json!({
                    "current-context": "pod",
                    "contexts": [{ "name": "pod", "context": { "cluster": "pod", "user": "pod" } }],
                    "clusters": [{ "name": "pod", "cluster": { "server": server, "certificate-authority": "ca.crt" } }],
                    "users": [{ "name": "pod", "user": { "tokenFile": "token" } }],
                });
                (config, folder.clone())
            }
        };
        Access::read(&config, &folder, false)
    }
}

/// A client that shows the newest token with every request.
///
/// # Errors
/// The credentials cannot be used.
pub fn client(credentials: Credentials) -> Result<kube::Client, Problem> {
    let access = credentials.access()?;
    let https = connection::https(&access)?;
    let server = access.server.clone();
    let newest = Arc::new(Mutex::new((Instant::now(), authorization(&access))));
    let authorize = move || {
        let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0.elapsed() > TOKEN_AGE {
            match credentials.access() {
                Ok(access) => *newest = (Instant::now(), authorization(&access)),
                Err(problem) => {
                    warn!("the agent's credentials cannot be read again, those read before are used: {problem}");
                    newest.0 = Instant::now();
                }
            }
        }
        newest.1.clone()
    };
    let service = ServiceBuilder::new()
        .map_request(move |mut request: http::Request<Body>| {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            // The server's address was looked at when it was read; the paths are kube's own.
            if let Ok(uri) = format!("{server}{path}").parse::<Uri>() {
                *request.uri_mut() = uri;
            }
            if let Some(value) = authorize() {
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            request
        })
        .service(https);
    Ok(kube::Client::new(service, "default"))
}

fn authorization(access: &Access) -> Option<HeaderValue> {
    let token = access.token.as_ref()?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The watch's pulse: when it last came round, whatever it found.
#[derive(Debug)]
pub struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// The longest time between two beats of a watch that does not hang.
pub const LONGEST_PULSE: Duration = Duration::from_secs(420);

/// Watches the pods of a node for ever: one list from the API server's cache at the start,
/// then a watch with bookmarks that goes on where it was when the connection is lost, and a
/// list again only where the API server says that it has forgotten (410).
pub async fn watch_pods(
    client: kube::Client,
    node: String,
    cache: Arc<Cache>,
    pulse: Arc<Pulse>,
    metrics: Arc<Metrics>,
    changed: impl Fn(Change),
) {
    let pods: Api<WatchedPod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE).any_semantic();
    let mut said = String::new();
    loop {
        let stream = watch(pods.clone(), config.clone()).backoff(DefaultBackoff::default());
        pin_mut!(stream);
        loop {
            pulse.beat();
            let event = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => {
                    metrics.watch_restarted("silence");
                    warn!("the watch of pods has said nothing for {} s; it is started anew", SILENCE.as_secs());
                    break;
                }
            };
            match event {
                Ok(event) => {
                    if !said.is_empty() && !matches!(event, Event::Init) {
                        info!("the watch of pods goes on");
                        said.clear();
                    }
                    cache.apply(event).into_iter().for_each(&changed);
                }
                Err(error) => {
                    metrics.watch_restarted(cause(&error));
                    let text = words(&error);
                    match text == said {
                        true => debug!("the watch of pods: {text}"),
                        false => warn!("the watch of pods: {text}; what is known stays known, and it is tried again"),
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
        watcher::Error::WatchError(_) => "refused",
        watcher::Error::InitialListFailed(_) => "list-failed",
        watcher::Error::WatchStartFailed(_) => "start-failed",
        watcher::Error::WatchFailed(_) => "broken",
        watcher::Error::NoResourceVersion => "nonsense",
    }
}

/// An error of the watch, with what helps.
fn words(error: &watcher::Error) -> String {
    let text = connection::chain(error);
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    };
    match status {
        Some(401) => format!(
            "{text}; the agent's token is not accepted any more: delete the agent's pod, so that it gets a new one"
        ),
        Some(403) => {
            format!("{text}; the agent's account may not list and watch pods: apply the chart's ClusterRole again")
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

/// Whether the node is known to the API server.
///
/// # Errors
/// The API server's answer in words.
pub async fn pods_on(client: &kube::Client, node: &str) -> Result<usize, String> {
    let pods: Api<WatchedPod> = Api::all(client.clone());
    let listed = pods.list(&ListParams::default().fields(&format!("spec.nodeName={node}")).limit(1)).await;
    listed.map(|list| list.items.len()).map_err(|e| connection::chain(&e))
}
