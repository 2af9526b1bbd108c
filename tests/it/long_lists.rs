//! Long lists: what they cost the kernel, and how much of it one pod may ask for.

use std::io;
use std::time::Duration;

use podweir::audit::source::options::{self, KnownPod};
use podweir::backend::nftables::encode::Encoder;
use podweir::backend::nftables::transaction::{Transaction, TransactionError};
use podweir::config::given::{Given, Origin};
use podweir::config::options::Opt;
use podweir::config::settings::Face;
use podweir::config::types::Families;
use podweir::plan::model::{Chain, Plan, Table};
use podweir::sys::netlink::Netlink;
use serde_json::json;

use crate::fixture::{Namespace, RESOLV, V4, V6};
use crate::plugin::{Cluster, sidecar};

/// So many ports, no two of them neighbours.
fn apart(count: u16) -> String {
    (0..count).map(|n| (2 * n + 1).to_string()).collect::<Vec<_>>().join(",")
}

/// So many ports, each next to another, the last one first.
fn neighbours(count: u16) -> String {
    (1..=count).rev().map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

/// The plan of a pod that excludes outbound ports.
fn plan(ports: &str) -> Plan {
    let mut given = Given::default();
    given.set(Opt::OutboundPortsExclude, Origin::Flag, ports);
    let known = KnownPod { addresses: vec!["10.244.0.6".parse().unwrap()], ..KnownPod::default() };
    options::read(&given, Face::Init, &known).unwrap().plan().clone()
}

fn nat(plan: &Plan) -> Vec<&Chain> {
    plan.chains.iter().filter(|chain| chain.table == Table::Nat).collect()
}

/// The number of elements of the longest set that a plan makes, and whether it is one of
/// intervals.
fn longest_set(plan: &Plan) -> (usize, bool) {
    let mut encoder = Encoder::starting_at(Families::BOTH, 1);
    let rules = nat(plan).into_iter().flat_map(|chain| &chain.rules);
    rules.for_each(|rule| drop(encoder.rule(rule, false)));
    let sets = encoder.take_sets();
    let longest = sets.iter().max_by_key(|set| set.elements.len()).unwrap();
    (longest.elements.len(), longest.interval)
}

#[test]
fn many_ports_are_a_set_of_intervals_and_neighbours_are_one() {
    assert_eq!(longest_set(&plan(&apart(300))), (300, false));
    assert_eq!(longest_set(&plan(&apart(301))), (301, true));
    assert_eq!(longest_set(&plan(&apart(20_000))), (20_000, true));
    assert_eq!(longest_set(&plan(&neighbours(300))), (300, false));
    // One range is compared with as it is; what is left are the ports excluded inbound.
    assert_eq!(longest_set(&plan(&neighbours(301))), (3, false));
}

#[test]
fn long_lists_are_read_back_as_they_were_written() {
    for (backend, count) in [("nftables", 300), ("nftables", 301), ("nftables", 20_000), ("iptables-legacy", 400)] {
        let namespace = Namespace::with(&[V4, V6], RESOLV);
        let (apart, ports) = (apart(count), neighbours(count));
        let arguments = ["init", "--backend", backend, "-o", &apart, "-b", &ports, "-i", "*"];
        assert!(namespace.ok(&arguments).contains("installed"), "{backend} {count}");
        assert!(namespace.ok(&arguments).contains("unchanged"), "{backend} {count}");
        namespace.ok(&["verify", "--live", "--", "-o", &apart, "-b", &ports, "-i", "*"]);
        let without = apart.replacen("1,", "", 1);
        let other = namespace.podweir(&["verify", "--live", "--", "-o", &without, "-b", &ports, "-i", "*"]);
        assert_eq!(other.status.code(), Some(1), "{backend} {count}");
    }
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "iptables-legacy", "-b", &neighbours(2000), "-i", "*"]);
    let rules = namespace.print("iptables-legacy-save", &[]);
    assert!(rules.contains("--dport 1:2000"), "{rules}");
    assert!(rules.lines().count() < 60, "{rules}");
}

#[test]
fn a_transaction_that_takes_too_long_is_taken_back() {
    let namespace = Namespace::bare("");
    let plan = plan(&apart(20_000));
    let refused = namespace.run(|| {
        let mut netlink = Netlink::open(Netlink::NETFILTER).unwrap();
        netlink.patience = Duration::from_millis(1);
        let mut transaction = Transaction::new(None);
        transaction.set_plan_table(&plan, Table::Nat, None);
        let refused = transaction.commit(&mut netlink).unwrap_err();
        // The socket is as good as before.
        netlink.patience = Duration::from_secs(60);
        let mut transaction = Transaction::new(None);
        transaction.add_table("podweir-test");
        transaction.commit(&mut netlink).unwrap();
        refused
    });
    assert!(
        matches!(&refused, TransactionError::Socket(e) if e.kind() == io::ErrorKind::TimedOut && e.to_string().contains("shorter lists")),
        "{refused}"
    );
    assert_eq!(namespace.print("nft", &["list", "tables"]), "table inet podweir-test\n");
}

#[test]
fn what_one_pod_may_ask_for_has_an_end() {
    let exclude = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let ranges: Vec<String> = (0..2001).map(|n| format!("10.{}.{}.0/25", n / 250, n % 250)).collect();
    let (ranges, many) = (ranges.join(","), apart(20_000));
    let half = apart(1500);
    for (annotations, name) in [
        (json!({ exclude: many }), exclude),
        (json!({ "traffic.sidecar.istio.io/excludeOutboundIPRanges": ranges }), "excludeOutboundIPRanges"),
        // Each on its own would do.
        (json!({ "traffic.sidecar.istio.io/includeOutboundPorts": half, exclude: half }), exclude),
    ] {
        let cluster = Cluster::new(&sidecar(annotations));
        let before = cluster.namespace.everything();
        let (code, message) = cluster.add().call().error();
        assert_eq!(code, 102, "{message}");
        for words in [name, "at most 2000", "kernel", "netconf's interception"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        // It reaches the pod's event: not the list itself.
        assert!(message.len() < 900, "{}", message.len());
        assert_eq!(cluster.namespace.everything(), before);
    }
    // Neighbours are one; and the node's administrator may ask for more.
    let cluster = Cluster::new(&sidecar(json!({ exclude: neighbours(40_000) })));
    cluster.add().call().ok();
    assert!(cluster.namespace.rules().contains("dport 1-40000"), "{}", cluster.namespace.rules());
    let cluster = Cluster::new(&sidecar(json!({})));
    cluster.add().key("interception", json!({ "istio-outbound-ports": apart(5000) })).call().ok();
}
