//! The connection of one ztunnel: a greeting, then one request after the other, each acknowledged before
//! the next. Only its place in the order says which request an acknowledgement belongs to, so a
//! connection is closed if an acknowledgement is missing or comes unasked.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::sys::seqpacket::{Connection, Reception};

use super::super::figures::Figures;
use super::book::{Book, Do, Letter};
use super::message::{self, LONGEST_REQUEST, LONGEST_RESPONSE, Version};
use super::tell::Tell;

/// The most characters of a ztunnel's error that are repeated: it may come with a backtrace.
const LONGEST_QUOTE: usize = 300;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("it closed the connection")]
    Closed,
    #[error("it has not {what} within {} s", .within.as_secs_f64())]
    Late { what: &'static str, within: Duration },
    #[error("it greets with version {version} of ZDS, and podweir speaks version 1")]
    OtherVersion { version: i32 },
    #[error("its {what} makes no sense: {problem}")]
    Nonsense { what: &'static str, problem: String },
    #[error("it sent {bytes} bytes without having been asked anything")]
    Unasked { bytes: usize },
    #[error("it does not take that the snapshot is complete: {0}")]
    Snapshot(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What connections share.
#[derive(Debug, Clone)]
pub struct ServerContext {
    pub book: Arc<Book>,
    pub figures: Arc<Figures>,
    /// How long greeting, writing and an acknowledgement may take.
    pub patience: Duration,
}

/// Serves a ztunnel until its connection ends.
pub(super) async fn serve(connection: Connection, shared: ServerContext) {
    let pid = connection.peer().map_or(0, |(_, pid)| pid);
    let mut buffer = vec![0; LONGEST_RESPONSE];
    if let Err(ended) = greeting(&connection, &shared, &mut buffer).await {
        shared.figures.disconnected("greeting");
        warn!(pid, "a ztunnel connected and did not get to work: {ended}");
        return;
    }
    let (number, wake) = shared.book.join();
    shared.figures.connected();
    info!(pid, ztunnel = number, "a ztunnel is connected");
    let mut line = Client { connection, shared, number, buffer, in_flight: None, since: Instant::now() };
    let ended = loop {
        if let Err(ended) = line.step(&wake).await {
            break ended;
        }
    };
    line.shared.book.leave(number, line.in_flight.as_ref(), &ended.to_string(), Instant::now());
    line.shared.figures.left(word(&ended));
    match ended {
        ConnectionEnd::Closed => info!(pid, ztunnel = number, "a ztunnel has gone: {ended}"),
        _ => {
            warn!(pid, ztunnel = number, "the connection to a ztunnel is closed: {ended}; it connects again by itself")
        }
    }
}

/// The cause of an end as a word for the metrics.
fn word(ended: &ConnectionEnd) -> &'static str {
    match ended {
        ConnectionEnd::Closed => "closed",
        ConnectionEnd::Late { .. } => "late",
        ConnectionEnd::OtherVersion { .. } | ConnectionEnd::Nonsense { .. } | ConnectionEnd::Unasked { .. } => {
            "nonsense"
        }
        ConnectionEnd::Snapshot(_) => "snapshot",
        ConnectionEnd::Io(_) => "io",
    }
}

async fn greeting(connection: &Connection, shared: &ServerContext, buffer: &mut [u8]) -> Result<(), ConnectionEnd> {
    let received = within(shared.patience, "greeted", connection.receive(buffer)).await?;
    let packet = whole(received, buffer, "greeting")?;
    let version =
        message::hello(packet).map_err(|e| ConnectionEnd::Nonsense { what: "greeting", problem: e.to_string() })?;
    match version == Version::V1 as i32 {
        true => Ok(()),
        false => Err(ConnectionEnd::OtherVersion { version }),
    }
}

/// Waits for `work`, at most for `patience`.
async fn within<T>(
    patience: Duration,
    what: &'static str,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ConnectionEnd> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ConnectionEnd::Late { what, within: patience }),
    }
}

/// The bytes of a packet that was received whole.
fn whole<'a>(received: Reception, buffer: &'a [u8], what: &'static str) -> Result<&'a [u8], ConnectionEnd> {
    match received {
        Reception::End => Err(ConnectionEnd::Closed),
        Reception::Packet(length) => buffer.get(..length).ok_or_else(|| ConnectionEnd::Nonsense {
            what,
            problem: format!("it has {length} bytes, and at most {LONGEST_RESPONSE} are read"),
        }),
    }
}

/// A ztunnel that has greeted.
struct Client {
    connection: Connection,
    shared: ServerContext,
    number: u64,
    buffer: Vec<u8>,
    /// The request that is not acknowledged yet.
    in_flight: Option<Tell>,
    /// When the ztunnel had greeted.
    since: Instant,
}

impl Client {
    /// Sends the next request and reads the answer, or waits until there is a request.
    async fn step(&mut self, wake: &tokio::sync::Notify) -> Result<(), ConnectionEnd> {
        match self.shared.book.next(self.number, Instant::now()) {
            Do::Send(letter) => self.tell(letter).await,
            Do::Wait(until) => {
                let alarm = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    received = self.connection.receive(&mut self.buffer) => match received? {
                        Reception::End => Err(ConnectionEnd::Closed),
                        Reception::Packet(bytes) => Err(ConnectionEnd::Unasked { bytes }),
                    },
                    () = wake.notified() => Ok(()),
                    () = alarm => Ok(()),
                }
            }
        }
    }

    async fn tell(&mut self, letter: Letter) -> Result<(), ConnectionEnd> {
        let Letter { tell, packet, netns } = letter;
        let started = Instant::now();
        if packet.len() > LONGEST_REQUEST {
            let problem = format!(
                "what ztunnel has to be told of it takes {} bytes, and it reads {LONGEST_REQUEST}",
                packet.len()
            );
            self.acknowledged(&tell, Err(problem), started);
            return Ok(());
        }
        let patience = self.shared.patience;
        self.in_flight = Some(tell.clone());
        let descriptor = netns.as_ref().map(|netns| netns.as_fd());
        within(patience, "read what it was told", self.connection.send(&packet, descriptor)).await?;
        let received = within(patience, "acknowledged", self.connection.receive(&mut self.buffer)).await?;
        let packet = whole(received, &self.buffer, "acknowledgement")?;
        let result =
            message::ack(packet).map_err(|problem| ConnectionEnd::Nonsense { what: "acknowledgement", problem })?;
        // From here on the namespace is no business of ours.
        drop(netns);
        self.in_flight = None;
        let result = result.map_err(|error| shortened(&error));
        if let (Tell::SnapshotSent, Err(error)) = (&tell, &result) {
            return Err(ConnectionEnd::Snapshot(error.clone()));
        }
        self.acknowledged(&tell, result, started);
        Ok(())
    }

    fn acknowledged(&self, tell: &Tell, result: Result<(), String>, started: Instant) {
        let uid = tell.uid().map_or("", |uid| uid);
        self.shared.figures.acknowledged(tell.word(), result.is_ok(), started.elapsed());
        match &result {
            Ok(()) if *tell == Tell::SnapshotSent => {
                let ms = self.since.elapsed().as_secs_f64() * 1000.0;
                info!(ztunnel = self.number, pods = self.shared.book.len(), ms, "a ztunnel knows of every pod");
            }
            Ok(()) => debug!(ztunnel = self.number, uid, "{} is acknowledged", tell.word()),
            Err(error) => warn!(ztunnel = self.number, uid, "ztunnel refuses {}: {error}", tell.word()),
        }
        self.shared.book.acknowledged(self.number, tell, result, Instant::now());
    }
}

/// The beginning of an error's first line.
fn shortened(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default().trim();
    match line.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        // An error is an error even where it says nothing.
        None if line.is_empty() => "it gives no reason".into(),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_error_with_its_backtrace_the_first_line_is_kept() {
        assert_eq!(shortened("failed to bind: in use\n   0: std::backtrace\n"), "failed to bind: in use");
        assert_eq!(shortened(&"ä".repeat(2000)).chars().count(), LONGEST_QUOTE + 1);
        assert_eq!(shortened("\n\n"), "it gives no reason");
    }
}
