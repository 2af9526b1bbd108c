//! A ztunnel that does what the agent says, or refuses it, as fast as a test wants.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::task::JoinHandle;

use super::super::zds::message::{RequestKind, WorkloadRequest};
use super::super::zds::{self, Identity, PATIENCE};
use super::{Agent, LONG};
use crate::sys::mutex::lock;
use crate::sys::seqpacket::{Connection, Reception};

/// A ztunnel that takes the pods that are announced to it, and the pods that it has.
pub(super) struct Ztunnel {
    pub has: Arc<Mutex<BTreeMap<String, Option<Identity>>>>,
    task: JoinHandle<()>,
    served: JoinHandle<()>,
}

fn shared(agent: &Agent) -> zds::ServerContext {
    zds::ServerContext { book: agent.book.clone(), figures: agent.figures.clone(), patience: PATIENCE }
}

impl Ztunnel {
    /// Starts a ztunnel that refuses the first `refuses` Adds.
    pub(super) fn start(agent: &Agent, refuses: usize) -> Self {
        Self::slow(agent, refuses, Duration::ZERO)
    }

    /// Starts a ztunnel that needs the time `takes` for each acknowledgement.
    pub(super) fn slow(agent: &Agent, refuses: usize, takes: Duration) -> Self {
        let (ours, theirs) = Connection::pair().unwrap();
        let served = tokio::spawn(zds::serve_one(ours, shared(agent)));
        let has: Arc<Mutex<BTreeMap<String, Option<Identity>>>> = Arc::default();
        let kept = has.clone();
        let task = tokio::spawn(async move {
            theirs.send(b"\x08\x01", None).await.unwrap();
            let (mut refuses, mut buffer, mut snapshot) = (refuses, [0; 1024], false);
            while let Ok((Reception::Packet(length), descriptors)) = theirs.receive_with_descriptors(&mut buffer).await
            {
                let request = WorkloadRequest::decode(&buffer[..length]).unwrap().payload.unwrap();
                let mut answer: &[u8] = b"\x0a\x00";
                if !takes.is_zero() {
                    tokio::time::sleep(takes).await;
                }
                match request {
                    RequestKind::Add(_) if refuses > 0 => {
                        refuses -= 1;
                        answer = b"\x0a\x04\x0a\x02no";
                    }
                    RequestKind::Add(add) => {
                        let meta = std::fs::File::from(descriptors.into_iter().next().unwrap()).metadata().unwrap();
                        lock(&kept).insert(add.uid, Some((meta.dev(), meta.ino())));
                    }
                    RequestKind::Keep(keep) => {
                        assert!(!snapshot, "ztunnel would end");
                        lock(&kept).insert(keep.uid, None);
                    }
                    RequestKind::Del(del) => drop(lock(&kept).remove(&del.uid)),
                    RequestKind::SnapshotSent(_) => {
                        assert!(!std::mem::replace(&mut snapshot, true), "ztunnel would end")
                    }
                }
                if theirs.send(answer, None).await.is_err() {
                    return;
                }
            }
        });
        Self { has, task, served }
    }

    pub(super) async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
        tokio::time::timeout(LONG, self.served).await.unwrap().unwrap();
    }

    pub(super) fn uids(&self) -> Vec<String> {
        lock(&self.has).keys().cloned().collect()
    }
}
