//! Rules of others in the three ways to read them (the kernel, nft's text, nft's JSON), held
//! against each other and against what the kernel does with real connections.

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Surroundings, Taker};
use podweir::audit::source::Source;
use podweir::plan::effect::{Effect, Unmodelled};
use podweir::plan::model::Verdict;

use crate::explain::{agrees, flow};
use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::pod::{Pod, Probe, Proxy};
use crate::sources::dumped;

/// A connection, who really answers it, and what is told about it: the same, or `unknown`.
pub type Seen = (&'static str, &'static str, &'static str);

pub fn pod() -> Pod {
    Pod::new(&[V4, V6], RESOLV, Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 })
}

/// Makes these rules, with the interception's redirection behind them, the only ones.
pub fn load(namespace: &Namespace, rules: &str) {
    let output = namespace.feed("nft", &["-f", "-"], &[], &format!("flush ruleset\n{rules}\n"));
    assert!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// What the namespace holds, read in each way.
pub fn readings(namespace: &Namespace) -> [(&'static str, Source); 3] {
    let print = |program: &str, arguments: &[&str]| namespace.print(program, arguments);
    [
        ("live", dumped(&[("live", &print(PODWEIR, &["render", "--live", "--format", "json"]))])),
        ("text", dumped(&[("text", &print("nft", &["-a", "list", "ruleset"]))])),
        ("json", dumped(&[("json", &print("nft", &["-j", "list", "ruleset"]))])),
    ]
}

/// Who gets a connection, by rules that were read.
pub fn told(source: &Source, probe: &Probe) -> String {
    let addresses = [V4, V6].map(|a| a.split('/').next().unwrap().parse().unwrap());
    let pod = Surroundings::of(addresses.into());
    let answer = explain(&source.ruleset, &pod, &flow(probe), &mut NoTrace);
    answer.taker.name().to_owned()
}

/// Loads rules and holds what is told of each connection against who answers it.
pub fn check(pod: &Pod, rules: &str, seen: &[Seen]) {
    load(&pod.namespace, rules);
    let probes: Vec<Probe> = seen.iter().map(|(probe, ..)| Probe::parse(probe)).collect();
    let answered = pod.probe(&probes);
    let readings = readings(&pod.namespace);
    for ((probe, kernel, expected), (parsed, answered)) in seen.iter().zip(probes.iter().zip(answered)) {
        assert_eq!(answered, *kernel, "the kernel: {probe}\n{rules}");
        for (name, source) in &readings {
            let taker = told(source, parsed);
            assert_eq!(taker, *expected, "{name}: {probe}\n{rules}");
        }
        // Whoever is refused is not let through.
        let agrees = match answered.as_str() {
            "refused" => *expected == "dropped",
            answered => Taker::by_name(expected).is_some_and(|taker| agrees(taker, answered, false)),
        };
        assert!(*expected == "unknown" || agrees, "{probe}: {kernel} is no {expected}\n{rules}");
    }
}

/// A chain on the way out in front of an interception's redirection.
pub fn out(rules: &str) -> String {
    format!(
        "table inet other {{ map m {{ type ipv4_addr : ipv4_addr; }}\nchain one {{ tcp dport 443 reject with tcp reset; }}\nchain out {{ type filter hook output priority -150;\n{rules}\n}}; }}\n{REDIRECT}"
    )
}

pub const REDIRECT: &str = "table inet istio-proxy-nat { chain output { type nat hook output priority -100; meta mark 0x9 accept; ct mark 0x9 accept; meta l4proto tcp redirect to :15001; }; }";

pub const TO_80: &str = "out tcp uid=1000 gid=1000 to 198.51.100.7 80";
pub const TO_443: &str = "out tcp uid=1000 gid=1000 to 198.51.100.7 443";

#[test]
fn conditions_hold_where_they_stand_among_what_a_rule_does() {
    let pod = pod();
    for (rules, seen) in [
        // The mark that is asked for is changed before the verdict: for those that meet it.
        (
            "meta mark 0x0 tcp dport 80 meta mark set 0x9 accept",
            [(TO_80, "outside", "unknown"), (TO_443, "out-proxy", "outbound-proxy")],
        ),
        (
            "meta mark 0x0 tcp dport 80 meta mark set 0x9 drop",
            [(TO_80, "silent", "dropped"), (TO_443, "out-proxy", "outbound-proxy")],
        ),
        (
            "meta mark & 0xf0 == 0x0 tcp dport 80 meta mark set meta mark | 0x9 accept",
            [(TO_80, "outside", "direct"), (TO_443, "out-proxy", "outbound-proxy")],
        ),
        (
            "ct mark 0x0 tcp dport 80 meta mark set 0x9 ct mark set mark accept",
            [(TO_80, "outside", "unknown"), (TO_443, "out-proxy", "outbound-proxy")],
        ),
        // A condition behind what is done holds for what comes after it only.
        (
            "meta mark set 0x9 tcp dport 443 reject with tcp reset",
            [(TO_80, "outside", "direct"), (TO_443, "refused", "dropped")],
        ),
        (
            "tcp dport 80 meta mark set 0x9 meta skuid 1337 drop",
            [(TO_80, "outside", "direct"), (TO_443, "out-proxy", "outbound-proxy")],
        ),
        (
            "meta mark set 0x9 meta mark 0x9 tcp dport 443 jump one",
            [(TO_80, "outside", "direct"), (TO_443, "refused", "dropped")],
        ),
        (
            "meta mark 0x0 meta mark set 0x9 meta mark 0x0 drop",
            [(TO_80, "outside", "unknown"), (TO_443, "outside", "unknown")],
        ),
        (
            "meta mark set 0x9 ct mark set mark tcp dport 443 counter meta mark set 0x0",
            [(TO_80, "outside", "direct"), (TO_443, "outside", "direct")],
        ),
    ] {
        check(&pod, &out(rules), &seen);
    }
}

#[test]
fn a_rule_that_changes_what_it_asks_is_named_in_its_own_words() {
    let namespace = Namespace::new();
    load(
        &namespace,
        &out("udp dport 9 counter\nmeta mark 0x0 tcp dport 80 counter meta mark set 0x7 meta skuid 5 jump one"),
    );
    for (name, source) in readings(&namespace) {
        let chain =
            source.tables.iter().flat_map(|table| &table.chains).find(|chain| chain.name.name() == "out").unwrap();
        let verdicts: Vec<&Verdict> = chain.rules.iter().map(|rule| &rule.verdict).collect();
        let set = Unmodelled::new("meta mark set 0x7 meta skuid 0x5 jump one", Effect::Unknown);
        assert_eq!(verdicts, [&Verdict::Continue, &Verdict::Unknown(set)], "{name}");
        assert_eq!(chain.rules[1].origin.as_ref().unwrap().number, 2, "{name}");
    }
}

/// Holds what is told of rules of iptables against who answers.
fn check_saved(pod: &Pod, variant: &str, rules: &[&str], seen: &[Seen]) {
    let program = format!("iptables-{variant}");
    pod.namespace.print(&program, &["-F"]);
    for rule in rules {
        let command = format!("-A OUTPUT {rule}");
        pod.namespace.print(&program, &command.split(' ').collect::<Vec<_>>());
    }
    let probes: Vec<Probe> = seen.iter().map(|(probe, ..)| Probe::parse(probe)).collect();
    let answered = pod.probe(&probes);
    let json = pod.namespace.print(PODWEIR, &["render", "--live", "--format", "json"]);
    let saved = pod.namespace.print(&format!("{program}-save"), &[]);
    for (name, source) in [("live", dumped(&[("live", &json)])), ("saved", dumped(&[("saved", &saved)]))] {
        for ((probe, kernel, expected), (parsed, answered)) in seen.iter().zip(probes.iter().zip(&answered)) {
            assert_eq!(answered, kernel, "the kernel: {probe}: {rules:?}");
            assert_eq!(told(&source, parsed), *expected, "{variant}, {name}: {probe}: {rules:?}");
        }
    }
}

#[test]
fn a_mark_is_compared_as_the_kernel_compares_it() {
    let pod = pod();
    let passes = [(TO_80, "out-proxy", "outbound-proxy")];
    let dropped = [(TO_80, "refused", "dropped")];
    for (rules, seen) in [
        ("meta mark set 0x5 meta mark & 0x3 == 0x5 tcp dport 80 reject with tcp reset", &passes),
        ("meta mark set 0x5\nmeta mark & 0x3 == 0x1 tcp dport 80 reject with tcp reset", &dropped),
        ("meta mark set 0x5\nmeta mark & 0x3 != 0x5 tcp dport 80 reject with tcp reset", &dropped),
        ("ct mark & 0x3 == 0x4 tcp dport 80 reject with tcp reset", &passes),
        (
            "meta mark set 0x6\nmeta mark set meta mark ^ 0x3\nmeta mark 0x5 tcp dport 80 reject with tcp reset",
            &dropped,
        ),
        (
            "meta mark set 0x6\nmeta mark set meta mark | 0x3\nmeta mark set meta mark & 0xd\nmeta mark 0x5 tcp dport 80 reject with tcp reset",
            &dropped,
        ),
        (
            "tcp dport 79-81 meta mark set meta mark ^ 0x3\ntcp dport 80-82 meta mark set meta mark ^ 0x3\nmeta mark 0x3 tcp dport 80 reject with tcp reset",
            &passes,
        ),
    ] {
        check(&pod, &out(rules), seen);
    }
    let open = [(TO_80, "outside", "direct")];
    for variant in ["nft", "legacy"] {
        load(&pod.namespace, "");
        for (rules, seen) in [
            (
                &[
                    "-m mark --mark 0x5/0x3 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                    "-m connmark --mark 0x5/0x3 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ][..],
                &open,
            ),
            (&["-m mark ! --mark 0x5/0x3 -p tcp --dport 80 -j REJECT --reject-with tcp-reset"], &dropped),
            (&["-m connmark ! --mark 0x5/0x3 -p tcp --dport 80 -j REJECT --reject-with tcp-reset"], &dropped),
            (
                &[
                    "-j MARK --set-xmark 0x6/0x2",
                    "-m mark --mark 0x6/0x6 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &dropped,
            ),
            (
                &[
                    "-j MARK --or-mark 0x6",
                    "-j MARK --and-mark 0x5",
                    "-m mark --mark 0x4 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &dropped,
            ),
            (
                &[
                    "-j MARK --xor-mark 0x6",
                    "-j MARK --xor-mark 0x6",
                    "-m mark ! --mark 0x0 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &open,
            ),
            (
                &[
                    "-j MARK --set-mark 0x5/0x3",
                    "-m mark --mark 0x5 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &dropped,
            ),
            (
                &[
                    "-j CONNMARK --set-xmark 0x6/0x2",
                    "-m connmark --mark 0x6/0x6 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &dropped,
            ),
            (
                &[
                    // Every packet has the same mark: what is outside of a mask would be changed by each.
                    "-j CONNMARK --set-xmark 0x6/0x6",
                    "-m connmark ! --mark 0x6/0x6 -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
                ],
                &open,
            ),
        ] {
            check_saved(&pod, variant, rules, seen);
        }
        pod.namespace.print(&format!("iptables-{variant}"), &["-F"]);
    }
}

/// As in a file that somebody writes for iptables-restore; iptables-save prints one form.
#[test]
fn every_option_that_sets_a_mark_does_to_it_what_iptables_makes_of_it() {
    let namespace = Namespace::new();
    for option in ["--set-mark 0x5/0x3", "--set-mark 0x7", "--or-mark 0x6", "--and-mark 0x6", "--xor-mark 0x6"] {
        let line = format!("-A OUTPUT -j MARK {option}");
        namespace.print("iptables-legacy", &format!("-t mangle {line}").split(' ').collect::<Vec<_>>());
        let saved = namespace.print("iptables-legacy-save", &["-t", "mangle"]);
        let written: Vec<&str> = saved.lines().map(|l| if l.starts_with("-A") { line.as_str() } else { l }).collect();
        let (saved, written) = (dumped(&[("saved", &saved)]), dumped(&[("written", &written.join("\n"))]));
        assert_eq!(saved.canon(), written.canon(), "{option}");
        let rules = |source: &Source| source.tables[0].chains.iter().flat_map(|c| c.rules.clone()).collect::<Vec<_>>();
        assert_eq!(rules(&saved), rules(&written), "{option}");
        namespace.print("iptables-legacy", &["-t", "mangle", "-F"]);
    }
}

/// What `nft -j` prints, as versions do that name the devices of chains: 1.0.6 leaves them out.
fn with_devices(namespace: &Namespace, devices: &serde_json::Value) -> String {
    let listed = namespace.print("nft", &["-j", "list", "ruleset"]);
    let mut listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    for object in listed["nftables"].as_array_mut().unwrap() {
        let hook = object["chain"]["hook"].as_str().unwrap_or_default();
        if hook == "ingress" || hook == "egress" {
            object["chain"]["dev"] = devices.clone();
        }
    }
    listed.to_string()
}

#[test]
fn chains_on_ingress_and_egress_count_for_the_packets_of_their_devices() {
    let pod = pod();
    let home = "out tcp uid=1000 gid=1000 to 127.0.0.1 8080";
    let entering = "in tcp to 10.244.0.6 8080";
    let elsewhere = "out tcp uid=1000 gid=1000 to 203.0.113.9 80";
    for (family, hook, devices, rules, seen) in [
        (
            "inet",
            "ingress",
            &["eth0"][..],
            "policy accept; tcp dport { 8080, 15001 } drop",
            [(entering, "silent", "dropped"), (home, "app", "direct")],
        ),
        (
            "inet",
            "ingress",
            &["lo", "eth0"],
            "policy drop; ip daddr 127.0.0.0/8 accept; ip saddr 127.0.0.0/8 accept",
            [(entering, "silent", "dropped"), (home, "app", "direct")],
        ),
        (
            "netdev",
            "egress",
            &["eth0"],
            "policy drop; ip daddr 198.51.100.7 jump other\nip daddr 198.51.100.7 accept",
            [(TO_80, "outside", "direct"), (elsewhere, "silent", "dropped")],
        ),
        (
            "netdev",
            "ingress",
            &["lo"],
            "policy drop; tcp dport 8080 goto other",
            [(home, "silent", "dropped"), (entering, "app", "direct")],
        ),
    ] {
        let names = devices.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
        let (bound, devices) = match (&names[..], devices) {
            ([one], [device]) => (format!("device {one}"), serde_json::json!(device)),
            _ => (format!("devices = {{ {} }}", names.join(", ")), serde_json::json!(devices)),
        };
        let other = "chain other { meta l4proto tcp return; }";
        let chain = format!(
            "table {family} f {{ {other}\nchain x {{ type filter hook {hook} {bound} priority 0; {rules}\n}}; }}\ntable inet f2 {{ {other}; }}"
        );
        load(&pod.namespace, &chain);
        let probes: Vec<Probe> = seen.iter().map(|(probe, ..)| Probe::parse(probe)).collect();
        let answered = pod.probe(&probes);
        let [live, text, (_, silent)] = readings(&pod.namespace);
        let json = ("json", dumped(&[("json", &with_devices(&pod.namespace, &devices))]));
        for ((probe, kernel, expected), (parsed, answered)) in seen.iter().zip(probes.iter().zip(&answered)) {
            assert_eq!(answered, kernel, "the kernel: {probe}\n{chain}");
            for (name, source) in [&live, &text, &json] {
                assert_eq!(told(source, parsed), *expected, "{name}: {probe}\n{chain}");
            }
            // What does not say which devices tells nothing that is wrong.
            let told = told(&silent, parsed);
            assert!(told == "unknown" || told == *expected, "{told}: {probe}\n{chain}");
        }
    }
}
