//! Every statement of nft's, on every hook, in the three ways to read it (the kernel, nft's
//! text, nft's JSON): all three tell the same of every flow, and what rewrites a packet is
//! never taken for a condition.

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Surroundings, Taker};
use podweir::audit::ruleset::Ruleset;
use podweir::audit::source::Source;

use crate::explain::flow;
use crate::fixture::{Namespace, RESOLV, V4, V6};
use crate::pod::Probe;
use crate::readings::{check, pod, readings};

/// What a statement does to a packet that meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Nothing that changes where it goes.
    Nothing,
    /// Something that is not followed.
    Undecided,
    Drops,
}
use Does::{Drops, Nothing, Undecided};

const OBJECTS: &str = "set seen { type ipv4_addr; flags dynamic; }
set plain { type ipv4_addr; elements = { 10.0.0.1, 198.51.100.7, 10.244.0.6, 127.0.0.1 }; }
map pairs { type ipv4_addr : inet_service; flags dynamic; }
map counters { type inet_service : counter; elements = { 80 : \"hits\" }; }
counter hits { }
quota much { over 1 mbytes }
limit few { rate 5/second; }
synproxy guard { mss 1460; wscale 7; timestamp sack-perm; }
ct helper ftp { type \"ftp\" protocol tcp; }
ct timeout short { protocol tcp; policy = { established : 120 }; l3proto ip; }
ct expectation more { protocol tcp; dport 9876; timeout 2m; size 12; l3proto ip; }
chain back { return; }
chain refuse { meta l4proto tcp reject with tcp reset; }
";

/// The statements of nft(8), one rule each.
const STATEMENTS: &[(&str, Does)] = &[
    ("accept", Nothing),
    ("drop", Drops),
    ("continue", Nothing),
    ("return", Nothing),
    ("jump back", Nothing),
    ("goto refuse", Drops),
    ("reject", Drops),
    ("reject with icmpx type host-unreachable", Drops),
    ("counter", Nothing),
    ("counter name hits", Nothing),
    ("counter name hits drop", Drops),
    ("counter name tcp dport map @counters drop", Undecided),
    ("counter name tcp dport map { 80 : \"hits\" } drop", Undecided),
    ("log prefix \"a b\" group 3", Nothing),
    ("log level debug drop", Drops),
    ("limit rate 5/second", Nothing),
    ("limit rate over 5/second drop", Undecided),
    ("limit name few drop", Undecided),
    ("quota over 5 mbytes drop", Undecided),
    ("quota name much drop", Undecided),
    ("ct count over 20 drop", Undecided),
    ("meter m size 100 { ip saddr limit rate over 10/second } drop", Undecided),
    ("add @seen { ip saddr }", Nothing),
    ("update @seen { ip daddr }", Nothing),
    ("update @seen { ip saddr limit rate over 10/second } drop", Undecided),
    ("add @pairs { ip saddr : tcp dport }", Nothing),
    ("ip daddr @plain drop", Drops),
    ("update @seen { ip daddr }\nip daddr @seen drop", Undecided),
    ("ip protocol tcp add @seen { ip daddr } drop", Undecided),
    ("notrack", Undecided),
    ("queue num 3", Undecided),
    ("queue num 3 bypass", Undecided),
    ("dup to 10.1.2.3", Undecided),
    ("dup to 10.1.2.3 device \"lo\"", Undecided),
    ("fwd to \"lo\"", Undecided),
    ("synproxy mss 1460 wscale 7", Undecided),
    ("synproxy name guard", Undecided),
    ("dnat to 10.1.2.3", Undecided),
    ("meta l4proto tcp dnat ip to 10.1.2.3:81", Undecided),
    ("dnat ip to tcp dport map { 80 : 10.1.2.3, 8080 : 10.1.2.4 }", Undecided),
    ("snat ip to 10.1.2.3", Nothing),
    ("masquerade", Nothing),
    ("masquerade random", Nothing),
    ("meta l4proto tcp redirect", Undecided),
    ("meta l4proto tcp redirect to :81-90", Undecided),
    ("meta l4proto tcp redirect to :81 random", Undecided),
    ("meta l4proto tcp tproxy ip to 127.0.0.1:81", Undecided),
    ("meta l4proto tcp tproxy to :81", Undecided),
    // Of the packet itself.
    ("ip daddr set 10.1.2.3", Undecided),
    ("ip saddr set 10.1.2.3", Undecided),
    ("ip daddr set ip saddr map { 0.0.0.0/0 : 10.1.2.3 }", Undecided),
    ("ip protocol set 132", Undecided),
    ("ip ttl set 5", Undecided),
    ("ip dscp set ef", Undecided),
    ("ip ecn set ce", Undecided),
    ("ip checksum set 0", Undecided),
    ("ip6 daddr set fd00::7", Undecided),
    ("ip6 hoplimit set 5", Undecided),
    ("tcp dport set 81", Undecided),
    ("tcp sport set 81", Undecided),
    ("tcp dport 1-65535 tcp dport set 8080", Undecided),
    ("tcp dport set tcp dport map { 80 : 81, 15001 : 82, 15006 : 83, 8080 : 84 }", Undecided),
    ("tcp flags set syn", Undecided),
    ("tcp window set 1", Undecided),
    ("udp dport set 81", Undecided),
    ("th dport set 81", Undecided),
    ("th sport set 81", Undecided),
    ("@th,16,16 set 81", Undecided),
    ("@nh,128,32 set 0x0a010203", Undecided),
    ("ether daddr set 00:11:22:33:44:55", Undecided),
    ("tcp option maxseg size set 1000", Undecided),
    ("tcp option maxseg size set rt mtu", Undecided),
    ("reset tcp option sack-perm", Undecided),
    ("tcp option sack-perm exists drop", Undecided),
    ("tcp dport 1-65535 reset tcp option timestamp accept", Undecided),
    // Of what the kernel knows about it.
    ("meta mark set 0x77", Nothing),
    ("meta mark set ct mark", Nothing),
    ("meta mark set meta mark | 0x70", Nothing),
    ("meta mark set tcp dport map { 80 : 5, 8080 : 6 }", Undecided),
    ("meta mark set jhash ip saddr mod 4", Undecided),
    ("meta priority set 1:2", Nothing),
    ("meta nftrace set 1", Nothing),
    ("meta pkttype set host", Undecided),
    ("ct mark set 0x77", Nothing),
    ("ct mark set ct mark & 0xfffff000 | 0x111", Nothing),
    ("ct mark set meta mark", Nothing),
    ("ct zone set 5", Nothing),
    ("ct original zone set 5", Undecided),
    ("ct reply zone set 5", Undecided),
    ("ct event set new", Undecided),
    ("ct helper set \"ftp\"", Undecided),
    ("ct timeout set \"short\"", Undecided),
    ("ct expectation set \"more\"", Undecided),
    ("tcp dport vmap { 80 : drop, 8080 : drop, 15001 : drop, 15006 : drop, 53 : accept }", Drops),
    ("ip saddr . tcp dport vmap { 10.0.0.1 . 80 : drop }", Undecided),
];

/// Base chains, with flows that come by them.
const HOOKS: &[(&str, &str, &[&str])] = &[
    ("prerouting", "type filter hook prerouting priority -300", INBOUND),
    ("prerouting-nat", "type nat hook prerouting priority -150", INBOUND),
    ("input", "type filter hook input priority 0", INBOUND),
    ("input-nat", "type nat hook input priority 50", INBOUND),
    ("output", "type filter hook output priority -300", OUTBOUND),
    ("output-route", "type route hook output priority -160", OUTBOUND),
    ("output-nat", "type nat hook output priority -150", OUTBOUND),
    ("postrouting", "type filter hook postrouting priority 0", OUTBOUND),
    ("postrouting-nat", "type nat hook postrouting priority 50", OUTBOUND),
    ("forward", "type filter hook forward priority 0", &[]),
];

const INBOUND: &[&str] = &[
    "in tcp to 10.244.0.6 8080",
    "in tcp to 10.244.0.6 80",
    "in udp to 10.244.0.6 8080",
    "in tcp to fd00:10:244::6 8080",
    "in udp to fd00:10:244::6 53",
];
const OUTBOUND: &[&str] = &[
    "out tcp uid=1000 gid=1000 to 198.51.100.7 80",
    "out tcp uid=1337 gid=1337 to 198.51.100.7 80",
    "out tcp uid=1000 gid=1000 to 10.244.0.6 8080",
    "out udp uid=1000 gid=1000 to 198.51.100.7 53",
    "out tcp uid=1000 gid=1000 to 2001:db8::7 80",
];

/// Makes a table with one rule, of both families where that can be. Whether nft and the kernel
/// take it there.
fn add(namespace: &Namespace, name: &str, hook: &str, statement: &str) -> bool {
    ["inet", "ip"].into_iter().any(|family| {
        let table = format!("table {family} {name} {{ {OBJECTS}chain base {{ {hook};\n{statement}\n}}; }}\n");
        namespace.feed("nft", &["-f", "-"], &[], &table).status.success()
    })
}

/// Who gets each flow by the interception and one table besides.
fn takers(source: &Source, table: Option<&str>, flows: &[&str]) -> Vec<Taker> {
    let of = |name: &str| name.starts_with("istio-proxy-") || Some(name) == table;
    let tables: Vec<_> = source.tables.iter().filter(|table| of(&table.name)).cloned().collect();
    let ruleset: Ruleset = Ruleset::of_tables(&tables);
    let pod = Surroundings::of([V4, V6].map(|a| a.split('/').next().unwrap().parse().unwrap()).into());
    flows.iter().map(|text| explain(&ruleset, &pod, &flow(&Probe::parse(text)), &mut NoTrace).taker).collect()
}

/// Holds every statement on one hook; gives those that were taken, and what is wrong.
fn check_hook((hook, base, here): (&str, &str, &[&str])) -> (Vec<&'static str>, Vec<String>) {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    namespace.ok(&["init", "--backend", "nftables"]);
    let name = |number: usize| format!("t{number}");
    let taken = STATEMENTS.iter().enumerate().filter(|(number, (rule, _))| add(&namespace, &name(*number), base, rule));
    let taken: Vec<(usize, &(&str, Does))> = taken.collect();
    let readings = readings(&namespace);
    let flows: Vec<&str> = INBOUND.iter().chain(OUTBOUND).copied().collect();
    let usual = takers(&readings[0].1, None, &flows);
    let mut wrong = Vec::new();
    for (number, (statement, does)) in &taken {
        let told = readings.each_ref().map(|(_, source)| takers(source, Some(&name(*number)), &flows));
        if told[0] != told[1] || told[0] != told[2] {
            wrong.push(format!("{hook}: {statement}: {told:?}"));
        }
        let met = flows.iter().zip(&told[0]).filter(|(flow, _)| here.contains(flow)).map(|(_, taker)| *taker);
        let met: Vec<Taker> = met.collect();
        let as_it_is = match does {
            Nothing => told[0] == usual,
            // Source and destination of a connection are rewritten once, and sources behind routing.
            Undecided if met.is_empty() || base.contains("type nat") => true,
            Undecided => met.contains(&Taker::Unknown),
            Drops => met.is_empty() || base.contains("type nat") || met.contains(&Taker::Dropped),
        };
        if !as_it_is {
            wrong.push(format!("{hook}: {statement} is not {does:?}: {:?}, without it {usual:?}", told[0]));
        }
    }
    (taken.into_iter().map(|(_, (statement, _))| *statement).collect(), wrong)
}

#[test]
fn every_statement_on_every_hook_reads_the_same_live_as_text_and_as_json() {
    // Most of the time goes by waiting for the kernel.
    let results = std::thread::scope(|scope| {
        let hooks: Vec<_> = HOOKS.iter().map(|hook| scope.spawn(move || check_hook(*hook))).collect();
        hooks.into_iter().map(|hook| hook.join().unwrap()).collect::<Vec<_>>()
    });
    let wrong: Vec<&String> = results.iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{} differ:\n{wrong:#?}", wrong.len());
    for (statement, _) in STATEMENTS {
        // These the kernel may lack; the rest is older than nf_tables' first use here.
        let optional = ["queue", "fwd", "synproxy"].iter().any(|word| statement.starts_with(word));
        assert!(optional || results.iter().any(|(taken, _)| taken.contains(statement)), "nothing takes {statement}");
    }
}

/// The packets of a connection to the app are made the proxy's own and back again behind the
/// proxy's back, so that the app answers: nothing of that may be told to be intercepted.
#[test]
fn a_rewritten_port_is_not_told_to_be_the_proxys() {
    let pod = pod();
    let interception = "table inet istio-proxy-nat {
chain prerouting { type nat hook prerouting priority -100; meta l4proto tcp redirect to :15006; }
chain output { type nat hook output priority -100; meta skuid 1337 accept; meta l4proto tcp redirect to :15001; }
}\n";
    let inbound = "in tcp to 10.244.0.6 8080";
    let to_80 = "out tcp uid=1000 gid=1000 to 198.51.100.7 80";
    for (rules, seen) in [
        ("", [(inbound, "in-proxy", "inbound-proxy"), (to_80, "out-proxy", "outbound-proxy")]),
        (
            "table ip other {
chain i { type filter hook input priority 0; tcp dport 15006 tcp dport set 8080; }
chain r { type filter hook output priority -250; tcp sport 8080 tcp sport set 15006; }
}",
            [(inbound, "app", "unknown"), (to_80, "out-proxy", "outbound-proxy")],
        ),
    ] {
        check(&pod, &format!("{interception}{rules}"), &seen);
    }
}
