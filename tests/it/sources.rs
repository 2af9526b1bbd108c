//! Options, the kernel and dumps of it tell the same about one interception.

use podweir::audit::source::Source;
use podweir::audit::source::dump::{self, Text};
use podweir::config::types::Family;
use podweir::plan::canon::Canon;
use serde_json::Value;

use crate::conformance::{cases, refs, strings, variables};
use crate::fixture::{Namespace, PODWEIR};

/// Reads texts as a dump. iptables-save has nothing to print where there is no table.
pub fn dumped(texts: &[(&str, &str)]) -> Source {
    let family = |name: &str| match name {
        _ if name.starts_with("iptables") => Some(Family::V4),
        _ => name.starts_with("ip6tables").then_some(Family::V6),
    };
    let text = |&(name, text): &(&str, &str)| Text {
        name: name.into(),
        bytes: text.as_bytes().into(),
        family: family(name).filter(|_| text.is_empty()),
    };
    let texts: Vec<Text> = texts.iter().map(text).collect();
    dump::read(&texts).unwrap_or_else(|e| panic!("{e}"))
}

/// What the namespace holds, as podweir tells it.
fn live(namespace: &Namespace) -> Source {
    let json = namespace.print(PODWEIR, &["render", "--live", "--format", "json"]);
    dumped(&[("live", &json)])
}

fn rules(source: &Source) -> Canon {
    Canon { routing: Default::default(), ..source.canon() }
}

/// Fails with the differences unless both are the same.
fn same(name: &str, what: &str, want: &Canon, have: &Canon) {
    let differences = podweir::plan::diff::differences(want, have);
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert!(want == have, "{name}: {what}:\n{}", lines.join("\n"));
}

/// Every case of the recordings on one backend, and each way to look at it.
fn check(backend: &[&str], looks: &[(&str, &[&str])]) {
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let addresses = strings(&case["addresses"]);
        let namespace = Namespace::with(&refs(&addresses), case["resolv_conf"].as_str().unwrap());
        let arguments = strings(&case["args"]);
        let variables = variables(&case["env"]);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut command = vec!["istio-iptables"];
        command.extend(backend);
        command.extend(refs(&arguments));
        let output = namespace.command(PODWEIR, &command, &variables);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let options = options(&namespace, &case, &arguments, &variables);
        let live = live(&namespace);
        same(name, "live", &options.canon(), &live.canon());
        assert!(live.held.iter().all(|held| held.strange.is_empty()), "{name}: {:?}", live.held);
        for (what, programs) in looks {
            let texts: Vec<String> = programs
                .iter()
                .map(|program| {
                    let words: Vec<&str> = program.split(' ').collect();
                    namespace.print(words[0], &words[1..])
                })
                .collect();
            let texts: Vec<(&str, &str)> = programs.iter().copied().zip(texts.iter().map(String::as_str)).collect();
            same(name, what, &rules(&options), &rules(&dumped(&texts)));
        }
    }
}

/// What the options mean, told by podweir and read back.
fn options(namespace: &Namespace, case: &Value, arguments: &[String], variables: &[(&str, &str)]) -> Source {
    let addresses: Vec<String> =
        strings(&case["addresses"]).iter().map(|a| a.split('/').next().unwrap().to_owned()).collect();
    let addresses = addresses.join(",");
    let servers: Vec<&str> =
        case["resolv_conf"].as_str().unwrap().lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    let servers = if servers.is_empty() { "none".to_owned() } else { servers.join(",") };
    let mut command = vec!["render", "--format", "json", "--as", "istio-iptables"];
    if !addresses.is_empty() {
        command.extend(["--pod-ip", &addresses]);
    }
    command.extend(["--dns-server", &servers]);
    command.push("--");
    command.extend(refs(arguments));
    let output = namespace.command(PODWEIR, &command, variables);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {log}");
    dumped(&[("options", &String::from_utf8(output.stdout).unwrap())])
}

#[test]
fn native_nftables_is_read_alike_by_all() {
    check(&["--native-nftables"], &[("nft's text", &["nft list ruleset"]), ("nft's JSON", &["nft -j list ruleset"])]);
}

#[test]
fn iptables_nft_is_read_alike_by_all() {
    check(&["--force-iptables-binary", "nft"], &[("iptables-save", &["iptables-nft-save -c", "ip6tables-nft-save"])]);
}

#[test]
fn iptables_legacy_is_read_alike_by_all() {
    check(
        &["--force-iptables-binary", "legacy"],
        &[("iptables-save", &["iptables-legacy-save", "ip6tables-legacy-save -c"])],
    );
}

/// What `explain` says of a dump: its exit status, its answer and its log.
fn explained(namespace: &Namespace, dumps: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut arguments = vec!["explain".to_owned(), "--destination=10.0.0.1".into(), "--port=80".into()];
    for (name, text) in dumps {
        let path = namespace.directory().join(name);
        std::fs::write(&path, text).unwrap();
        arguments.extend(["--dump".to_owned(), path.to_str().unwrap().to_owned()]);
    }
    let output = namespace.command(PODWEIR, &refs(&arguments), &[]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn saved(namespace: &Namespace, program: &str) -> String {
    let output = namespace.command(program, &[], &[]);
    // The warning about iptables-legacy is on the one or the other, by version.
    let both = [output.stderr, output.stdout].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn what_iptables_save_says_it_leaves_out_is_not_taken_for_nothing() {
    let redirect = "meta l4proto tcp redirect to :15001";
    // Of the first, iptables-nft-save prints nothing at all; of the second, less than there is.
    for (rules, gap) in [
        (
            format!(
                "set s {{ type ipv4_addr; }}; chain OUTPUT {{ type nat hook output priority -100; ip daddr @s accept; {redirect}; }};"
            ),
            "line 1",
        ),
        (format!("chain foo {{ type nat hook output priority -90; {redirect}; }};"), "line 1"),
    ] {
        let namespace = Namespace::new();
        let load = namespace.feed("nft", &["-f", "-"], &[], &format!("table ip nat {{ {rules} }}\n"));
        assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
        let print = saved(&namespace, "iptables-nft-save");
        assert!(print.contains("incompatible"), "{print}");
        let nft = namespace.print("nft", &["-j", "list", "ruleset"]);
        let (status, out, log) = explained(&namespace, &[("saved", &print)]);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{log}");
        assert!(log.contains(gap) && log.contains("table nat") && log.contains("nft -j list ruleset"), "{log}");
        // With nft's listing next to it nothing is left out.
        for dumps in [[("saved", print.as_str()), ("nft", &nft)], [("nft", &nft), ("saved", &print)]] {
            let (status, out, log) = explained(&namespace, &dumps);
            assert!(status == Some(0) && out.starts_with("outbound-proxy: "), "{out}{log}");
        }
    }
}

#[test]
fn rules_of_iptables_legacy_that_a_dump_mentions_are_missed() {
    let namespace = Namespace::new();
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        namespace.print(program, &["-A", "OUTPUT", "-p", "tcp", "-j", "DROP"]);
    }
    namespace
        .print("iptables-nft", &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "15001"]);
    let nft = saved(&namespace, "iptables-nft-save");
    let (status, out, log) = explained(&namespace, &[("nft", &nft)]);
    assert!(status == Some(0) && out.starts_with("outbound-proxy: "), "{out}{log}");
    assert!(log.contains("lacks rules") && log.contains("iptables-legacy-save") && !log.contains("ip6tables"), "{log}");
    let both = nft.clone() + &saved(&namespace, "ip6tables-nft-save");
    let (_, _, log) = explained(&namespace, &[("nft", &both)]);
    assert!(log.contains("iptables-legacy-save and ip6tables-legacy-save"), "{log}");
    // Not where they are there.
    let legacy = saved(&namespace, "iptables-legacy-save");
    let (status, out, log) = explained(&namespace, &[("nft", &nft), ("legacy", &legacy)]);
    assert!(status == Some(0) && out.starts_with("dropped: ") && !log.contains("lacks"), "{out}{log}");
}
