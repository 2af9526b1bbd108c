//! Where the kernel's way with rules is not what one would guess: `explain` says what
//! really happens, of rules of others that stand beside an interception.

use crate::fixture::{Namespace, PODWEIR};
use crate::pod::{Pod, Probe, Proxy, ask};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

fn pod() -> Pod {
    Pod::new(&["10.244.0.6/24"], "", PROXY)
}

fn load(namespace: &Namespace, rules: &str) {
    let (program, arguments): (&str, &[&str]) = match rules.split_once('\n') {
        Some((first, _)) if first.starts_with("# iptables") => (&first[2..], &["--noflush"]),
        _ => ("nft", &["-f", "-"]),
    };
    let output = namespace.feed(program, arguments, &[], rules);
    assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The verdict that a real connection shows.
fn shown(pod: &Pod, uid: u32, to: &str, port: u16) -> &'static str {
    let probe = Probe::parse(&format!("out tcp uid={uid} gid={uid} to {to} {port}"));
    match pod.probe(&[probe]).remove(0).as_str() {
        "out-proxy" => "outbound-proxy",
        "in-proxy" => "inbound-proxy",
        "outside" | "app" => "direct",
        "silent" => "dropped",
        other => panic!("{other}"),
    }
}

fn explained(pod: &Pod, uid: u32, to: &str, port: u16) -> String {
    let (uid, port) = (uid.to_string(), port.to_string());
    let flow = ["--uid", &uid, "--gid", &uid, "--destination", to, "--port", &port];
    pod.namespace.print(PODWEIR, &[&["explain", "--live"], &flow[..]].concat())
}

/// Holds some rules' verdicts against the kernel's, and against those that are meant.
fn same(rules: &[&str], flows: &[(u32, &str, u16, &str)]) {
    let pod = pod();
    rules.iter().for_each(|rules| match rules.strip_prefix("podweir ") {
        Some(options) => drop(pod.namespace.ok(&options.split(' ').collect::<Vec<_>>())),
        None => load(&pod.namespace, rules),
    });
    for &(uid, to, port, verdict) in flows {
        assert_eq!(shown(&pod, uid, to, port), verdict, "the kernel: {rules:?} {to} {port}");
        let text = explained(&pod, uid, to, port);
        assert_eq!(text.split(':').next(), Some(verdict), "{rules:?}\n{text}");
    }
}

const INSTALL: &str = "podweir init --backend nftables -i * -b *";
const OUT: &str = "198.51.100.7";

#[test]
fn of_chains_in_one_place_the_last_one_made_comes_first() {
    let nat = "table ip other { chain o { type nat hook output priority -100; tcp dport 80 redirect to :15006; }; }";
    let iptables = "# iptables-nft-restore\n*nat\n-A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15006\nCOMMIT\n";
    for later in [nat, iptables] {
        same(&[INSTALL, later], &[(1000, OUT, 80, "inbound-proxy"), (1000, OUT, 81, "outbound-proxy")]);
        same(&[later, INSTALL], &[(1000, OUT, 80, "outbound-proxy"), (1000, OUT, 81, "outbound-proxy")]);
    }
    let marks = "table inet a { chain o { type filter hook output priority 0; tcp dport 80 meta mark set 7; }; }";
    let drops = "table inet b { chain o { type filter hook output priority 0; meta mark 7 drop; }; }";
    same(&[marks, drops], &[(1000, OUT, 80, "direct")]);
    same(&[drops, marks], &[(1000, OUT, 80, "dropped")]);
}

/// Nothing tells when iptables-legacy made its chain.
#[test]
fn between_legacy_and_nftables_the_order_is_not_known() {
    let pod = pod();
    pod.namespace.ok(&["init", "--backend", "nftables", "-i", "*", "-b", "*"]);
    let legacy = "# iptables-legacy-restore\n*nat\n-A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15006\nCOMMIT\n";
    load(&pod.namespace, legacy);
    let text = explained(&pod, 1000, OUT, 80);
    assert!(text.starts_with("unknown:") && text.contains("cannot tell, because of"), "{text}");
    assert_eq!(shown(&pod, 1000, OUT, 81), "outbound-proxy");
    assert!(explained(&pod, 1000, OUT, 81).starts_with("outbound-proxy:"));
    // The classes of audit know no more.
    let audit = pod.namespace.print(PODWEIR, &["audit", "--live", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&audit).unwrap();
    let classes = report["escapes"].as_array().unwrap();
    assert!(classes.iter().any(|class| class["id"] == "outbound-undecided"), "{audit}");
    assert!(report["lints"].to_string().contains("order-not-known"), "{}", report["lints"]);
}

#[test]
fn all_nat_chains_of_a_hook_stand_in_one_place() {
    let late = "table inet n { chain o { type nat hook output priority 0; tcp dport 80 redirect to :15001; }; }";
    let between = "table inet f { chain o { type filter hook output priority -50; tcp dport 15001 drop; }; }";
    same(&[late, between], &[(1000, OUT, 80, "dropped"), (1000, OUT, 81, "direct")]);
    let early = "table inet n { chain o { type nat hook output priority -160; tcp dport 80 redirect to :15001; }; }";
    let before = "table inet f { chain o { type filter hook output priority -150; tcp dport 80 drop; }; }";
    same(&[early, before], &[(1000, OUT, 80, "dropped")]);
}

#[test]
fn before_conntrack_no_connection_is_known() {
    let rules = "*raw\n\
        -A OUTPUT -p tcp --dport 80 -m conntrack --ctstate NEW -j DROP\n\
        -A OUTPUT -p tcp --dport 443 -m conntrack --ctstate INVALID -j DROP\n\
        -A OUTPUT -p tcp --dport 81 -m conntrack ! --ctstate INVALID -j DROP\n\
        -A OUTPUT -p tcp --dport 8080 -m connmark ! --mark 0x1 -j DROP\n\
        -A OUTPUT -p tcp --dport 22 -j CT --zone 7\n\
        -A OUTPUT -p tcp --dport 22 -m conntrack --ctstate NEW -j DROP\n\
        COMMIT\n";
    for variant in ["nft", "legacy"] {
        let rules = format!("# iptables-{variant}-restore\n{rules}");
        let flows = [(80, "direct"), (443, "dropped"), (81, "direct"), (8080, "direct"), (22, "dropped")];
        same(&[&rules], &flows.map(|(port, verdict)| (1000, OUT, port, verdict)));
    }
    // What is looped back is known when it comes in again.
    let rules = "table ip r { chain p { type filter hook prerouting priority -300; iifname lo ct state invalid drop; }; chain o { type filter hook output priority -300; tcp dport 80 ct state != invalid drop; }; }";
    same(&[rules], &[(1000, "10.244.0.6", 80, "direct")]);
}

#[test]
fn nftables_has_no_answer_about_an_owner_that_is_not_there() {
    let rules =
        "table inet f { chain i { type filter hook input priority 0; meta skuid != 1337 tcp dport 80 drop; }; }";
    same(&[rules], &[(1000, "127.0.0.1", 80, "direct"), (1000, "10.244.0.6", 80, "direct")]);
}

/// What the kernel sends by itself, a reset and ICMP's "port unreachable", has no owner on its
/// way out either.
#[test]
fn what_no_process_sends_is_not_owned_by_anybody_to_iptables_and_unanswered_to_nftables() {
    const CLIENT: &str = "10.244.0.1";
    let iptables = |conditions: &str| {
        ["iptables-nft", "iptables-legacy"].map(|name| {
            let each = ["tcp", "icmp"].map(|p| format!("-A OUTPUT -p {p} -d {CLIENT} -m owner {conditions} -j DROP\n"));
            format!("# {name}-restore\n*filter\n{}COMMIT\n", each.concat())
        })
    };
    let native = |conditions: &str| {
        let hooks = ["output", "postrouting"];
        hooks.map(|hook| {
            format!(
                "table ip f {{ chain o {{ type filter hook {hook} priority 0; ip daddr {CLIENT} ip protocol {{ tcp, icmp }} {conditions} drop; }}; }}"
            )
        })
    };
    let [any_nft, any_legacy] = iptables("--uid-owner 0-4294967294");
    let [not_nft, not_legacy] = iptables("! --uid-owner 1337");
    let [group_nft, group_legacy] = iptables("! --gid-owner 1337");
    let [not, not_late] = native("meta skuid != 1337");
    let [group, _] = native("meta skgid != 1337");
    let [two, _] = native("meta skuid != 1337 meta skgid != 1337");
    let [all, all_late] = native("");
    let cases = [
        (not, false),
        (not_late, false),
        (group, false),
        (two, false),
        (all, true),
        (all_late, true),
        (any_nft, false),
        (any_legacy, false),
        (not_nft, true),
        (not_legacy, true),
        (group_nft, true),
        (group_legacy, true),
    ];
    for (rules, dropped) in cases {
        let pod = pod();
        load(&pod.namespace, &rules);
        for (protocol, name) in [("tcp", "tcp"), ("udp", "icmp")] {
            // Nobody listens there: the kernel refuses it, if that gets out.
            let expected = if dropped { "silent" } else { "refused" };
            let shown = ask_once(&pod, &format!("in {protocol} to 10.244.0.6 7777"));
            assert_eq!(shown, expected, "{name}: {rules}");
            let of = |owner: &str| {
                let flow = ["--proto", name, "--uid", owner, "--gid", owner, "--destination", CLIENT];
                let port: &[&str] = if name == "tcp" { &["--port", "80"] } else { &[] };
                let text = pod.namespace.print(PODWEIR, &[&["explain", "--live"], &flow[..], port].concat());
                text.split(':').next().unwrap().to_owned()
            };
            assert_eq!(of("none"), if dropped { "dropped" } else { "direct" }, "{name}: {rules}");
            // What a process sends is dropped all the same.
            assert_eq!(of("1000"), "dropped", "{name}: {rules}");
        }
    }
    // The app has an owner, be it one that no rule names: its answers are what they drop.
    let pod = pod();
    load(&pod.namespace, &native("meta skuid != 1337")[0]);
    assert_eq!(ask_once(&pod, "in tcp to 10.244.0.6 80"), "silent");
    let question = ["--direction", "inbound", "--source", CLIENT, "--destination", "10.244.0.6", "--port", "80"];
    let text = pod.namespace.print(PODWEIR, &[&["explain", "--live"], &question[..]].concat());
    assert!(text.contains("but its replies are dropped"), "{text}");
}

/// For what is meant to be lost.
fn ask_once(pod: &Pod, probe: &str) -> String {
    pod.outside.run(|| ask(&Probe::parse(probe)))
}

/// A packet without an owner meets "not of user 1337" of iptables (`owner_mt`, xt_owner.c).
#[test]
fn iptables_has_an_answer_about_an_owner_that_is_not_there() {
    let rules = "# Generated by iptables-save v1.8.9\n*mangle\n:INPUT ACCEPT [0:0]\n\
        -A INPUT -p tcp -m tcp --dport 80 -m owner ! --uid-owner 1337 -j DROP\nCOMMIT\n";
    let pod = pod();
    let file = pod.namespace.directory().join("rules.v4");
    std::fs::write(&file, rules).unwrap();
    let dump = format!("ipv4={}", file.display());
    // Today's kernels refuse to load it on that hook; others had it.
    let loaded = pod.namespace.feed("iptables-legacy-restore", &["--noflush"], &[], rules);
    let refusal = String::from_utf8_lossy(&loaded.stderr);
    assert!(loaded.status.success() || refusal.contains("line 5 failed"), "{refusal}");
    for to in ["127.0.0.1", "10.244.0.6"] {
        let question = ["--uid", "1000", "--gid", "1000", "--destination", to, "--port", "80"];
        let read = ["explain", "--dump", &dump, "--pod-ip", "10.244.0.6"];
        let text = pod.namespace.print(PODWEIR, &[&read[..], &question].concat());
        assert!(text.starts_with("dropped:"), "{text}");
        if loaded.status.success() {
            assert_eq!(shown(&pod, 1000, to, 80), "dropped");
            assert!(explained(&pod, 1000, to, 80).starts_with("dropped:"));
        }
    }
}

#[test]
fn policies_and_lost_replies_are_named() {
    let pod = pod();
    load(
        &pod.namespace,
        "table inet np { chain i { type filter hook input priority 0; policy drop; iifname \"lo\" accept; tcp dport 8080 accept; }; chain o { type filter hook output priority 0; policy accept; tcp dport 443 drop; }; }",
    );
    assert_eq!(shown(&pod, 1000, OUT, 80), "dropped");
    let text = explained(&pod, 1000, OUT, 80);
    assert!(text.starts_with("direct:"), "{text}");
    assert!(text.contains("but its replies are dropped, by inet np i: drop (nftables)"), "{text}");
    let flows = format!("{{\"destination\":\"{OUT}\",\"port\":80}}\n{{\"destination\":\"{OUT}\",\"port\":443}}\n");
    let output = pod.namespace.feed(PODWEIR, &["explain", "--live", "--flows", "-"], &[], &flows);
    let lines: Vec<serde_json::Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["lost"], "its replies are dropped, by inet np i: drop (nftables)");
    assert!(lines[1]["verdict"] == "dropped" && lines[1].get("lost").is_none(), "{}", lines[1]);
    // A policy is what drops where no rule says anything.
    let question = ["explain", "--live", "--direction", "inbound", "--destination", "10.244.0.6", "--port", "80"];
    let text = pod.namespace.print(PODWEIR, &question);
    assert!(text.starts_with("dropped:") && text.contains("by inet np i: drop"), "{text}");
    assert!(text.contains("because that is the chain's policy"), "{text}");
    let drawing = pod.namespace.print(PODWEIR, &["render", "--live", "--format", "mermaid"]);
    assert!(drawing.contains("everything else, by policy"), "{drawing}");
}

/// nft asks for a range of addresses by its two ends.
#[test]
fn ranges_of_addresses_are_understood() {
    let rules = "table inet f { chain o { type filter hook output priority 0; ip daddr 198.51.100.5-198.51.100.9 tcp dport 80 drop; ip daddr != 198.51.100.0/25 ip daddr 198.51.100.0/24 tcp dport 80 drop; }; }";
    same(
        &[rules],
        &[
            (1000, "198.51.100.4", 80, "direct"),
            (1000, "198.51.100.5", 80, "dropped"),
            (1000, "198.51.100.9", 80, "dropped"),
            (1000, "198.51.100.10", 80, "direct"),
            (1000, "198.51.100.200", 80, "dropped"),
            (1000, "198.51.101.200", 80, "direct"),
        ],
    );
}

#[test]
fn marks_that_nobody_looks_at_leave_nothing_open() {
    let marking: String = (0..12)
        .map(|n| format!("-A OUTPUT -m string --string x{n} --algo bm -j MARK --set-xmark {n}/0xff0000\n"))
        .collect();
    let rules = format!("# iptables-legacy-restore\n*mangle\n{marking}COMMIT\n");
    same(&[&rules], &[(1000, OUT, 80, "direct")]);
}

#[test]
fn what_gets_out_by_a_mark_is_told() {
    let lints = |pod: &Pod| {
        let report = pod.namespace.print(PODWEIR, &["audit", "--live", "--format", "json"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let lints = report["lints"].as_array().unwrap().clone();
        lints.into_iter().filter(|lint| lint["id"] == "marked-packets-escape").collect::<Vec<_>>()
    };
    let pod = pod();
    for mode in ["REDIRECT", "TPROXY"] {
        pod.namespace.ok(&["init", "--backend", "nftables", "-m", mode]);
        assert_eq!(lints(&pod), [] as [serde_json::Value; 0], "{mode}");
    }
    pod.namespace
        .print("nft", &["insert", "rule", "inet", "istio-proxy-nat", "istio-output", "meta", "mark", "5", "return"]);
    let found = lints(&pod);
    assert_eq!(found.len(), 1, "{found:?}");
    // The command that it prints shows it.
    let message = found[0]["message"].as_str().unwrap();
    let (_, command) = message.split_once("try podweir ").unwrap();
    let mut arguments: Vec<&str> = command.split(' ').collect();
    assert!(arguments.contains(&"--mark"), "{message}");
    arguments.extend(["--expect", "direct"]);
    pod.namespace.print(PODWEIR, &arguments);
}
