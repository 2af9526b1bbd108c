//! The transport of every request of the agent to the API server: with the newest token, with limits for
//! how long an answer may take to begin and may pause, with pauses between watches that end, and with a
//! heartbeat for whatever arrives on a watch, bookmarks included.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming};
use kube::client::Body;
use secrecy::ExposeSecret;
use tokio::time::{Sleep, sleep, timeout};
use tower::BoxError;
use tracing::warn;

use crate::cni::access::Access;
use crate::cni::client::Https;
use crate::sys::mutex::lock;

use super::credentials::Credentials;
use super::pulse::WatchPulse;

/// How long a token is used before its file is read again: the kubelet renews it long before it expires.
const TOKEN_AGE: Duration = Duration::from_secs(30);
/// How long an answer may take to begin: an API server that has much to do lets requests wait
/// for 15 s before it refuses them (priority and fairness, a quarter of its own limit).
const BEGINS: Duration = Duration::from_secs(20);
/// How long an answer may pause in the middle. A watch may pause longer, and kube limits that.
const GOES_ON: Duration = Duration::from_secs(20);
/// A watch that lived so long ended because its time was over, which is 290 s (kube's
/// watcher): nodes are spread by when they began, and the next one follows at once.
const WHOLE_LIFE: Duration = Duration::from_secs(280);
/// A watch that lived so long, but not its whole life, was ended by a server that ends, as were those of
/// thousands of other nodes: the next ones are spread over the time `SPREAD`.
const LIVED: Duration = Duration::from_secs(30);
const SPREAD: Duration = Duration::from_secs(5);
/// The pauses between watches that end again and again, the first and the longest, of which on average
/// three quarters are used.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The connection to the API server, with the agent's credentials.
pub(super) struct Transport {
    https: Https,
    server: String,
    credentials: Credentials,
    /// When the token was last read, `None` if it is to be read again, and the token.
    newest: Mutex<(Option<Instant>, Option<HeaderValue>)>,
    pulse: Arc<WatchPulse>,
    watches: Mutex<Watches>,
}

impl Transport {
    pub(super) fn new(https: Https, credentials: Credentials, access: &Access, pulse: Arc<WatchPulse>) -> Self {
        Self {
            https,
            server: access.server.clone(),
            credentials,
            newest: Mutex::new((Some(Instant::now()), authorization(access))),
            pulse,
            watches: Mutex::default(),
        }
    }

    /// The newest token, read again now and then, and after it was refused.
    fn authorize(&self) -> Option<HeaderValue> {
        let mut newest = lock(&self.newest);
        if newest.0.is_none_or(|read| read.elapsed() > TOKEN_AGE) {
            match self.credentials.access() {
                Ok(access) => *newest = (Some(Instant::now()), authorization(&access)),
                Err(problem) => {
                    warn!("the agent's credentials cannot be read again, those read before are used: {problem}");
                    newest.0 = Some(Instant::now());
                }
            }
        }
        newest.1.clone()
    }

    /// Sends a request and waits for the beginning of its answer.
    pub(super) async fn send(self: Arc<Self>, mut request: Request<Body>) -> Result<Response<Heard>, BoxError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        // The server's address was looked at when it was read; the paths are kube's own.
        *request.uri_mut() = format!("{}{path}", self.server).parse::<Uri>()?;
        if is_watch {
            let pause = lock(&self.watches).next(Instant::now(), random());
            sleep(pause).await;
        }
        if let Some(value) = self.authorize() {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        if is_watch {
            self.pulse.round.beat();
        }
        let late = |_| io::Error::other(format!("{} has not answered within {} s", self.server, BEGINS.as_secs()));
        let answer = timeout(BEGINS, self.https.request(request)).await.map_err(late)??;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::UNAUTHORIZED {
            // There may be a newer one already, which the next request shows.
            lock(&self.newest).0 = None;
        }
        let watching = (is_watch && head.status.is_success()).then(|| Watching::begin(&self));
        let stands_still = watching.is_none().then(|| Box::pin(sleep(GOES_ON)));
        Ok(Response::from_parts(head, Heard { body, watching, stands_still }))
    }
}

fn authorization(access: &Access) -> Option<HeaderValue> {
    let token = access.token.as_ref()?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A random number, which differs from node to node.
fn random() -> u32 {
    // Its keys are random (std::hash::RandomState).
    RandomState::new().build_hasher().finish() as u32
}

/// When watches began and ended.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// Whether there has been a watch.
    any: bool,
    /// When the last watch began.
    pub(super) began: Option<Instant>,
    /// How many watches in a row ended soon.
    short: u32,
}

impl Watches {
    /// The pause before the next watch. The first one has none.
    pub(super) fn next(&mut self, now: Instant, random: u32) -> Duration {
        let random = f64::from(random) / f64::from(u32::MAX);
        // One that could not even begin: kube pauses after an error by itself.
        let began = self.began.take();
        if !std::mem::replace(&mut self.any, true) {
            return Duration::ZERO;
        }
        match began.map(|began| now.saturating_duration_since(began)) {
            None => return Duration::ZERO,
            Some(lived) if lived >= LIVED => {
                self.short = 0;
                return if lived >= WHOLE_LIFE { Duration::ZERO } else { SPREAD.mul_f64(random) };
            }
            Some(_) => self.short = self.short.saturating_add(1),
        }
        let longest = FIRST_PAUSE.saturating_mul(1u32.checked_shl(self.short - 1).unwrap_or(u32::MAX));
        longest.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * random)
    }
}

/// A watch whose answer is being read.
struct Watching {
    pulse: Arc<WatchPulse>,
}

impl Watching {
    fn begin(transport: &Transport) -> Self {
        lock(&transport.watches).began = Some(Instant::now());
        let watching = Self { pulse: transport.pulse.clone() };
        watching.heard();
        watching
    }

    fn heard(&self) {
        self.pulse.round.beat();
        self.pulse.heard.beat();
    }
}

/// The body of an answer, which beats the pulse of a watch when something arrives.
pub(super) struct Heard {
    body: Incoming,
    watching: Option<Watching>,
    /// The alarm that ends the answer if nothing arrives for too long; `None` for a watch.
    stands_still: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Heard {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some(watching) = &self.watching {
                watching.heard();
            }
            if let Some(still) = &mut self.stands_still {
                still.as_mut().reset(tokio::time::Instant::now() + GOES_ON);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        match &mut self.stands_still {
            Some(still) => {
                ready!(still.as_mut().poll(cx));
                let problem = format!("the API server's answer has stood still for {} s", GOES_ON.as_secs());
                Poll::Ready(Some(Err(io::Error::other(problem).into())))
            }
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_that_end_early_follow_each_other_more_and_more_slowly() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watches = Watches::default();
        assert_eq!(watches.next(start, u32::MAX), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            watches.began = Some(start);
            pauses.push(watches.next(start + second, u32::MAX).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
        // One that could not begin has had its pause.
        assert_eq!(watches.next(start + second, u32::MAX), Duration::ZERO);
        // One whose time was over is followed at once, one that was cut off at different moments on different nodes.
        for (lived, random, pause) in [
            (WHOLE_LIFE, u32::MAX, Duration::ZERO),
            (LIVED, u32::MAX, SPREAD),
            (LIVED, 0, Duration::ZERO),
            (second, 0, FIRST_PAUSE / 2),
        ] {
            watches.began = Some(start);
            assert_eq!(watches.next(start + lived, random), pause);
        }
        assert_ne!(random(), random());
    }
}
