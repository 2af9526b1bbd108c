//! Work in a pod's network namespace, on threads of its own: a thread enters the namespace,
//! does one thing there, and ends, so that none is ever left in the wrong one.

use std::io;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::sys::netns::{Netns, NetnsError};

/// How many pods are worked on at a time: more would take the node's processors from the pods.
const AT_ONCE: usize = 2;

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("the thread ended without an answer")]
    Lost,
}

/// Threads for work in namespaces.
#[derive(Debug, Clone)]
pub struct Workers {
    places: Arc<Semaphore>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Workers {
    /// Does `work` in a namespace and gives what came of it. Waits for a free place first.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no thread be started.
    pub async fn run<T: Send + 'static>(
        &self,
        netns: Arc<Netns>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        // The semaphore is never closed.
        let _place = self.places.acquire().await.map_err(|_| WorkError::Lost)?;
        let (answer, answered) = oneshot::channel();
        let job = move || {
            let result = netns.enter().map(|()| work()).map_err(WorkError::from);
            // Who asked may have gone; what was done stays done.
            let _ = answer.send(result);
        };
        std::thread::Builder::new().name("pod".into()).spawn(job).map_err(WorkError::Thread)?;
        answered.await.map_err(|_| WorkError::Lost)?
    }
}
