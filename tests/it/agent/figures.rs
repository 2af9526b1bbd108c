//! What the agent counts, and the errors that it keeps.

use serde_json::{Value, json};

use super::server::{Fault, What};
use super::{Node, Pod};
use crate::plugin::sidecar;

#[test]
fn starts_of_pods_are_counted_by_decision_and_result_and_pods_left_alone_by_reason() {
    let (pod, broken) = (Pod::new("web", 1), Pod::new("broken", 2));
    let mut manifest = sidecar(json!({}));
    manifest["spec"]["containers"] = json!([{ "name": "app" }]);
    let bare = Pod::of("bare", 3, manifest);
    let mut node = Node::new();
    for pod in [&pod, &broken, &bare] {
        node.server.set(&pod.manifest);
    }
    let interception = format!("--interception={}", json!({ "backend": "iptables-legacy" }));
    node.start(&[&interception]);
    node.wait_until_ready();
    for pod in [&pod, &bare] {
        node.add(pod).call().ok();
    }
    // It has none of the programs that make its rules.
    node.add(&broken).variable("PATH", "/nonexistent").call().error();
    // A pod that nobody knows.
    let unknown = Pod::new("unknown", 4);
    node.add(&unknown).call().error();
    for (decision, result) in
        [("intercepted", "done"), ("left-alone", "done"), ("intercepted", "failed"), ("refused", "failed")]
    {
        let adds = format!("podweir_adds_total{{decision=\"{decision}\",result=\"{result}\"}}");
        node.wait(&adds, || (node.metric(&adds) == 1.0).then_some(()));
    }
    assert_eq!(node.metric("podweir_pods_left_alone{reason=\"no-proxy\"}"), 1.0);
    node.server.delete("shop", "bare");
    node.wait("the pod to go", || (node.metric("podweir_pods_left_alone{reason=\"no-proxy\"}") == 0.0).then_some(()));
}

#[test]
fn status_has_the_last_errors() {
    let mut node = Node::new();
    node.server.fault(|asked, _| (asked.what == What::Condition).then_some(Fault::Refuse(403, "Forbidden")));
    node.start(&[]);
    let errors = || -> Vec<Value> { node.report()["lastErrors"].as_array().cloned().unwrap_or_default() };
    let found = node.wait("the error", || errors().into_iter().find(|error| error["cause"] == "condition"));
    assert!(found["what"].as_str().unwrap().contains("cannot tell the node's condition"), "{found}");
    assert!(found["time"].as_str().unwrap().starts_with("20") && found["times"] == 1, "{found}");
    let (_, text) = node.person(&["status"]);
    assert!(text.lines().any(|line| line.starts_with("error ") && line.contains("condition: cannot tell")), "{text}");
}
