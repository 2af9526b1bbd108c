//! What the agent says of itself: the node's condition, readiness and `status` at the start, while
//! others work against it, and while its sockets are lost.

use serde_json::{Value, json};

use super::server::{Fault, What};
use super::{LIST, Node, Pod, ambient, uid};
use crate::plugin::sidecar;

const TYPE: &str = "podweir.dev/Intercepting";
/// Long ago, and a time that no clock tells now.
const BEFORE: &str = "2020-01-01T00:00:00Z";

/// What was told of the condition, in order, without the questions what there is.
fn told(node: &Node) -> Vec<Value> {
    let bodies = node.server.asked(What::Condition).into_iter().map(|asked| asked.body);
    bodies.map(|body| body["status"]["conditions"][0].clone()).filter(|one| !one.is_null()).collect()
}

#[test]
fn an_agent_that_starts_leaves_the_condition_as_it_is_until_it_knows_better() {
    for (status, kept) in [("True", true), ("False", false)] {
        let mut node = Node::new();
        let present = json!({ "type": TYPE, "status": status, "lastTransitionTime": BEFORE });
        node.server.set_condition(present);
        node.server.fault(|asked, _| (asked.what == What::List).then_some(Fault::Hang));
        node.start(&[]);
        node.wait("what it waits for", || {
            node.ask("/readyz").filter(|(code, text)| *code == 503 && text.contains("the API server has not told"))
        });
        assert_eq!(node.server.count(What::Condition), 0, "it knows nothing yet");
        node.server.behave();
        node.wait_until_ready();
        let first = node.wait("the condition", || told(&node).into_iter().next());
        assert_eq!(first["status"], "True", "{first}");
        assert_eq!(first["lastTransitionTime"] == BEFORE, kept, "{first}");
    }
}

#[test]
fn an_agent_that_cannot_know_says_so_after_a_while() {
    let mut node = Node::new();
    node.server.fault(|asked, _| (asked.what == What::List).then_some(Fault::Hang));
    node.start(&[]);
    let first = node.wait("the condition", || told(&node).into_iter().next());
    assert_eq!((&first["status"], &first["reason"]), (&json!("False"), &json!("NotSynced")));
}

#[test]
fn while_another_program_has_its_way_nobody_says_that_the_entry_is_there() {
    let node = Node::running(&[]);
    let list = node.path("net.d/10-pods.conflist");
    let says = || {
        let (code, text) = node.ask("/readyz")?;
        (code == 503 && text.contains("was taken out of")).then_some(text)
    };
    // It takes the entry out whenever it is there, and the pauses grow.
    let text = node.wait("a pause", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        says()
    });
    assert!(text.contains("by another program") && text.contains("written again within"), "{text}");
    node.wait("the condition", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        told(&node).into_iter().find(|one| one["status"] == "False" && one["reason"] == "TakenOut")
    });
    let at_last = node.wait("a longer pause", || {
        if node.has_entry() {
            std::fs::write(&list, LIST).unwrap();
        }
        says().filter(|text| text.contains("within 8 s"))
    });
    assert!(at_last.contains("cni.exclusive=false"), "{at_last}");
    // In it the binary is kept, and everybody says the same.
    assert_eq!((node.metric("podweir_chain_effective"), node.metric("podweir_intercepting")), (0.0, 0.0));
    let (_, status) = node.person(&["status"]);
    assert!(status.contains("was taken out of") && !status.contains("ready    yes"), "{status}");
    std::fs::remove_file(node.path("bin/podweir")).unwrap();
    node.wait("the binary", || node.path("bin/podweir").exists().then_some(()));
    node.wait("the entry", || node.has_entry().then_some(()));
    node.wait_until_ready();
}

#[test]
fn a_socket_that_is_lost_is_made_again_or_told() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    let socket = node.run_dir().join("node.sock");
    std::fs::remove_file(&socket).unwrap();
    // A pod that starts waits for it.
    node.add(&pod).call().ok();
    assert!(pod.has_rules());
    node.wait_for_log("the agent's socket is not at");
    // Its path is taken by something that nobody may remove.
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    let (_, text) = node.wait("what is wrong", || {
        node.ask("/readyz").filter(|(code, text)| *code == 503 && text.contains("the agent's socket is not at"))
    });
    assert!(text.contains("is there and is no socket"), "{text}");
    node.wait("the condition", || told(&node).into_iter().find(|one| one["reason"] == "SocketLost"));
    std::fs::remove_dir(&socket).unwrap();
    node.wait_until_ready();
    // The whole folder goes.
    std::fs::rename(node.run_dir(), node.path("gone")).unwrap();
    node.wait("the socket", || socket.exists().then_some(()));
    node.wait_until_ready();
}

#[test]
fn ztunnels_find_their_socket_again() {
    let mut node = ambient::node(&[]);
    ambient::start(&mut node, &[]);
    node.wait_until_ready();
    let socket = ambient::socket(&node);
    std::fs::remove_file(&socket).unwrap();
    let ztunnel = super::ztunnel::Ztunnel::start(&socket, std::time::Duration::ZERO);
    node.wait("a ztunnel to be told of everything", || (ztunnel.snapshots() == 1).then_some(()));
    drop(ztunnel);
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    node.wait("what is wrong", || {
        node.ask("/readyz").filter(|(code, text)| *code == 503 && text.contains("the socket for ztunnels is not at"))
    });
    std::fs::remove_dir(&socket).unwrap();
    node.wait_until_ready();
}

/// A pod that runs without rules, made so many seconds from now.
fn missed(node: &Node, number: u32, seconds: i64) -> Pod {
    let mut pod = Pod::of(&format!("web-{number}"), number, sidecar(json!({})));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let made = jiff::Timestamp::from_second(i64::try_from(now).unwrap() + seconds).unwrap();
    pod.manifest["metadata"]["creationTimestamp"] = made.to_string().into();
    assert_eq!(pod.manifest["metadata"]["uid"], uid(number));
    node.process(1000 + number, &pod, &node.path("proc"));
    pod
}

#[test]
fn a_pod_for_which_no_add_came_accuses_the_chain_as_long_as_it_is_there() {
    for heal in ["true", "false"] {
        let mut node = Node::new();
        node.start(&[&format!("--heal={heal}"), "--verify-interval=1s"]);
        node.wait_until_ready();
        // The clocks may differ by some seconds.
        let near = missed(&node, 1, 30);
        node.server.set(&near.manifest);
        let looked = |number: f64| {
            node.wait("a look", || {
                (node.metric("podweir_verifications_total{result=\"nothing\"}") >= number).then_some(())
            });
        };
        looked(1.0);
        node.wait_until_ready();
        assert!(!node.log().contains("ChainNotUsed"));
        let far = missed(&node, 2, 600);
        node.server.set(&far.manifest);
        looked(2.0);
        let (_, text) = node.wait("what is wrong", || node.ask("/readyz").filter(|(code, _)| *code == 503));
        assert!(text.contains("shop/web-2 was started without the plugin"), "{text}");
        node.wait("the condition", || told(&node).into_iter().find(|one| one["reason"] == "ChainNotUsed"));
        // The entry is in the chain all the same: alerts go by what the condition says.
        let gauges = || (node.metric("podweir_intercepting"), node.metric("podweir_chain_effective"));
        assert_eq!(gauges(), (0.0, 1.0));
        // It goes, and nobody else comes.
        node.server.delete("shop", "web-2");
        node.wait_until_ready();
        assert_eq!(gauges(), (1.0, 1.0));
    }
}

#[test]
fn a_pod_that_multus_was_not_asked_for_is_told_with_its_annotation() {
    let mut node = Node::new();
    node.start(&["--chain=standalone", "--heal=false"]);
    node.wait_until_ready();
    let pod = missed(&node, 1, 600);
    node.server.set(&pod.manifest);
    let found = || told(&node).into_iter().find(|one| one["reason"] == "ChainNotUsed");
    let message = node.wait("the condition", found)["message"].to_string();
    for words in
        ["pod shop/web-1", "k8s.v1.cni.cncf.io/networks", "NetworkAttachmentDefinition podweir", "--cni-conf-dir"]
    {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn what_an_agent_in_ambient_mode_cannot_do_is_in_the_condition() {
    for ambient in [true, false] {
        let mut node = Node::new();
        let socket = format!("--ztunnel-socket={}", ambient::socket(&node).display());
        let flags = ["--ambient", &socket];
        let without = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"];
        node.start_by(&without, if ambient { &flags } else { &[] });
        node.wait_for_log("the agent lacks CAP_SYS_ADMIN");
        let first = node.wait("the condition", || told(&node).into_iter().next());
        if ambient {
            assert_eq!((&first["status"], &first["reason"]), (&json!("False"), &json!("NotCapable")), "{first}");
            assert!(first["message"].as_str().unwrap().contains("securityContext.capabilities"), "{first}");
        } else {
            // The runtime runs the plugin, with rights of its own.
            assert_eq!(first["status"], "True", "{first}");
        }
    }
}
