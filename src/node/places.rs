//! Where the network namespaces of pods are: as the plugin reported them or kept them on disk while no
//! agent ran, or by the processes of a pod in the node's /proc. Never the node's own.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::cni::agent::message::AttachmentName;
use crate::cni::state::{KeptNetns, Store};
use crate::sys::mutex::lock;
use crate::sys::netns::{self, Netns};

use super::inventory::Place;
use super::processes;

/// How long the result of a look into the node's /proc is used.
const PROCESSES_AGE: Duration = Duration::from_secs(1);

/// The paths of pods' network namespaces, by the pods' UIDs.
type NetworkNamespaces = HashMap<String, PathBuf>;

/// The ways to pods' network namespaces.
#[derive(Debug)]
pub(super) struct Places {
    run_dir: PathBuf,
    host_proc: PathBuf,
    /// The namespaces of pods that have processes, and when that was looked up.
    processes: Mutex<Option<(Instant, Arc<NetworkNamespaces>)>>,
    /// Attachments as the plugin told of them, or kept them on disk while no agent ran, by UID.
    kept: Mutex<HashMap<String, (AttachmentName, KeptNetns)>>,
}

impl Places {
    /// `run_dir` is where the plugin keeps attachments, `host_proc` the node's /proc.
    pub(super) fn new(run_dir: &Path, host_proc: &Path) -> Self {
        Self {
            run_dir: run_dir.into(),
            host_proc: host_proc.into(),
            processes: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Takes note of the attachments that the plugin kept on disk while no agent ran.
    pub(super) fn read_attachments(&self) {
        let (found, problems) = Store::new(&self.run_dir).all();
        problems.iter().for_each(|problem| warn!("an attachment cannot be used: {problem}"));
        for (attachment, state) in found {
            let (Some(uid), Some(netns)) = (state.uid, state.netns) else { continue };
            let name = AttachmentName { container: attachment.container_id, interface: attachment.ifname };
            // Of several the newest is the pod's sandbox of today.
            self.keep(uid, name, netns);
        }
    }

    /// Keeps an attachment for the pod that it belongs to.
    pub(super) fn keep(&self, uid: String, attachment: AttachmentName, netns: KeptNetns) {
        lock(&self.kept).insert(uid, (attachment, netns));
    }

    /// The attachment that is kept for a pod, if its path still leads to the pod's namespace.
    pub(super) fn kept(&self, uid: &str) -> Option<(AttachmentName, Place)> {
        let (attachment, netns) = lock(&self.kept).get(uid).cloned()?;
        match self.open(&netns.path) {
            Ok(place) if place.identity == netns.identity => Some((attachment, place)),
            // It was taken down, or this agent cannot see the path.
            _ => {
                self.forget(uid);
                None
            }
        }
    }

    /// Forgets the attachment that is kept for a pod.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.kept).remove(uid);
    }

    /// The namespace of a pod, by one of its processes.
    pub(super) async fn of_processes(self: &Arc<Self>, uid: &str) -> Option<Place> {
        let (places, wanted) = (self.clone(), uid.to_owned());
        let found = tokio::task::spawn_blocking(move || places.processes().get(&wanted).cloned()).await;
        self.open(&found.ok().flatten()?).inspect_err(|e| warn!(pod = uid, "{e}")).ok()
    }

    /// The resolv.conf of a pod whose namespace has this identity; `None` if the pod has no process yet,
    /// or the file is not there.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(super) async fn resolv_conf(self: &Arc<Self>, uid: &str, identity: (u64, u64)) -> io::Result<Option<String>> {
        let (places, uid) = (self.clone(), uid.to_owned());
        let work = move || match places.processes().get(&uid) {
            Some(netns) => match processes::resolv_conf(netns, identity) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                read => read.map(Some),
            },
            None => Ok(None),
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    /// Opens a network namespace, unless it is the node's own.
    ///
    /// # Errors
    /// The path leads to no network namespace, or to the node's, or one of the two cannot be identified.
    pub(super) fn open(&self, path: &Path) -> Result<Place, String> {
        let netns = Netns::open(path).map_err(|e| e.to_string())?;
        let identity = netns.identity().map_err(|e| format!("cannot look at {}: {e}", path.display()))?;
        let host = Netns::open(&self.host_proc.join("1/ns/net"))
            .and_then(|host| host.identity().map_err(|source| netns::NetnsError::Open { path: path.into(), source }));
        match host {
            Ok(host) if host == identity => Err(format!("{} is the node's own network namespace", path.display())),
            Err(e) => Err(format!("cannot tell the node's own network namespace: {e}")),
            Ok(_) => Ok(Place { netns: Arc::new(netns), identity }),
        }
    }

    fn processes(&self) -> Arc<NetworkNamespaces> {
        let mut processes = lock(&self.processes);
        if let Some((at, known)) = &*processes
            && at.elapsed() < PROCESSES_AGE
        {
            return known.clone();
        }
        let found = Arc::new(processes::namespaces(&self.host_proc));
        *processes = Some((Instant::now(), found.clone()));
        found
    }
}
