//! A ztunnel that the tests simulate, and namespaces of pods.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;

use super::super::super::super::inventory::Place;
use super::super::super::figures::Figures;
use super::super::book::{Book, Progress};
use super::super::message::{Ack, RequestKind, Response, WorkloadInfo, WorkloadRequest, WorkloadResponse};
use super::super::{Identity, ServerContext, connection};
use super::{DONE, LONG};
use crate::sys::netns::Netns;
use crate::sys::seqpacket::{Connection, Reception};

/// The agent's side of the connections.
pub(super) struct Side {
    pub(super) shared: ServerContext,
    registry: prometheus_client::registry::Registry,
}

impl Side {
    pub(super) fn new(patience: Duration) -> Self {
        let figures = Arc::new(Figures::default());
        let mut registry = prometheus_client::registry::Registry::default();
        figures.register(&mut registry);
        Self { shared: ServerContext { book: Arc::new(Book::default()), figures, patience }, registry }
    }

    pub(super) fn book(&self) -> &Book {
        &self.shared.book
    }

    /// Connects a ztunnel, which greets with `hello` or not at all.
    pub(super) async fn connect(&self, hello: Option<&[u8]>) -> Ztunnel {
        let (ours, theirs) = Connection::pair().unwrap();
        let task = tokio::spawn(connection::serve(ours, self.shared.clone()));
        if let Some(hello) = hello {
            theirs.send(hello, None).await.unwrap();
        }
        Ztunnel { end: theirs, task }
    }

    pub(super) fn counted(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let found = text.lines().any(|l| l == line);
        if !found {
            eprintln!("{line} is not in\n{text}");
        }
        found
    }
}

pub(super) struct Ztunnel {
    pub(super) end: Connection,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Ztunnel {
    pub(super) async fn packet(&self) -> Option<(RequestKind, Vec<OwnedFd>)> {
        let mut buffer = [0; 1024];
        match self.end.receive_with_descriptors(&mut buffer).await.unwrap() {
            (Reception::End, _) => None,
            (Reception::Packet(length), descriptors) => {
                let request = WorkloadRequest::decode(&buffer[..length]).unwrap();
                Some((request.payload.unwrap(), descriptors))
            }
        }
    }

    /// The next request of the agent, in words.
    pub(super) async fn told(&self) -> String {
        let Some((request, descriptors)) = self.packet().await else { return "the end".into() };
        if !matches!(request, RequestKind::Add(_)) {
            assert!(descriptors.is_empty());
        }
        match request {
            RequestKind::Add(add) => {
                assert_eq!(descriptors.len(), 1);
                let info = add.workload_info.unwrap();
                assert_eq!((info.namespace.as_str(), info.service_account.as_str()), ("shop", "account"));
                format!("add {} {}", add.uid, identity(&descriptors[0]).1)
            }
            RequestKind::Keep(keep) => format!("keep {}", keep.uid),
            RequestKind::Del(del) => format!("del {}", del.uid),
            RequestKind::SnapshotSent(_) => "snapshot".into(),
        }
    }

    pub(super) async fn say(&self, packet: &[u8]) {
        self.end.send(packet, None).await.unwrap();
    }

    pub(super) async fn refuse(&self, error: &str) {
        self.say(&refusal(error)).await;
    }

    /// Expects these requests, in this order, and acknowledges each.
    pub(super) async fn take(&self, what: &[&str]) {
        for expected in what {
            assert_eq!(self.told().await, *expected);
            self.say(DONE).await;
        }
    }

    /// Waits until the agent's side has ended the connection.
    pub(super) async fn ended(self) {
        tokio::time::timeout(LONG, self.task).await.expect("the connection is not closed").unwrap();
    }
}

fn refusal(error: &str) -> Vec<u8> {
    WorkloadResponse { payload: Some(Response::Ack(Ack { error: error.into() })) }.encode_to_vec()
}

pub(super) fn identity(descriptor: &impl AsFd) -> Identity {
    let meta = File::from(descriptor.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
    (meta.dev(), meta.ino())
}

/// A network namespace that is held by a process of its own, or this process's own.
pub(super) struct Space {
    pub(super) process: Option<Child>,
    path: PathBuf,
}

impl Space {
    pub(super) fn own() -> Self {
        Self { process: None, path: "/proc/self/ns/net".into() }
    }

    pub(super) fn another() -> Self {
        let mut unshare = Command::new("unshare");
        let mut process = unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It answers when it is where it should be.
        use std::io::{Read, Write};
        process.stdin.as_mut().unwrap().write_all(b".").unwrap();
        process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let path = format!("/proc/{}/ns/net", process.id()).into();
        Self { process: Some(process), path }
    }

    pub(super) fn place(&self) -> Place {
        let netns = Netns::open(&self.path).unwrap();
        let identity = netns.identity().unwrap();
        Place { netns: Arc::new(netns), identity }
    }

    pub(super) fn inode(&self) -> u64 {
        self.place().identity.1
    }

    /// How many of this process's descriptors lead to the namespace.
    pub(super) fn held(&self) -> usize {
        let identity = std::fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino())).unwrap();
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.filter(|fd| {
            let leads_to = std::fs::read_link(fd.path()).unwrap_or_default();
            leads_to.to_string_lossy().starts_with("net:")
                && std::fs::metadata(fd.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
        })
        .count()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

pub(super) fn info(name: &str) -> WorkloadInfo {
    WorkloadInfo { name: name.into(), namespace: "shop".into(), service_account: "account".into() }
}

pub(super) fn announce(book: &Book, uid: &str, space: &Space) -> watch::Receiver<Progress> {
    book.announce(&uid.into(), info(uid), space.place())
}

pub(super) async fn until(progress: &mut watch::Receiver<Progress>, wanted: impl Fn(&Progress) -> bool) -> Progress {
    tokio::time::timeout(LONG, progress.wait_for(|progress| wanted(progress))).await.unwrap().unwrap().clone()
}
