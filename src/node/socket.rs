//! The agent's socket: one line of JSON in, one line out. Only root may ask.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::cni::agent::message::{self, Answer, LONGEST_LINE, Request};
use crate::cni::protocol::Code;

use super::accept;

/// How many may ask at once. A node has a few hundred pods.
const AT_ONCE: usize = 256;
/// How many bytes after a request's line are read and dropped, so that the answer arrives.
const MOST_UNREAD: u64 = 1 << 20;
/// How long a request and its answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest path of a socket: `sun_path` has 108 bytes, the last one a zero (unix(7)).
const LONGEST_PATH: usize = 107;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "{path}: the path of a socket has at most {LONGEST_PATH} bytes, and this one has {length}; choose a shorter --run-dir"
    )]
    TooLong { path: String, length: usize },
    #[error("{path} is there and is no socket; remove it, or choose another --run-dir")]
    Taken { path: String },
    #[error("cannot make the socket {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// What answers requests.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers a request.
    fn answer(&self, request: Request) -> impl Future<Output = Answer> + Send;
    /// Counts a request and its result, for the metrics.
    fn heard(&self, request: &'static str, result: &'static str);
}

/// The path of a new socket before it is renamed to its place.
pub(super) fn place_before(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Makes the socket. A socket that is there already was left by an agent that was killed: the caller
/// holds the lock that only one agent has. The new one takes its place in one step: the path tells the
/// plugin whether there is an agent, and at no moment is there none.
///
/// # Errors
/// The path is too long, or is taken by something that is no socket, or the socket cannot be made.
pub(super) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let shown = || path.display().to_string();
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(SocketError::TooLong { path: shown(), length });
    }
    let failed = |source| SocketError::Io { path: shown(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::Taken { path: shown() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let new = place_before(path);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    // The folder is root's alone, so nobody gets in between.
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

/// Answers requests for ever.
pub(super) async fn serve(listener: UnixListener, answers: Arc<impl Answers>) {
    accept::serve(listener, "on the agent's socket", AT_ONCE, |stream| {
        let answers = answers.clone();
        async move {
            if tokio::time::timeout(PATIENCE, connection(stream, &*answers)).await.is_err() {
                answers.heard("unknown", "timeout");
            }
        }
    })
    .await;
}

async fn connection(mut stream: UnixStream, answers: &impl Answers) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    if !matches!(peer, Ok(0)) {
        warn!(uid = ?peer.ok(), "somebody who is not root asked on the agent's socket");
        answers.heard("unknown", "refused");
        let refusal = error(Code::Environment, "only root may ask the agent");
        let _ = stream.write_all(&refusal).await;
        return;
    }
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(LONGEST_LINE as u64 + 1));
    if let Err(e) = reader.read_until(b'\n', &mut line).await {
        debug!("a request on the agent's socket could not be read: {e}");
        answers.heard("unknown", "broken");
        return;
    }
    if line.is_empty() {
        // Somebody looked whether there is an agent.
        return;
    }
    let request = match line.len() > LONGEST_LINE {
        true => Err(message::LineError::TooLong),
        false => message::decode::<Request>(&line),
    };
    let (name, answer) = match request {
        Ok(request) => {
            let name = word(&request);
            (name, message::encode(answers.answer(request).await))
        }
        Err(problem) => {
            warn!("a request on the agent's socket makes no sense: {problem}");
            ("unknown", Ok(error(Code::Decode, &problem.to_string())))
        }
    };
    let answer = answer.unwrap_or_else(|e| error(Code::Internal, &format!("the answer cannot be sent: {e}")));
    // Who does not wait for the answer (`done`) has gone.
    let sent = writer.write_all(&answer).await;
    // What is left unread would take the answer away from who sent it (unix(7), ECONNRESET).
    let _ = writer.shutdown().await;
    reader.get_mut().set_limit(MOST_UNREAD);
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    answers.heard(name, if sent.is_ok() { "answered" } else { "gone" });
}

fn error(code: Code, text: &str) -> Vec<u8> {
    let answer = Answer::Error { code: code.number(), message: text.into(), details: String::new() };
    message::encode(answer).unwrap_or_default()
}

fn word(request: &Request) -> &'static str {
    match request {
        Request::Decide(_) => "decide",
        Request::Done(_) => "done",
        Request::Forget(_) => "forget",
        Request::Status {} => "status",
        Request::List { .. } => "list",
        Request::Why { .. } => "why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Answers for Fixed {
        async fn answer(&self, request: Request) -> Answer {
            match request {
                Request::Status {} => Answer::Heard {},
                // Too much for a line.
                Request::List { .. } => Answer::LeaveAlone { why: "x".repeat(LONGEST_LINE) },
                _ => Answer::LeaveAlone { why: "it is a test".into() },
            }
        }

        fn heard(&self, _: &'static str, _: &'static str) {}
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("podweir-socket-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    async fn ask(path: &Path, line: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(line).await.unwrap();
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_gets_a_line_and_garbage_an_error() {
        let folder = folder("line");
        let path = folder.join("node.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::spawn(serve(listener, Arc::new(Fixed)));
        let answer = ask(&path, &message::encode(Request::Status {}).unwrap()).await;
        assert_eq!(message::decode::<Answer>(&answer).unwrap(), Answer::Heard {});
        let many: Vec<u8> = vec![b'x'; LONGEST_LINE + 100];
        for garbage in [
            &b"\n"[..],
            b"hello\n",
            b"{\"version\":1}\n",
            b"{\"version\":9,\"request\":\"status\"}\n",
            b"\0\xff",
            &many,
        ] {
            let answer = message::decode::<Answer>(&ask(&path, garbage).await).unwrap();
            assert!(matches!(answer, Answer::Error { code: 6, .. }), "{answer:?}");
        }
        assert!(ask(&path, b"").await.is_empty());
        let answer =
            message::decode::<Answer>(&ask(&path, &message::encode(Request::List { from: None }).unwrap()).await)
                .unwrap();
        assert!(matches!(answer, Answer::Error { code: 999, .. }), "{answer:?}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_was_left_is_replaced_and_anything_else_is_not() {
        let folder = folder("left");
        let path = folder.join("node.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        let file = folder.join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file).unwrap_err(), SocketError::Taken { .. }));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let long = folder.join("x".repeat(120));
        assert!(matches!(bind(&long).unwrap_err(), SocketError::TooLong { .. }));
        assert!(matches!(bind(&folder.join("none/node.sock")).unwrap_err(), SocketError::Io { .. }));
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_takes_the_place_of_another_is_never_missing() {
        let folder = std::env::temp_dir().join(format!("podweir-socket-place-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("node.sock");
        let mut kept = vec![bind(&path).unwrap()];
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let (mut looks, mut missing) = (0, 0);
                while !done.load(order) {
                    looks += 1;
                    missing += usize::from(path.symlink_metadata().is_err());
                }
                (looks, missing)
            });
            for _ in 0..2000 {
                kept.push(bind(&path).unwrap());
                kept.remove(0);
            }
            done.store(true, order);
            let (looks, missing) = looking.join().unwrap();
            assert!(looks > 0 && missing == 0, "{missing} of {looks} times");
        });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).await.is_ok() && fs::read_dir(&folder).unwrap().count() == 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
