//! At its end: nothing goes, unless the agent itself is being removed.

use std::thread;

use serde_json::{Value, json};

use super::server::{Fault, What, parameter};
use super::{LIST, Node, Pod};
use crate::api::{Api, TOKEN, kubeconfig};

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
    for answer in [Err((404, "NotFound")), Ok(being_deleted)] {
        let (gone, node) = ended(|node| node.server.daemon_set(answer));
        assert!(gone, "{}", node.log());
        // As long as that may be told.
        let condition = node.server.condition();
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Removed")));
    }
}

/// A runtime that read the chain with the entry starts the plugin until it has read the new one.
#[test]
fn a_pod_that_starts_while_the_plugin_is_taken_away_is_answered() {
    let pod = Pod::new("web", 1);
    let mut node = Node::new();
    node.server.set(&pod.manifest);
    node.server.daemon_set(Err((404, "NotFound")));
    node.start(&["--daemon-set=podweir-system/podweir-node"]);
    node.wait_until_ready();
    let agent = nix::unistd::Pid::from_raw(node.pid().cast_signed());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM).unwrap();
    node.wait("the entry to be out", || (!node.has_entry()).then_some(()));
    node.add(&pod).call().ok();
    assert!(pod.has_rules());
    assert_eq!(node.end(), Some(0), "{}", node.log());
    for gone in ["bin/podweir", "run/node.sock", "run/node.lock", "run/attachments"] {
        assert!(!node.path(gone).exists(), "{gone}");
    }
}

/// Waits until the agent watches its DaemonSet, and nothing but that.
fn wait_for_watch(node: &Node) {
    let begun = || node.server.asked(What::DaemonSets).into_iter().find(|asked| asked.uri.contains("watch=true"));
    let asked = node.wait("the watch of the DaemonSet", begun);
    assert_eq!(parameter(&asked.uri, "fieldSelector"), Some("metadata.name%3Dpodweir-node"), "{}", asked.uri);
}

/// From now on every request is refused, but watches that go on go on.
fn refuse(node: &Node, code: fn(usize) -> u16) {
    node.server.fault(move |asked, before| match asked.what {
        What::DaemonSet => Some(Fault::Refuse(code(before), "Refused")),
        _ => Some(Fault::Refuse(401, "Unauthorized")),
    });
}

/// Rights and account go with the release, before an agent is told to end.
#[test]
fn a_deletion_that_the_watch_told_counts_when_nobody_answers_the_account_any_more() {
    let codes: [fn(usize) -> u16; 3] = [|_| 401, |_| 403, |before| if before < 3 { 403 } else { 401 }];
    thread::scope(|scope| {
        for code in codes {
            scope.spawn(move || {
                let (gone, node) = ended(|node| {
                    wait_for_watch(node);
                    node.wait("the condition", || (node.server.condition()["status"] == "True").then_some(()));
                    node.server.tell_of_daemon_set("DELETED");
                    refuse(node, code);
                });
                assert!(gone, "{}", node.log());
                // That this is so cannot be told any more.
                assert_eq!(node.server.condition()["status"], "True");
                assert!(node.log().contains("it stays what it was told last"), "{}", node.log());
            });
        }
    });
}

/// An expired or revoked token, an account that was made anew, a pod deleted by force, a role
/// that somebody changed: none of it says that the DaemonSet is gone.
#[test]
fn a_refusal_alone_removes_nothing() {
    let codes: [fn(usize) -> u16; 3] = [|_| 401, |_| 403, |before| if before < 3 { 403 } else { 401 }];
    thread::scope(|scope| {
        for code in codes {
            for made_again in [false, true] {
                scope.spawn(move || {
                    let (gone, node) = ended(|node| {
                        wait_for_watch(node);
                        if made_again {
                            node.server.tell_of_daemon_set("DELETED");
                            node.server.tell_of_daemon_set("ADDED");
                        }
                        refuse(node, code);
                    });
                    assert!(!gone, "{}", node.log());
                    assert!(node.log().contains("cannot tell whether the DaemonSet is still there"), "{}", node.log());
                    assert!(node.log().contains("run podweir node uninstall"), "{}", node.log());
                });
            }
        }
    });
}

#[test]
fn a_token_that_was_renewed_is_read_before_a_refusal_is_believed() {
    let (gone, node) = ended(|node| {
        node.server.daemon_set(Err((404, "NotFound")));
        let renewed = format!("{TOKEN}-renewed");
        let config = kubeconfig(&format!("https://{}", node.server.address), Api::authority(), &renewed);
        std::fs::write(node.path("kubeconfig"), config).unwrap();
        node.server.set_token(&renewed);
    });
    assert!(gone, "{}", node.log());
    assert_eq!(node.server.count(What::DaemonSet), 2, "one refused, and one answered");
}

#[test]
fn on_any_doubt_nothing_is_removed_and_the_end_comes_in_time() {
    thread::scope(|scope| {
        for fault in [Fault::Refuse(500, "InternalError"), Fault::Hang] {
            scope.spawn(move || {
                let (gone, node) = ended(|node| {
                    wait_for_watch(node);
                    // Who could not be asked may have made it again.
                    node.server.tell_of_daemon_set("DELETED");
                    node.server.fault(move |asked, _| (asked.what == What::DaemonSet).then_some(fault));
                });
                assert!(!gone, "{fault:?}");
                assert!(node.log().contains("cannot tell whether the DaemonSet is still there"), "{}", node.log());
            });
        }
    });
}

/// What uninstalling by hand says, and its exit status.
fn uninstall(node: &Node, chain: &str) -> (Option<i32>, String) {
    let folders = ["cni-bin-dir=bin", "cni-conf-dir=net.d"].map(|pair| {
        let (flag, name) = pair.split_once('=').unwrap();
        format!("--{flag}={}", node.path(name).display())
    });
    node.person(&["uninstall", &folders[0], &folders[1], &format!("--chain={chain}")])
}

/// A binary that the chain names and that is not there fails every start and end of a pod.
#[test]
fn where_somebody_else_manages_the_chain_the_binary_stays_until_the_entry_is_out() {
    let list: Value = serde_json::from_str(LIST).unwrap();
    let mut with_entry = list.clone();
    with_entry["plugins"].as_array_mut().unwrap().push(json!({ "type": "podweir" }));
    for in_a_drop_in in [false, true] {
        let mut node = Node::new();
        let (chain, drop_in) = (node.path("net.d/10-pods.conflist"), node.path("net.d/pods/50-mesh.conf"));
        let file = if in_a_drop_in { &drop_in } else { &chain };
        std::fs::create_dir(node.path("net.d/pods")).unwrap();
        let text = if in_a_drop_in { with_entry["plugins"][1].to_string() } else { with_entry.to_string() };
        std::fs::write(file, &text).unwrap();
        node.server.daemon_set(Err((404, "NotFound")));
        node.start(&["--daemon-set=podweir-system/podweir-node", "--chain=none"]);
        node.wait("the binary", || node.path("bin/podweir").exists().then_some(()));
        node.wait("the socket", || node.run_dir().join("node.sock").exists().then_some(()));
        std::fs::create_dir_all(node.run_dir().join("attachments")).unwrap();
        let stays = |node: &Node, said: &str| {
            assert!(said.contains(&format!("{} still has the entry", file.display())), "{said}");
            assert!(said.contains("edit that file") && said.contains("bin/podweir stays"), "{said}");
            assert_eq!(&std::fs::read_to_string(file).unwrap(), &text);
            assert!(node.path("bin/podweir").is_file() && node.run_dir().join("attachments").is_dir());
        };
        assert_eq!(node.end(), Some(1), "{}", node.log());
        stays(&node, &node.log());
        let (status, said) = uninstall(&node, "none");
        assert_eq!(status, Some(1), "{said}");
        stays(&node, &said);
        if in_a_drop_in {
            std::fs::remove_file(file).unwrap()
        } else {
            std::fs::write(file, LIST).unwrap()
        }
        let (status, said) = uninstall(&node, "none");
        assert_eq!(status, Some(0), "{said}");
        assert!(!node.path("bin/podweir").exists() && !node.run_dir().join("attachments").exists());
        assert_eq!(node.chain(), list);
    }
}

#[test]
fn uninstalling_by_hand_takes_everything_and_does_so_twice() {
    let mut node = Node::running(&[]);
    let uninstall = |node: &Node| uninstall(node, "merge");
    // An agent that runs would put everything back.
    let (status, text) = uninstall(&node);
    assert!(status != Some(0) && text.contains("podweir's agent runs on this node"), "{text}");
    assert!(text.contains("Remove its DaemonSet first"), "{text}");
    assert!(node.has_entry() && node.path("bin/podweir").exists() && node.run_dir().join("node.sock").exists());
    node.kill();
    for _ in 0..2 {
        let (status, text) = uninstall(&node);
        assert_eq!(status, Some(0), "{text}");
        assert!(!node.has_entry() && !node.path("bin/podweir").exists());
    }
}
