//! The watch of pods while the API server does what it should not.

use serde_json::{Value, json};

use super::server::{Fault, Server, What, parameter};
use super::{Node, Pod, uid};
use crate::plugin::sidecar;

/// The versions that watches began with, in order.
fn versions(server: &Server) -> Vec<u64> {
    let of = |uri: &str| parameter(uri, "resourceVersion").and_then(|version| version.parse().ok());
    server.asked(What::Watch).iter().map(|asked| of(&asked.uri).unwrap_or_default()).collect()
}

fn known(node: &Node) -> u64 {
    node.metric("podweir_cache_pods") as u64
}

/// A pod that nobody looks at.
fn plain(name: &str, number: u32) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop", "uid": uid(number) },
        "spec": { "containers": [{ "name": "app", "image": "x" }] }, "status": { "phase": "Running" } })
}

#[test]
fn a_watch_that_is_dropped_again_and_again_goes_on_where_it_was_and_lists_nothing() {
    let node = Node::running(&[]);
    for turn in 1..=5u32 {
        // A bookmark is the newest that is known.
        node.server.set(&plain(&format!("p{turn}"), turn));
        node.wait("the pod to be known", || (known(&node) == u64::from(turn)).then_some(()));
        let bookmark = node.server.bookmark();
        node.wait("the bookmark to be heard", || (node.metric("podweir_cache_age_seconds") < 1.0).then_some(()));
        node.server.end_watches();
        let begun = turn as usize + 1;
        node.wait("the next watch", || (node.server.count(What::Watch) == begun).then_some(()));
        assert!(versions(&node.server)[turn as usize] >= bookmark - 1, "{:?}", versions(&node.server));
    }
    let versions = versions(&node.server);
    assert!(versions.is_sorted(), "{versions:?}");
    assert_eq!(node.server.count(What::List), 1, "one list, at the start");
    for asked in node.server.asked(What::Watch) {
        let of = |name: &str| parameter(&asked.uri, name);
        assert_eq!(of("allowWatchBookmarks"), Some("true"), "{}", asked.uri);
        assert_eq!(of("fieldSelector"), Some("spec.nodeName%3Dnode1"), "{}", asked.uri);
    }
    let list = &node.server.asked(What::List)[0].uri;
    assert_eq!(parameter(list, "resourceVersion"), Some("0"), "from the server's memory: {list}");
    assert_eq!(parameter(list, "limit"), None, "a page would come from its database: {list}");
    // Nothing of this is a reason for a restart, or for a pod's event.
    assert_eq!(node.ask("/healthz").unwrap().0, 200);
    assert_eq!(node.server.count(What::Event), 0);
}

#[test]
fn what_the_api_server_has_forgotten_is_listed_again_and_pods_that_went_meanwhile_are_forgotten() {
    let node = Node::running(&[]);
    node.server.set(&plain("stays", 1));
    node.server.set(&plain("goes", 2));
    node.wait("both to be known", || (known(&node) == 2).then_some(()));
    node.server.fault(|asked, before| (asked.what == What::Watch && before == 1).then_some(Fault::Gone));
    node.server.set_unseen(&plain("new", 3));
    node.server.end_watches();
    node.wait("the new pod", || (known(&node) == 3).then_some(()));
    assert_eq!(node.server.count(What::List), 2);
    let expired =
        |watch: &str| node.metric(&format!("podweir_watch_restarts_total{{watch=\"{watch}\",cause=\"expired\"}}"));
    assert_eq!(expired("pods"), 1.0);
    node.server.delete("shop", "goes");
    node.wait("it to go", || (known(&node) == 2).then_some(()));
}

#[test]
fn restarts_are_counted_for_the_watch_that_began_again() {
    let mut node = Node::new();
    node.server.fault(|asked, before| {
        (asked.what == What::DaemonSets && before == 0).then_some(Fault::Refuse(500, "InternalError"))
    });
    node.start(&["--daemon-set=podweir-system/podweir-node"]);
    let restarts =
        |watch: &str| node.metric(&format!("podweir_watch_restarts_total{{watch=\"{watch}\",cause=\"list-failed\"}}"));
    node.wait_until_ready();
    node.wait("the restart", || (restarts("daemonset") == 1.0).then_some(()));
    assert_eq!(restarts("pods"), 0.0);
}

#[test]
fn a_server_that_refuses_is_asked_again_with_pauses_and_the_agent_says_that_it_waits() {
    let mut node = Node::new();
    node.server.fault(|asked, before| match (asked.what, before) {
        (What::List, 0) => Some(Fault::Refuse(429, "TooManyRequests")),
        (What::List, 1) => Some(Fault::Refuse(500, "InternalError")),
        (What::List, 2) => Some(Fault::Close),
        (What::Watch, 0) => Some(Fault::Refuse(429, "TooManyRequests")),
        (What::Watch, 1) => Some(Fault::Refuse(503, "ServiceUnavailable")),
        _ => None,
    });
    node.server.set(&plain("a", 1));
    node.start(&[]);
    node.wait("what it waits for", || {
        node.ask("/readyz").filter(|(status, text)| *status == 503 && text.contains("the API server has not told"))
    });
    node.wait_until_ready();
    node.server.set(&plain("b", 2));
    node.wait("the watch to go on", || (known(&node) == 2).then_some(()));
    assert_eq!(node.server.count(What::List), 4, "no more than was refused, and one");
    assert_eq!(node.server.count(What::Watch), 3);
    assert_eq!(node.ask("/healthz").unwrap().0, 200);
}

#[test]
fn a_server_that_hangs_keeps_no_pod_from_starting_and_is_given_up_in_time() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    // Neither the next watch nor anything else is answered, nor is the connection closed.
    node.server.fault(|_, _| Some(Fault::Hang));
    node.server.end_watches();
    node.wait("a watch that hangs", || (node.server.count(What::Watch) == 2).then_some(()));
    node.add(&pod).call().ok();
    assert!(pod.has_rules());
    assert_eq!(node.ask("/healthz").unwrap().0, 200, "a restart would only lose what is known");
    // It is given up by the agent itself; the server has let go of nobody yet.
    node.wait("the next try", || (node.server.count(What::Watch) == 3).then_some(()));
    node.wait_for_log("has not answered within 20 s");
    assert_eq!(node.server.count(What::List), 1);
    node.server.behave();
    node.server.set(&plain("new", 2));
    node.wait("the watch to go on", || (known(&node) == 2).then_some(()));
    assert_eq!(node.server.count(What::List), 1);
}

#[test]
fn a_list_that_stops_in_the_middle_is_given_up_and_begun_again() {
    let mut node = Node::new();
    node.server.set(&plain("a", 1));
    node.server.fault(|asked, before| (asked.what == What::List && before == 0).then_some(Fault::Half));
    node.start(&[]);
    node.wait_until_ready();
    assert_eq!((known(&node), node.server.count(What::List)), (1, 2));
    assert!(node.log().contains("stood still"), "{}", node.log());
}

#[test]
fn events_in_pieces_are_put_together_and_half_an_event_is_none() {
    let node = Node::running(&[]);
    node.server.in_halves(true);
    for number in 1..=3 {
        node.server.set(&plain(&format!("p{number}"), number));
    }
    node.wait("all three", || (known(&node) == 3).then_some(()));
    // Half an event, and then the end of the connection: it comes again, whole.
    node.server.fault(|asked, before| (asked.what == What::Watch && before == 1).then_some(Fault::Half));
    node.server.end_watches();
    node.wait("the next watch", || (node.server.count(What::Watch) == 2).then_some(()));
    let last = node.server.set(&plain("p4", 4));
    node.wait("half of it to be sent", || (node.server.hanging() == 1).then_some(()));
    node.server.behave();
    node.wait("the fourth", || (known(&node) == 4).then_some(()));
    assert_eq!(node.server.count(What::List), 1);
    assert!(versions(&node.server)[2] < last, "{:?}", versions(&node.server));
}

#[test]
fn a_pod_that_is_made_again_under_its_name_while_add_asks_is_another_pod() {
    let (old, new) = (
        Pod::new("web-0", 1),
        Pod::of("web-0", 2, sidecar(json!({ "traffic.sidecar.istio.io/includeInboundPorts": "8080" }))),
    );
    let node = Node::running(&[&old]);
    // The watch is behind: it has the old pod still, and the sandbox is for the new one.
    node.server.set_unseen(&new.manifest);
    node.add(&new).call().ok();
    assert!(new.namespace.print("nft", &["list", "ruleset"]).contains("8080"));
    assert_eq!(node.server.count(What::Get), 1);
    // The other way round: the old pod's sandbox is made when the new pod is there already.
    node.server.set(&new.manifest);
    node.wait("the watch", || (node.state(&new) == "intercepted").then_some(()));
    let (code, message) = node.add(&old).call().error();
    assert!(message.contains("there is no such pod any more"), "{code} {message}");
    assert!(!old.has_rules());
}

#[test]
fn five_thousand_pods_are_known_and_a_pods_start_waits_for_none_of_them() {
    let mut node = Node::new();
    for number in 0..5000 {
        let mut pod = plain(&format!("p{number}"), number);
        pod["metadata"]["annotations"] = json!({ "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(500) });
        node.server.set_unseen(&pod);
    }
    let pod = Pod::new("web", 9999);
    node.server.set(&pod.manifest);
    node.start(&[]);
    node.wait_until_ready();
    assert_eq!(known(&node), 5001);
    let before = node.server.asked(What::Get).len() + node.server.count(What::List);
    node.add(&pod).call().ok();
    assert!(pod.has_rules());
    assert_eq!(node.server.asked(What::Get).len() + node.server.count(What::List), before);
    // The chart's limit; the program that is tested is not even a release build.
    let rss = memory(&node, "VmRSS:");
    assert!(rss < 64 << 10, "{rss} KiB");
}

#[test]
fn a_list_of_many_large_pods_comes_whole_and_takes_no_more_than_the_chart_allows() {
    let mut node = Node::new();
    for number in 0..500 {
        let mut pod = plain(&format!("p{number}"), number);
        pod["metadata"]["managedFields"] =
            json!([{ "manager": "kubelet", "fieldsV1": { "f:x": "x".repeat(20 << 10) } }]);
        node.server.set_unseen(&pod);
    }
    node.start(&[]);
    node.wait_until_ready();
    assert_eq!((known(&node), node.server.count(What::List)), (500, 1));
    let most = memory(&node, "VmHWM:");
    assert!(most < 64 << 10, "{most} KiB");
}

/// A number of KiB that the kernel tells of the agent.
fn memory(node: &Node, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}
