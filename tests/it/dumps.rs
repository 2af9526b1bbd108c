//! Dumps: what is written is read again, and whatever else is given ends in an error.

use std::net::IpAddr;
use std::sync::Arc;

use podweir::audit::flow::Surroundings;
use podweir::audit::ruleset::{Hook, Ruleset};
use podweir::audit::schema;
use podweir::audit::source::dump::{self, Text};
use podweir::audit::source::{Source, options};
use podweir::backend::hook::{Base, ChainKind};
use podweir::backend::iptables::script;
use podweir::backend::listing::{Holder, ListedChain, ListedTable};
use podweir::backend::ours;
use podweir::backend::{BackendKind, nftables};
use podweir::config::ranges::RangeList;
use podweir::config::types::{Families, Family, Interface, Mark, Networks, Port};
use podweir::plan::canon::Canon;
use podweir::plan::effect::{Effect, Unmodelled};
use podweir::plan::lower::lower;
use podweir::plan::model::{
    ChainName, Cond, Counters, CtStates, Masked, Matches, Plan, Rule, RuleOrigin, Table, Verdict,
};
use podweir::plan::{self, why::Why};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::arbitrary::interceptions;
use crate::fixture::{Namespace, PODWEIR};
use crate::schemas;
use crate::sources::dumped;

fn cond<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<Cond<T>>> {
    option::weighted(0.3, (any::<bool>(), value).prop_map(|(negated, value)| Cond { negated, value }))
}

fn numbers<T: podweir::config::ranges::Discrete + Arbitrary>() -> impl Strategy<Value = RangeList<T>> {
    vec(any::<(T, T)>(), 0..4).prop_map(RangeList::new)
}

fn networks() -> impl Strategy<Value = Networks> {
    let v4 = vec((any::<u32>(), 0..=32u8), 0..3);
    let v6 = vec((any::<u128>(), 0..=128u8), 0..3);
    (v4, v6).prop_map(|(v4, v6)| Networks {
        v4: v4.into_iter().map(|(a, n)| ipnet::Ipv4Net::new(a.into(), n).unwrap().trunc()).collect(),
        v6: v6.into_iter().map(|(a, n)| ipnet::Ipv6Net::new(a.into(), n).unwrap().trunc()).collect(),
    })
}

fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
    vec(("[a-z0-9]{1,8}", any::<bool>()).prop_map(|(name, any)| Interface::new(&name, any)), 0..3)
}

fn masked() -> impl Strategy<Value = Masked> {
    any::<(u32, u32)>().prop_map(|(value, mask)| Masked { value, mask })
}

fn states() -> impl Strategy<Value = CtStates> {
    proptest::sample::subsequence(CtStates::NAMED.to_vec(), 0..=5)
        .prop_map(|some| some.into_iter().fold(CtStates(0), |all, (state, _)| all.union(state)))
}

fn matches() -> impl Strategy<Value = Matches> {
    let one = (cond(networks()), cond(networks()), cond(interfaces()), cond(interfaces()), cond(numbers::<u8>()));
    let two = (cond(numbers::<u16>()), cond(numbers::<u16>()), cond(masked()), cond(masked()), cond(states()));
    let set = cond("[a-z][a-z0-9-]{0,20}".prop_map(Box::from));
    let three = (cond(numbers::<u32>()), cond(numbers::<u32>()), set, vec("[ -~]{1,20}", 0..2));
    (one, two, three).prop_map(|(a, b, c)| Matches {
        source: a.0,
        destination: a.1,
        in_interface: a.2,
        out_interface: a.3,
        protocol: a.4,
        source_port: b.0,
        destination_port: b.1,
        mark: b.2,
        connection_mark: b.3,
        connection_state: b.4,
        uid: c.0,
        gid: c.1,
        destination_set: c.2,
        unknown: c.3,
    })
}

fn chain_name() -> impl Strategy<Value = ChainName> {
    let known = ChainName::OWN.into_iter().chain(ChainName::HOOKS).collect::<Vec<_>>();
    prop_oneof![proptest::sample::select(known), "[A-Z]{3,9}-x".prop_map(|n| ChainName::Other(n.into()))]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let port = || (1..=u16::MAX).prop_map(|p| Port::new(p).unwrap());
    prop_oneof![
        Just(Verdict::Continue),
        Just(Verdict::Return),
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::SaveMark),
        Just(Verdict::RestoreMark),
        chain_name().prop_map(Verdict::Jump),
        chain_name().prop_map(Verdict::Goto),
        port().prop_map(Verdict::Redirect),
        (port(), any::<u32>(), any::<bool>()).prop_map(|(port, mark, closed)| Verdict::Tproxy {
            port,
            mark: Mark::new(mark),
            closed
        }),
        masked().prop_map(Verdict::SetMark),
        masked().prop_map(Verdict::SetConnectionMark),
        any::<IpAddr>().prop_map(Verdict::Snat),
        any::<u16>().prop_map(Verdict::CtZone),
        ("[ -~]{1,20}", proptest::sample::select(Effect::ALL.to_vec()))
            .prop_map(|(text, effect)| Verdict::Unknown(Unmodelled::new(text, effect))),
    ]
}

fn families() -> impl Strategy<Value = Families> {
    prop_oneof![Just(Families::V4), Just(Families::V6), Just(Families::BOTH)]
}

fn origin() -> impl Strategy<Value = Option<Arc<RuleOrigin>>> {
    let origin = (1..100usize, option::of(any::<u64>()), option::of("[ -~]{1,20}"), any::<bool>());
    let origin = origin.prop_map(|(number, handle, text, incomplete)| RuleOrigin {
        number,
        handle,
        text: text.map(Into::into),
        incomplete,
    });
    option::of(origin.prop_map(Arc::new))
}

fn rule() -> impl Strategy<Value = Rule> {
    let why = prop_oneof![Just(Why::AllOutbound), "[ -9;-~]{0,20}".prop_map(|text| Why::Foreign(text.into()))];
    let counters = option::of(any::<(u64, u64)>().prop_map(|(packets, bytes)| Counters { packets, bytes }));
    let all = (families(), matches(), verdict(), why, counters, origin());
    all.prop_map(|(families, matches, verdict, why, counters, origin)| Rule {
        families,
        matches,
        verdict,
        why,
        counters,
        origin,
    })
}

fn tables() -> impl Strategy<Value = Vec<ListedTable>> {
    let base = (0..5usize, any::<i32>(), any::<bool>()).prop_map(|(hook, priority, drops)| Base {
        drops,
        ..Base::accepting(ChainKind::Filter, Hook::ALL[hook], priority)
    });
    let chain = (chain_name(), option::of(base), vec(rule(), 0..4)).prop_map(|(name, base, rules)| ListedChain {
        name,
        base,
        rules,
    });
    let table = (0..5usize, families(), "[a-z]{1,6}", any::<bool>(), any::<bool>(), vec(chain, 0..3));
    let table = table.prop_map(|(holder, families, name, dormant, as_nft_shows, chains)| ListedTable {
        holder: Holder::ALL[holder],
        families,
        name,
        dormant,
        as_nft_shows,
        chains,
    });
    vec(table, 0..4)
}

/// Tables as a source that tells everything but routing.
pub fn source(tables: Vec<ListedTable>) -> Source {
    Source {
        ruleset: Ruleset::of_tables(&tables),
        held: ours::holdings(&tables),
        tables,
        routing: None,
        told: Families::BOTH,
        pod: Surroundings::of(vec!["10.0.0.1".parse().unwrap()]),
        settings: None,
        given: None,
        notes: Vec::new(),
    }
}

fn native(plan: &Plan) -> String {
    nftables::script::script(plan)
}

/// What `iptables-save` and `ip6tables-save` would print, near enough to be read.
fn saved(plan: &Plan) -> String {
    let mut out = String::new();
    for family in plan.families.iter() {
        out += &format!("# podweir: {family}, x\n");
        let lowered = lower(plan, family);
        for table in Table::ALL {
            out += &script::table(table, None, &script::wanted(&lowered, table, family, true));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(150)))]

    #[test]
    fn podweirs_json_keeps_every_rule_as_it_is(tables in tables()) {
        let value = schema::source(&source(tables.clone()));
        schemas::hold("rules", &value);
        let written = value.to_string();
        let read = dumped(&[("json", &written)]);
        prop_assert_eq!(&read.tables, &tables);
        prop_assert_eq!(schema::source(&read).to_string(), written);
    }

    #[test]
    fn every_plan_reads_back_from_every_dialect(interception in interceptions()) {
        let plan = plan::build(&interception);
        let want = Canon { routing: Default::default(), ..Canon::of(&plan) };
        for (dialect, text) in [("nft", native(&plan)), ("iptables", saved(&plan))] {
            if plan.chains.is_empty() {
                continue;
            }
            let have = dumped(&[(dialect, &text)]);
            prop_assert!(have.canon().same_rules(&want), "{}:\n{}", dialect, text);
        }
    }

    #[test]
    fn mutated_dumps_give_a_result_or_an_error(
        which in 0..SEEDS.len(), edits in vec((any::<proptest::sample::Index>(), 0..6u8, any::<u8>()), 1..12)
    ) {
        let mut bytes = SEEDS[which].as_bytes().to_vec();
        for (at, edit, byte) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
                _ => {
                    let piece = bytes[at..(at + usize::from(byte)).min(bytes.len())].to_vec();
                    bytes.extend(piece);
                }
            }
        }
        let _ = dump::read(&[Text { name: "x".into(), bytes, family: None }]);
    }
}

/// Real ones, of one pod with more than podweir's rules in it.
const SEEDS: &[&str] = &[
    include_str!("../data/dumps/nft.txt"),
    include_str!("../data/dumps/nft.json"),
    include_str!("../data/dumps/iptables-nft-save.txt"),
    include_str!("../data/dumps/podweir.json"),
];

#[test]
fn real_dumps_are_understood() {
    for seed in SEEDS {
        let source = dumped(&[("seed", seed)]);
        assert!(!source.held.is_empty(), "{}", &seed[..60]);
    }
    let source = dumped(&[("nft", SEEDS[0])]);
    assert!(source.held.iter().any(|held| held.holder == Holder::Kernel(BackendKind::Nftables)));
}

fn refused(text: &[u8], family: Option<Family>) -> String {
    let text = Text { name: "rules.txt".into(), bytes: text.into(), family };
    match dump::read(&[text]) {
        Ok(_) => panic!("taken for a dump"),
        Err(e) => {
            assert!(e.is_usage());
            e.to_string()
        }
    }
}

#[test]
fn what_is_no_dump_is_refused_with_the_reason() {
    for (text, words) in [
        ("", "empty"),
        ("# nothing\n\n", "empty"),
        ("hello\n", "begins with 'hello'"),
        ("Chain INPUT (policy ACCEPT)\ntarget prot opt\n", "iptables -L"),
        ("-P INPUT ACCEPT\n-A INPUT -j DROP\n", "iptables -S"),
        ("{\"a\": 1}", "neither nft's nor podweir's"),
        ("{\"nftables\": [", "cut short"),
        ("{\"nftables\": [1]}", "no object"),
        (
            "{\"nftables\": [{\"rule\": {\"family\": \"ip\", \"table\": \"x\", \"chain\": \"y\", \"expr\": []}}]}",
            "not listed before",
        ),
        (
            "{\"nftables\": [{\"table\": {\"family\": \"ip\", \"name\": \"x\"}}, {\"table\": {\"family\": \"ip\", \"name\": \"x\"}}]}",
            "second time",
        ),
        ("{\"format\": \"podweir-rules\", \"version\": 99}", "take a newer one"),
        ("{\"format\": \"podweir-rules\", \"version\": 1}", "\"tables\" is missing"),
        ("table inet x {\n chain y {\n  tcp dport 80 accept\n", "line 4: the text ends in the middle"),
        ("table inet x {\n}\ntable inet x {\n}\n", "line 3: table inet x stands here for the second time"),
        ("table what x {\n}\n", "'what' is no family"),
        ("table inet x {\n chain y {\n type nat hook nowhere priority 0\n }\n}\n", "'nowhere' is no hook"),
        ("table inet x {\n}\nhello\n", "line 3: 'hello'"),
        ("table inet x {\n comment \"y\n}\n", "quote is not closed"),
        (
            "# Generated by iptables-save v1.8.9\n*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d 1.2.3.4/32\n",
            "line 4: the text ends inside of table nat",
        ),
        (
            "# Generated by iptables-save v1.8.9\n*nat\nCOMMIT\n*nat\nCOMMIT\n",
            "line 4: table nat stands here for the second time",
        ),
        ("# Generated by iptables-save v1.8.9\n*nat\n-A OUTPUT -d fd00::1/128 -j DROP\nCOMMIT\n", "line 3"),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN\nCOMMIT\n", "ipv6=FILE"),
    ] {
        let message = refused(text.as_bytes(), None);
        assert!(message.starts_with("rules.txt: ") && message.contains(words), "{text}: {message}");
    }
    assert!(refused(b"*nat\n\xff\n", None).contains("byte 5 is not UTF-8"));
    let twice = ["a", "b"].map(|name| Text {
        name: name.into(),
        bytes: b"*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n".into(),
        family: Some(Family::V4),
    });
    let message = dump::read(&twice).unwrap_err().to_string();
    assert!(message.starts_with("b: ") && message.contains("twice"), "{message}");
}

#[test]
fn sources_that_cannot_be_read_say_why_and_print_nothing() {
    let namespace = Namespace::new();
    let before = namespace.everything();
    let (path, cut) = (namespace.directory().join("cut"), namespace.directory().join("no-such-file"));
    std::fs::write(&path, "*nat\n").unwrap();
    let (path, missing) = (path.to_str().unwrap(), cut.to_str().unwrap());
    let flow = ["--destination", "10.0.0.1", "--port", "80"];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--dump", path], 2, "cut"),
        (&["--dump", missing], 1, "no-such-file"),
        (&["--netns", missing], 1, "no-such-file"),
        (&["--netns", path], 1, "is no network namespace"),
        (&["--pid", "4194304"], 1, "/proc/4194304/ns/net"),
        (&["--live", "--", "-b", "80"], 2, "two sources"),
        (&["--live", "--dump", path], 2, "cannot be used with"),
        (&["--", "-b", "99999"], 2, "'99999'"),
        (&["--", "--no-such-option"], 2, "behind --"),
        (&["--as", "init", "--", "istio-iptables"], 2, "contradict"),
        (&["--as", "istio-iptables", "--", "-b", "80"], 2, "--pod-ip"),
        (&["--pod-ip", "10.0.0.1", "--", "--redirect-dns"], 1, "--dns-server"),
        (&["--dns-server", "x", "--", "-b", "80"], 2, "invalid value 'x' for --dns-server"),
    ];
    for (arguments, status, words) in cases {
        let all: Vec<&str> = ["explain"].iter().chain(&flow).chain(*arguments).copied().collect();
        let output = namespace.command(PODWEIR, &all, &[]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{all:?}: {log}");
        assert!(output.stdout.is_empty() && log.contains(words), "{all:?}: {log}");
    }
    assert_eq!(namespace.everything(), before);
}

#[test]
fn options_need_no_kernel() {
    let known = options::KnownPod { addresses: vec!["10.0.0.1".parse().unwrap()], ..Default::default() };
    let given = podweir::config::given::Given::default();
    let source = options::read(&given, podweir::config::settings::Face::Init, &known).unwrap();
    assert_eq!(source.held.len(), 1);
    assert_eq!(source.canon(), Canon::of(&source.plan()));
}
