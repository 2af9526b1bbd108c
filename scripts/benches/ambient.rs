//! Ambient mode: the rules of one pod, a pod's start up to ztunnel's acknowledgement, what a
//! ztunnel is told of a full node, one change among many in the node's sets, and the agent's memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, send, socket,
};
use podweir::backend::conditions::Conditions;
use podweir::backend::host::HostProbes;
use podweir::backend::iptables::programs::ProgramEnvironment;
use podweir::backend::nftables::survey;
use podweir::config::ambient::HostOptions;
use podweir::config::settings::BackendChoice;
use podweir::node::ambient::zds::message::{RequestKind, WorkloadRequest};
use podweir::sys::netlink::Netlink;
use prost::Message;
use serde_json::{Value, json};

use crate::median;
use crate::namespace::{execute, fresh, run, within};
use crate::node::{Node, kib, manifest, uid};

const PODS: usize = 500;
const RUNS: usize = 200;

/// A ztunnel that takes whatever it is told, at once.
struct Ztunnel {
    /// From the hello to the end of the snapshot; how many pods were in it.
    snapshot: Arc<Mutex<Option<(Duration, usize)>>>,
}

impl Ztunnel {
    fn start(path: &Path) -> Self {
        let snapshot: Arc<Mutex<Option<(Duration, usize)>>> = Arc::default();
        let (path, told) = (path.to_owned(), snapshot.clone());
        std::thread::spawn(move || {
            let socket = loop {
                let socket =
                    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
                if connect(socket.as_raw_fd(), &UnixAddr::new(&path).expect("path")).is_ok() {
                    break socket;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            let begun = Instant::now();
            send(socket.as_raw_fd(), b"\x08\x01", MsgFlags::MSG_NOSIGNAL).expect("hello");
            let mut pods = 0;
            while let Some(request) = receive(&socket) {
                match request {
                    RequestKind::Add(_) => pods += 1,
                    RequestKind::SnapshotSent(_) => *told.lock().expect("lock") = Some((begun.elapsed(), pods)),
                    _ => {}
                }
                // What is to come after the end of the agent is of no interest.
                let _ = send(socket.as_raw_fd(), b"\x0a\x00", MsgFlags::MSG_NOSIGNAL);
            }
        });
        Self { snapshot }
    }

    fn wait(&self) -> (Duration, usize) {
        loop {
            if let Some(told) = *self.snapshot.lock().expect("lock") {
                return told;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The next request; the namespace that came with it is let go of.
fn receive(socket: &OwnedFd) -> Option<RequestKind> {
    let mut buffer = [0; 1024];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let mut iov = [std::io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made them for us.
            raw.into_iter().for_each(|raw| drop(unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let length = message.bytes;
    WorkloadRequest::decode(&buffer[..length]).ok()?.payload
}

/// A pod of ambient mode, as long as one with a sidecar.
fn pod(number: usize) -> Value {
    let mut pod = manifest(number);
    pod["metadata"]["labels"] = json!({ "app": "web", "istio.io/dataplane-mode": "ambient" });
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.remove("sidecar.istio.io/status");
    }
    pod["spec"]["containers"] = json!([{ "name": "app", "image": "localhost/app" }]);
    pod["status"]["podIPs"] = json!([{ "ip": address(number) }]);
    pod
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([10, 244, (number / 250) as u8, (number % 250) as u8 + 1])
}

/// The rules of one pod.
fn rules(podweir: &str) {
    // A machine's own namespace is refused.
    let dry = within(&fresh(), || {
        Command::new(podweir).args(["ambient", "--dry-run", "--backend", "nftables"]).output().expect("dry run")
    });
    assert!(dry.status.success(), "{dry:?}");
    let script = String::from_utf8(dry.stdout).expect("utf-8");
    // On a first installation there is nothing to remove; routing is not nft's, and a comment there.
    let ruleset: String = script.lines().filter(|l| !l.starts_with("delete table")).map(|l| format!("{l}\n")).collect();
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..RUNS {
        let cases: [(&[&str], &str); 3] = [
            (&["/bin/true"], ""),
            (&["nft", "-f", "-"], &ruleset),
            (&[podweir, "ambient", "--backend", "nftables"], ""),
        ];
        for (at, (command, input)) in cases.into_iter().enumerate() {
            times[at].push(run(&fresh(), command, input).0.as_secs_f64() * 1e3);
        }
    }
    let [nothing, nft, own] = times.map(median);
    println!("| /bin/true | {nothing:.2} ms | |");
    println!("| nft -f, the rules of podweir ambient | {nft:.2} ms | |");
    println!("| podweir ambient, first install, native; × nft -f | {own:.2} ms; {:.2} | 0.5 |", own / nft);
}

/// One change in the node's sets, each in one transaction.
fn sets() {
    let node = fresh();
    let (changes, transactions) = within(&node, || {
        let conditions = Conditions {
            rule_comments: false,
            lock_timeout: Duration::from_secs(5),
            programs: ProgramEnvironment::default(),
        };
        let mut probes = HostProbes::open(BackendChoice::Nftables, HostOptions::default(), conditions).expect("probes");
        let all: BTreeMap<IpAddr, String> = (0..PODS).map(|n| (address(n), uid(n))).collect();
        probes.hold(&all).expect("sets");
        // The kernel counts transactions.
        let mut netlink = Netlink::open(Netlink::NETFILTER).expect("socket");
        let mut generation = || survey::tables(&mut netlink).expect("tables").generation;
        let before = generation();
        let mut times = Vec::new();
        for n in 0..RUNS {
            let (ip, uid) = (address(PODS + n), uid(PODS + n));
            let begun = Instant::now();
            probes.change(&[(ip, &uid)], &[]).expect("added");
            probes.change(&[], &[(ip, &uid)]).expect("removed");
            times.push(begun.elapsed().as_secs_f64() * 1e3 / 2.0);
        }
        (median(times), f64::from(generation() - before) / (2 * RUNS) as f64)
    });
    println!(
        "| the node's sets with {PODS} pods, one change; transactions for it | {changes:.2} ms; {transactions} | 2 ms; 1 |"
    );
}

pub fn measure(podweir: &str) {
    println!("| ambient mode | | at most |");
    println!("|---|---:|---:|");
    rules(podweir);
    sets();
    let namespace = fresh();
    // The node's rules are made where the agent is.
    within(&namespace, || agent(podweir));
}

fn agent(podweir: &str) {
    let node = Node::new(podweir);
    let socket = node.folder.join("z.sock");
    let namespaces: Vec<File> = (0..PODS).map(|_| fresh()).collect();
    for (number, namespace) in namespaces.iter().enumerate() {
        node.server.set(&pod(number));
        node.runs(number, namespace);
    }
    let given = format!("--ztunnel-socket={}", socket.display());
    let agent = node.start(&["--ambient", &given, "--kubelet-uid=0"]);
    let pid = agent.child.id();
    let first = Ztunnel::start(&socket);
    let (_, pods) = first.wait();
    assert_eq!(pods, PODS, "a snapshot with every pod");
    node.wait_for_state("enrolled", PODS);
    // Another one, as in an upgrade, when all is known.
    let (took, pods) = Ztunnel::start(&socket).wait();
    println!(
        "| snapshot of {pods} pods to a ztunnel that answers at once | {:.0} ms | 250 ms |",
        took.as_secs_f64() * 1e3
    );
    std::thread::sleep(Duration::from_secs(15));
    println!(
        "| RSS with {PODS} pods in ambient mode; at its highest | {:.1} MiB; {:.1} MiB | 20 MiB |",
        kib(pid, "VmRSS") / 1024.0,
        kib(pid, "VmHWM") / 1024.0
    );
    // A start, and the end of the sandbox, of pods that come besides.
    let mut netconf: Value = serde_json::from_str(&node.netconf(&node.at("run"))).expect("netconf");
    netconf["ambient"] = true.into();
    let netconf = netconf.to_string();
    let mut times = [const { Vec::new() }; 2];
    for n in 0..RUNS {
        let (number, namespace) = (PODS + n, fresh());
        node.server.set(&pod(number));
        // The watch brings it before the kubelet starts it.
        std::thread::sleep(Duration::from_millis(30));
        times[0].push(execute(Command::new("/bin/true"), "").0.as_secs_f64() * 1e3);
        let (took, _) = execute(node.add(number, &format!("a{n}"), &namespace), &netconf);
        times[1].push(took.as_secs_f64() * 1e3);
    }
    let [nothing, add] = times.map(median);
    println!(
        "| ADD of an ambient pod, up to the acknowledgements of two ztunnels; /bin/true | {add:.2} ms; {nothing:.2} ms | 5 ms |"
    );
}
