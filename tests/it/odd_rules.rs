//! Rules of others as the kernel and the programs list them: read where that can be, and
//! named so that they are found where they cannot.

use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR};

/// A namespace with an interception and a table of somebody else's on the way out.
fn beside(rules: &str) -> Namespace {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables"]);
    feed(
        &namespace,
        &format!("table inet other {{ chain out {{ type filter hook output priority -150;\n{rules}\n}}; }}"),
    );
    namespace
}

fn feed(namespace: &Namespace, script: &str) {
    let output = namespace.feed("nft", &["-f", "-"], &[], script);
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

const OUT: [&str; 4] = ["--destination", "10.0.0.1", "--port", "80"];

/// What `explain` says from the kernel, and from each of nft's listings.
fn answers(namespace: &Namespace, flow: &[&str]) -> Vec<(&'static str, Value)> {
    let json = |text: String| serde_json::from_str(&text).unwrap();
    let live = namespace.print(PODWEIR, &[&["explain", "--live", "--json"], flow].concat());
    let mut out = vec![("live", json(live))];
    for (name, list) in [("text", &["-a", "list", "ruleset"][..]), ("json", &["-j", "list", "ruleset"])] {
        let dump = namespace.directory().join(name);
        std::fs::write(&dump, namespace.print("nft", list)).unwrap();
        let path = dump.to_str().unwrap();
        let pod = ["explain", "--json", "--pod-ip", "10.244.0.6", "--dump", path];
        out.push((name, json(namespace.print(PODWEIR, &[&pod[..], flow].concat()))));
    }
    out
}

#[test]
fn an_interface_meant_by_its_number_is_known_by_its_name() {
    for (rule, verdict) in [
        ("oif \"eth0\" drop", "dropped"),
        ("oif lo drop", "outbound-proxy"),
        ("oif { lo, eth0 } drop", "dropped"),
        ("oif != \"eth0\" drop", "outbound-proxy"),
        ("oif != { lo } drop", "dropped"),
        ("iif lo drop", "outbound-proxy"),
    ] {
        for (source, answer) in answers(&beside(rule), &OUT) {
            assert_eq!(answer["verdict"], verdict, "{source}: {rule}: {answer:#}");
        }
    }
}

#[test]
fn an_interface_that_is_gone_is_not_guessed() {
    for rule in ["oif \"gone0\" drop", "oif { \"gone0\", lo } drop", "oif != \"gone0\" drop"] {
        let namespace = Namespace::new();
        namespace.ok(&["init", "--backend", "nftables"]);
        namespace.batch("link add gone0 index 77 type veth peer name gone1\n");
        feed(
            &namespace,
            &format!("table inet other {{ chain out {{ type filter hook output priority -150; {rule}; }}; }}"),
        );
        namespace.batch("link del gone0\n");
        for (source, answer) in answers(&namespace, &OUT) {
            assert_eq!(answer["verdict"], "unknown", "{source}: {rule}: {answer:#}");
        }
    }
}
