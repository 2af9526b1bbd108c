//! Asks the node's agent about a pod, over the agent's socket. If there is no agent, or it does not
//! answer yet, the plugin repeats the request for as long as the netconf says.

pub mod message;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::config::given::{Given, Origin};
use crate::config::options::OPTIONS;

use super::decision::Decision;
use super::netconf::option_name;
use super::protocol::{CniError, Code};
use super::request::Deadline;

use message::{Answer, Decide, LONGEST_LINE, LineError, Request};

/// The socket's name in the run directory.
const SOCKET: &str = "node.sock";
/// How long one answer may take: the agent itself gives up after five seconds.
const PATIENCE: Duration = Duration::from_secs(6);
/// The pauses between two tries: an agent that is being replaced is back in a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long sending a notification may take, whose answer nobody waits for.
const TELLING: Duration = Duration::from_millis(200);

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("there is no socket {0}")]
    NoSocket(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the agent's answer makes no sense: {0}")]
    Line(#[from] LineError),
    #[error("the agent has ended before it answered")]
    Ended,
}

/// The agent's socket in a run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// There is no agent, or no answer in time, or none that makes sense.
pub fn ask(socket: &Path, request: Request, patience: Duration) -> Result<Answer, AskError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => AskError::NoSocket(socket.into()),
        _ => AskError::Io { path: socket.into(), source },
    };
    let line = message::encode(request)?;
    let mut stream = UnixStream::connect(socket).map_err(io_error)?;
    let patience = patience.max(Duration::from_millis(1));
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.set_write_timeout(Some(patience)))
        .map_err(io_error)?;
    stream.write_all(&line).map_err(io_error)?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream.take(LONGEST_LINE as u64 + 1));
    reader.read_until(b'\n', &mut answer).map_err(io_error)?;
    match answer.len() {
        0 => Err(AskError::Ended),
        length if length > LONGEST_LINE => Err(LineError::TooLong.into()),
        _ => Ok(message::decode(&answer)?),
    }
}

/// Sends a notification to the agent, without waiting for its answer.
pub fn tell(run_dir: &Path, request: Request) {
    let told = || -> Result<(), AskError> {
        let path = socket(run_dir);
        let io_error = |source| AskError::Io { path: path.clone(), source };
        let line = message::encode(request)?;
        let mut stream = UnixStream::connect(&path).map_err(io_error)?;
        stream.set_write_timeout(Some(TELLING)).map_err(io_error)?;
        stream.write_all(&line).map_err(io_error)
    };
    if let Err(error) = told() {
        // The agent finds out by itself, a little later.
        debug!("the agent was not told: {error}");
    }
}

/// Whether an agent's socket is on this node: there is an agent, or was one a moment ago.
pub fn is_there(run_dir: &Path) -> bool {
    socket(run_dir).symlink_metadata().is_ok()
}

/// Asks the agent what to do with a pod, again and again while it does not answer and
/// there is time.
///
/// # Errors
/// The agent's own answer that it cannot tell, or that there was none in time.
pub fn decide(run_dir: &Path, asked: &Decide, deadline: &Deadline, longest: Duration) -> Result<Decision, CniError> {
    let socket = socket(run_dir);
    let started = Instant::now();
    let (mut pause, mut said) = (FIRST_PAUSE, String::new());
    loop {
        let left = longest.saturating_sub(started.elapsed()).min(deadline.remaining());
        let error = match ask(&socket, Request::Decide(asked.clone()), PATIENCE.min(left)) {
            Ok(answer) => return decision(answer),
            Err(error) => error,
        };
        let left = longest.saturating_sub(started.elapsed()).min(deadline.remaining());
        if left <= pause + FIRST_PAUSE {
            return Err(CniError::new(
                Code::TryAgainLater,
                "podweir's agent on this node does not answer; pods with a sidecar wait for it",
            )
            .details(format!("{error}; kubectl get pods -A -o wide -l app.kubernetes.io/name=podweir shows the agents and their nodes")));
        }
        let text = error.to_string();
        if text != said {
            warn!("the agent does not answer yet: {text}; trying again");
            said = text;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The agent's answer as a decision.
fn decision(answer: Answer) -> Result<Decision, CniError> {
    match answer {
        Answer::LeaveAlone { why } => Ok(Decision::LeaveAlone(why)),
        Answer::Intercept { options, warnings, .. } => {
            let mut given = Given::default();
            for (name, setting) in options {
                let spec = OPTIONS.iter().find(|spec| option_name(spec) == name).ok_or_else(|| {
                    CniError::new(Code::Internal, format!("the agent asks for the option {name}, which this plugin does not know"))
                        .details("agent and plugin are of different releases; the agent puts its own plugin in place in a moment")
                })?;
                given.set(spec.opt, Origin::Agent(setting.source), setting.value);
            }
            Ok(Decision::Intercept { options: given, why: "the node's agent says so", warnings })
        }
        Answer::Error { code, message, details } => {
            Err(CniError::new(Code::from_number(code).unwrap_or(Code::Internal), message).details(details))
        }
        Answer::Heard {} | Answer::Report { .. } => {
            Err(CniError::new(Code::Internal, "the agent's answer is one to another question"))
        }
    }
}
