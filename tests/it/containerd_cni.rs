//! The whole chain under a real containerd: Debian's bridge and portmap, then podweir.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN, kubeconfig};
use crate::cni_conf;
use crate::containerd::{DIVERTED, PLAIN, assert_answers, fill, verdicts};
use crate::fixture::PODWEIR;
use crate::node::{Node, Sandbox};
use crate::plugin::sidecar;

const INJECTED: (&str, &str) = ("sidecar.istio.io/status", "{}");

/// A node whose chain is the example's, with other keys for podweir where given.
fn start(keys: &Value) -> Node {
    let mut chain: Value = serde_json::from_str(cni_conf::EXAMPLE).unwrap();
    let ours = chain["plugins"].as_array_mut().unwrap().last_mut().unwrap().as_object_mut().unwrap();
    ours.extend(keys.as_object().unwrap().clone());
    let node = Node::start(&chain);
    std::os::unix::fs::symlink(PODWEIR, node.folder().join("bin/podweir")).unwrap();
    node
}

/// The run directory, as the test sees it.
fn run_dir(node: &Node) -> PathBuf {
    node.folder().join("var-lib/podweir")
}

fn give_kubeconfig(node: &Node, api: &Api, token: &str) {
    std::fs::create_dir_all(run_dir(node)).unwrap();
    let path = run_dir(node).join("kubeconfig");
    let server = format!("https://{}", api.address);
    std::fs::write(&path, kubeconfig(&server, Api::authority(), token)).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// An API server that listens where the node reaches it.
fn api(node: &Node, pod: Value) -> Api {
    node.run(|| Api::start(move |_| Answer::Pod(pod.clone())))
}

fn names(path: PathBuf) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// CHECK as a runtime calls it, from what containerd's library keeps of the ADD.
fn check(node: &Node, sandbox: &Sandbox) -> Result<(), String> {
    let kept = node.folder().join(format!("var-lib/cni/results/pods-{}-eth0", sandbox.id));
    let kept: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    let arguments = kept["cniArgs"].as_array().unwrap().iter();
    let arguments: Vec<String> =
        arguments.map(|pair| format!("{}={}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();
    let chain: Value = serde_json::from_str(cni_conf::EXAMPLE).unwrap();
    let mut netconf = chain["plugins"][2].clone();
    netconf["cniVersion"] = chain["cniVersion"].clone();
    netconf["name"] = chain["name"].clone();
    netconf["prevResult"] = kept["result"].clone();
    let variables = [
        ("CNI_COMMAND", "CHECK"),
        ("CNI_CONTAINERID", &sandbox.id),
        ("CNI_NETNS", &sandbox.netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", &arguments.join(";")),
    ];
    let output = node.command("/opt/cni/bin/podweir", &[], &variables, &netconf.to_string());
    if output.status.success() {
        assert!(output.stdout.is_empty());
        return Ok(());
    }
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    Err(error["msg"].as_str().unwrap().to_owned())
}

#[test]
fn the_chain_diverts_a_pods_traffic_from_its_first_packet_to_its_end() {
    let node = start(&json!({}));
    let api = api(&node, sidecar(json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "9443" })));
    give_kubeconfig(&node, &api, TOKEN);

    let plain = node.run_sandbox("shop", "plain-0", &[], None).unwrap();
    let containers = fill(&node, &plain);
    assert_answers(&verdicts(&node, &plain, &containers), PLAIN);
    assert_eq!(api.requests(), 0, "containerd hands the annotations over, which say all");

    let pod = node.run_sandbox("shop", "web-0", &[INJECTED], Some(18080)).unwrap();
    assert_eq!(api.paths(), ["/api/v1/namespaces/shop/pods/web-0"]);
    let containers = fill(&node, &pod);
    assert_answers(&verdicts(&node, &pod, &containers), DIVERTED);
    // What portmap lets in is inbound traffic like any other.
    assert_eq!(node.connect_to("10.244.0.1", 18080), "in-proxy");

    for sandbox in [&plain, &pod] {
        check(&node, sandbox).unwrap();
    }
    let into = format!("--net={}", pod.netns);
    node.print("nsenter", &[&into, "nft", "flush", "chain", "inet", "istio-proxy-nat", "istio-inbound"]);
    let error = check(&node, &pod).unwrap_err();
    assert!(error.contains("the kernel does not hold the pod's rules") && error.contains("ISTIO_INBOUND"), "{error}");
    check(&node, &plain).unwrap();

    for sandbox in [&plain, &pod] {
        assert!(names(run_dir(&node).join("attachments")).iter().any(|name| name.contains(&sandbox.id)));
        node.stop(sandbox).unwrap();
        node.remove(sandbox).unwrap();
    }
    assert_eq!(names(run_dir(&node).join("attachments")), [""; 0]);
    assert_eq!(node.print("ls", &["/run/netns"]), "");
    assert_eq!(api.requests(), 1, "neither CHECK nor DEL asks again");
}

#[test]
fn a_pod_that_cannot_be_set_up_says_why_and_can_be_tried_again() {
    let node = start(&json!({ "timeout": "2s" }));
    let good = sidecar(json!({}));
    let bad = sidecar(json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "http" }));
    let [good, bad] = [good, bad].map(|pod| api(&node, pod));
    let fails = |fragments: &[&str]| {
        let error = node.run_sandbox("shop", "web-0", &[INJECTED], None).err().expect("it must not start");
        for fragment in fragments {
            assert!(error.contains(fragment), "{fragment:?} is not in: {error}");
        }
        // Nothing is left of it, or the next try would find it.
        assert_eq!(node.print("ls", &["/run/netns"]), "");
        assert_eq!(names(run_dir(&node).join("attachments")), [""; 0]);
    };
    fails(&[r#"plugin type="podweir" failed (add)"#, "there is no kubeconfig in /var/lib/podweir", "2 tries in 1 s"]);
    give_kubeconfig(&node, &good, "another-token");
    fails(&[
        "podweir cannot read pod shop/web-0: Unauthorized; the token or certificate in /var/lib/podweir/kubeconfig has",
    ]);
    give_kubeconfig(&node, &bad, TOKEN);
    fails(&["traffic.sidecar.istio.io/excludeOutboundPorts", "'http'", "correct the pod's annotation"]);
    give_kubeconfig(&node, &good, TOKEN);
    std::fs::set_permissions(run_dir(&node).join("kubeconfig"), PermissionsExt::from_mode(0o666)).unwrap();
    fails(&["/var/lib/podweir/kubeconfig is not trusted: it can be written by others than root (mode 0666)"]);

    give_kubeconfig(&node, &good, TOKEN);
    let pod = node.run_sandbox("shop", "web-0", &[INJECTED], None).unwrap();
    assert!(
        node.print("nsenter", &[&format!("--net={}", pod.netns), "nft", "list", "tables"]).contains("istio-proxy-nat")
    );
}
