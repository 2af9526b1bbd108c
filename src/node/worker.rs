//! Work in a pod's network namespace, on threads of its own: a thread enters the namespace, does one job
//! there, and ends, so that no thread is ever left in the wrong namespace.

use std::io;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::sys::netns::{Netns, NetnsError};

/// How many jobs run at a time: more would take the node's processors from the pods.
const AT_ONCE: usize = 2;
/// How many more jobs run for pods that start: other pods, which can make work in their namespaces last
/// long, do not keep them waiting.
const MORE_FOR_STARTS: usize = 1;

/// Who waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A pod's start, and the container runtime with it.
    Start,
    /// Nobody: the work may as well be done later.
    Background,
}

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
    /// The places that only the starts of pods get.
    for_starts: Arc<Semaphore>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), for_starts: Arc::new(Semaphore::new(MORE_FOR_STARTS)) }
    }
}

impl Workers {
    /// Runs `work` in a namespace and gives its result. Waits for a free place first.
    ///
    /// # Errors
    /// The namespace cannot be entered, no thread can be started, or the thread ended without an answer.
    pub async fn run<T: Send + 'static>(
        &self,
        urgency: Urgency,
        netns: Arc<Netns>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        self.thread(urgency, move || netns.enter().map(|()| work()).map_err(WorkError::from)).await?
    }

    /// Does work on a thread, in the namespace of the process.
    async fn thread<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let place = self.places.clone().acquire_owned();
        let place = match urgency {
            Urgency::Background => place.await,
            Urgency::Start => tokio::select! {
                biased;
                place = place => place,
                place = self.for_starts.clone().acquire_owned() => place,
            },
        };
        // The semaphores are never closed.
        let place = place.map_err(|_| WorkError::Lost)?;
        let (answer, answered) = oneshot::channel();
        let job = move || {
            let result = work();
            // The place is the thread's: who asked may have gone while it works.
            drop(place);
            let _ = answer.send(result);
        };
        std::thread::Builder::new().name("pod".into()).spawn(job).map_err(WorkError::Thread)?;
        answered.await.map_err(|_| WorkError::Lost)
    }

    /// Whether a thread can be started and ends, when it is its turn. This waits for ever while all
    /// places are taken by work that never ends.
    pub async fn are_alive(&self) -> bool {
        self.thread(Urgency::Background, || ()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn work_that_never_ends_shows_and_who_stops_waiting_frees_no_place() {
        let workers = Workers::default();
        assert!(workers.are_alive().await);
        let (end, ended) = channel::<()>();
        let ended = Arc::new(std::sync::Mutex::new(ended));
        let own = Arc::new(Netns::open("/proc/self/ns/net".as_ref()).unwrap());
        let mut hanging: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let ended = ended.clone();
                Box::pin(workers.run(Urgency::Background, own.clone(), move || {
                    ended.lock().is_ok_and(|ended| ended.recv().is_ok())
                }))
            })
            .collect();
        for work in &mut hanging {
            assert!(poll_immediate(work).await.is_none(), "it has begun");
        }
        drop(hanging);
        let mut asked = Box::pin(workers.are_alive());
        assert!(poll_immediate(&mut asked).await.is_none());
        tokio::task::yield_now().await;
        assert!(poll_immediate(&mut asked).await.is_none(), "the threads still have their places");
        // A pod that starts waits for none of them.
        for _ in 0..3 {
            assert!(workers.run(Urgency::Start, own.clone(), || true).await.unwrap());
        }
        for _ in 0..AT_ONCE {
            end.send(()).unwrap();
        }
        assert!(asked.await);
    }
}
