//! What the command line prints: help, configuration, dry runs, log lines.

use std::process::Output;

use podweir::config::options::OPTIONS;
use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::typical::TYPICAL;

const RICH: &[&str] = &[
    "-m",
    "TPROXY",
    "-b",
    "*",
    "-d",
    "80,8000-8100",
    "-i",
    "10.0.0.0/8,fd00::/8",
    "-x",
    "10.1.0.0/16",
    "-o",
    "3306",
    "-q",
    "9000",
    "-c",
    "eth9",
    "-k",
    "tap0",
    "--redirect-dns",
    "--drop-invalid",
    "--exclude-outbound-uids",
    "1001,2000-2010",
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs podweir as a user without any capability.
fn unprivileged(namespace: &Namespace, arguments: &[&str]) -> Output {
    let start = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all", PODWEIR];
    namespace.command("setpriv", &[&start, arguments].concat(), &[])
}

#[test]
fn help_teaches() {
    let namespace = Namespace::new();
    for face in ["init", "istio-iptables"] {
        let output = namespace.podweir(&[face, "--help"]);
        let help = text(&output.stdout);
        assert!(output.status.success() && output.stderr.is_empty() && !help.contains('\x1b'));
        for spec in OPTIONS {
            let names = [spec.long].into_iter().chain(spec.env.iter().copied()).filter(|name| !name.is_empty());
            for name in names {
                assert!(help.contains(name), "{face}: {name}");
            }
        }
        for word in ["Exit status: 0 done, 1 failed or the rules differ, 2 usage, 126", "Examples:", "--log_as_json"] {
            assert!(help.contains(word), "{face}: {word}");
        }
    }
    for arguments in [&["--help"][..], &[]] {
        let output = namespace.podweir(arguments);
        let help = text(&output.stdout) + &text(&output.stderr);
        assert!(["init", "istio-iptables", "clean"].iter().all(|name| help.contains(name)), "{help}");
        assert_eq!(output.status.code(), Some(if arguments.is_empty() { 2 } else { 0 }));
    }
    assert_eq!(text(&namespace.podweir(&["--version"]).stdout), format!("podweir {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_value_is_shown_with_its_source() {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    let variables = [("ISTIO_LOCAL_EXCLUDE_PORTS", "80"), ("PROXY_UID", "7"), ("INBOUND_CAPTURE_PORT", "16006")];
    let arguments = ["init", "-z", "17006", "--istio-inbound-ports=8080,9000-9010", "--print-config"];
    let output = namespace.command(PODWEIR, &[&arguments[..], &["--json"]].concat(), &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json.as_object().unwrap().len(), OPTIONS.len());
    let expected = [
        ("inbound-capture-port", "17006", "flag"),
        ("istio-inbound-ports", "8080,9000-9010", "flag"),
        ("istio-local-exclude-ports", "80", "variable ISTIO_LOCAL_EXCLUDE_PORTS"),
        ("proxy-uid", "7", "variable PROXY_UID"),
        ("proxy-gid", "7", "default"),
        ("envoy-port", "15001", "default"),
        ("ip-families", "auto (IPv4 and IPv6)", "default"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "*", "default"),
    ];
    let lines = text(&namespace.command(PODWEIR, &arguments, &variables).stdout);
    assert_eq!(lines.lines().count(), OPTIONS.len());
    for (name, value, source) in expected {
        assert_eq!(
            (json[name]["value"].as_str(), json[name]["source"].as_str()),
            (Some(value), Some(source)),
            "{name}"
        );
        let line = lines.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        assert!(line.contains(value) && line.ends_with(source), "{line}");
    }
}

/// Loads what a dry run printed, with the programs it names.
fn load(namespace: &Namespace, script: &str, variant: &str) {
    let feed = |program: &str, arguments: &[&str], input: &str| {
        let output = namespace.feed(program, arguments, &[], input);
        assert!(output.status.success(), "{program}: {}\n{input}", text(&output.stderr));
    };
    let (rules, routing) = script.split_once("# routing\n").unwrap_or((script, ""));
    if variant == "nftables" {
        feed("nft", &["-f", "-"], rules);
    } else {
        let (v4, v6) = rules.split_once("# podweir: IPv6, load with ip6tables-restore --noflush\n").unwrap();
        assert!(v4.starts_with("# podweir: IPv4, load with iptables-restore --noflush\n"));
        feed(&format!("iptables-{variant}-restore"), &["--noflush"], v4);
        feed(&format!("ip6tables-{variant}-restore"), &["--noflush"], v6);
    }
    for command in routing.lines() {
        let words: Vec<&str> = command.strip_prefix("# ").unwrap().split(' ').collect();
        feed(words[0], &words[1..], "");
    }
}

#[test]
fn a_dry_run_is_what_would_be_done() {
    let flags = [("nftables", "nftables"), ("iptables-legacy", "legacy"), ("iptables-nft", "nft")];
    for (backend, variant) in flags {
        for options in [TYPICAL, RICH] {
            let namespace = Namespace::with(&[V4, V6], RESOLV);
            let before = namespace.everything();
            let init = [&["init", "--backend", backend][..], options].concat();
            let dry = [&init[..], &["--dry-run"]].concat();
            let output = unprivileged(&namespace, &dry);
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(output.stdout, namespace.podweir(&dry).stdout, "two runs print the same");
            assert_eq!(before, namespace.everything());
            load(&namespace, &text(&output.stdout), variant);
            assert!(namespace.ok(&init).contains("unchanged"), "{backend} {options:?}\n{}", text(&output.stdout));
            // And once more, over what is there.
            if variant == "nftables" {
                load(&namespace, text(&output.stdout).split("# routing\n").next().unwrap(), variant);
                assert!(namespace.ok(&init).contains("unchanged"));
            }
        }
    }
}

/// The backend that a log line names.
fn backend_of(log: &str) -> &str {
    let (_, rest) = log.split_once("backend=\"").unwrap_or_else(|| panic!("no backend in: {log}"));
    rest.split_once('"').unwrap().0
}

/// Without --backend it is the kernel, and what programs there are, that decide.
#[test]
fn a_dry_run_is_for_the_backend_that_a_run_takes() {
    const NO_PROGRAMS: &[(&str, &str)] = &[("PATH", "/nonexistent")];
    let legacy: &[&str] = &["init", "--backend", "iptables-legacy", "-i", "*"];
    let nft: &[&str] = &["init", "--backend", "iptables-nft", "-i", "*"];
    let same = ["init", "-i", "*"];
    for (there, arguments, variables, backend, prospect) in [
        (None, &["istio-iptables", "-i", "*"][..], NO_PROGRAMS, "nftables", "would be installed"),
        (None, &["istio-iptables", "-i", "*"], &[], "iptables-nft", "would be installed"),
        (None, &same, &[], "nftables", "would be installed"),
        (None, &["ambient"], &[], "nftables", "would be installed"),
        (Some(legacy), &same, &[], "iptables-legacy", "would change nothing"),
        (Some(nft), &same, &[], "iptables-nft", "would change nothing"),
        (Some(nft), &["init", "-b", "*"], &[], "iptables-nft", "would fail: the rules in iptables-nft differ"),
        (Some(nft), &["init", "-b", "*", "--reconcile"], &[], "iptables-nft", "would replace"),
        (Some(legacy), &["istio-iptables", "-i", "*"], &[], "iptables-legacy", "would change nothing"),
    ] {
        let namespace = Namespace::new();
        let name = format!("{arguments:?} over {there:?}");
        if let Some(there) = there {
            namespace.ok(there);
        }
        let before = namespace.everything();
        let dry = namespace.command(PODWEIR, &[arguments, &["--dry-run"]].concat(), variables);
        assert!(dry.status.success(), "{name}: {}", text(&dry.stderr));
        assert_eq!(before, namespace.everything(), "{name}");
        let (script, said) = (text(&dry.stdout), text(&dry.stderr));
        assert!(said.contains(prospect) && said.contains("decided_by=\"this kernel\""), "{name}: {said}");
        assert_eq!(backend_of(&said), backend, "{name}: {said}");
        let loader = if backend == "nftables" { "load with nft -f" } else { "load with iptables-restore" };
        assert!(script.lines().next().unwrap().ends_with(loader) || script.contains(&format!("{loader} ")), "{script}");
        let run = namespace.command(PODWEIR, arguments, variables);
        let log = text(&run.stderr);
        assert_eq!(run.status.success(), !prospect.contains("fail"), "{name}: {log}");
        if run.status.success() {
            assert_eq!(backend_of(&log), backend, "{name}: {log}");
            let kept = log.contains("unchanged");
            assert_eq!(kept, prospect.contains("nothing"), "{name}: {log}");
        }
        // Whoever may not look gets what the options alone say, and is told so.
        let blind = unprivileged(&namespace, &[arguments, &["--dry-run"]].concat());
        let said = text(&blind.stderr);
        assert!(blind.status.success() && said.contains("decided_by=\"the options alone\""), "{name}: {said}");
    }
}

#[test]
fn one_line_says_what_was_done() {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    let output = namespace.podweir(&[&["init"], TYPICAL].concat());
    let log = text(&output.stderr);
    assert!(output.stdout.is_empty());
    assert_eq!(log.lines().count(), 1, "{log}");
    for word in ["INFO", "installed", "backend=\"nftables\"", "families=IPv4", "rules=", "ms="] {
        assert!(log.contains(word), "{log}");
    }
    let levels = |options: &[&str]| text(&namespace.podweir(&[&["init"], TYPICAL, options].concat()).stderr);
    assert_eq!(levels(&["--log_output_level=default:none"]), "");
    assert_eq!(levels(&["--log_output_level", "default:warn,xds:debug"]), "");
    let (usual, more) = (levels(&["--log_output_level=info"]), levels(&["-v"]));
    assert!(usual.contains("unchanged") && more.lines().count() > usual.lines().count(), "{usual}\n{more}");
    for line in levels(&["--log_as_json", "-v"]).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }
    let json = levels(&["--log_as_json"]);
    let line: Value = serde_json::from_str(json.trim_end()).unwrap();
    assert_eq!((line["message"].as_str(), line["backend"].as_str()), (Some("unchanged"), Some("nftables")));
}

#[test]
fn rules_carry_comments_where_asked() {
    for (backend, variant) in [("iptables-legacy", "legacy"), ("iptables-nft", "nft")] {
        let namespace = Namespace::new();
        let init = [&["init", "--backend", backend], TYPICAL].concat();
        let saved = |namespace: &Namespace| namespace.print(&format!("iptables-{variant}-save"), &[]);
        namespace.ok(&init);
        assert!(!saved(&namespace).contains("comment"));
        // A comment is no difference, so nothing is written for one alone.
        assert!(namespace.ok(&[&init[..], &["--rule-comments"]].concat()).contains("unchanged"));
        namespace.ok(&["clean"]);
        namespace.ok(&[&init[..], &["--rule-comments"]].concat());
        let saved = saved(&namespace);
        assert!(saved.lines().filter(|line| line.starts_with("-A")).all(|line| line.contains("--comment")), "{saved}");
    }
}

#[test]
fn thousands_of_ranges_are_installed_at_once() {
    let ranges: Vec<String> = (0..5000).map(|n| format!("100.{}.{}.0/25", 64 + n / 200, n % 200)).collect();
    let ranges = ranges.join(",");
    for backend in ["nftables", "iptables-legacy", "iptables-nft"] {
        let namespace = Namespace::new();
        let init = ["init", "--backend", backend, "-b", "*", "-i", "*", "-x", &ranges];
        assert!(namespace.ok(&init).contains("installed"), "{backend}");
        assert!(namespace.ok(&init).contains("unchanged"), "{backend}");
        let fewer = ranges.rsplit_once(',').unwrap().0;
        let log = namespace.ok(&["init", "--reconcile", "--backend", backend, "-b", "*", "-i", "*", "-x", fewer]);
        assert!(log.contains("replaced"), "{log}");
    }
}
