//! Behind a real Envoy, with the listeners and rights of a sidecar. `scripts/envoy` fetches
//! it; `scripts/test` runs a slice of this tier and `scripts/test-envoy` all of it.

mod config;
mod functional;
mod place;
mod ports;
mod proxy;
mod reconcile;

use config::{Family, V4, V6};
use place::Place;

/// Commands that program a pod: every backend, and the compatible face.
const FACES: [&[&str]; 4] = [
    &["init", "--backend", "nftables"],
    &["init", "--backend", "iptables-nft"],
    &["init", "--backend", "iptables-legacy"],
    &["istio-iptables", "--dual-stack"],
];
const FAMILIES: [&[Family]; 3] = [&[V4], &[V6], &[V4, V6]];
const CHECKS: usize = 23;

fn program(place: &Place, face: &[&str], tproxy: bool) {
    let mode = if tproxy { "TPROXY" } else { "REDIRECT" };
    place.pod.ok(&[face, functional::OPTIONS, &["-m", mode]].concat());
}

fn functional(faces: &[&[&str]], families: &[&[Family]]) {
    let mut wrong = Vec::new();
    for face in faces {
        for tproxy in [false, true] {
            for families in families {
                let place = Place::new(families, tproxy, 1);
                program(&place, face, tproxy);
                let of = format!("{face:?}, TPROXY {tproxy}, {} families", families.len());
                let (count, found) = functional::check(&place, families, tproxy, &of);
                assert_eq!(count, CHECKS * families.len());
                wrong.extend(found);
            }
        }
    }
    assert!(wrong.is_empty(), "{} checks:\n{}", wrong.len(), wrong.join("\n"));
}

const BOTH: &[Family] = &[V4, V6];

/// Replaces rules under traffic; nothing may escape, fail or break.
fn replaced(backends: [&str; 2], modes: &[bool], rounds: usize) {
    for &tproxy in modes {
        let place = Place::new(BOTH, tproxy, 2);
        let mode = if tproxy { "TPROXY" } else { "REDIRECT" };
        let outcome = reconcile::replace(&place, backends, mode, rounds);
        let reconcile::Outcome { opened, failed, broken, escaped_out, escaped_in } = outcome;
        let of = format!("{backends:?} {mode}, of {opened} connections");
        eprintln!("{of}, {rounds} changes");
        assert!(opened >= 20 * rounds as u64, "{of}");
        assert_eq!((escaped_out, escaped_in), (0, 0), "{of}");
        let first = |wrong: &[String]| wrong.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        assert_eq!((failed.len(), broken.len()), (0, 0), "{of}:\n{}\n{}", first(&failed), first(&broken));
    }
}

mod slice {
    use super::*;

    #[test]
    #[ignore = "needs Envoy: run ./scripts/test-envoy"]
    fn a_dual_stack_pod_behind_envoy_on_nftables() {
        functional(&FACES[..1], &[BOTH]);
    }

    /// What the checks say where nothing is intercepted.
    #[test]
    #[ignore = "needs Envoy: run ./scripts/test-envoy"]
    fn without_rules_the_checks_fail() {
        let place = Place::new(&[V4], false, 1);
        let (count, wrong) = functional::check(&place, &[V4], false, "");
        assert_eq!((count, wrong.len()), (CHECKS, 10), "{}", wrong.join("\n"));
        let outcome = reconcile::clean_and_install(&Place::new(BOTH, false, 2), "REDIRECT", 2);
        assert!(outcome.escaped_out > 0 && outcome.escaped_in > 0, "{outcome:?}");
    }

    #[test]
    #[ignore = "needs Envoy: run ./scripts/test-envoy"]
    fn nothing_escapes_or_breaks_while_nftables_replaces_rules() {
        replaced(["nftables"; 2], &[false, true], crate::cases(60) as usize);
    }
}

/// A stream that the proxy's source port meets stops, by podweir's rules and by those that
/// istio-iptables makes, without any change of them; it goes on where the pod has other
/// source ports than its clients, as in every other test.
#[test]
#[ignore = "needs Envoy: run ./scripts/test-envoy"]
fn source_ports_that_meet_stop_a_stream_behind_tproxy_whoever_made_the_rules() {
    for face in [FACES[0], FACES[3]] {
        for (ports, expected) in
            [(ports::MEETING, (false, Some("1337".into()))), (ports::APART, (true, Some("0".into())))]
        {
            let place = Place::new(BOTH, true, 1);
            program(&place, face, true);
            assert_eq!(ports::meet(&place, ports), expected, "{face:?} {ports:?}");
        }
    }
}

#[test]
#[ignore = "needs Envoy: run ./scripts/test-envoy"]
fn every_backend_mode_and_family_behind_envoy() {
    functional(&FACES, &FAMILIES);
}

#[test]
#[ignore = "needs Envoy: run ./scripts/test-envoy"]
fn nothing_escapes_or_breaks_while_iptables_replaces_rules() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        replaced([backend; 2], &[false, true], 25);
    }
}

#[test]
#[ignore = "needs Envoy: run ./scripts/test-envoy"]
fn nothing_escapes_or_breaks_on_the_way_between_backends() {
    for other in ["iptables-nft", "iptables-legacy"] {
        replaced(["nftables", other], &[false, true], 25);
    }
}
