//! The loop of a server that answers a limited number of connections at once; further clients wait in
//! the socket's own queue.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::sys::seqpacket::{Connection, Listener};

/// The pause after a connection could not be accepted. Mostly the descriptors have run out, and some are
/// given back meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens for connections.
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

/// The next connection, however many attempts to accept one fail before. `what` the connections are for
/// is named in the warning about such a failure.
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

/// Answers every connection, for ever, at most `at_once` at a time. `what` the connections are for is
/// named in warnings.
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
