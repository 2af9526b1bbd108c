//! Under a difference stands what that difference does, and nothing that others do.

use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

/// What a network policy leaves open: the app's port and the proxy's.
const POLICY: &str = "table inet np { chain entry { type filter hook input priority 0; policy drop; \
    iifname \"lo\" accept; ct state established,related accept; tcp dport { 80, 15006, 9090 } accept; }; }";

fn verify(namespace: &Namespace, options: &[&str]) -> (Value, String, Option<i32>) {
    let all = |more: &[&str]| namespace.podweir(&[&["verify", "--live"], more, &["--"], options].concat());
    let (json, text) = (all(&["--json"]), all(&[]));
    let text = String::from_utf8(text.stdout).unwrap();
    (serde_json::from_slice(&json.stdout).unwrap(), text, json.status.code())
}

/// For each finding its text, and what its effects are about.
fn told(report: &Value) -> Vec<(String, Vec<String>)> {
    let effects = report["effects"].as_array().unwrap();
    let words = |effect: &Value| {
        let flows: Vec<&str> = effect["flows"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
        format!("{}: {} -> {}", flows.join("; "), effect["wanted"].as_str().unwrap(), effect["found"].as_str().unwrap())
    };
    let of = |finding: &Value| {
        let about = finding["effects"].as_array().unwrap().iter();
        (
            finding["text"].as_str().unwrap().to_owned(),
            about.map(|at| words(&effects[at.as_u64().unwrap() as usize])).collect(),
        )
    };
    report["findings"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn what_a_network_policy_drops_is_no_differences_effect() {
    for backend in BACKENDS {
        let namespace = Namespace::new();
        namespace.ok(&["init", "--backend", backend, "-b", "*", "-i", "*", "-d", "15090"]);
        assert!(namespace.feed("nft", &["-f", "-"], &[], POLICY).status.success());
        let (report, text, status) = verify(&namespace, &["-b", "*", "-i", "*", "-d", "15090,9090"]);
        assert_eq!(status, Some(1), "{backend}: {text}");
        let found = told(&report);
        let expected = "TCP port 9090: direct -> inbound-proxy".to_owned();
        assert_eq!(found, [("tcp port 9090: return".into(), vec![expected])], "{backend}: {text}");
        let others: Vec<&Value> =
            report["effects"].as_array().unwrap().iter().filter(|e| e["by_others"] == true).collect();
        assert!(others.iter().any(|e| e["flows"].to_string().contains("15008")), "{backend}: {report:#}");
        assert!(others.iter().all(|e| e["found"] == "dropped"), "{backend}: {report:#}");
        assert!(text.contains("rules of others, which drop it (no drift):\n"), "{backend}: {text}");
        let audit = ["audit", "--live", "--format", "json", "--", "-b", "*", "-i", "*", "-d", "15090,9090"];
        let report: Value = serde_json::from_str(&namespace.print(PODWEIR, &audit)).unwrap();
        let drift = report["drift"].as_array().unwrap();
        assert!(drift.len() == 1 && !drift[0].to_string().contains("dropped"), "{backend}: {drift:#?}");
        // The plan itself is there: the policy is named, and does not count.
        let (_, text, status) = verify(&namespace, &["-b", "*", "-i", "*", "-d", "15090"]);
        assert_eq!(status, Some(0), "{backend}: {text}");
        assert!(text.contains("rules, and rules of others drop traffic, which is no drift\n"), "{backend}: {text}");
        assert!(!text.contains("together"), "{backend}: {text}");
    }
}

/// What a difference leads into a policy is its effect all the same.
#[test]
fn a_difference_that_runs_into_a_policy_has_an_effect() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables", "-b", "*", "-i", "*", "-d", "15090,7070"]);
    assert!(namespace.feed("nft", &["-f", "-"], &[], POLICY).status.success());
    let (report, text, _) = verify(&namespace, &["-b", "*", "-i", "*", "-d", "15090"]);
    let found = told(&report);
    assert_eq!(found.len(), 1, "{text}");
    assert!(found[0].1.contains(&"TCP port 7070: inbound-proxy -> dropped".into()), "{text}");
    assert!(text.contains("7070 is now dropped\n      by the policy of inet np entry: drop\n"), "{text}");
}

/// Each of two rules is enough to let a port out: neither alone is the reason.
#[test]
fn what_no_single_difference_does_they_do_together() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables", "-b", "*", "-i", "*", "-d", "15090"]);
    for at in ["istio-inbound", "prerouting"] {
        namespace.print("nft", &["insert", "rule", "inet", "istio-proxy-nat", at, "tcp", "dport", "7070", "accept"]);
    }
    let (report, text, status) = verify(&namespace, &["-b", "*", "-i", "*", "-d", "15090"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(told(&report).iter().all(|(_, effects)| effects.is_empty()), "{text}");
    assert!(
        text.contains("the differences together:\n    effect: IPv4 from others to the pod: TCP port 7070 now escapes"),
        "{text}"
    );
    // One of them alone is the reason.
    namespace.print("nft", &["flush", "chain", "inet", "istio-proxy-nat", "istio-inbound"]);
    let (report, text, _) = verify(&namespace, &["-b", "*", "-i", "*", "-d", "15090"]);
    let findings = told(&report);
    let whole: Vec<&str> =
        findings.iter().filter(|(_, effects)| !effects.is_empty()).map(|(rule, _)| rule.as_str()).collect();
    assert_eq!(whole, ["tcp: jump ISTIO_IN_REDIRECT"], "{text}");
}
