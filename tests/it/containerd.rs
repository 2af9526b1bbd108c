//! The image as an init container of a real containerd, with an injector's arguments and
//! no more rights than it needs.

use serde_json::Value;

use crate::cni_conf;
use crate::containers::{Container, Rights};
use crate::node::{Node, Sandbox};
use crate::typical::TYPICAL;

/// What an injector writes into a pod, with one more port left alone.
fn injected() -> Vec<&'static str> {
    [&["istio-iptables"], TYPICAL, &["-o", "9443", "--log_output_level=default:info"]].concat()
}

const ENOUGH: Rights = Rights { user: Some(0), capabilities: &["NET_ADMIN"] };

/// The example's chain without podweir: a bridge, addresses, ports of the node.
pub fn bridge_and_portmap() -> Value {
    let mut chain: Value = serde_json::from_str(cni_conf::EXAMPLE).unwrap();
    let ours = chain["plugins"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(ours["type"], "podweir");
    chain
}

/// The pod's containers: a stand-in for the proxy and an app.
pub fn fill<'a>(node: &'a Node, sandbox: &Sandbox) -> [Container<'a>; 2] {
    let proxy = node.server(sandbox, "istio-proxy", 1337, &[(15001, "out-proxy"), (15006, "in-proxy")]);
    let app = node.server(sandbox, "app", 1000, &[(8080, "app"), (15021, "app")]);
    [proxy, app]
}

/// Who answers: what is diverted, and what must not be.
pub fn verdicts(node: &Node, sandbox: &Sandbox, [proxy, app]: &[Container; 2]) -> Vec<(&'static str, String)> {
    vec![
        ("app to 198.51.100.7:80", app.connect_to("198.51.100.7", 80)),
        ("app to 198.51.100.7:9443", app.connect_to("198.51.100.7", 9443)),
        ("app to itself by its address", app.connect_to(&sandbox.ip, 8080)),
        ("app to localhost:8080", app.connect_to("127.0.0.1", 8080)),
        ("proxy to 198.51.100.7:80", proxy.connect_to("198.51.100.7", 80)),
        ("proxy to localhost:8080", proxy.connect_to("127.0.0.1", 8080)),
        ("node to pod:8080", node.connect_to(&sandbox.ip, 8080)),
        ("node to pod:15021", node.connect_to(&sandbox.ip, 15021)),
    ]
}

/// The answers of a pod nobody touched, and of one with a sidecar.
pub const PLAIN: [&str; 8] = ["outside", "outside", "app", "app", "outside", "app", "app", "app"];
pub const DIVERTED: [&str; 8] = ["out-proxy", "outside", "app", "app", "outside", "app", "in-proxy", "app"];

pub fn assert_answers(found: &[(&str, String)], expected: [&str; 8]) {
    let expected: Vec<(&str, String)> =
        found.iter().zip(expected).map(|((flow, _), answer)| (*flow, answer.to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_image_programs_its_pod_as_an_init_container() {
    let node = Node::start(&bridge_and_portmap());
    let plain = node.run_sandbox("shop", "plain-0", &[], None).unwrap();
    let containers = fill(&node, &plain);
    assert_answers(&verdicts(&node, &plain, &containers), PLAIN);

    let pod = node.run_sandbox("shop", "web-0", &[], None).unwrap();
    // A native sidecar's order: rules first, then whoever sends.
    let (status, log) = node.init_container(&pod, &injected(), ENOUGH);
    assert_eq!(status, 0, "{log}");
    let containers = fill(&node, &pod);
    assert_answers(&verdicts(&node, &pod, &containers), DIVERTED);
    // A restarted node runs init containers again.
    let (status, log) = node.init_container(&pod, &injected(), ENOUGH);
    assert_eq!(status, 0, "{log}");
    assert_answers(&verdicts(&node, &pod, &containers), DIVERTED);

    for sandbox in [&plain, &pod] {
        node.stop(sandbox).unwrap();
        node.remove(sandbox).unwrap();
    }
    assert_eq!(node.print("ls", &["/run/netns"]), "");
}

#[test]
fn an_init_container_without_rights_says_which() {
    let node = Node::start(&bridge_and_portmap());
    for (name, rights) in [
        ("no-capability", Rights { user: Some(0), capabilities: &[] }),
        // The image's own user: a capability that is added is root's alone.
        ("no-root", Rights { user: None, capabilities: &["NET_ADMIN"] }),
    ] {
        let pod = node.run_sandbox("shop", name, &[], None).unwrap();
        let (status, log) = node.init_container(&pod, &injected(), rights);
        assert_eq!(status, 1, "{name}: {log}");
        assert!(log.contains("NET_ADMIN"), "{name}: {log}");
        let containers = fill(&node, &pod);
        assert_answers(&verdicts(&node, &pod, &containers), PLAIN);
    }
    // What needs no rights works without.
    let pod = node.run_sandbox("shop", "dry-run", &[], None).unwrap();
    let rights = Rights { user: None, capabilities: &[] };
    let (status, log) = node.init_container(&pod, &["init", "--dry-run"], rights);
    assert_eq!(status, 0, "{log}");
    assert!(log.contains("ISTIO_OUTPUT") || log.contains("istio-output"), "{log}");
}
