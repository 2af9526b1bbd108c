//! A ztunnel that does what it is told, or not: it dials the agent, takes namespaces, and
//! holds them as a real one does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, send, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use podweir::node::ambient::zds::message::{RequestKind, WorkloadRequest};
use prost::Message;

/// The pods that it has, by UID: with the namespace's inode, or none where it was told to keep it.
pub type Pods = BTreeMap<String, Option<u64>>;

/// A ztunnel; it ends, as by a crash, when this is dropped.
pub struct Ztunnel {
    pods: Arc<Mutex<Pods>>,
    snapshots: Arc<Mutex<usize>>,
    /// The thread ends when it alone has this.
    alive: Arc<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ztunnel {
    /// Starts, and connects again for as long as it is not dropped. `slow`: the time that each
    /// pod takes it.
    pub fn start(path: &Path, slow: Duration) -> Self {
        let (pods, snapshots): (Arc<Mutex<Pods>>, Arc<Mutex<usize>>) = (Arc::default(), Arc::default());
        let alive = Arc::new(());
        let path: PathBuf = path.into();
        let thread = {
            let (pods, snapshots, alive) = (pods.clone(), snapshots.clone(), alive.clone());
            std::thread::spawn(move || {
                while Arc::strong_count(&alive) > 1 {
                    let flags = SockFlag::SOCK_CLOEXEC;
                    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
                    // So that its end is noticed while nothing comes.
                    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
                    if connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).is_ok() {
                        serve(&socket, &pods, &snapshots, slow, &|| Arc::strong_count(&alive) > 1);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        Self { pods, snapshots, alive, thread: Some(thread) }
    }

    pub fn pods(&self) -> Pods {
        self.pods.lock().unwrap().clone()
    }

    /// How often it was told that it knows everything.
    pub fn snapshots(&self) -> usize {
        *self.snapshots.lock().unwrap()
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        self.alive = Arc::default();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &OwnedFd, pods: &Mutex<Pods>, snapshots: &Mutex<usize>, slow: Duration, goes_on: &dyn Fn() -> bool) {
    let say = |bytes: &[u8]| send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
    if say(b"\x08\x01").is_err() {
        return;
    }
    let (mut told, mut snapshot) = (Pods::new(), false);
    loop {
        // As much as a real one reads.
        let mut buffer = [0; 1024];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN) if goes_on() => continue,
            Err(_) => return,
        };
        let length = message.bytes;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made them for us.
                descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        if length == 0 {
            return;
        }
        let request = WorkloadRequest::decode(&buffer[..length]).unwrap().payload.unwrap();
        if matches!(request, RequestKind::Add(_)) {
            std::thread::sleep(slow);
        }
        match request {
            RequestKind::Add(add) => {
                assert_eq!(descriptors.len(), 1);
                let inode = File::from(descriptors.remove(0)).metadata().unwrap().ino();
                told.insert(add.uid, Some(inode));
            }
            RequestKind::Keep(keep) => {
                assert!(!snapshot, "a real one ends now");
                let known = pods.lock().unwrap().get(&keep.uid).copied().flatten();
                told.insert(keep.uid, known);
            }
            RequestKind::Del(del) => drop(told.remove(&del.uid)),
            RequestKind::SnapshotSent(_) => {
                assert!(!std::mem::replace(&mut snapshot, true), "a real one ends now");
                *snapshots.lock().unwrap() += 1;
            }
        }
        if snapshot {
            *pods.lock().unwrap() = told.clone();
        } else {
            pods.lock().unwrap().extend(told.clone());
        }
        if say(b"\x0a\x00").is_err() {
            return;
        }
    }
}
