//! Again and again: what a run does with what it finds, on every backend and across them.

use std::collections::HashMap;
use std::process::Output;

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
/// Tables of both kinds, routing, both families.
const RICH: &[&str] = &["-m", "TPROXY", "-b", "*", "-i", "*", "--redirect-dns", "--ip-families", "both"];
/// One table, one family.
const PLAIN: &[&str] = &["-b", "*", "-i", "*", "--ip-families", "ipv4"];

fn init(namespace: &Namespace, backend: &str, arguments: &[&str]) -> Output {
    let all: Vec<&str> = ["init", "--backend", backend].iter().chain(arguments).copied().collect();
    namespace.command(PODWEIR, &all, &[])
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run that must succeed and say what it did.
fn does(namespace: &Namespace, backend: &str, arguments: &[&str], what: &str) {
    let output = init(namespace, backend, arguments);
    assert!(output.status.success(), "{backend} {arguments:?}: {}", log(&output));
    assert!(log(&output).contains(what), "{backend} {arguments:?}: no '{what}' in {}", log(&output));
}

fn dual() -> Namespace {
    Namespace::with(&[V4, V6], RESOLV)
}

#[test]
fn nothing_then_the_plan_then_nothing_to_do() {
    for backend in BACKENDS {
        for arguments in [RICH, PLAIN] {
            let namespace = dual();
            does(&namespace, backend, arguments, "installed");
            let before = namespace.everything();
            does(&namespace, backend, arguments, "unchanged");
            assert_eq!(before, namespace.everything(), "{backend}");
        }
    }
}

#[test]
fn one_plan_over_another_equals_the_other_alone() {
    for backend in BACKENDS {
        for (first, second) in [(RICH, PLAIN), (PLAIN, RICH)] {
            let namespace = dual();
            does(&namespace, backend, first, "installed");
            let again: Vec<&str> = second.iter().chain(&["--reconcile"]).copied().collect();
            does(&namespace, backend, &again, "replaced");
            let alone = dual();
            does(&alone, backend, second, "installed");
            assert_eq!(alone.everything(), namespace.everything(), "{backend}");
        }
    }
}

#[test]
fn drift_is_replaced_natively_and_refused_by_iptables() {
    for backend in BACKENDS {
        let namespace = dual();
        does(&namespace, backend, PLAIN, "installed");
        let other: Vec<&str> = PLAIN.iter().chain(&["-x", "10.1.0.0/16"]).copied().collect();
        let before = namespace.everything();
        let output = init(&namespace, backend, &other);
        if backend == "nftables" {
            assert!(output.status.success() && log(&output).contains("replaced"), "{}", log(&output));
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{}", log(&output));
        let text = log(&output);
        for word in ["missing: to 10.1.0.0/16: return", "destination is left alone", "--reconcile"] {
            assert!(text.contains(word), "no '{word}' in {text}");
        }
        assert_eq!(before, namespace.everything());
    }
}

/// Changes that leave every rule in the text but not its effect.
#[test]
fn order_and_foreign_rules_in_front_are_drift() {
    for variant in ["legacy", "nft"] {
        let backend = format!("iptables-{variant}");
        let tools = format!("iptables-{variant}");
        let tampering: &[&[&[&str]]] = &[
            // The catch-all moved to the front.
            &[
                &["-t", "nat", "-D", "ISTIO_OUTPUT", "-j", "ISTIO_REDIRECT"],
                &["-t", "nat", "-I", "ISTIO_OUTPUT", "1", "-j", "ISTIO_REDIRECT"],
            ],
            // Somebody's ACCEPT in front of our jump.
            &[&["-t", "nat", "-I", "OUTPUT", "1", "-d", "8.8.8.8", "-j", "ACCEPT"]],
            // Somebody's match that is not known.
            &[&[
                "-t",
                "nat",
                "-I",
                "OUTPUT",
                "1",
                "-m",
                "statistic",
                "--mode",
                "random",
                "--probability",
                "0.5",
                "-j",
                "RETURN",
            ]],
        ];
        for steps in tampering {
            let namespace = dual();
            does(&namespace, &backend, PLAIN, "installed");
            for step in *steps {
                namespace.print(&tools, step);
            }
            let output = init(&namespace, &backend, PLAIN);
            assert_eq!(output.status.code(), Some(1), "{steps:?}: {}", log(&output));
            let again: Vec<&str> = PLAIN.iter().chain(&["--reconcile"]).copied().collect();
            does(&namespace, &backend, &again, "replaced");
            does(&namespace, &backend, PLAIN, "unchanged");
            // Rules of others stay, behind ours.
            let saved = namespace.print(&format!("{tools}-save"), &[]);
            let is_foreign = |line: &&str| line.contains("8.8.8.8") || line.contains("statistic");
            let foreign = steps.iter().any(|step| step.contains(&"8.8.8.8") || step.contains(&"statistic"));
            assert_eq!(saved.lines().find(is_foreign).is_some(), foreign, "{saved}");
        }
        // A foreign rule that keeps nothing from us is none of our business.
        let namespace = dual();
        namespace.print(&tools, &["-t", "nat", "-A", "OUTPUT", "-d", "8.8.8.8", "-j", "ACCEPT"]);
        does(&namespace, &backend, PLAIN, "installed");
        namespace.print(&tools, &["-t", "nat", "-I", "OUTPUT", "1", "-m", "comment", "--comment", "counted"]);
        does(&namespace, &backend, PLAIN, "unchanged");
    }
}

#[test]
fn a_native_table_that_is_tampered_with_is_made_whole() {
    let tampering: &[&[&str]] = &[
        &["insert", "rule", "inet", "istio-proxy-nat", "output", "ip", "daddr", "8.8.8.8", "accept"],
        &["insert", "rule", "inet", "istio-proxy-nat", "istio-output", "jump", "istio-redirect"],
        &["add", "rule", "inet", "istio-proxy-nat", "istio-output", "limit", "rate", "5/second", "accept"],
        &["flush", "chain", "inet", "istio-proxy-nat", "istio-redirect"],
        &["add", "table", "inet", "istio-proxy-nat", "{ flags dormant; }"],
        &["chain", "inet", "istio-proxy-nat", "output", "{ policy drop; }"],
        &["delete", "table", "inet", "istio-proxy-nat"],
        &["add", "table", "inet", "istio-proxy-mangle"],
        &["add", "chain", "inet", "istio-proxy-nat", "somebodys"],
    ];
    for step in tampering {
        let namespace = dual();
        does(&namespace, "nftables", PLAIN, "installed");
        let before = namespace.everything();
        namespace.print("nft", step);
        // An empty table or chain of ours has no effect; everything else is drift.
        let harmless = step.contains(&"somebodys") || step.contains(&"istio-proxy-mangle");
        let output = init(&namespace, "nftables", PLAIN);
        assert!(output.status.success(), "{step:?}: {}", log(&output));
        if !harmless {
            assert!(!log(&output).contains("unchanged"), "{step:?}: {}", log(&output));
            assert_eq!(before, namespace.everything(), "{step:?}");
        }
        does(&namespace, "nftables", PLAIN, "unchanged");
    }
}

/// The base chains of a namespace, each with the number that the kernel gave it.
fn base_chains(namespace: &Namespace) -> HashMap<String, String> {
    let text = namespace.print("nft", &["-a", "list", "chains"]);
    let (mut table, mut out) = ("", HashMap::new());
    for line in text.lines().map(str::trim) {
        if line.starts_with("table ") {
            table = line;
        } else if let Some((chain, handle)) = line.strip_prefix("chain ").and_then(|rest| rest.split_once(" { # "))
            && !chain.contains('-')
        {
            out.insert(format!("{table} {chain}"), handle.to_owned());
        }
    }
    out
}

/// The kernel lets a packet pass the old rules of a base chain that goes and the new ones of
/// one that comes: so none goes whose place another one takes.
#[test]
fn base_chains_stay_while_native_rules_are_replaced() {
    for mode in ["REDIRECT", "TPROXY"] {
        let namespace = dual();
        let plans: [&[&str]; 6] = [
            &[],
            &["-x", "10.1.0.0/16,10.3.0.0/16"],
            &["--redirect-dns", "--drop-invalid"],
            &["-b", "8080,9000-9100", "-c", "net1"],
            &["-i", "", "-b", ""],
            &["--ip-families", "ipv4"],
        ];
        does(&namespace, "nftables", &["-m", mode], "installed");
        for plan in plans.iter().cycle().skip(1).take(2 * plans.len()) {
            let arguments = [&["-m", mode], *plan].concat();
            let before = base_chains(&namespace);
            // Taken back, since nobody hears of it.
            let all = [&["init", "--backend", "nftables"], arguments.as_slice()].concat().join("' '");
            let output = namespace.command("sh", &["-c", &format!("'{PODWEIR}' '{all}' 2>/dev/full")], &[]);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            let back = base_chains(&namespace);
            does(&namespace, "nftables", &arguments, "replaced");
            let after = base_chains(&namespace);
            assert!(!after.is_empty() && back.len() == before.len());
            for (chain, handle) in &after {
                let is = |handles: &HashMap<String, String>| handles.get(chain).is_none_or(|other| other == handle);
                assert!(is(&before) && is(&back), "{arguments:?}: {before:?} {back:?} {after:?}");
            }
        }
    }
}

#[test]
fn missing_routing_is_drift_too() {
    for backend in BACKENDS {
        for step in [
            &["-4", "rule", "del", "fwmark", "1337"][..],
            &["-4", "route", "flush", "table", "133"],
            &["-6", "addr", "del", "::6/128", "dev", "lo"],
        ] {
            let namespace = dual();
            does(&namespace, backend, RICH, "installed");
            let before = namespace.everything();
            namespace.print("ip", step);
            let output = init(&namespace, backend, RICH);
            if backend == "nftables" {
                assert!(output.status.success(), "{}", log(&output));
            } else {
                assert_eq!(output.status.code(), Some(1), "{}", log(&output));
                assert!(log(&output).contains("missing: the"), "{}", log(&output));
                let again: Vec<&str> = RICH.iter().chain(&["--reconcile"]).copied().collect();
                does(&namespace, backend, &again, "replaced");
            }
            assert_eq!(before, namespace.everything(), "{backend} {step:?}");
        }
    }
}

#[test]
fn rules_in_another_backend_are_found_and_replaced() {
    for first in BACKENDS {
        for second in BACKENDS.into_iter().filter(|second| *second != first) {
            let namespace = dual();
            does(&namespace, first, RICH, "installed");
            if second != "nftables" {
                let output = init(&namespace, second, PLAIN);
                assert_eq!(output.status.code(), Some(1), "{first} → {second}: {}", log(&output));
                assert!(log(&output).contains(first), "{}", log(&output));
            }
            let again: Vec<&str> = PLAIN.iter().chain(&["--reconcile"]).copied().collect();
            does(&namespace, second, &again, &format!("from={first}"));
            does(&namespace, second, PLAIN, "unchanged");
            let alone = dual();
            does(&alone, second, PLAIN, "installed");
            assert_eq!(alone.everything(), namespace.everything(), "{first} → {second}");
            // By itself the one that holds rules is used.
            let log = namespace.ok(&[&["init"], PLAIN].concat());
            assert!(log.contains("unchanged") && log.contains(second), "{log}");
        }
    }
}

#[test]
fn cleaning_leaves_nothing_and_needs_nothing() {
    for backend in BACKENDS {
        for clean in [&["clean"][..], &["init", "--cleanup-only"], &["istio-iptables", "--cleanup-only"]] {
            let namespace = dual();
            let before = namespace.everything();
            assert!(namespace.ok(clean).contains("nothing to remove"));
            does(&namespace, backend, RICH, "installed");
            assert!(namespace.ok(clean).contains("removed"));
            assert_eq!(before, namespace.everything(), "{backend}");
            assert!(namespace.ok(clean).contains("nothing to remove"));
        }
    }
}

#[test]
fn cleaning_leaves_what_others_made() {
    for variant in ["legacy", "nft"] {
        let namespace = dual();
        let iptables = format!("iptables-{variant}");
        for rule in [
            &["-t", "nat", "-A", "OUTPUT", "-d", "8.8.8.8", "-j", "ACCEPT"][..],
            &["-t", "nat", "-N", "OTHER"],
            &["-t", "mangle", "-A", "PREROUTING", "-i", "eth9", "-j", "RETURN"],
        ] {
            namespace.print(&iptables, rule);
        }
        namespace.print("nft", &["add", "table", "inet", "others"]);
        namespace.print("ip", &["rule", "add", "fwmark", "7", "lookup", "100"]);
        let before = namespace.everything();
        does(&namespace, &iptables, RICH, "installed");
        namespace.ok(&["clean"]);
        assert_eq!(before, namespace.everything(), "{variant}");
    }
}

#[test]
fn looking_makes_nothing() {
    let namespace = dual();
    let modules = || {
        (
            namespace.print("nft", &["list", "tables"]),
            namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap()),
        )
    };
    let before = modules();
    namespace.ok(&["clean"]);
    namespace.ok(&["init", "--dry-run"]);
    namespace.ok(&["istio-iptables", "--dry-run"]);
    assert_eq!(before, modules());
    assert_eq!(before, (String::new(), String::new()));
}

#[test]
fn the_compatible_face_takes_the_variant_that_is_in_use() {
    for variant in ["legacy", "nft"] {
        let namespace = Namespace::new();
        namespace
            .print(&format!("iptables-{variant}"), &["-t", "filter", "-A", "OUTPUT", "-d", "8.8.8.8", "-j", "ACCEPT"]);
        namespace
            .print(&format!("iptables-{variant}"), &["-t", "nat", "-A", "OUTPUT", "-d", "8.8.8.8", "-j", "ACCEPT"]);
        let log = namespace.ok(&["istio-iptables", "-b", "*", "-i", "*"]);
        assert!(log.contains(&format!("iptables-{variant}")), "{log}");
    }
    let log = Namespace::new().ok(&["istio-iptables", "-b", "*", "-i", "*"]);
    assert!(log.contains("iptables-nft"), "{log}");
    let log = Namespace::new().ok(&["istio-iptables", "-b", "*", "-i", "*", "--native-nftables"]);
    assert!(log.contains("\"nftables\""), "{log}");
}

#[test]
fn writing_again_can_be_asked_for() {
    for backend in BACKENDS {
        let namespace = dual();
        does(&namespace, backend, RICH, "installed");
        let before = namespace.everything();
        let again: Vec<&str> = RICH.iter().chain(&["--force-apply"]).copied().collect();
        does(&namespace, backend, &again, "replaced");
        assert_eq!(before, namespace.everything());
    }
}

/// iptables-nft warns of legacy tables on standard error, in the midst of what it prints.
#[test]
fn a_warning_amid_a_long_listing_is_no_rule() {
    let namespace = dual();
    namespace.print("iptables-legacy", &["-t", "nat", "-S"]);
    let ranges: Vec<String> = (0..200).map(|n| format!("10.{n}.0.0/16")).collect();
    let ranges = ranges.join(",");
    let init = ["init", "--backend", "iptables-nft", "-i", "*", "-x", &ranges];
    assert!(namespace.ok(&init).contains("installed"));
    assert!(namespace.ok(&init).contains("unchanged"));
    assert!(namespace.ok(&["clean"]).contains("removed"));
}
