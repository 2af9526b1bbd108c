//! What `audit` prints as an example is that example: the command, typed into a shell as
//! it stands there, meets the fate of the class it is printed under.

use std::process::Command;

use podweir::audit::flow::Surroundings;
use podweir::audit::ruleset::{Base, FoundChain, Hook, TableId};
use podweir::audit::schema;
use podweir::audit::source::Source;
use podweir::backend::BackendKind;
use podweir::backend::hook::ChainKind;
use podweir::backend::listing::{self, Holder, ListedChain, ListedTable};
use podweir::config::interception::Interception;
use podweir::config::ranges::RangeList;
use podweir::config::types::{Families, Interface, Networks};
use podweir::plan::build;
use podweir::plan::model::{ChainName, Cond, Matches, Verdict};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use crate::arbitrary::interceptions;
use crate::fixture::{Namespace, PODWEIR};
use crate::partition::{foreign, rule, surroundings};

/// A plan's rules and somebody else's, as `podweir render --format json` prints them.
fn rules(interception: &Interception, foreign: &[FoundChain], pod: &Surroundings) -> Value {
    let plan = build(interception);
    let chain =
        |chain: &FoundChain| ListedChain { name: chain.name.clone(), base: chain.base, rules: chain.rules.clone() };
    let mut tables = listing::of_plan(&plan);
    tables.push(ListedTable {
        holder: Holder::Kernel(BackendKind::Nftables),
        families: Families::BOTH,
        name: "other".into(),
        dormant: false,
        as_nft_shows: false,
        chains: foreign.iter().map(chain).collect(),
    });
    let routing = Some(plan.routing.clone());
    schema::source(&Source { pod: pod.clone(), routing, ..crate::dumps::source(tables) })
}

/// A chain that lets connections out by what an example seldom has to say.
fn picky() -> impl Strategy<Value = FoundChain> {
    let half = |text: &str| weighted(0.5, Just(text.to_owned()));
    let nets = |text: &str| Cond::is(text.split(',').map(|net| net.parse().unwrap()).collect::<Networks>());
    let conditions =
        (half("10.9.0.0/30,fd00::/16"), half("veth0"), weighted(0.5, select(vec![1, 53, 1000])), any::<bool>());
    let matches = conditions.prop_map(move |(source, interface, port, owned)| Matches {
        source: source.map(|text| nets(&text)),
        out_interface: interface.map(|name| Cond::is(vec![Interface::new(&name, false)])),
        source_port: port.map(|port| Cond::is(RangeList::of([port]))),
        uid: owned.then(|| Cond { negated: true, value: RangeList::new([(0, u32::MAX)]) }),
        ..Matches::default()
    });
    (vec(matches, 1..3), select(vec![Hook::Output, Hook::Prerouting])).prop_map(|(all, hook)| FoundChain {
        table: TableId { source: "other".into(), name: "t".into() },
        name: ChainName::Other("picky".into()),
        base: Some(Base::accepting(ChainKind::Nat, hook, -390)),
        families: Families::BOTH,
        rules: all.into_iter().map(|matches| rule(matches, Verdict::Accept)).collect(),
    })
}

/// The commands in a report, each with the verdict that its class stands for.
fn commands(report: &str) -> Vec<(&'static str, String)> {
    let mut verdict = "direct";
    let mut out = Vec::new();
    for line in report.lines() {
        if !line.starts_with(' ') {
            verdict = if line.contains("-undecided: ") { "unknown" } else { "direct" };
        } else if let Some(arguments) = line.trim_start().strip_prefix("podweir explain ") {
            out.push((verdict, arguments.to_owned()));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(25)))]

    #[test]
    fn the_printed_command_asks_about_the_example(
        interception in interceptions(), mut foreign in foreign(), picky in picky(), pod in surroundings()
    ) {
        prop_assume!(!pod.addresses.is_empty());
        foreign.push(picky);
        let directory = std::env::temp_dir().join(format!("podweir-examples-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("rules.json");
        std::fs::write(&file, rules(&interception, &foreign, &pod).to_string()).unwrap();
        let dump = file.to_str().unwrap();
        let output = Command::new(PODWEIR).args(["audit", "--dump", dump]).output().unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        let commands = commands(&report);
        prop_assert!(!commands.is_empty(), "{}{}", report, String::from_utf8_lossy(&output.stderr));
        let explain = |(verdict, arguments): &(&str, String)| {
            format!("'{PODWEIR}' explain --expect {verdict} {arguments} 2>&1 || exit 1\n")
        };
        let script: String = commands.iter().map(explain).collect();
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let answers = String::from_utf8_lossy(&output.stdout);
        std::fs::remove_dir_all(&directory).unwrap();
        prop_assert!(output.status.success(), "{}\n{}", answers, script);
    }
}

/// A port, an interface with an odd name, and the lack of an owner are part of an example.
#[test]
fn nothing_that_tells_an_example_from_others_is_left_out() {
    let rules = "table inet t { chain out { type nat hook output priority -100; \
        tcp sport 1000 oifname \"$(a)'b\" accept; meta skuid 0-4294967294 tcp dport 1-65535 redirect to :15001; }; }";
    let namespace = Namespace::new();
    assert!(namespace.feed("nft", &["-f", "-"], &[], rules).status.success());
    let audit = |format: &str| namespace.print(PODWEIR, &["audit", "--live", "--format", format]);
    let report: Value = serde_json::from_str(&audit("json")).unwrap();
    let class = |id: &str| report["escapes"].as_array().unwrap().iter().find(|e| e["id"] == id).unwrap().clone();
    let foreign = class("outbound-foreign-rule");
    assert_eq!(
        (&foreign["example"]["source_port"], &foreign["example"]["interface"]),
        (&Value::from(1000), &Value::from("$(a)'b"))
    );
    let nobody = class("outbound-tcp-not-taken");
    assert_eq!((&nobody["example"]["uid"], &nobody["example"]["gid"]), (&Value::from("none"), &Value::from("none")));
    let text = audit("text");
    for words in [
        "try     TCP to 203.0.113.10:443 from port 1000 uid 1000 out by $(a)'b\n",
        "--source-port 1000 --destination 203.0.113.10 --port 443 --interface '$(a)'\\''b' --live\n",
        "try     TCP to 203.0.113.10:443\n",
        " --uid none --gid none ",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // A line of --flows asks the same.
    let flows = format!("{}\n{}\n", foreign["example"], nobody["example"]);
    let answers = namespace.feed(PODWEIR, &["explain", "--live", "--flows", "-", "--expect", "direct"], &[], &flows);
    assert!(answers.status.success(), "{}", String::from_utf8_lossy(&answers.stdout));
}
