//! At its end: nothing goes, unless the agent itself is being removed.

use serde_json::{Value, json};

use super::server::{Fault, What};
use super::{LIST, Node, Pod};

/// Runs an agent with a DaemonSet, does something, ends it, and tells whether everything is gone.
fn ended(prepare: impl FnOnce(&Node)) -> (bool, Node) {
    let mut node = Node::new();
    node.start(&["--daemon-set=podweir-system/podweir-node"]);
    node.wait_until_ready();
    let pod = Pod::new("web", 1);
    node.server.set(&pod.manifest);
    node.add(&pod).call().ok();
    prepare(&node);
    let begun = std::time::Instant::now();
    assert_eq!(node.end(), Some(0), "{}", node.log());
    // The kubelet kills it after the time that the manifest gives.
    assert!(begun.elapsed().as_secs() < grace(), "{:?}", begun.elapsed());
    assert!(pod.has_rules(), "pods that run keep theirs");
    let gone = [!node.has_entry(), !node.path("bin/podweir").exists(), !node.run_dir().join("node.sock").exists()];
    assert!(gone.iter().all(|one| *one == gone[0]), "half of it: {gone:?}");
    if gone[0] {
        let list: Value = serde_json::from_str(LIST).unwrap();
        assert_eq!(node.chain(), list);
        assert!(!node.run_dir().join("attachments").exists());
    }
    (gone[0], node)
}

fn grace() -> u64 {
    let manifests = include_str!("../../../cni-conf/node.yaml");
    let line = manifests.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_daemon_set_that_is_there_keeps_everything() {
    let (gone, node) = ended(|_| {});
    assert!(!gone);
    assert_eq!(node.server.count(What::DaemonSet), 1);
    assert!(node.log().contains("everything it installed stays"));
}

#[test]
fn with_its_daemon_set_everything_goes() {
    let being_deleted = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "podweir-node", "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    for answer in [Err((404, "NotFound")), Ok(being_deleted), Err((401, "Unauthorized"))] {
        let (gone, node) = ended(|node| node.server.daemon_set(answer));
        assert!(gone, "{}", node.log());
    }
    // First the rights go, then the account.
    let (gone, _) = ended(|node| {
        node.server.fault(|asked, before| match asked.what {
            What::DaemonSet if before < 3 => Some(Fault::Refuse(403, "Forbidden")),
            What::DaemonSet => Some(Fault::Refuse(401, "Unauthorized")),
            _ => None,
        });
    });
    assert!(gone);
}

#[test]
fn on_any_doubt_nothing_is_removed_and_the_end_comes_in_time() {
    for fault in [Fault::Refuse(403, "Forbidden"), Fault::Refuse(500, "InternalError"), Fault::Hang] {
        let (gone, node) = ended(|node| {
            node.server.fault(move |asked, _| (asked.what == What::DaemonSet).then_some(fault));
        });
        assert!(!gone, "{fault:?}");
        assert!(node.log().contains("cannot tell whether the DaemonSet is still there"), "{}", node.log());
    }
}

#[test]
fn uninstalling_by_hand_takes_everything_and_does_so_twice() {
    let mut node = Node::running(&[]);
    node.kill();
    let uninstall = || {
        let folders = ["cni-bin-dir=bin", "cni-conf-dir=net.d"].map(|pair| {
            let (flag, name) = pair.split_once('=').unwrap();
            format!("--{flag}={}", node.path(name).display())
        });
        node.person(&["uninstall", &folders[0], &folders[1]])
    };
    for _ in 0..2 {
        let (status, text) = uninstall();
        assert_eq!(status, Some(0), "{text}");
        assert!(!node.has_entry() && !node.path("bin/podweir").exists());
    }
}
