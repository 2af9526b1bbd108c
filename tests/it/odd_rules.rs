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

/// A table with one rule of somebody else's in a chain of the kind given, behind another one.
fn alone(kind: &str, rule: &str) -> Namespace {
    let namespace = Namespace::new();
    let objects = "map m { type ipv4_addr : ipv4_addr; }; set s { type ipv4_addr . inet_service; };";
    let chain = format!("chain out {{ type {kind} hook output priority -150; udp dport 9 counter\n{rule}\n}};");
    feed(&namespace, &format!("table inet other {{ {objects} {chain} }}"));
    namespace
}

#[test]
fn what_is_not_understood_is_named_with_its_rule_and_its_words() {
    for (kind, rule, live, text) in [
        ("filter", "fib daddr type unicast drop", "[fib daddr type 0x1]: drop", "[fib daddr type unicast]: drop"),
        ("filter", "tcp flags syn drop", "tcp [@th,104,8 & 0x2 != 0x0]: drop", "tcp [tcp flags syn]: drop"),
        ("filter", "limit rate 5/second drop", "[limit rate 5/second]: drop", "[limit rate 5/second]: drop"),
        ("filter", "ct direction original drop", "[ct direction 0x0]: drop", "[ct direction original]: drop"),
        ("filter", "iifgroup 7 drop", "[meta iifgroup 0x7]: drop", "[iifgroup 7]: drop"),
        ("filter", "socket transparent 1 drop", "[socket transparent 0x1]: drop", "[socket transparent 1]: drop"),
        (
            "filter",
            "ip daddr . tcp dport @s drop",
            "tcp [@nh,128,32 th dport @s]: drop",
            "tcp [ip daddr . tcp dport @s]: drop",
        ),
        (
            "filter",
            "ip daddr . tcp dport vmap { 10.0.0.1 . 80 : drop }",
            "tcp [th dport]: [@nh,128,32 th dport vmap @__map0]",
            "tcp: [ip daddr . tcp dport vmap { 10.0.0.1 . 80 : drop }]",
        ),
        (
            "nat",
            "meta l4proto tcp dnat ip to 10.0.0.9:80",
            "tcp: [dnat to 10.0.0.9 80]",
            "tcp: [dnat ip to 10.0.0.9:80]",
        ),
        ("nat", "dnat ip to ip daddr map @m", "[map @m]: [@nh,128,32 map @m dnat]", "[dnat ip to ip daddr map @m]"),
        ("nat", "meta l4proto tcp redirect to :80-90", "tcp: [redir to 80 90]", "tcp: [redirect to :80-90]"),
    ] {
        let namespace = alone(kind, rule);
        let ruleset = namespace.print("nft", &["-a", "list", "ruleset"]);
        let line = ruleset.lines().rfind(|line| line.contains("# handle")).unwrap();
        let (listed, handle) = line.trim().split_once(" # handle ").unwrap();
        let answers = answers(&namespace, &OUT);
        for (source, answer) in &answers {
            let found = &answer["rule"];
            assert_eq!(answer["verdict"], "unknown", "{source}: {rule}: {answer:#}");
            assert_eq!(
                (&found["number"], &found["handle"]),
                (&2.into(), &handle.parse::<u64>().unwrap().into()),
                "{answer:#}"
            );
        }
        let words: Vec<&Value> = answers.iter().map(|(_, answer)| &answer["rule"]["text"]).collect();
        assert_eq!(words[..2], [live, text], "{rule}");
        let listings: Vec<&Value> = answers.iter().map(|(_, answer)| &answer["rule"]["listed"]).collect();
        assert_eq!(listings[..2], [&Value::Null, &Value::from(listed)], "{rule}");
        assert!(serde_json::from_str::<Value>(listings[2].as_str().unwrap()).unwrap().is_array(), "{rule}");
        let said = namespace.print(PODWEIR, &[&["explain", "--live"], &OUT[..]].concat());
        let expected = format!("cannot tell, because of rule 2 (handle {handle}) of inet other out: {live} (nftables)");
        assert!(said.contains(&expected), "{rule}: {said}");
    }
}

#[test]
fn an_interface_that_is_gone_is_called_so() {
    let namespace = Namespace::new();
    namespace.batch("link add gone0 index 77 type veth peer name gone1\n");
    feed(&namespace, "table inet other { chain out { type filter hook output priority 0; oif \"gone0\" drop; }; }");
    namespace.batch("link del gone0\n");
    let said = namespace.print(PODWEIR, &[&["explain", "--live"], &OUT[..]].concat());
    assert!(said.contains("[meta oif 77 (no interface has that index now)]: drop"), "{said}");
}

#[test]
fn rules_of_iptables_are_named_by_their_number_in_the_chain() {
    for (variant, kept) in [("nft", "[xt match string]: drop"), ("legacy", "[-m string --string x --algo bm]: drop")] {
        let namespace = Namespace::new();
        let program = format!("iptables-{variant}");
        namespace.print(&program, &["-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT"]);
        namespace.print(&program, &["-A", "OUTPUT", "-m", "string", "--string", "x", "--algo", "bm", "-j", "DROP"]);
        let saved = namespace.print(&format!("{program}-save"), &[]);
        let live = namespace.print(PODWEIR, &[&["explain", "--live"], &OUT[..]].concat());
        assert!(live.contains("because of rule 2") && live.contains(&format!("of filter OUTPUT: {kept}")), "{live}");
        let dump = namespace.directory().join("saved");
        std::fs::write(&dump, saved).unwrap();
        let told = namespace.print(PODWEIR, &[&["explain", "--dump", dump.to_str().unwrap()], &OUT[..]].concat());
        let expected = "because of rule 2 of filter OUTPUT: [-m string --string x --algo bm]: drop";
        assert!(told.contains(expected), "{told}");
        assert!(told.contains("listed as -A OUTPUT -m string --string \"x\" --algo bm -j DROP"), "{told}");
        // And in an audit, the rule is named as well.
        let audit = namespace.command(PODWEIR, &["audit", "--live"], &[]);
        let audit = String::from_utf8_lossy(&audit.stdout).into_owned();
        assert!(audit.contains("rule 2"), "{audit}");
    }
}

/// `nft -j` keeps nothing of iptables-nft's own matches and targets but their names.
#[test]
fn what_nft_leaves_out_of_a_listing_is_not_made_up() {
    let namespace = Namespace::new();
    let options = ["-b", "*", "-i", "*"];
    namespace.ok(&[&["init", "--backend", "iptables-nft"], &options[..]].concat());
    let path = |name: &str, text: String| {
        let path = namespace.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let opaque = path("opaque", namespace.print("nft", &["-j", "list", "ruleset"]));
    let saved = path("saved", namespace.print("iptables-nft-save", &[]));
    let json = namespace.print(PODWEIR, &["render", "--dump", &opaque, "--format", "json"]);
    let rendered = path("rendered", json);
    let run = |arguments: &[&str]| {
        let output = namespace.command(PODWEIR, arguments, &[]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let hint = |text: &str| text.contains("of IPv4 nat ISTIO_") && text.contains("dump with iptables-save");
    let pod = ["--pod-ip", "10.244.0.6"];
    for dump in [&opaque, &rendered] {
        let (status, out, log) = run(&["render", "--hash", "--dump", dump]);
        assert!(status == Some(1) && out.is_empty() && hint(&log) && log.contains("rule "), "{log}");
        let (status, out, log) = run(&[&["verify", "--dump", dump], &pod[..], &["--"], &options].concat());
        assert!(status == Some(1) && out.is_empty() && hint(&log), "{out}{log}");
    }
    let (status, out, log) = run(&[&["explain", "--dump", &opaque], &OUT[..]].concat());
    assert!(status == Some(0) && out.starts_with("unknown: ") && hint(&log), "{out}{log}");
    let (status, out, _) = run(&[&["audit", "--dump", &opaque], &pod[..]].concat());
    assert!(status == Some(0) && hint(&out), "{out}");
    let (status, out, _) =
        run(&[&["audit", "--fail-on", "high", "--dump", &opaque], &pod[..], &["--"], &options].concat());
    assert!(status == Some(1) && hint(&out) && out.contains("it cannot be told whether"), "{out}");
    // In nft's text they have a name, or are not there at all.
    for target in ["xt target \"REDIRECT\"", ""] {
        let chains = format!("chain ISTIO_REDIRECT {{\nmeta l4proto tcp counter packets 0 bytes 0 {target}\n}}\n");
        let text = path("text", format!("table ip nat {{\n{chains}}}\n"));
        let (status, out, log) = run(&["render", "--hash", "--dump", &text]);
        assert!(status == Some(1) && out.is_empty() && hint(&log), "{target}: {log}");
    }
    // With what iptables-save prints next to it, all of it is known.
    for dump in [&[saved.as_str()][..], &[&opaque, &saved]] {
        let digest = run(&[&["render", "--hash", "--dump"], dump].concat());
        assert!(digest.0 == Some(0) && digest.1.starts_with("sha256:"), "{digest:?}");
        let (status, out, log) = run(&[&["verify"], &pod[..], &["--dump"], dump, &["--"], &options].concat());
        assert!(status == Some(0) && !hint(&log), "{out}{log}");
    }
}

#[test]
fn of_an_interception_of_one_family_only_a_strangers_rule_is_unexpected() {
    let options = ["--ip-families", "ipv4", "-b", "*", "-i", "*"];
    for (chain, families) in
        [("output", &["IPv4", "IPv6"][..]), ("prerouting", &["IPv4", "IPv6"]), ("istio-output", &["IPv4"])]
    {
        let namespace = Namespace::new();
        namespace.ok(&[&["init", "--backend", "nftables"], &options[..]].concat());
        namespace.print("nft", &["insert", "rule", "inet", "istio-proxy-nat", chain, "udp", "dport", "9", "return"]);
        let output = namespace.command(PODWEIR, &[&["verify", "--live", "--json", "--"], &options[..]].concat(), &[]);
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found: Vec<(&str, bool, u64)> = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| {
                let is_it =
                    finding["kind"] == "unexpected" && finding["text"].as_str().unwrap().contains("udp port 9: return");
                (finding["family"].as_str().unwrap(), is_it, finding["number"].as_u64().unwrap())
            })
            .collect();
        let expected: Vec<_> = families.iter().map(|family| (*family, true, 1)).collect();
        assert_eq!(found, expected, "{chain}: {report:#}");
    }
}
