//! The log is everybody's: no pod can fill it, whatever it asks for and however often.

use serde_json::{Value, json};

use crate::plugin::{Cluster, sidecar};

/// Two files of 5 MiB are kept: at most this much of a call leaves room for more than a
/// thousand calls before the first line of somebody else's goes.
const MOST_OF_A_CALL: usize = 8 << 10;

const RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

#[test]
fn thousands_of_warnings_are_a_few_and_a_number() {
    let cluster = Cluster::new(&sidecar(json!({ RANGES: (["10.1.2.3/24"; 1_900].join(",")) })));
    let outcome = cluster.add().call().ok();
    let log = cluster.run_dir.log();
    assert_eq!(log, outcome.stderr);
    let alike: Vec<&str> = log.lines().filter(|line| line.contains("has host bits set")).collect();
    assert!(alike.len() == 3 && log.contains("1897 more like it"), "{log}");
    assert!(log.len() < MOST_OF_A_CALL && log.contains("intercepted"), "{}", log.len());
}

#[test]
fn what_is_quoted_is_cut() {
    let huge = "x".repeat(1_200_000);
    let proxy = |container: Value| {
        let mut pod = sidecar(json!({}));
        pod["spec"]["containers"][1].as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        pod
    };
    let variable = json!({ "env": [{ "name": "ISTIO_META_DNS_CAPTURE", "value": huge }] });
    for (pod, text) in [
        (sidecar(json!({ PORTS: huge })), "x… (1200000 characters)'"),
        (sidecar(json!({ PORTS: format!("80,,{huge}") })), "x… (1200004 characters)'"),
        (sidecar(json!({ "sidecar.istio.io/interceptionMode": huge })), "x… (1200000 characters)'"),
        (proxy(variable), "x… (1200000 characters)'"),
        (proxy(json!({ "args": ["proxy", huge] })), "x… (1200000 characters)'"),
    ] {
        let cluster = Cluster::new(&pod);
        let outcome = cluster.add().call();
        let log = cluster.run_dir.log();
        assert!(log.contains(text), "{text}: {}", &log[..log.len().min(2000)]);
        for (what, text) in [("answer", &outcome.stdout), ("standard error", &outcome.stderr), ("log", &log)] {
            assert!(text.len() < MOST_OF_A_CALL, "{what}: {}", text.len());
        }
    }
}

/// Whatever else a pod finds to be warned of.
#[test]
fn no_call_writes_more_than_its_share() {
    let name = |n: usize| format!("X{n}");
    let servers: Vec<String> = (0..2000).map(|n| format!("no-address-{n}{}", "y".repeat(500))).collect();
    let cluster = Cluster::new(&sidecar(json!({ RANGES: "10.0.0.1/8" })));
    let result = json!({ "cniVersion": "1.0.0", "dns": { "nameservers": servers }, name(1): 1 });
    let options = json!({ "redirect-dns": true });
    let outcome = cluster.add().key("prevResult", result).key("interception", options).call();
    let log = cluster.run_dir.log();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(log.contains("there are more warnings") && log.lines().count() < 15, "{}", log.lines().count());
    assert!(log.len() < 2 * MOST_OF_A_CALL, "{}", log.len());
}
