//! What the agent is told of ambient mode: which families, and who the kubelet is.

use std::time::Duration;

use serde_json::json;

use super::super::Node;
use super::super::ztunnel::Ztunnel;
use super::{address, node, pod, socket, start, status};

#[test]
fn only_the_families_that_are_asked_for_are_programmed() {
    let mut one = pod(1);
    one.manifest["status"]["podIPs"] = json!([{ "ip": address(1) }, { "ip": "fd00:10:244::1" }]);
    let mut node = node(&[&one]);
    node.server.set_ambient("shop", true);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    let held = |node: &Node| {
        let rules = |of: &str| one.namespace.print("ip", &[of, "rule"]).contains("fwmark");
        let sets = node.namespace.print("nft", &["list", "ruleset"]);
        (rules("-4"), rules("-6"), sets.contains(&address(1)), sets.contains("fd00:10:244::1"))
    };
    for (families, wanted) in [
        ("ipv4", (true, false, true, false)),
        ("both", (true, true, true, true)),
        ("ipv6", (false, true, false, true)),
        ("ipv4", (true, false, true, false)),
    ] {
        start(&mut node, &[&format!("--ambient-ip-families={families}")]);
        node.wait(families, || (held(&node) == wanted).then_some(()));
        node.wait_for_state(&one, "enrolled");
        node.kill();
    }
    let output = node.run_to_end(&["--ambient", "--ambient-ip-families=auto"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("'auto' for --ambient-ip-families"), "{said}");
    drop(ztunnel);
}

#[test]
fn where_the_kubelet_is_another_user_no_probe_is_said_to_arrive() {
    let mut node = node(&[]);
    start(&mut node, &["--kubelet-uid=1234"]);
    node.wait_until_ready();
    let found = node.wait("the probe", || Some(status(&node)).filter(|found| found["probe"].is_string()));
    assert!(found["probe"].as_str().unwrap().starts_with("not tried: the kubelet runs as user 1234"), "{found}");
    assert!(found["probeArrives"].is_null(), "{found}");
}
