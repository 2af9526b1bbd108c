//! Rules that another program made with iptables, for an agent and a plugin whose image has no
//! iptables: they are held against what is wanted, and what cannot be done about them is said.

use serde_json::json;

use super::{Node, Pod};

const WITHOUT_PROGRAMS: [&str; 2] = ["env", "PATH=/nonexistent"];
const TABLES: [&str; 2] = ["nat", "mangle"];

/// The rules of a pod with a sidecar as iptables-nft holds them, for both families, in the form of
/// iptables-save.
fn rules_by_iptables() -> [String; 2] {
    let pod = Pod::new("like", 9);
    let mut node = Node::new();
    node.server.set(&pod.manifest);
    node.start(&[&format!("--interception={}", json!({ "backend": "iptables-nft" }))]);
    node.wait_until_ready();
    node.add(&pod).call().ok();
    ["iptables-nft-save", "ip6tables-nft-save"].map(|program| {
        let save = |table| pod.namespace.print(program, &["-t", table]);
        TABLES.map(save).concat()
    })
}

/// Makes these rules in a pod, as another plugin of the chain would.
fn make(pod: &Pod, rules: &[String; 2]) {
    for (program, text) in ["iptables-nft-restore", "ip6tables-nft-restore"].into_iter().zip(rules) {
        let output = pod.namespace.feed(program, &["--noflush"], &[], text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn node_without_programs(pod: &Pod) -> Node {
    let mut node = Node::new();
    node.server.set(&pod.manifest);
    node.process(21, pod, &node.path("proc"));
    node.start_by(&WITHOUT_PROGRAMS, &["--verify-interval=1s"]);
    node.wait_until_ready();
    node
}

#[test]
fn a_plugin_behind_ours_that_makes_the_same_rules_changes_nothing() {
    let rules = rules_by_iptables();
    let pod = Pod::new("web", 1);
    let node = node_without_programs(&pod);
    node.add(&pod).call().ok();
    node.wait_for_state(&pod, "intercepted");
    let looks = || node.metric("podweir_verifications_total{result=\"same\"}");
    make(&pod, &rules);
    let before = looks();
    node.wait("looks at the rules", || (looks() >= before + 2.0).then_some(()));
    assert_eq!(node.state(&pod), "intercepted");
    assert_eq!(node.metric("podweir_verifications_total{result=\"different\"}"), 0.0, "{}", node.log());
}

#[test]
fn rules_by_iptables_are_verified_without_its_programs_and_who_would_mend_them_is_told() {
    let rules = rules_by_iptables();
    let pod = Pod::new("web", 1);
    // A plugin before ours in the chain was first.
    make(&pod, &rules);
    let node = node_without_programs(&pod);
    node.add(&pod).variable("PATH", "/nonexistent").call().ok();
    node.wait_for_state(&pod, "intercepted");
    assert!(!pod.has_rules(), "they are held by iptables-nft alone");
    let flush = ["-t", "nat", "-F", "ISTIO_OUTPUT"];
    drop(pod.namespace.print("iptables-nft", &flush));
    node.wait_for_state(&pod, "failed");
    let (_, why) = node.person(&["why", &pod.full_name()]);
    assert!(why.contains("delete the pod to have it set up anew"), "{why}");
    // What cannot be done was not begun.
    assert!(!pod.has_rules(), "{why}");
}

#[test]
fn more_rules_than_a_pod_has_are_told_and_not_read() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    node.add(&pod).call().ok();
    node.wait_for_state(&pod, "intercepted");
    let rules: String = (0..2_100).map(|n| format!("tcp dport {} drop\n", 20_000 + n)).collect();
    let table = format!("table inet many {{ chain c {{ type filter hook output priority 0;\n{rules}}}; }}");
    let output = pod.namespace.feed("nft", &["-f", "-"], &[], &table);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.wait_for_state(&pod, "failed");
    let (_, why) = node.person(&["why", &pod.full_name()]);
    assert!(why.contains("are more than the 2000 that are read"), "{why}");
    // What was made in excess is gone again, and so is what was said.
    drop(pod.namespace.print("nft", &["delete", "table", "inet", "many"]));
    node.wait_for_state(&pod, "intercepted");
}
