//! Pods that cannot be repaired: what is done about them, and what is said.

use serde_json::{Value, json};

use super::server::{Fault, What};
use super::{Node, Pod, uid};
use crate::plugin::sidecar;

/// A node whose agent finds a pod without rules, and can make none: the programs are not there
/// by which its rules would be made.
fn failing(pod: &Pod, more: &[&str]) -> Node {
    let mut node = Node::new();
    start(&mut node, pod, more);
    node.wait_for_state(pod, "failed");
    node
}

fn start(node: &mut Node, pod: &Pod, more: &[&str]) {
    node.process(21, pod, &node.path("proc"));
    node.server.set(&pod.manifest);
    let interception = format!("--interception={}", json!({ "backend": "iptables-legacy" }));
    node.start_by(&["env", "PATH=/nonexistent"], &[&[interception.as_str()], more].concat());
}

fn failures(node: &Node) -> f64 {
    node.metric("podweir_heals_total{result=\"failed\"}")
}

/// What an agent asks for that evicts exactly this pod.
fn assert_evicts(body: &Value, pod: &Pod) {
    let meta = &pod.manifest["metadata"];
    assert_eq!((&body["apiVersion"], &body["kind"]), (&json!("policy/v1"), &json!("Eviction")), "{body}");
    assert_eq!(body["metadata"], json!({ "name": meta["name"], "namespace": meta["namespace"] }), "{body}");
    assert_eq!(body["deleteOptions"]["preconditions"], json!({ "uid": meta["uid"] }), "{body}");
}

#[test]
fn a_refused_eviction_is_tried_again_and_the_event_says_what_was_done() {
    let pod = Pod::new("web", 1);
    let mut node = Node::new();
    // A disruption budget allows it the second time.
    node.server.fault(|asked, before| {
        (asked.what == What::Evict && before == 0).then_some(Fault::Refuse(429, "TooManyRequests"))
    });
    start(&mut node, &pod, &["--on-failure=evict"]);
    node.wait("a refusal", || (node.server.count(What::Evict) == 1).then_some(()));
    assert!(failures(&node) >= 3.0, "{}", node.log());
    node.wait("it to be said", || node.person(&["why", "shop/web"]).1.contains("it is tried again").then_some(()));
    assert_eq!(node.metric("podweir_errors_total{cause=\"on-failure\"}"), 1.0);
    node.wait("another try", || (node.server.count(What::Evict) == 2).then_some(()));
    for asked in node.server.asked(What::Evict) {
        assert_evicts(&asked.body, &pod);
    }
    let has = |words: &str| notes(&node).iter().any(|note| note.contains(words)).then_some(());
    node.wait("its event", || has("it cannot be repaired, so it is evicted"));
    assert!(has("and cannot be repaired: ").is_some(), "{:?}", notes(&node));
    node.wait_for_log("it cannot be repaired, so it is evicted");
}

/// The notes of the events that were asked to be made, in order.
fn notes(node: &Node) -> Vec<String> {
    let events = node.server.asked(What::Event).into_iter().filter(|asked| asked.method == "POST");
    events.map(|asked| asked.body["note"].as_str().unwrap().into()).collect()
}

#[test]
fn an_event_that_is_refused_is_sent_when_the_refusals_end_and_only_once() {
    let pod = Pod::new("web", 1);
    let mut node = Node::new();
    let refuse = |node: &Node, code: u16, reason: &'static str| {
        node.server.fault(move |asked, _| (asked.what == What::Event).then_some(Fault::Refuse(code, reason)));
    };
    refuse(&node, 503, "ServiceUnavailable");
    start(&mut node, &pod, &[]);
    node.wait("two tries", || (node.server.count(What::Event) >= 2).then_some(()));
    // Whoever may not write events is asked again as well: somebody may give the right.
    refuse(&node, 403, "Forbidden");
    let before = node.server.count(What::Event);
    node.wait("two more", || (node.server.count(What::Event) >= before + 2).then_some(()));
    assert_eq!(node.metric("podweir_events_total{reason=\"InterceptionFailed\",result=\"sent\"}"), 0.0);
    node.server.behave();
    let before = node.server.count(What::Event);
    let sent = || node.metric("podweir_events_total{reason=\"InterceptionFailed\",result=\"sent\"}");
    node.wait("the event", || (sent() == 1.0).then_some(()));
    let told = notes(&node).split_off(before);
    assert!(told.len() == 1 && told[0].contains("and cannot be repaired: "), "{told:?}");
    // Repairs fail on, which is not new; and what was taken does not come again.
    let failed = failures(&node);
    node.wait("more failures", || (failures(&node) >= failed + 1.0).then_some(()));
    assert_eq!((node.server.count(What::Event), sent()), (before + 1, 1.0));
}

#[test]
fn a_new_pod_of_the_same_name_is_not_evicted() {
    let pod = Pod::new("web", 1);
    let node = failing(&pod, &["--on-failure=evict"]);
    // The watch does not tell of it yet.
    let mut new = pod.manifest.clone();
    new["metadata"]["uid"] = uid(2).into();
    node.server.set_unseen(&new);
    node.wait_for_log("what --on-failure asks for cannot be done");
    assert_evicts(&node.server.asked(What::Evict)[0].body, &pod);
    assert_eq!(node.server.pod("shop", "web").unwrap()["metadata"]["uid"], uid(2));
}

#[test]
fn a_label_is_set_once_and_a_failure_that_lasts_is_told_once() {
    let pod = Pod::new("web", 1);
    let node = failing(&pod, &["--on-failure=label"]);
    let report = || -> Value {
        let (_, text) = node.person(&["why", "shop/web", "--json"]);
        serde_json::from_str(text.split_inclusive("\n}\n").next().unwrap()).unwrap()
    };
    let first = report();
    node.wait("the label", || (node.server.count(What::Label) == 1).then_some(()));
    let body = node.server.asked(What::Label)[0].body.clone();
    assert_eq!(body, json!({ "metadata": { "uid": uid(1), "labels": { "podweir.dev/interception": "failed" } } }));
    assert_eq!(node.server.pod("shop", "web").unwrap()["metadata"]["labels"]["podweir.dev/interception"], "failed");
    // More repairs fail: nothing more is done, and the state is the one that it was.
    node.wait("more failures", || (failures(&node) >= 5.0).then_some(()));
    assert_eq!(node.server.count(What::Label), 1);
    let last = report();
    assert_eq!((&last["state"], &last["since"]), (&json!("failed"), &first["since"]), "{first}\n{last}");
    let history: Vec<&str> = last["history"].as_array().unwrap().iter().filter_map(|h| h["what"].as_str()).collect();
    let failed = history.iter().filter(|what| what.contains("cannot be repaired")).count();
    assert_eq!((failed, history.len()), (1, 2), "{history:?}");
    assert_eq!(node.log().matches("so it has the label podweir.dev/interception=failed").count(), 1, "{}", node.log());
}

#[test]
fn a_pod_that_asks_for_nonsense_is_in_the_log_and_in_an_event_once() {
    let annotations = json!({ "traffic.sidecar.istio.io/includeInboundPorts": "99999" });
    let pod = Pod::of("web", 1, sidecar(annotations));
    let node = Node::running(&[&pod]);
    node.wait_for_state(&pod, "failed");
    let said = |text: &str| text.contains("includeInboundPorts") && text.contains("99999");
    node.wait("the event", || notes(&node).iter().any(|note| said(note)).then_some(()));
    let warnings = || node.log().lines().filter(|line| line.contains("WARN") && said(line)).count();
    node.wait("the log", || (warnings() == 1).then_some(()));
    // It is looked at again, and there is nothing new to say.
    node.server.set(&pod.manifest);
    node.add(&pod).call().error();
    assert_eq!((warnings(), notes(&node).len()), (1, 1), "{}", node.log());
}

#[test]
fn nothing_is_done_to_a_pod_unless_it_is_asked_for() {
    let pod = Pod::new("web", 1);
    let node = failing(&pod, &[]);
    node.wait("more failures", || (failures(&node) >= 4.0).then_some(()));
    assert_eq!(node.server.count(What::Evict) + node.server.count(What::Label), 0);
}
