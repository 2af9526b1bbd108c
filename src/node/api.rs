//! The agent's way to the API server, and its one watch of this node's pods.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use kube::Api;
use kube::core::Status;
use kube::runtime::watcher as watch;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tower::service_fn;
use tracing::{debug, info, warn};

use crate::cni::access::Problem;
use crate::cni::client as connection;

use super::backoff::ServerBackoff;
use super::cache::{Cache, Change, WatchedPod};
use super::credentials::Credentials;
use super::metrics::Metrics;
use super::pulse::WatchPulse;
use super::transport::Transport;

/// A client that sends the newest token with every request, limits the time that an answer may take, and
/// beats the pulse with everything that arrives on a watch.
///
/// # Errors
/// The credentials cannot be used.
pub fn client(credentials: Credentials, pulse: Arc<WatchPulse>) -> Result<kube::Client, Problem> {
    let access = credentials.access()?;
    let https = connection::https(&access)?;
    let transport = Arc::new(Transport::new(https, credentials, &access, pulse));
    Ok(kube::Client::new(service_fn(move |request| transport.clone().send(request)), "default"))
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    Pods,
    /// The agent's own.
    DaemonSet,
    /// Those in ambient mode.
    Namespaces,
}

impl Watch {
    /// A word for metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::DaemonSet => "daemonset",
            Self::Namespaces => "namespaces",
        }
    }

    /// What it is of, in a sentence.
    fn of(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::DaemonSet => "its own DaemonSet",
            Self::Namespaces => "namespaces",
        }
    }
}

/// Watches the pods of a node for ever: one list from the API server's cache at the start,
/// then a watch with bookmarks that goes on where it was when the connection is lost, and a
/// list again only where the API server says that it has forgotten (410).
pub async fn watch_pods(
    client: kube::Client,
    node: String,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    pulse: Arc<WatchPulse>,
    changed: impl Fn(Change),
) {
    let pods: Api<WatchedPod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let take = |event| cache.apply(event).into_iter().for_each(&changed);
    watch_all(pods, config, Watch::Pods, &metrics, &pulse, take).await;
}

/// Watches objects for ever. The pulse beats for everything
/// that is told, and for every attempt that is refused: a server that is away is no hang.
pub async fn watch_all<K>(
    all: Api<K>,
    config: watcher::Config,
    watched: Watch,
    metrics: &Metrics,
    pulse: &WatchPulse,
    take: impl Fn(Event<K>),
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let what = watched.of();
    let mut said = String::new();
    let mut backoff = ServerBackoff::default();
    // From the API server's memory, and therefore whole: pages come from its database, and where
    // kube asks for pages it does not say that any version will do (`resourceVersion=0`). That
    // takes twice the list's size for a moment: 20 MiB for 500 pods of 20 KiB.
    let config = watcher::Config { page_size: None, ..config }.any_semantic();
    loop {
        // Each request of it ends in time (see `transport`), and so does a silent watch, which kube
        // takes up again where it was: nothing here may begin anew with a list because of it.
        let stream = watch(all.clone(), config.clone());
        pin_mut!(stream);
        while let Some(event) = stream.next().await {
            pulse.round.beat();
            let pause = backoff.after(&event);
            match event {
                Ok(event) => {
                    if !said.is_empty() && !matches!(event, Event::Init) {
                        info!("the watch of {what} goes on");
                        said.clear();
                    }
                    take(event);
                }
                Err(error) => {
                    metrics.watch_restarted(watched.word(), cause(&error));
                    let text = words(&error, what);
                    metrics.error("watch", &text);
                    match text == said {
                        true => debug!("the watch of {what}: {text}"),
                        false => warn!("the watch of {what}: {text}; what is known stays known, and it is tried again"),
                    }
                    said = text;
                }
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }
}

/// The cause that interrupted a watch, as a word for the metrics.
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

/// The API server's answer, if an error has one.
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
            format!("{text}; the agent's account may not list and watch {what}: apply the chart's roles again")
        }
        _ => text,
    }
}

/// Asks the API server for one pod that the watch does not have; `None` if there is no such pod.
///
/// # Errors
/// The API server's answer in words.
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;
    use tokio::time::Instant;
    use tower::BoxError;

    use super::*;
    use crate::node::pulse::LONGEST_WATCH;

    /// When each question came, and which it was, in order.
    type Asked = Arc<Mutex<Vec<(Instant, String)>>>;

    /// An answer: the status and the body; `None` if the question is never answered.
    type Answer = Option<(u16, &'static str)>;

    /// An API server that answers as `answer` says, by the question and how many came before.
    fn server(answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> (kube::Client, Asked) {
        let asked = Asked::default();
        let (kept, answer) = (asked.clone(), Arc::new(answer));
        let service = service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            let mut kept = kept.lock().unwrap();
            let told = answer(&uri, kept.len());
            kept.push((Instant::now(), uri));
            async move {
                let Some((status, text)) = told else { return std::future::pending().await };
                let body = Body::from(text.as_bytes().to_vec());
                Ok::<_, BoxError>(Response::builder().status(status).body(body)?)
            }
        });
        (kube::Client::new(service, "default"), asked)
    }

    /// Watches pods for so long, and gives the longest time between two beats.
    async fn watch_for(client: kube::Client, time: Duration) -> Duration {
        let pulse = Arc::<WatchPulse>::default();
        let (cache, metrics) = (Arc::<Cache>::default(), Arc::<Metrics>::default());
        let watching = watch_pods(client, "node1".into(), cache, metrics, pulse.clone(), |_| {});
        let (until, mut longest) = (Instant::now() + time, Duration::ZERO);
        pin_mut!(watching);
        while Instant::now() < until {
            tokio::select! {
                () = &mut watching => unreachable!("a watch that ended"),
                () = sleep(Duration::from_secs(1)) => longest = longest.max(pulse.round.age()),
            }
        }
        longest
    }

    fn gaps(asked: &Asked) -> Vec<Duration> {
        let asked = asked.lock().unwrap();
        asked.windows(2).map(|two| two[1].0 - two[0].0).collect()
    }

    const REFUSED: Answer = Some((
        503,
        r#"{"kind":"Status","status":"Failure","message":"away","reason":"ServiceUnavailable","code":503,"metadata":{}}"#,
    ));
    const NO_POD: Answer =
        Some((200, r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#));
    const FORGOTTEN: Answer = Some((
        200,
        "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"status\":\"Failure\",\"message\":\"too old\",\"reason\":\"Expired\",\"code\":410,\"metadata\":{}}}\n",
    ));

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn lists_that_are_refused_for_an_hour_are_no_hang_and_become_seldom() {
        let (client, asked) = server(|_, _| REFUSED);
        let longest = watch_for(client, Duration::from_secs(3600)).await;
        assert!(longest <= Duration::from_secs(61), "no beat for {longest:?}");
        let gaps = gaps(&asked);
        // Eight pauses until they are the longest, and then at least 30 s each.
        assert!(gaps[7..].iter().all(|gap| *gap >= Duration::from_secs(30)), "{gaps:?}");
        assert!(gaps.len() <= 8 + 3600 / 30, "{} lists", gaps.len());
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|(_, uri)| !uri.contains("watch=")), "{asked:?}");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_same_after_the_server_has_forgotten_and_an_answer_makes_pauses_short_again() {
        // One list, a watch that ends with 410, and no list any more until the fifteenth.
        let (client, asked) = server(|uri, before| match before {
            0 | 15 => NO_POD,
            _ if uri.contains("watch=") => FORGOTTEN,
            _ => REFUSED,
        });
        let longest = watch_for(client, Duration::from_secs(900)).await;
        assert!(longest <= Duration::from_secs(61), "no beat for {longest:?}");
        let gaps = gaps(&asked);
        let asked = asked.lock().unwrap();
        let watches: Vec<usize> = (0..asked.len()).filter(|n| asked[*n].1.contains("watch=")).collect();
        assert_eq!(watches, [1, 16], "{asked:?}");
        assert!(gaps[14] >= Duration::from_secs(30) && gaps[16] < Duration::from_secs(2), "{gaps:?}");
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_list_that_never_ends_is_a_hang() {
        let (client, asked) = server(|_, _| None);
        let longest = watch_for(client, LONGEST_WATCH + Duration::from_secs(10)).await;
        assert!(longest > LONGEST_WATCH, "{longest:?}");
        assert_eq!(asked.lock().unwrap().len(), 1);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_list_is_asked_for_from_the_servers_memory() {
        let (client, asked) = server(|_, _| REFUSED);
        watch_for(client, Duration::from_secs(1)).await;
        let asked = asked.lock().unwrap();
        let uri = &asked[0].1;
        assert!(uri.contains("resourceVersion=0&") && !uri.contains("limit="), "{uri}");
    }
}
