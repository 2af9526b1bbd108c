//! The lock of a network namespace: it excludes whoever works there, from wherever, and
//! nobody else can take it.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use podweir::sys::lock::{LockError, acquire};
use serde_json::json;

use crate::fixture::{Namespace, PODWEIR};
use crate::plugin::{Cluster, sidecar};

/// Nobody, without a capability.
const NOBODY: [&str; 6] =
    ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"];

#[test]
fn what_anybody_can_lock_or_bind_stops_nobody() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let namespace = &cluster.namespace;
    let mut nobody = namespace.run(|| {
        let hold = "exec 9</proc/self/ns/net; flock -x 9; echo held; read -r _";
        let mut command = Command::new("setpriv");
        command.args(NOBODY).args(["sh", "-c", hold]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    });
    let mut said = [0; 5];
    nobody.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"held\n");
    let arguments = ["init", "--lock-timeout", "100ms"];
    for _ in 0..3 {
        namespace.ok(&arguments);
    }
    cluster.add().call().ok();
    cluster.add().verb("CHECK").call().ok();
    namespace.ok(&["clean", "--lock-timeout", "100ms"]);
    drop(nobody.stdin.take());
    nobody.wait().unwrap();
}

#[test]
fn only_an_administrator_of_the_network_can_take_it() {
    let namespace = Namespace::new();
    // By its own means: `clean` on nothing takes the lock, and no more.
    let clean = [&NOBODY[..], &[PODWEIR, "clean"]].concat();
    let output = namespace.command("setpriv", &clean, &[]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("cannot lock the network namespace") && log.contains("CAP_NET_ADMIN"), "{log}");
    // A port of the same netlink family is to be had by anybody, and changes nothing.
    let _squatters: Vec<Socket> = namespace.run(|| {
        let mut bound = Vec::new();
        for port in 1..200 {
            let mut socket = Socket::new(12).unwrap();
            socket.bind(&SocketAddr::new(port, 0)).unwrap();
            bound.push(socket);
        }
        bound
    });
    namespace.ok(&["init", "--lock-timeout", "100ms"]);
}

#[test]
fn it_excludes_runs_of_other_containers_and_of_one_namespace_only() {
    let (namespace, other) = (Namespace::new(), Namespace::new());
    let held = namespace.lock();
    other.ok(&["init", "--lock-timeout", "100ms"]);
    let container = ["--pid", "--fork", "--mount-proc", "--mount", PODWEIR, "init", "--lock-timeout", "100ms"];
    let output = namespace.command("unshare", &container, &[]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("network namespace is locked") && log.contains("not seen from here"), "{log}");
    drop(held);
    namespace.ok(&["init"]);
}

#[test]
fn many_takers_exclude_each_other_and_all_get_their_turn() {
    let namespace = Namespace::bare("");
    let (inside, turns) = (AtomicBool::new(false), AtomicU32::new(0));
    namespace.run(|| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let lock = acquire(Duration::from_secs(60)).unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
                        std::thread::yield_now();
                        inside.store(false, Ordering::SeqCst);
                        turns.fetch_add(1, Ordering::Relaxed);
                        drop(lock);
                    }
                });
            }
        });
        let held = namespace.lock();
        let refused = acquire(Duration::from_millis(5)).err().unwrap();
        assert!(matches!(refused, LockError::Held { ref holder, .. } if holder.contains("(pid ")), "{refused}");
        drop(held);
    });
    assert_eq!(turns.load(Ordering::Relaxed), 200);
}

/// A volume of the type FileOrCreate makes the file for everybody to open.
#[test]
fn an_iptables_lock_that_anybody_can_take_stops_nobody_but_on_a_node() {
    let namespace = Namespace::new();
    std::fs::write(namespace.lock_file(), "").unwrap();
    let mode = |mode| std::fs::set_permissions(namespace.lock_file(), PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let mut nobody = namespace.run(|| {
        let hold = format!("exec 9<{}; flock -x 9; echo held; read -r _", namespace.lock_file().display());
        let mut command = Command::new("setpriv");
        command.args(NOBODY).args(["sh", "-c", &hold]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    });
    let mut said = [0; 5];
    nobody.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"held\n");
    let init = ["init", "--backend", "iptables-legacy", "--lock-timeout", "1s"];
    namespace.ok(&init);
    namespace.ok(&["clean", "--lock-timeout", "1s"]);
    let output = namespace.podweir(&[&init[..], &["--host-network"]].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && log.contains("the iptables lock"), "{log}");
    // One that is root's alone counts.
    mode(0o600);
    assert_eq!(namespace.podweir(&init).status.code(), Some(1));
    drop(nobody.stdin.take());
    nobody.wait().unwrap();
    namespace.ok(&init);
}
