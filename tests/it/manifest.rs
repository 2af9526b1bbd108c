//! What a pod's manifest and its node's configuration ask for, held against what the
//! plugin made of them.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::fixture::{Namespace, PODWEIR};
use crate::plugin::{Cluster, path, sidecar};

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(PODWEIR).args(arguments).env_clear().output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

/// A file of the test's own with a JSON value.
fn file(namespace: &Namespace, name: &str, value: &Value) -> String {
    let path: PathBuf = namespace.directory().join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_pod_programmed_by_the_plugin_is_the_same_with_its_nodes_configuration() {
    let pod = sidecar(json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "3306" }));
    let cluster = Cluster::new(&pod);
    let interception = json!({ "istio-service-exclude-cidr": "10.96.0.0/12", "drop-invalid": true });
    cluster.add().key("interception", interception.clone()).key("ip_families", json!("ipv4")).call().ok();
    let entry = json!({ "type": "podweir", "ip_families": "ipv4", "interception": interception });
    let list = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "bridge" }, entry] });
    let namespace = &cluster.namespace;
    let (manifest, entry, list) =
        (file(namespace, "pod", &pod), file(namespace, "entry", &entry), file(namespace, "list", &list));
    let netns = path(namespace);
    let source = ["--netns", &netns, "--pod-manifest", &manifest];
    for netconf in [&entry, &list] {
        let (status, text, log) = run(&[&["verify"], &source[..], &["--netconf", netconf]].concat());
        assert_eq!(status, 0, "{text}{log}");
        let (status, text, log) = run(&[&["audit"], &source[..], &["--netconf", netconf, "--format", "json"]].concat());
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {status} {log}"));
        assert_eq!(report["drift"], json!([]), "{}", report["drift"]);
    }
    // Without it the pod would have other rules.
    let (status, text, _) = run(&[&["verify"], &source[..]].concat());
    assert!(status == 1 && text.contains("10.96.0.0/12"), "{status} {text}");

    // And somebody who takes a rule away is found out.
    namespace.print("nft", &["flush", "chain", "inet", "istio-proxy-nat", "istio-inbound"]);
    let (status, text, log) = run(&[&["verify"], &source[..], &["--netconf", &list]].concat());
    assert!(status == 1 && text.contains("ISTIO_INBOUND"), "{status} {text}{log}");
}

#[test]
fn a_pod_with_an_init_container_is_held_against_its_arguments() {
    let namespace = Namespace::new();
    let arguments = ["istio-iptables", "-b", "*", "-i", "*", "-d", "15090", "--native-nftables"];
    namespace.ok(&arguments);
    let pod = json!({ "metadata": { "name": "web-0", "namespace": "shop" },
        "spec": { "initContainers": [{ "name": "istio-init", "args": arguments }], "containers": [{ "name": "istio-proxy" }] } });
    let manifest = file(&namespace, "pod", &pod);
    let netns = path(&namespace);
    let verify = ["verify", "--netns", &netns, "--pod-manifest", &manifest];
    let (status, text, log) = run(&verify);
    assert_eq!(status, 0, "{text}{log}");
    // The plugin leaves such a pod alone, whatever the node's configuration says.
    let entry =
        json!({ "type": "podweir", "exclude_namespaces": ["shop"], "interception": { "istio-inbound-ports": "80" } });
    let entry = file(&namespace, "entry", &entry);
    assert_eq!(run(&[&verify[..], &["--netconf", &entry]].concat()).0, 0);
    namespace.ok(&["istio-iptables", "-b", "80", "-i", "*", "--native-nftables"]);
    assert_eq!(run(&verify).0, 1);
}

#[test]
fn what_makes_no_sense_is_said() {
    let namespace = Namespace::new();
    let manifest = file(&namespace, "pod", &sidecar(json!({})));
    let excluded = file(&namespace, "excluded", &json!({ "type": "podweir", "exclude_namespaces": ["shop"] }));
    let bridge = file(&namespace, "bridge", &json!({ "type": "bridge" }));
    let odd = file(&namespace, "odd", &json!({ "type": "podweir", "interception": { "istio-inbound-ports": "0" } }));
    let netns = path(&namespace);
    for (arguments, word) in [
        (&["--pod-manifest", &*manifest, "--netconf", &*excluded][..], "namespace shop is excluded"),
        (&["--pod-manifest", &manifest, "--netconf", &bridge], "is not podweir"),
        (&["--pod-manifest", &manifest, "--netconf", &odd], "interception.istio-inbound-ports"),
        (&["--pod-manifest", &manifest, "--netconf", "/nonexistent"], "cannot read /nonexistent"),
        (&["--pod-manifest", "-", "--netconf", "-"], "standard input can be read once"),
        (&["--pod-manifest", &manifest, "--", "-b", "80"], "give one of them"),
        (&["--netconf", &bridge], "--pod-manifest"),
    ] {
        let (status, text, log) = run(&[&["verify", "--netns", &netns][..], arguments].concat());
        let wanted = if word.starts_with("cannot read") { 1 } else { 2 };
        assert!(status == wanted && text.is_empty() && log.contains(word), "{arguments:?}: {status} {log}");
    }
}

/// The usual manifest in a repository, or from an injector, is of a pod that has not run.
#[test]
fn without_a_status_both_families_are_assumed_and_said() {
    let manifest = |name: &str, status: bool| {
        let text = std::fs::read_to_string(format!("{}/tests/data/pods/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        match status {
            true => text,
            false => text.split("\nstatus:").next().unwrap().to_owned() + "\n",
        }
    };
    let namespace = Namespace::new();
    let audit = |text: &str, more: &[&str]| {
        let arguments = [&["audit", "--pod-manifest", "-", "--dns-server", "10.96.0.10"], more].concat();
        let output = namespace.feed(PODWEIR, &arguments, &[], text);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for name in ["init.yaml", "annotated.yaml"] {
        let text = audit(&manifest(name, false), &[]);
        assert!(text.contains("note: no global address of the pod is known (--pod-ip tells them): "), "{text}");
        assert!(text.contains("note: addresses for documentation stand in for the pod's own"), "{text}");
        // Both families, and both directions.
        assert!(text.contains("what    IPv4 and IPv6: UDP port 443"), "{text}");
        assert!(text.contains("TCP to 192.0.2.2:"), "{text}");
        // What is told is not assumed.
        let text = audit(&manifest(name, false), &["--pod-ip", "10.244.0.6"]);
        assert!(!text.contains("stand in") && text.contains("what    IPv4: UDP port 443"), "{text}");
    }
    assert!(!audit(&manifest("init.yaml", true), &[]).contains("stand in"));
}

#[test]
fn an_address_may_be_written_as_ip_addr_prints_it() {
    let audit = |ip: &str| run(&["audit", "--pod-ip", ip, "--", "-b", "*", "-i", "*"]);
    let (status, text, log) = audit("10.244.0.6/24,fd00:10:244::6/64");
    assert_eq!((status, &text), (0, &audit("10.244.0.6,fd00:10:244::6").1), "{log}");
    for bad in ["10.244.0.6/33", "10.244.0/24", "0.0.0.0/0", "web-0"] {
        let (status, _, log) = audit(bad);
        assert!(status == 2 && log.contains(bad) && log.contains("--pod-ip"), "{bad}: {status} {log}");
    }
}
