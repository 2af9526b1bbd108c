//! A socket that others find by its path: served for as long as the path leads to it, and made again
//! when it does not. The kernel notifies nobody that a path was unlinked, or that another socket was put
//! in its place, and the old socket would wait for connections for ever.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tracing::{info, warn};

use crate::sys::mutex::lock;

/// The pause between two checks whether a path still leads to its socket.
const EVERY: Duration = Duration::from_secs(1);

/// The sockets that are not at their paths and cannot be made again, each with why.
#[derive(Debug, Default)]
pub(super) struct LostSockets(Mutex<BTreeMap<&'static str, String>>);

impl LostSockets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        lock(&self.0)
    }

    /// The problem of the first such socket, in a sentence; `None` if there is none.
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().values().next().cloned()
    }
}

/// Device and inode of what is at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Waits until a path leads to something else than the file `was`.
async fn led_elsewhere(path: &Path, was: Option<(u64, u64)>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if was.is_none() || identity(path) != was {
            return;
        }
    }
}

/// Serves for ever: with a listener that was just made at the path, and, when the path does not lead to
/// it any more, with a new one. `what` names the socket, such as "the agent's socket".
pub(super) async fn serve<L, E: Display, S: Future<Output = ()>>(
    path: &Path,
    what: &'static str,
    mut listener: L,
    bind: impl Fn() -> Result<L, E>,
    serve: impl Fn(L) -> S,
    lost: &LostSockets,
) {
    loop {
        let was = identity(path);
        // Who is connected is served to the end: each connection is a task of its own.
        tokio::select! {
            () = serve(listener) => return,
            () = led_elsewhere(path, was) => {}
        }
        warn!("{what} is not at {} any more, so that nobody finds it; it is made again", path.display());
        let mut said = String::new();
        listener = loop {
            match bind() {
                Ok(listener) => break listener,
                Err(error) => {
                    let problem = format!(
                        "{what} is not at {} any more, and cannot be made again: {error}; if that does not help, delete the agent's pod",
                        path.display()
                    );
                    if said != problem {
                        warn!("{problem}");
                        lost.lock().insert(what, problem.clone());
                        said = problem;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        };
        lost.lock().remove(what);
        info!("{what} is at {} again", path.display());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::{UnixListener, UnixStream};

    use super::super::accept;
    use super::*;

    /// How long an expected event may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn until(what: &str, done: impl AsyncFn() -> bool) {
        let looking = async {
            while !done().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("no waiting any longer: {what}"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_is_taken_away_is_made_again_and_one_that_cannot_be_is_told() {
        let folder = std::env::temp_dir().join(format!("podweir-kept-socket-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let lost = Arc::<LostSockets>::default();
        let listener = UnixListener::bind(&path).unwrap();
        let serving = {
            let (path, lost) = (path.clone(), lost.clone());
            tokio::spawn(async move {
                let bind = || UnixListener::bind(&path);
                let answer = |listener| accept::serve(listener, "of a test", 1, |stream| async move { drop(stream) });
                serve(&path, "a test's socket", listener, bind, answer, &lost).await;
            })
        };
        let answers = async || UnixStream::connect(&path).await.is_ok();
        until("it answers", answers).await;
        fs::remove_file(&path).unwrap();
        assert!(!answers().await);
        until("it is there again", answers).await;
        assert_eq!(lost.problem(), None);
        // Another one in its place, which nobody serves.
        let before = identity(&path);
        fs::rename(&path, folder.join("moved")).unwrap();
        fs::write(&path, "somebody's").unwrap();
        until("it is told", async || lost.problem().is_some()).await;
        assert!(lost.problem().unwrap().contains("a test's socket is not at"));
        fs::remove_file(&path).unwrap();
        until("it is there again", answers).await;
        until("it is told", async || lost.problem().is_none()).await;
        assert_ne!(identity(&path), before);
        serving.abort();
        fs::remove_dir_all(folder).unwrap();
    }
}
