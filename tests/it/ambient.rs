//! What a real istio left in a kernel for its ambient mode: podweir leaves the same on both
//! iptables variants, and natively whatever does not depend on the layout.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::Duration;

use podweir::backend::ambient;
use podweir::backend::conditions::Conditions;
use podweir::backend::install::Action;
use podweir::backend::iptables::ipset;
use podweir::backend::iptables::programs::ProgramEnvironment;
use podweir::backend::nftables::probes;
use podweir::config::ambient::AmbientOptions;
use podweir::config::settings::BackendChoice;
use podweir::config::types::Family;
use podweir::plan::build::{self, probe_set};
use podweir::sys::netlink::Netlink;
use serde_json::Value;

use crate::conformance::{refs, strings};
use crate::fixture::{Namespace, PODWEIR, TableState, tables};
use crate::traffic::recorded;

pub const CASES: &[u8] = include_bytes!("../data/ambient-cases.json.gz");
pub const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

/// Rules of others that cases begin with: the words of their programs.
fn foreign(name: &str) -> &'static [&'static str] {
    match name {
        "filter" => {
            &["{iptables} -A INPUT -p tcp --dport 9999 -j DROP", "{ip6tables} -A OUTPUT -p udp --dport 9999 -j DROP"]
        }
        "nat" => &[
            "{iptables} -t nat -N EXAMPLE",
            "{iptables} -t nat -A PREROUTING -p tcp --dport 81 -j REDIRECT --to-ports 82",
            "{iptables} -t nat -A OUTPUT -j EXAMPLE",
            "{iptables} -t nat -A EXAMPLE -d 10.9.9.9 -p tcp -j DNAT --to-destination 10.9.9.8",
            "{ip6tables} -t nat -A OUTPUT -d 2001:db8:9::9 -j RETURN",
            "{iptables} -t nat -A POSTROUTING -o eth7 -j MASQUERADE",
        ],
        "mangle" => &[
            "{iptables} -t mangle -A PREROUTING -p udp -j MARK --set-xmark 0x2000/0x2000",
            "{ip6tables} -t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x2000/0x2000",
        ],
        "raw" => &[
            "{iptables} -t raw -A PREROUTING -p udp --dport 9 -j CT --notrack",
            "{ip6tables} -t raw -A OUTPUT -p udp --sport 9 -j CT --notrack",
        ],
        "nft" => &[
            "nft add table inet example",
            "nft add set inet example s { type ipv4_addr; }",
            "nft add element inet example s { 192.0.2.1 }",
            "nft add chain inet example out { type filter hook output priority 0; }",
            "nft add rule inet example out tcp dport 9999 ip daddr @s drop",
        ],
        "route" => &[
            "ip rule add pref 100 fwmark 0x2000/0x2000 lookup 101",
            "ip route add local default dev lo table 101",
            "ip -6 rule add pref 101 fwmark 0x4000/0x4000 lookup 101",
        ],
        other => panic!("{other}"),
    }
}

fn run(namespace: &Namespace, backend: &str, words: &[&str]) {
    let variant = if backend == "iptables-legacy" { "legacy" } else { "nft" };
    let named = |word: &str| {
        word.replace("{iptables}", &format!("iptables-{variant}"))
            .replace("{ip6tables}", &format!("ip6tables-{variant}"))
    };
    let words: Vec<String> = words.iter().map(|word| named(word)).collect();
    namespace.print(&words[0], &refs(&words[1..]));
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    rules: BTreeMap<String, Vec<String>>,
    routes: BTreeMap<String, Vec<String>>,
    ip4: BTreeMap<String, TableState>,
    ip6: BTreeMap<String, TableState>,
    /// Names of sets to what they hold.
    sets: BTreeMap<String, BTreeMap<String, String>>,
    /// Tables of nftables that iptables has no part in.
    native: BTreeMap<String, String>,
}

fn squeeze(line: &str) -> String {
    let mut out = Vec::new();
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "proto" | "metric" | "pref" => drop(words.next()),
            _ => out.push(word),
        }
    }
    out.join(" ")
}

fn kernel(namespace: &Namespace, backend: &str) -> Kernel {
    let by_family = |work: &dyn Fn(&str) -> Vec<String>| -> BTreeMap<String, Vec<String>> {
        ["-4", "-6"].into_iter().map(|family| (family.to_owned(), work(family))).collect()
    };
    let rules = |family: &str| {
        let text = namespace.print("ip", &[family, "rule"]);
        let lines = text.lines().map(|line| line.replacen(":\t", ":", 1)).map(|line| squeeze(&line));
        let own = ["0:from all lookup local", "32766:from all lookup main", "32767:from all lookup default"];
        lines.filter(|line| !own.contains(&line.as_str())).collect()
    };
    let routes = |family: &str| {
        // Fails where the table is not there.
        let output = namespace.command("ip", &[family, "route", "show", "table", "100"], &[]);
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(squeeze).collect();
        lines.sort();
        lines
    };
    let variant = if backend == "iptables-legacy" { "legacy" } else { "nft" };
    let saved = |program: &str| {
        let tables = tables(&namespace.print(&format!("{program}-{variant}-save"), &[])).into_iter();
        tables.filter(|(_, table)| !(table.chains.is_empty() && table.rules.is_empty())).collect()
    };
    let sets = namespace.run(|| {
        let mut netlink = Netlink::open(Netlink::NETFILTER).unwrap();
        let named = |family| Some((family, ipset::list(&mut netlink, family, probe_set(family)).unwrap()?));
        let sets: Vec<_> = Family::BOTH.into_iter().filter_map(named).collect();
        assert!(sets.iter().all(|(_, set)| set.usual), "{sets:?}");
        let text = |set: ipset::IpSet| set.entries.into_iter().map(|(ip, uid)| (ip.to_string(), uid)).collect();
        sets.into_iter().map(|(family, set)| (probe_set(family).to_owned(), text(set))).collect()
    });
    let listing = namespace.print("nft", &["-s", "list", "ruleset"]);
    let native = listing.split_inclusive("\n}\n").filter_map(|table| {
        let name = table.lines().find(|line| line.starts_with("table inet "))?;
        Some((name.trim_end_matches(" {").to_owned(), table.to_owned()))
    });
    Kernel {
        rules: by_family(&rules),
        routes: by_family(&routes),
        ip4: saved("iptables"),
        ip6: saved("ip6tables"),
        sets,
        native: native.collect(),
    }
}

fn by_family(value: &Value) -> BTreeMap<String, Vec<String>> {
    value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), strings(v))).collect()
}

fn saved(value: &Value) -> BTreeMap<String, TableState> {
    let table = |value: &Value| TableState {
        chains: strings(&value["chains"]),
        rules: value["rules"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), strings(v))).collect(),
    };
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), table(value))).collect()
}

fn members(value: &Value) -> BTreeMap<String, BTreeMap<String, String>> {
    let set = |set: &Value| {
        let entries = set["entries"].as_object().unwrap().iter();
        entries.map(|(ip, uid)| (ip.clone(), uid.as_str().unwrap().to_owned())).collect()
    };
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), set(value))).collect()
}

/// The native sets' elements, by address.
fn native_members(namespace: &Namespace) -> BTreeMap<String, String> {
    let entries = namespace.run(|| probes::read(&mut Netlink::open(Netlink::NETFILTER).unwrap()).unwrap().entries());
    entries.into_iter().map(|(ip, uid)| (ip.to_string(), uid)).collect()
}

fn podweir(namespace: &Namespace, backend: &str, arguments: &[String]) -> Output {
    let all: Vec<&str> = [arguments[0].as_str(), "--backend", backend]
        .into_iter()
        .chain(arguments[1..].iter().map(String::as_str))
        .collect();
    namespace.podweir(&all)
}

/// Handles of native rules: one that is written anew has another.
fn handles(namespace: &Namespace) -> Vec<String> {
    let text = namespace.print("nft", &["-s", "-a", "list", "ruleset"]);
    text.lines().filter(|line| line.contains("# handle")).map(str::to_owned).collect()
}

fn case(case: &Value, backend: &str) -> Result<(), String> {
    let addresses = strings(&case["addresses"]);
    let namespace = Namespace::bare("");
    let list = |name: &str| case.get(name).map(strings).unwrap_or_default();
    for (name, value) in case.get("sysctl").and_then(Value::as_object).into_iter().flatten() {
        namespace.print("sysctl", &["-qw", &format!("{name}={}", value.as_str().unwrap())]);
    }
    let mut batch = String::from("link add eth0 type veth peer name up0\n");
    for address in &addresses {
        batch += &format!("addr add {address} dev eth0 {}\n", if address.contains(':') { "nodad" } else { "" });
    }
    for link in list("links") {
        batch += &format!("link add {link} type veth peer name p{link}\n");
    }
    namespace.batch(&(batch + "link set eth0 up\nlink set up0 up\n"));
    for name in list("foreign") {
        for words in foreign(&name) {
            run(&namespace, backend, &words.split(' ').collect::<Vec<_>>());
        }
    }
    let before = kernel(&namespace, backend);
    let steps = case["steps"].as_array().unwrap();
    let mut last: Option<(Vec<String>, bool)> = None;
    let mut held_nothing = true;
    for step in steps {
        if let Some(commands) = step.get("tamper") {
            commands.as_array().unwrap().iter().for_each(|words| run(&namespace, backend, &refs(&strings(words))));
            last = None;
            continue;
        }
        let arguments = strings(&step["args"]);
        let handles_before = handles(&namespace);
        let output = podweir(&namespace, backend, &arguments);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() != (step["exit"] == 0) {
            return Err(format!("{arguments:?} ended with {}: {log}", output.status));
        }
        if step["exit"] != 0 && output.status.code() != Some(2) {
            return Err(format!("{arguments:?}, which nobody can want, ended with {}: {log}", output.status));
        }
        let plain: Vec<String> = arguments.iter().filter(|a| *a != "--reconcile").cloned().collect();
        let repeats = last.as_ref().is_some_and(|(before, done)| *done && *before == plain);
        if repeats && handles(&namespace) != handles_before {
            return Err(format!("{arguments:?} wrote rules again though nothing changed: {log}"));
        }
        let touches = step["exit"] == 0 && !arguments.iter().any(|a| a == "--dry-run");
        if touches {
            held_nothing = arguments.iter().any(|a| a == "--remove");
        }
        last = Some((plain, touches));
    }
    let got = kernel(&namespace, backend);
    let expect = case["expect"].get(backend).unwrap_or(&case["expect"]["iptables"]);
    let mut wanted =
        Kernel { rules: by_family(&expect["rules"]), routes: by_family(&expect["routes"]), ..before.clone() };
    if backend == "nftables" {
        let own: BTreeSet<&String> = got.native.keys().filter(|name| !before.native.contains_key(*name)).collect();
        if own.is_empty() != held_nothing {
            return Err(format!("tables of its own: {own:?}"));
        }
        let expected = members(&case["expect"]["iptables"]["ipset"]).into_values().flatten().collect();
        if steps[0]["args"][0] == "ambient-host" && native_members(&namespace) != expected {
            return Err(format!("members {:?}, wanted {expected:?}", native_members(&namespace)));
        }
        wanted.native.extend(got.native.clone().into_iter().filter(|(name, _)| !before.native.contains_key(name)));
    } else {
        wanted.ip4 = saved(&expect["ip4"]);
        wanted.ip6 = saved(&expect["ip6"]);
        wanted.sets = members(&expect["ipset"]);
    }
    if got == wanted { Ok(()) } else { Err(format!("wanted {wanted:#?}\ngot {got:#?}")) }
}

fn check(backend: &str) {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for one in recorded(CASES) {
        let backends = one.get("backends").map(strings);
        if backends.is_some_and(|backends| !backends.iter().any(|b| b == backend)) {
            continue;
        }
        count += 1;
        wrong.extend(case(&one, backend).err().map(|why| format!("{}: {why}", one["name"])));
    }
    assert_eq!(count, if backend == "nftables" { 60 } else { 64 });
    assert!(wrong.is_empty(), "{} of {count} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn recorded_cases_natively() {
    check("nftables");
}

#[test]
fn recorded_cases_on_iptables_nft() {
    check("iptables-nft");
}

#[test]
fn recorded_cases_on_iptables_legacy() {
    check("iptables-legacy");
}

/// One namespace has one dataplane, whichever backend holds it.
#[test]
fn a_sidecars_namespace_does_not_become_ambient_nor_the_other_way_round() {
    let sides: [(&[&str], &str, &str); 2] = [
        (&["init", "-b", "*", "-i", "*"], "podweir clean", "a sidecar's interception"),
        (&["ambient"], "podweir ambient --remove", "the rules of an ambient pod"),
    ];
    for there in BACKENDS {
        for wanted in BACKENDS {
            for (first, second) in [(sides[0], sides[1]), (sides[1], sides[0])] {
                let namespace = Namespace::new();
                namespace.ok(&[first.0, &["--backend", there]].concat());
                let before = namespace.everything();
                let output = namespace.podweir(&[second.0, &["--backend", wanted, "--reconcile"]].concat());
                let log = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(1), "{there}, {wanted}: {log}");
                assert!(log.contains(first.1) && log.contains(first.2) && log.contains(there), "{log}");
                assert_eq!(before, namespace.everything(), "{there}, {wanted}: {log}");
                // Removing the one does not take the other away.
                namespace.ok(&second.1.split(' ').skip(1).collect::<Vec<_>>());
                assert_eq!(before, namespace.everything(), "{there}, {wanted}");
                namespace.ok(&first.1.split(' ').skip(1).collect::<Vec<_>>());
                namespace.ok(&[second.0, &["--backend", wanted]].concat());
            }
        }
    }
}

/// Rules of iptables that differ stay as they are without --reconcile.
#[test]
fn drift_of_iptables_is_refused_and_told() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let namespace = Namespace::new();
        namespace.ok(&["ambient", "--backend", backend]);
        let before = namespace.everything();
        let output = namespace.podweir(&["ambient", "--backend", backend, "--dns-capture=false"]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(
            log.contains("--reconcile") && log.contains("podweir ambient --remove") && log.contains("15053"),
            "{log}"
        );
        assert_eq!(before, namespace.everything());
    }
}

/// Another backend's rules go as the new ones come.
#[test]
fn rules_move_from_one_backend_to_another() {
    for from in BACKENDS {
        for to in BACKENDS.into_iter().filter(|to| *to != from) {
            let namespace = Namespace::new();
            namespace.ok(&["ambient", "--backend", to]);
            let wanted = namespace.everything();
            namespace.ok(&["ambient", "--remove"]);
            namespace.ok(&["ambient", "--backend", from]);
            namespace.ok(&["ambient", "--backend", to, "--reconcile"]);
            assert_eq!(wanted, namespace.everything(), "{from} to {to}");
        }
    }
}

/// What a node has of probes: rules, and the sets' entries of both kinds.
fn of_node(namespace: &Namespace) -> (String, BTreeMap<String, String>, String) {
    let sets = namespace.print("ipset", &["save"]);
    let sets: BTreeSet<&str> = sets.lines().filter(|line| line.starts_with("add ")).collect();
    let sets = sets.into_iter().map(|line| format!("{line}\n")).collect();
    (namespace.everything(), native_members(namespace), sets)
}

/// The rules of another backend go as the new ones come, and the sets' entries with them: probes pass
/// meanwhile. Of a pod that is deleted at the same time the entry goes.
#[test]
fn a_nodes_rules_move_from_one_backend_to_another_with_their_entries() {
    const PODS: &str = "10.0.0.5=a,fd00::5=a,10.0.0.6=b";
    for from in BACKENDS {
        for to in BACKENDS.into_iter().filter(|to| *to != from) {
            let namespace = Namespace::new();
            let set_up = |backend: &str| {
                namespace.ok(&["ambient-host", "--backend", backend]);
                namespace.ok(&["ambient-host", "--backend", backend, "--add", PODS]);
            };
            set_up(to);
            let wanted = of_node(&namespace);
            namespace.ok(&["ambient-host", "--remove"]);
            set_up(from);
            namespace.ok(&["ambient-host", "--backend", to]);
            assert_eq!(wanted, of_node(&namespace), "{from} to {to}");
            let again = namespace.podweir(&["ambient-host", "--backend", to]);
            assert!(String::from_utf8_lossy(&again.stderr).contains("unchanged"), "{from} to {to}");
        }
    }
}

/// An image without iptables takes over from an agent that used it.
#[test]
fn rules_that_another_agent_made_with_iptables_are_taken_over_without_its_programs() {
    let without = |namespace: &Namespace, arguments: &[&str]| {
        let environment = [("PATH", "/nonexistent")];
        let output = namespace.feed(PODWEIR, arguments, &environment, "");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {log}");
        log
    };
    let node = Namespace::new();
    node.ok(&["ambient-host", "--backend", "iptables-nft"]);
    node.ok(&["ambient-host", "--backend", "iptables-nft", "--add", "10.0.0.5=a"]);
    let log = without(&node, &["ambient-host"]);
    assert!(log.contains("backend=\"nftables\"") && log.contains("the set is emptied"), "{log}");
    let (_, native, sets) = of_node(&node);
    assert_eq!((native, sets), (BTreeMap::from([("10.0.0.5".into(), "a".into())]), String::new()));
    // With the programs they go altogether.
    node.ok(&["ambient-host", "--backend", "nftables"]);
    assert!(!node.print("iptables-nft-save", &["-t", "nat"]).contains("ISTIO"));

    // In a pod, rules that are what they should be are as good as one's own.
    let pod = Namespace::new();
    pod.ok(&["ambient", "--backend", "iptables-nft"]);
    let plan = build::ambient(&AmbientOptions::default());
    let look = |pod: &Namespace| {
        let programs = ProgramEnvironment { path: "/nonexistent".into(), ..ProgramEnvironment::default() };
        let conditions = Conditions { rule_comments: false, lock_timeout: Duration::ZERO, programs };
        let namespace = ambient::Namespace { choice: BackendChoice::Auto, conditions, reconcile: true };
        pod.run(|| {
            let applied = namespace.apply(&plan);
            let differences = namespace.verify(&plan).unwrap();
            match applied {
                Ok(outcome) => assert_eq!((outcome.action, differences.len()), (Action::Unchanged, 0)),
                Err(error) => assert!(error.lacks_program() && !differences.is_empty(), "{error}"),
            }
            differences
        })
    };
    assert_eq!(look(&pod), Vec::<String>::new());
    pod.print("iptables-nft", &["-t", "nat", "-D", "ISTIO_OUTPUT", "1"]);
    let differences = look(&pod);
    assert!(!differences.is_empty());
    pod.print("ip", &["rule", "del", "pref", "32764"]);
    let more = look(&pod);
    assert!(more.len() > differences.len(), "{more:?}");
}

/// A table that others use too is not emptied for them.
#[test]
fn routes_of_others_in_the_same_table_stay() {
    let namespace = Namespace::new();
    namespace.batch("rule add pref 90 fwmark 0x1 lookup 100\nroute add local default dev lo table 100\n");
    let before = namespace.everything();
    namespace.ok(&["ambient"]);
    namespace.ok(&["ambient", "--remove"]);
    assert_eq!(before, namespace.everything());
}

#[test]
fn values_that_nobody_can_want_are_refused_before_anything_is_touched() {
    let namespace = Namespace::new();
    let before = namespace.everything();
    for (arguments, word) in [
        (&["ambient", "--ip-families", "ipv5"][..], "ipv5"),
        (&["ambient", "--dns-capture=perhaps"], "perhaps"),
        (&["ambient", "--virtual-interfaces", "a/b"], "a/b"),
        (&["ambient", "--virtual-interfaces", "tap*"], "tap*"),
        (&["ambient", "--backend", "ebtables"], "ebtables"),
        (&["ambient", "--remove", "--reconcile"], "--reconcile"),
        (&["ambient-host", "--add", "10.0.0.5"], "10.0.0.5"),
        (&["ambient-host", "--add", "pod=a"], "pod=a"),
        (&["ambient-host", "--add", "10.0.0.5="], "10.0.0.5="),
        (&["ambient-host", "--kubelet-uid", "-1"], "-1"),
        (&["ambient-host", "--remove", "--add", "10.0.0.5=a"], "--remove"),
    ] {
        let output = namespace.podweir(arguments);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {log}");
        assert!(log.contains(word), "{arguments:?}: {log}");
        assert_eq!(before, namespace.everything(), "{arguments:?}");
    }
}
