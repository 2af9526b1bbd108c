//! The same rules in two backends, as a move that was killed leaves them: each connection is
//! redirected once, and as by one set; `verify` tells of the second; the next run takes it away.

use crate::conformance::{refs, strings};
use crate::fixture::PODWEIR;
use crate::pod::{Pod, Probe};
use crate::traffic::{NATIVE, proxy, recorded};

const MOVES: [[&str; 2]; 3] =
    [["nftables", "iptables-legacy"], ["iptables-legacy", "iptables-nft"], ["iptables-nft", "iptables-legacy"]];
const CASES: [&str; 3] = ["seed-pod", "outbound-exclude-cidrs", "dns"];

/// What an iptables backend would hold, next to what is there.
fn load(pod: &Pod, backend: &str, resolv_conf: &str, options: &[&str]) {
    let server = resolv_conf.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap();
    let render = ["render", "--format", "iptables", "--dns-server", server, "--", "--ip-families", "ipv4"];
    let text = pod.namespace.print(PODWEIR, &[&render, options].concat());
    let output = pod.namespace.feed(&format!("{backend}-restore"), &["--noflush"], &[], &text);
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn two_sets_of_the_same_rules_are_as_good_as_one() {
    let cases = recorded(NATIVE);
    for name in CASES {
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let (arguments, addresses) = (strings(&case["args"]), strings(&case["addresses"]));
        let resolv_conf = case["resolv_conf"].as_str().unwrap();
        let verdicts = case["verdicts"].as_object().unwrap();
        let probes: Vec<Probe> = verdicts.keys().map(|key| Probe::parse(key)).collect();
        for [first, second] in MOVES {
            let about = format!("{name} from {first} to {second}");
            let pod = Pod::new(&refs(&addresses), resolv_conf, proxy(&arguments));
            let init = |backend| [&["init", "--backend", backend], &refs(&arguments)[..]].concat();
            pod.namespace.ok(&init(first));
            load(&pod, second, resolv_conf, &refs(&arguments));
            let wrong: Vec<String> = (verdicts.iter().zip(pod.probe(&probes)))
                .filter(|((_, want), got)| want.as_str() != Some(got.as_str()))
                .map(|((key, want), got)| format!("{key}: expected {want}, got {got}"))
                .collect();
            assert!(wrong.is_empty(), "{about}: {} of {}:\n{}", wrong.len(), probes.len(), wrong.join("\n"));
            let verify = [&["verify", "--"], &refs(&arguments)[..]].concat();
            let verify = || pod.namespace.command(PODWEIR, &verify, &[]).status.code();
            assert_eq!(verify(), Some(1), "{about}");
            // Without --reconcile: nothing else is meant than what is there already.
            pod.namespace.ok(&init(second));
            assert_eq!(verify(), Some(0), "{about}");
        }
    }
}

/// Another plan's rules are somebody's decision.
#[test]
fn other_rules_in_another_backend_stay_unless_they_are_to_go() {
    let namespace = crate::fixture::Namespace::new();
    namespace.ok(&["init", "--backend", "nftables", "-x", "10.1.0.0/16"]);
    let text = namespace.print(PODWEIR, &["render", "--format", "iptables", "--", "--ip-families", "ipv4"]);
    assert!(namespace.feed("iptables-legacy-restore", &["--noflush"], &[], &text).status.success());
    let before = namespace.everything();
    let output = namespace.command(PODWEIR, &["init", "--backend", "iptables-legacy"], &[]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && log.contains("are in nftables already"), "{log}");
    assert_eq!(namespace.everything(), before);
    namespace.ok(&["init", "--backend", "iptables-legacy", "--reconcile"]);
}
