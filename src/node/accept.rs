//! The loop of a server: so many connections at once; who finds no place waits in the socket's
//! own queue.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::sys::seqpacket::{Connection, Listener};

/// How long to wait where a connection cannot be taken. Descriptors have run out mostly, and
/// waiting gives some back.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections are taken from.
pub(super) trait Accept {
    type Stream;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for Listener {
    type Stream = Connection;

    async fn next(&self) -> io::Result<Connection> {
        self.accept().await
    }
}

/// The next connection, however often none can be taken before. `what` it is for is said where
/// that is so.
pub(super) async fn next<L: Accept>(listener: &L, what: &str) -> L::Stream {
    loop {
        match listener.next().await {
            Ok(stream) => return stream,
            Err(error) => {
                warn!("cannot take a connection {what}: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Has every connection answered, for ever, at most `at_once` at a time; `what` they are for.
pub(super) async fn serve<L: Accept, F>(listener: L, what: &str, at_once: usize, answer: impl Fn(L::Stream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(at_once));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let answered = answer(next(&listener, what).await);
        tokio::spawn(async move {
            answered.await;
            drop(place);
        });
    }
}
