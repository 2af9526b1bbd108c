//! Traffic while rules are replaced: what both the old and the new rules take never
//! reaches anybody else, not for a moment.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::fixture::{PODWEIR, RESOLV, V4, V6};
use crate::pod::{Pod, Probe, Proxy};

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

/// Every way of replacing: the arguments of one round, in turn.
fn check(rounds: &[&[&str]]) {
    let pod = Pod::new(&[V4, V6], RESOLV, PROXY);
    let init = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["init", "--reconcile", "--ip-families", "both"].iter().chain(arguments).copied().collect();
        let output = pod.namespace.command(PODWEIR, &all, &[]);
        assert!(output.status.success(), "{all:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    init(rounds[0]);
    let stop = AtomicBool::new(false);
    let probes = [
        "out tcp uid=1000 gid=1000 to 8.8.8.8 80",
        "out tcp uid=1000 gid=1000 to 2001:db8::5 80",
        "in tcp to 10.244.0.6 8080",
        "in tcp to fd00:10:244::6 8080",
    ];
    let asked = probes.map(|_| AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let watchers: Vec<_> = probes
            .iter()
            .zip(&asked)
            .map(|(text, asked)| {
                let (pod, stop) = (&pod, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let verdict = pod.probe(&[Probe::parse(text)]).remove(0);
                        assert!(!["outside", "app"].contains(&verdict.as_str()), "{text}: {verdict}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // On a busy machine until everyone has asked a few times.
        let enough = |turn| turn >= 12 && asked.iter().all(|n| n.load(Ordering::Relaxed) > 2);
        for turn in (0..200).take_while(|&turn| !enough(turn)) {
            init(rounds[turn % rounds.len()]);
        }
        stop.store(true, Ordering::Relaxed);
        for watcher in watchers {
            watcher.join().unwrap();
        }
        assert!(asked.iter().all(|n| n.load(Ordering::Relaxed) > 2), "{asked:?}");
    });
}

#[test]
fn nothing_escapes_while_nftables_rules_are_replaced() {
    check(&[
        &["--backend", "nftables"],
        &["--backend", "nftables", "-m", "TPROXY"],
        &["--backend", "nftables", "--redirect-dns"],
    ]);
}

#[test]
fn nothing_escapes_while_iptables_rules_are_replaced() {
    for backend in ["iptables-legacy", "iptables-nft"] {
        check(&[
            &["--backend", backend],
            &["--backend", backend, "-m", "TPROXY"],
            &["--backend", backend, "--redirect-dns"],
        ]);
    }
}

#[test]
fn nothing_escapes_while_rules_move_from_one_backend_to_another() {
    check(&[
        &["--backend", "nftables"],
        &["--backend", "iptables-legacy"],
        &["--backend", "iptables-nft", "-m", "TPROXY"],
    ]);
}
