//! Rules of others that were there before us: those that let traffic escape, whatever the
//! interception does, are named when it is installed, refused with `--strict`, found out by the
//! validation, and high in an audit. Those that do no harm are none of our business.

use serde_json::{Value, json};

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::plugin::{Cluster, sidecar};
use crate::pod::Probe;
use crate::readings::pod;

/// Somebody else's rules, a connection that they let out, and how they are named.
struct Case {
    rules: &'static [&'static str],
    probe: &'static str,
    /// Who answers it then.
    escapes_to: &'static str,
    named: &'static [&'static str],
}

const TO_5432: &str = "out tcp uid=1000 gid=1000 to 198.51.100.7 5432";
const TO_80: &str = "out tcp uid=1000 gid=1000 to 198.51.100.7 80";
const TO_V6: &str = "out tcp uid=1000 gid=1000 to 2001:db8::7 5432";
const IN_8080: &str = "in tcp to 10.244.0.6 8080";

const CASES: &[Case] = &[
    Case {
        rules: &[
            "nft table ip other { chain a { type filter hook output priority -300; tcp dport 5432 notrack; }; chain b { type filter hook prerouting priority -300; tcp sport 5432 notrack; }; }",
        ],
        probe: TO_5432,
        escapes_to: "outside",
        named: &[
            "nftables table ip other, chain a (hook output, priority -300)",
            "rule 1 (handle 3)",
            "port 5432",
            "notrack",
        ],
    },
    Case {
        rules: &[
            "nft table inet other { chain a { type nat hook output priority -190; meta l4proto tcp jump b; }; chain b { ip daddr 198.51.100.7 tcp dport 80 counter dnat ip to 198.51.100.9; }; }",
        ],
        probe: TO_80,
        escapes_to: "outside",
        named: &["table inet other, chain a (hook output, priority -190), chain b, rule 1", "dnat"],
    },
    Case {
        rules: &[
            "nft table ip other { chain i { type filter hook input priority 0; tcp dport 15006 tcp dport set 8080; }; chain r { type filter hook output priority -250; tcp sport 8080 tcp sport set 15006; }; }",
        ],
        probe: IN_8080,
        escapes_to: "app",
        named: &["chain i (hook input, priority 0)", "th dport set 8080", "chain r (hook output, priority -250)"],
    },
    Case {
        rules: &[
            "nft table ip other { chain p { type filter hook prerouting priority -310; tcp dport 8080 notrack; }; chain o { type filter hook output priority -310; tcp sport 8080 notrack; }; }",
        ],
        probe: IN_8080,
        escapes_to: "app",
        named: &["chain p (hook prerouting, priority -310)", "notrack"],
    },
    Case {
        rules: &[
            "iptables-legacy -t raw -A OUTPUT -p tcp --dport 5432 -j CT --notrack",
            "iptables-legacy -t raw -A PREROUTING -p tcp --sport 5432 -j CT --notrack",
        ],
        probe: TO_5432,
        escapes_to: "outside",
        named: &["iptables-legacy table ip raw, chain OUTPUT (hook output, priority -300), rule 1", "CT --notrack"],
    },
    Case {
        rules: &[
            "ip6tables-nft -t raw -N FAST",
            "ip6tables-nft -t raw -A FAST -p tcp --dport 5432 -j CT --notrack",
            "ip6tables-nft -t raw -A OUTPUT -p tcp -j FAST",
            "ip6tables-nft -t raw -A PREROUTING -p tcp --sport 5432 -j CT --notrack",
        ],
        probe: TO_V6,
        escapes_to: "outside",
        named: &["iptables-nft table ip6 raw, chain OUTPUT (hook output, priority -300), chain FAST, rule 1"],
    },
];

fn make(namespace: &Namespace, rules: &[&str]) {
    for rule in rules {
        match rule.strip_prefix("nft ") {
            Some(script) => {
                let output = namespace.feed("nft", &["-f", "-"], &[], script);
                assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            }
            None => {
                let words: Vec<&str> = rule.split(' ').collect();
                namespace.print(words[0], &words[1..]);
            }
        }
    }
}

fn log(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_lets_traffic_out_is_named_refused_with_strict_and_high_in_an_audit() {
    for case in CASES {
        let pod = pod();
        make(&pod.namespace, case.rules);
        let before = pod.namespace.everything();
        let output = pod.namespace.podweir(&["init", "--strict"]);
        assert_eq!(output.status.code(), Some(1), "{:?}: {}", case.rules, log(&output));
        assert_eq!(pod.namespace.everything(), before, "{:?}", case.rules);
        let installed = pod.namespace.ok(&["init"]);
        for said in [log(&output), installed.clone()] {
            for name in case.named {
                assert!(said.contains(name), "{:?}: {name} is not in {said}", case.rules);
            }
        }
        assert!(installed.contains("WARN") && installed.contains("installed"), "{installed}");
        // It is as bad as it sounds, and an audit says so.
        assert_eq!(pod.probe(&[Probe::parse(case.probe)]), [case.escapes_to], "{:?}", case.rules);
        let report = pod.namespace.command(PODWEIR, &["audit", "--live", "--format", "json"], &[]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        let high = report["escapes"].as_array().unwrap().iter().any(|class| {
            let about = class["id"].as_str().unwrap();
            class["severity"] == "high"
                && about.starts_with(if case.probe.starts_with("in") { "inbound" } else { "outbound" })
        });
        assert!(high, "{:?}: {report:#}", case.rules);
        // Once installed it is the same, with nothing to change.
        let again = pod.namespace.ok(&["init"]);
        assert!(again.contains("unchanged") && case.named.iter().all(|name| again.contains(name)), "{again}");
    }
}

/// Nobody listens where the proxy will: the validation takes its place.
fn before_the_proxy() -> Namespace {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    namespace.batch("route add default via 10.244.0.1 dev eth0\nroute add default via fd00:10:244::1 dev eth0\n");
    namespace
}

#[test]
fn the_validation_sends_its_token_where_such_a_rule_would_catch_it() {
    for case in CASES {
        let namespace = before_the_proxy();
        make(&namespace, case.rules);
        let output = namespace.podweir(&["init", "--run-validation", "--probe-timeout", "3s"]);
        assert_eq!(output.status.code(), Some(126), "{:?}: {}", case.rules, log(&output));
        assert!(log(&output).contains(": a token sent"), "{:?}: {}", case.rules, log(&output));
    }
}

#[test]
fn rules_that_do_no_harm_are_not_warned_about() {
    for rules in [
        &[
            "nft table inet other { chain f { type filter hook input priority 0; policy drop; ct state established accept; tcp dport 8080 drop; }; chain o { type filter hook output priority -300; tcp dport 25 reject; accept; }; }",
        ][..],
        &["nft table inet other { chain a { type nat hook output priority -50; tcp dport 80 redirect to :81; }; }"],
        &[
            "nft table inet other { chain a { type nat hook output priority -190; udp dport 53 dnat ip to 10.0.0.9; tcp dport 80 accept; }; }",
        ],
        &[
            "nft table inet other { chain a { type nat hook postrouting priority 100; masquerade; }; chain f { type filter hook forward priority 0; notrack; }; }",
        ],
        &[
            "nft table inet other { set seen { type ipv4_addr; flags dynamic; }; chain a { type filter hook prerouting priority -350; meta mark set 0x77; add @seen { ip saddr } counter; }; }",
        ],
        &[
            "iptables-legacy -t filter -A INPUT -p tcp --dport 22 -j REJECT",
            "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE",
        ],
        &[
            "iptables-nft -t nat -A POSTROUTING -j MASQUERADE",
            "iptables-nft -t filter -A OUTPUT -p tcp --dport 25 -j DROP",
        ],
    ] {
        let namespace = before_the_proxy();
        make(&namespace, rules);
        let log = namespace.ok(&["init", "--strict"]);
        assert!(!log.contains("rules of others"), "{rules:?}: {log}");
    }
}

/// The interception's own rules are not others', whichever backend holds them.
#[test]
fn ones_own_rules_are_not_taken_for_others() {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for options in [&["-m", "TPROXY", "--redirect-dns", "--drop-invalid"][..], &["-c", "net1", "-k", "vm0"]] {
            let namespace = before_the_proxy();
            let all = [&["init", "--strict", "--backend", backend, "-b", "*", "-i", "*"][..], options].concat();
            namespace.ok(&all);
            let log = namespace.ok(&all);
            assert!(log.contains("unchanged") && !log.contains("rules of others"), "{backend} {options:?}: {log}");
        }
    }
}

/// A pod's namespace has no table of anybody's: nothing more is read than was before.
#[test]
fn where_nobody_else_has_a_table_nothing_is_read_for_it() {
    let namespace = before_the_proxy();
    let fresh = namespace.ok(&["init", "-v"]);
    let again = namespace.ok(&["init", "-v"]);
    make(&namespace, CASES[0].rules);
    let beside = namespace.ok(&["init", "-v"]);
    let looks = |log: &str| log.contains("rules of others are looked at");
    assert!(!looks(&fresh) && !looks(&again) && looks(&beside), "{fresh}{again}{beside}");
}

#[test]
fn the_plugin_warns_and_with_strict_fails_as_well() {
    let case = &CASES[0];
    let cluster = Cluster::new(&sidecar(json!({})));
    make(&cluster.namespace, case.rules);
    let before = cluster.namespace.everything();
    let (code, message) = cluster.add().key("interception", json!({ "strict": true })).call().error();
    assert!(code == 100 && case.named.iter().all(|name| message.contains(name)), "{message}");
    assert_eq!(cluster.namespace.everything(), before);
    cluster.add().call().ok();
    let log = cluster.run_dir.log();
    assert!(case.named.iter().all(|name| log.contains(name)), "{log}");
}

#[test]
fn a_great_many_rules_of_others_are_not_read() {
    let namespace = before_the_proxy();
    let rules: String = (0..11_000).map(|n| format!("ip daddr 10.{}.{}.1 drop;", n / 250, n % 250)).collect();
    let table = format!("nft table ip other {{ chain a {{ type filter hook output priority 0; {rules} }}; }}");
    make(&namespace, &[&table]);
    let log = namespace.ok(&["init"]);
    assert!(log.contains("more than 10000 rules"), "{log}");
    assert_eq!(namespace.podweir(&["init", "--strict"]).status.code(), Some(1));
}
