//! Looking a pod up: one GET, tried again while it may still work.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use kube::core::Request;
use kube::core::params::GetParams;
use tracing::{debug, warn};

use super::client;
use super::kubeconfig::{self, KubeconfigError};
use super::pod::Pod;
use super::protocol::{CniError, Code};
use super::request::{Deadline, PodName};

const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);
/// How long one try may take: an API server that has not answered by then will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why one try gave no pod.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The API server answered, and no.
    #[error("{reason}; {cure}")]
    Refused { status: u16, reason: String, cure: &'static str },
    #[error("{0}; is the API server of the kubeconfig up, and reachable from this node?")]
    NoAnswer(String),
    #[error(
        "the API server's answer makes no sense: {0}; does the kubeconfig point to an API server, or to something before it?"
    )]
    Nonsense(String),
}

const EXPIRED: &str = "the agent's token has expired – is the podweir-node pod on this node running?";
const FORBIDDEN: &str = "the agent's account may not get pods – does the cluster role have the rule for it?";
const NOT_FOUND: &str = "there is no such pod; it may have been deleted meanwhile";
const OTHER: &str = "what the API server has to say about it is in its own log";

impl Failure {
    fn refused(status: &kube::core::Status) -> Self {
        let reason = match status.reason.as_str() {
            // One word in the API server's own answers; the client's where there was none.
            reason if reason.is_empty() || reason.contains(' ') => format!("HTTP status {}", status.code),
            reason => reason.to_owned(),
        };
        let cure = match status.code {
            401 => EXPIRED,
            403 => FORBIDDEN,
            404 => NOT_FOUND,
            _ => OTHER,
        };
        Self::Refused { status: status.code, reason, cure }
    }

    /// The whole chain of causes: the outermost says least.
    fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::refused(&status),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Self::Nonsense(chain(&error)),
            error => Self::NoAnswer(chain(&error)),
        }
    }

    /// Whether trying again is of no use.
    fn is_final(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status == 401,
            Self::Kubeconfig(error) => error.is_final(),
            Self::NoAnswer(_) | Self::Nonsense(_) => false,
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Looks a pod up.
pub fn pod(name: &PodName, run_dir: &Path, deadline: &Deadline) -> Result<Pod, CniError> {
    runtime()?.block_on(async {
        let mut tries = 0;
        loop {
            tries += 1;
            let began = Instant::now();
            let failure = match once(name, run_dir, deadline).await {
                Ok(pod) => return Ok(pod),
                Err(failure) => failure,
            };
            // With time left for one more try to make sense.
            let out_of_time = deadline.remaining() < PAUSE + Duration::from_millis(100);
            if failure.is_final() || tries == TRIES || out_of_time {
                return Err(give_up(name, &failure, tries, out_of_time.then_some(deadline)));
            }
            if tries == 1 {
                warn!("cannot read pod {name} yet: {failure}; trying again");
            } else {
                debug!(tries, "cannot read pod {name} yet: {failure}");
            }
            tokio::time::sleep(PAUSE.saturating_sub(began.elapsed()).max(Duration::from_millis(100))).await;
        }
    })
}

fn give_up(name: &PodName, failure: &Failure, tries: u32, late: Option<&Deadline>) -> CniError {
    let code = match failure {
        Failure::NoAnswer(_) | Failure::Refused { status: 404 | 429 | 500.., .. } => Code::TryAgainLater,
        _ => Code::LookUp,
    };
    let late = late.map(|deadline| format!(", for which there were {:?}", deadline.timeout)).unwrap_or_default();
    let error = CniError::new(code, format!("podweir cannot read pod {name}: {failure}"));
    match failure.is_final() {
        true => error,
        false => error.details(format!("{tries} {}{late}", if tries == 1 { "try" } else { "tries" })),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(|e| CniError::new(Code::Io, format!("cannot start looking the pod up: {e}")))
}

async fn once(name: &PodName, run_dir: &Path, deadline: &Deadline) -> Result<Pod, Failure> {
    let limit = PATIENCE.min(deadline.remaining());
    let work = async {
        // Everything anew for each try: the token may be another one.
        let (path, config) = kubeconfig::load(run_dir).await?;
        let unusable = |source| KubeconfigError::Invalid { path: path.clone(), source };
        let client = client::client(&config).map_err(unusable)?;
        let pods = format!("/api/v1/namespaces/{}/pods", name.namespace);
        let request = Request::new(pods).get(&name.name, &GetParams::default());
        let mut request = request.map_err(|e| Failure::Nonsense(chain(&e)))?;
        if let Some(value) = client::authorization(&config.auth_info).map_err(unusable)? {
            let value = value.parse().map_err(|_| unusable("its token cannot be sent: it is no plain text".into()))?;
            request.headers_mut().insert("authorization", value);
        }
        client.request(request).await.map_err(Failure::of)
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::NoAnswer(format!("the API server has not answered within {limit:?}"))),
    }
}

/// Whether pods can be looked up now: asks for a pod that is not there, since whoever is
/// told so may ask for others.
pub fn check(namespace: &str, run_dir: &Path, deadline: &Deadline) -> Result<(), String> {
    let name = PodName { namespace: namespace.into(), name: "podweir-status-check".into() };
    let result = runtime().map_err(|e| e.to_string())?.block_on(once(&name, run_dir, deadline));
    match result {
        Ok(_) | Err(Failure::Refused { status: 404, .. }) => Ok(()),
        Err(failure) => Err(failure.to_string()),
    }
}
