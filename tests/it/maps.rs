//! Maps of verdicts, sets and conditions that are not understood in rules of others: what is
//! told of them from the kernel, nft's text and nft's JSON is what the kernel does.

use podweir::audit::source::Source;

use crate::fixture::Namespace;
use crate::pod::Probe;
use crate::readings::{REDIRECT, Seen, TO_80, TO_443, check, load, out, pod, readings, told};

/// Chains that verdicts of maps lead to, and maps with a name.
const MAPS: &str = "chain refuse { tcp dport { 80, 443, 8080 } reject with tcp reset; }
chain escape { meta mark set 0x9; }
set names { type ifname; flags interval; elements = { \"eth*\", \"up0\" }; }
set links { type iface_index; flags interval; elements = { eth0, lo }; }
map ports { type inet_service : verdict; flags interval; elements = { 80-81 : accept, 400-500 : jump refuse }; }
map states { type ct_state : verdict; elements = { established : accept, related : accept, invalid : drop }; }
map owners { typeof meta skuid : verdict; elements = { 1000 : jump refuse, 1001 : accept }; }
";

fn with_maps(rules: &str) -> String {
    format!(
        "table inet other {{ {MAPS}\nchain out {{ type filter hook output priority -150;\n{rules}\n}}; }}\n{REDIRECT}"
    )
}

#[test]
fn a_map_of_verdicts_goes_the_way_of_each_key() {
    let pod = pod();
    let to_8080 = "out tcp uid=1001 gid=1001 to 203.0.113.9 8080";
    let (mut intercepted, mut refused, mut marked) = (Vec::new(), Vec::new(), Vec::new());
    for probe in [TO_80, TO_443, to_8080] {
        intercepted.push((probe, "out-proxy", "outbound-proxy"));
        refused.push((probe, "refused", "dropped"));
        marked.push((probe, "outside", "direct"));
    }
    // Of the three connections: those that are refused, and those that are marked, so that they escape.
    for (rules, refuses, marks) in [
        ("tcp dport vmap { 80 : accept, 443 : jump refuse, 1000-65535 : jump escape }", &[1][..], &[2][..]),
        ("tcp dport vmap @ports\ntcp dport 80-443 jump escape", &[1], &[]),
        ("tcp dport vmap { 80 : goto escape, 443 : return, 8080 : continue } jump refuse", &[2], &[0]),
        ("ct state vmap @states\ntcp dport vmap { 443 : jump refuse }", &[1], &[]),
        ("ct state vmap { established : accept, related : accept, new : jump escape, * : drop }", &[], &[0, 1, 2]),
        (
            "meta l4proto vmap { udp : drop, tcp : jump escape }\nmeta nfproto vmap { ipv6 : drop, ipv4 : jump refuse }",
            &[0, 1, 2],
            &[],
        ),
        (
            "ip daddr vmap { 198.51.100.0/24 : jump refuse, 10.0.0.0/8 : accept, 203.0.113.9 : jump escape }",
            &[0, 1],
            &[2],
        ),
        ("ip6 daddr vmap { ::/0 : jump refuse }\nip daddr vmap { 198.51.100.7 : accept, * : jump refuse }", &[2], &[]),
        (
            "oifname vmap { \"lo\" : accept, \"eth*\" : jump escape }\noif vmap { eth0 : jump refuse, lo : accept }",
            &[0, 1, 2],
            &[],
        ),
        (
            "oifname @names tcp dport 80 jump refuse\noif @links tcp dport 443 jump escape\noif != @links jump refuse",
            &[0],
            &[1],
        ),
        ("meta skuid vmap @owners", &[0, 1], &[]),
        ("meta mark set 0x5\nmeta mark vmap { 0x4 : jump refuse, 0x5 : goto escape }", &[], &[0, 1, 2]),
        ("meta mark set 0x5\ntcp dport 443 meta mark vmap { 0x5 : jump refuse }", &[1], &[]),
        ("tcp dport 80 tcp dport vmap { 80 : jump escape, 443 : jump refuse }", &[], &[0]),
    ] {
        let seen: Vec<Seen> = (0..3)
            .map(|at| match (refuses.contains(&at), marks.contains(&at)) {
                (true, _) => refused[at],
                (_, true) => marked[at],
                _ => intercepted[at],
            })
            .collect();
        check(&pod, &with_maps(rules), &seen);
    }
}

#[test]
fn a_condition_that_is_not_understood_leaves_those_around_it() {
    let pod = pod();
    for rule in [
        "ip ttl > 1 tcp dport 443 jump one",
        "ip ttl { 1-255 } ip daddr 198.51.100.0/24 tcp dport { 443, 444 } jump one",
        "tcp dport 443 ip ttl > 1 meta skuid 1000 jump one",
        "tcp flags syn / fin,syn,rst,ack tcp dport 443 jump one",
        "limit rate 50000/second burst 500 packets tcp dport 443 jump one",
        "ct direction original tcp dport 443 jump one",
        "ct original ip daddr 198.51.100.7 tcp dport 443 jump one",
        "ip daddr . tcp dport @pairs tcp sport > 1 tcp dport 443 jump one",
    ] {
        let pairs = "set pairs { type ipv4_addr . inet_service; elements = { 198.51.100.7 . 443 }; }";
        let rules = format!("table inet other {{ {pairs}; }}\n{}", out(rule));
        check(&pod, &rules, &[(TO_80, "out-proxy", "outbound-proxy"), (TO_443, "refused", "unknown")]);
        let [(_, live), text, json] = readings(&pod.namespace);
        for (name, source) in [text, json] {
            let known = |source: &Source| {
                let chain =
                    source.tables.iter().flat_map(|table| &table.chains).find(|chain| chain.name.name() == "out");
                let matches = chain.unwrap().rules[0].matches.clone();
                (matches.destination_port, matches.destination, matches.uid, matches.unknown.is_empty())
            };
            assert_eq!(known(&source), known(&live), "{name}: {rule}");
        }
    }
}

#[test]
fn one_of_several_marks_is_asked_for_where_that_can_be_told() {
    let pod = pod();
    let sets = "set marks { type mark; elements = { 0x4, 0x5 }; }\nset span { type mark; flags interval; elements = { 0x1-0x9 }; }";
    let (refused, intercepted) = ((TO_443, "refused", "dropped"), (TO_443, "out-proxy", "outbound-proxy"));
    for (rule, seen) in [
        ("meta mark @marks tcp dport 443 reject with tcp reset", refused),
        ("tcp dport 443 meta mark @span reject with tcp reset", refused),
        ("meta mark { 0x1, 0x2 } tcp dport 443 reject with tcp reset", intercepted),
        ("ct mark { 0x1, 0x2 } accept\nmeta mark { 0x1, 0x5 } goto one", refused),
        // The chain could change the mark to the other one.
        ("meta mark { 0x1, 0x5 } jump one", (TO_443, "refused", "unknown")),
        ("meta mark != { 0x1, 0x2 } jump one", (TO_443, "refused", "unknown")),
    ] {
        let rules = format!("table inet other {{ {sets}\n}}\n{}", out(&format!("meta mark set 0x5\n{rule}")));
        check(&pod, &rules, &[seen]);
    }
}

/// Of a comment nft's JSON keeps nothing but that there is a match by that name.
#[test]
fn a_comment_of_iptables_is_no_condition() {
    let namespace = Namespace::new();
    let rule = ["-A", "OUTPUT", "-p", "tcp", "-m", "comment", "--comment", "no web", "-j", "DROP"];
    namespace.print("iptables-nft", &rule);
    for (name, source) in readings(&namespace) {
        assert_eq!(told(&source, &Probe::parse(TO_80)), "dropped", "{name}");
    }
}

#[test]
fn a_field_that_is_not_understood_is_only_of_packets_with_its_header() {
    let pod = pod();
    for rule in [
        "icmpv6 type { nd-neighbor-solicit, nd-router-advert } accept",
        "icmp type echo-request accept",
        "udp length > 4 accept",
        "ip6 hoplimit > 1 accept",
        "icmpv6 type vmap { echo-request : accept }",
        "udp checksum & 1 != 0 accept",
    ] {
        // If it were not known that the first rule is not for this connection, neither would be the answer.
        let rules = out(&format!("{rule}\ntcp dport 443 jump one"));
        check(&pod, &rules, &[(TO_443, "refused", "dropped"), (TO_80, "out-proxy", "outbound-proxy")]);
    }
}

/// nft hands the kernel conditions on neighbours as one comparison.
#[test]
fn conditions_on_neighbours_in_a_header_are_told_apart() {
    let namespace = Namespace::new();
    for rule in [
        "ip saddr 10.244.0.6 ip daddr 198.51.100.7 tcp dport 80 drop",
        "ip6 saddr fd00::6 ip6 daddr 2001:db8::7 drop\ntcp sport 45678 tcp dport 80 drop",
        "ip saddr 10.244.0.6 ip daddr 198.51.100.7 tcp sport 45678 tcp dport 80 drop",
    ] {
        load(&namespace, &out(rule));
        let [(_, live), text, json] = readings(&namespace);
        let asked = |source: &Source| {
            let chain = source.tables.iter().flat_map(|table| &table.chains).find(|chain| chain.name.name() == "out");
            chain.unwrap().rules.iter().map(|rule| (rule.families, rule.matches.clone())).collect::<Vec<_>>()
        };
        for (name, source) in [text, json] {
            assert_eq!(asked(&source), asked(&live), "{name}: {rule}");
        }
        let of = |port| Probe::parse(&format!("out tcp uid=1 gid=1 to 198.51.100.7 {port}"));
        assert_eq!([told(&live, &of(80)), told(&live, &of(81))], ["dropped", "outbound-proxy"], "{rule}");
    }
}
