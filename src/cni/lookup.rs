//! Looks a pod up at the API server: one GET request, repeated while it may still succeed. The answer is
//! used only if it is the very pod that was asked for.

use std::time::Duration;

use kube::core::Status;
use serde::Deserialize;

use crate::config::pod::PodId;
use crate::config::pod::model::Pod;
use crate::config::pod::selection::Mismatch;
use crate::sys::process;
use crate::sys::text::rounded;

use super::client::{self, HttpAnswer, NoAnswer};
use super::confine;
use super::kubeconfig::{self, KubeconfigError, KubeconfigPlace};
use super::patience::{self, GaveUp, Patience};
use super::protocol::{CniError, Code};
use super::request::Deadline;

/// How the API server is asked: a try ends after ten seconds without an answer.
const PATIENCE: Patience = Patience { tries: 30, pause: Duration::from_secs(1), patience: Duration::from_secs(10) };

/// How often to look for a file that is missing or incomplete.
const FOR_A_FILE: u32 = 10;

/// The API server's words for why not (`StatusReason`, apimachinery's meta/v1/types.go).
/// Others are not repeated: something else may have answered, with anything.
const REASONS: [&str; 15] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
];

/// Why one try did not find the pod.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The API server refused the request.
    #[error("{reason}; {cure}")]
    Refused { status: u16, reason: String, cure: String },
    #[error("{server} gives no answer: {problem}; is the API server up, and reachable from this node?")]
    NoAnswer { server: String, problem: String },
    #[error("the answer of {server} makes no sense: {problem}; is it an API server, or something before it?")]
    Nonsense { server: String, problem: String },
    #[error("there is no such pod any more: the one of that name has another uid than {0}, for which this sandbox is")]
    Another(String),
}

impl patience::Failure for TryError {
    fn tries(&self, most: u32) -> u32 {
        match self {
            // Forbidden may pass: an API server that just started knows no roles yet.
            Self::Refused { status: 401, .. } | Self::Another(_) => 1,
            Self::Kubeconfig(error) if error.is_final() => 1,
            // Somebody may just be putting it there. Else it takes somebody who reads the
            // pod's event, which there is only when the pod has failed.
            Self::Kubeconfig(_) => most.min(FOR_A_FILE),
            Self::Refused { .. } | Self::NoAnswer { .. } | Self::Nonsense { .. } => most,
        }
    }
}

impl TryError {
    fn refused(HttpAnswer { status, body }: &HttpAnswer, kubeconfig: &str) -> Self {
        let told = serde_json::from_slice::<Status>(body).unwrap_or_default().reason;
        let reason = match REASONS.contains(&told.as_str()) {
            true => told,
            false => format!("HTTP status {status}"),
        };
        let cure = match (status, reason.as_str()) {
            (401, _) => format!(
                "the token or certificate in {kubeconfig} has expired or was revoked; make it anew as podweir's cni-conf/by-hand.md says (steps 2 and 3)"
            ),
            (403, _) => format!(
                "the account that {kubeconfig} is for may not get pods; apply podweir's cni-conf/rbac.yaml, or give it a cluster role with that right"
            ),
            (404, "NotFound") => "there is no such pod; it may have been deleted meanwhile".into(),
            (404, _) => format!("is the server in {kubeconfig} an API server, and the path in its address right?"),
            _ => "what the API server has to say about it is in its own log".into(),
        };
        Self::Refused { status: *status, reason, cure }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoAnswer { .. } | Self::Another(_) => Code::TryAgainLater,
            Self::Refused { status: 404 | 429 | 500.., .. } => Code::TryAgainLater,
            _ => Code::LookUp,
        }
    }
}

/// Looks a pod up at the API server.
///
/// # Errors
/// The pod cannot be read in time, or does not exist any more.
pub(crate) fn pod(wanted: &PodId, place: &KubeconfigPlace, deadline: &Deadline) -> Result<Pod, CniError> {
    // tokio's runtime takes six descriptors, and panics where it gets only some of them.
    let runtime = process::spare_descriptors(4)
        .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build());
    let runtime = runtime.map_err(|e| CniError::new(Code::Io, format!("cannot start looking the pod up: {e}")))?;
    let what = format!("cannot read pod {wanted}");
    let mut confined = false;
    let found = runtime.block_on(patience::ask(&what, PATIENCE, deadline, async |limit| {
        once(wanted, place, limit, &mut confined).await
    }));
    found.map_err(|gave_up: GaveUp<TryError>| {
        let error =
            CniError::new(gave_up.failure.code(), format!("podweir cannot read pod {wanted}: {}", gave_up.failure));
        error.details(gave_up.effort().unwrap_or_default())
    })
}

async fn once(wanted: &PodId, place: &KubeconfigPlace, limit: Duration, confined: &mut bool) -> Result<Pod, TryError> {
    // Everything anew for each try: the token may be another one.
    let (path, access) = kubeconfig::load(place)?;
    if !std::mem::replace(confined, true) {
        confine::lookup(&place.run_dir, &access);
    }
    let server = || access.server.clone();
    let pod = format!("/api/v1/namespaces/{}/pods/{}", wanted.namespace, wanted.name);
    let answer = tokio::time::timeout(limit, client::get(&access, &pod)).await;
    let late = |_| NoAnswer::Failed(format!("nothing came within {}", rounded(limit)));
    let answer = answer.unwrap_or_else(|e| Err(late(e))).map_err(|error| match error {
        NoAnswer::Unusable(problem) => KubeconfigError::Invalid { path: path.clone(), problem }.into(),
        NoAnswer::Failed(problem) => TryError::NoAnswer { server: server(), problem },
        NoAnswer::TooLong => {
            TryError::Nonsense { server: server(), problem: "it is longer than any pod may be".into() }
        }
    })?;
    match answer.status {
        200 => understand(wanted, &answer.body).map_err(|mismatch| match mismatch {
            Mismatch::Uid => TryError::Another(wanted.uid.clone().unwrap_or_default()),
            Mismatch::NoPod(problem) => TryError::Nonsense { server: server(), problem },
        }),
        _ => Err(TryError::refused(&answer, &path.display().to_string())),
    }
}

/// Whether an object is of another kind than a pod, such as a Status, whose members have the same names
/// and other types.
fn says_it_is_another(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct OfAKind {
        kind: String,
    }
    serde_json::from_slice::<OfAKind>(body).is_ok_and(|object| object.kind != "Pod")
}

/// Parses the pod that was asked for. The parser's messages may quote it, secrets included, so only the
/// place of the error is told.
fn understand(wanted: &PodId, body: &[u8]) -> Result<Pod, Mismatch> {
    let pod: Pod = serde_json::from_slice(body).map_err(|e| {
        if says_it_is_another(body) {
            return Mismatch::NoPod("its kind is another than Pod".into());
        }
        let what = if e.is_data() { "it is no pod" } else { "it is no JSON" };
        Mismatch::NoPod(format!("{what} at line {}, column {}", e.line(), e.column()))
    })?;
    pod.is(wanted)?;
    Ok(pod)
}
