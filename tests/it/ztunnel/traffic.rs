//! Who reaches whom, and what goes by on the wire.

use super::place::{Place, addresses};
use crate::agent::ambient::status;

const PROBES_COME_FROM: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn from_pod_to_pod_there_is_hbone_and_no_plain_text_and_the_source_stays() {
    let (place, ztunnel) = Place::running(2);
    for (at, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let [from, to] = [addresses(0)[at], addresses(1)[at]];
        let [hbone, plain] = place.wire();
        let line = place.ask(0, to).unwrap_or_else(|e| panic!("{family}: {e}\n{}", ztunnel.log()));
        assert_eq!(line, format!("web-1 sees {from}"), "{family}");
        let after = place.wire();
        assert!(after[0] > hbone, "{family}: nothing went to 15008");
        assert_eq!(after[1], plain, "{family}: plain text");
    }
    for part in ["spiffe://cluster.local/ns/shop/sa/sa-0", "spiffe://cluster.local/ns/shop/sa/sa-1", "dst.hbone_addr"] {
        place.node.wait(part, || ztunnel.log().contains(part).then_some(()));
    }
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn probes_pass_where_plain_text_is_refused() {
    let (place, ztunnel) = Place::running(1);
    for (address, source) in addresses(0).into_iter().zip(PROBES_COME_FROM) {
        // As the kubelet: past ztunnel.
        assert_eq!(place.probe(0, address), Ok(format!("web-0 sees {source}")), "{}", ztunnel.log());
    }
    for address in addresses(0) {
        // As somebody else: ztunnel takes it, and STRICT refuses it.
        let refused = place.probe(1000, address);
        assert!(refused.is_err(), "{refused:?}");
    }
    // Ztunnel writes its log in order, and late: once it speaks of both that it refused, it would have spoken of the
    // probes before them.
    let accesses = place.node.wait("ztunnel to log what it refused", || {
        let log = ztunnel.log();
        let lines: Vec<String> = log.lines().filter(|line| line.contains("\taccess\t")).map(str::to_owned).collect();
        (lines.len() >= 2).then_some(lines)
    });
    assert_eq!(accesses.len(), 2, "{accesses:#?}");
    for line in &accesses {
        assert!(!PROBES_COME_FROM.iter().any(|source| line.contains(source)), "{line}");
    }
    // The agent's own probe has found that out, too.
    let probe = place.node.wait("the synthetic probe", || {
        let found = status(&place.node);
        found["probe"].as_str().map(str::to_owned).filter(|_| found["probeArrives"] == true)
    });
    assert!(probe.contains("arrives from 169.254.7.127, as it should"), "{probe}");
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn a_pod_that_leaves_is_as_it_was_and_one_that_joins_is_taken() {
    let (place, _ztunnel) = Place::running(2);
    let to = addresses(1)[0];
    assert!(place.ask(0, to).is_ok());
    let joined = place.pods[0].namespace.rules();
    place.node.server.set_ambient("shop", false);
    for pod in &place.pods {
        place.node.wait_for_state(pod, "left-alone");
    }
    place.node.wait("no rules", || place.pods[0].namespace.print("nft", &["list", "ruleset"]).is_empty().then_some(()));
    let [_, plain] = place.wire();
    assert_eq!(place.ask(0, to), Ok(format!("web-1 sees {}", addresses(0)[0])));
    assert!(place.wire()[1] > plain, "now it is plain text");
    // Nobody listens for the mesh any more.
    place.node.wait("the end of ztunnel's listeners", || {
        let listeners = place.pods[1].namespace.print("ss", &["-Hltn"]);
        (!listeners.contains(":15008") && !listeners.contains(":15006")).then_some(())
    });
    place.node.server.set_ambient("shop", true);
    place.wait_until_enrolled(1);
    assert_eq!(place.pods[0].namespace.rules(), joined);
    let [hbone, plain] = place.wire();
    assert!(place.ask(0, to).is_ok());
    assert!(place.wire()[0] > hbone && place.wire()[1] == plain);
}
