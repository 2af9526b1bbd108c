//! Many at once: in namespaces of their own, and in the same one.

use std::sync::Barrier;

use crate::fixture::{Namespace, RESOLV, V4, V6};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

#[test]
fn thirty_two_namespaces_at_once() {
    for backend in BACKENDS {
        let namespaces: Vec<Namespace> = (0..32).map(|_| Namespace::new()).collect();
        let start = Barrier::new(namespaces.len());
        std::thread::scope(|scope| {
            for namespace in &namespaces {
                scope.spawn(|| {
                    start.wait();
                    namespace.ok(&["init", "--backend", backend]);
                });
            }
        });
        let first = namespaces[0].everything();
        assert!(first.contains("istio") || first.contains("ISTIO"));
        for namespace in &namespaces {
            assert_eq!(first, namespace.everything());
        }
    }
}

#[test]
fn eight_at_once_in_one_namespace() {
    for backend in BACKENDS {
        let namespace = Namespace::with(&[V4, V6], RESOLV);
        let arguments = ["init", "--backend", backend, "-m", "TPROXY", "--redirect-dns"];
        let start = Barrier::new(8);
        let logs: Vec<String> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        namespace.ok(&arguments)
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let count = |word: &str| logs.iter().filter(|log| log.contains(word)).count();
        assert_eq!((count("installed"), count("unchanged")), (1, 7), "{backend}: {logs:?}");
        let alone = Namespace::with(&[V4, V6], RESOLV);
        alone.ok(&arguments);
        assert_eq!(alone.everything(), namespace.everything(), "{backend}");
    }
}

#[test]
fn others_who_change_rules_at_the_same_time_are_no_reason_to_fail() {
    let namespace = Namespace::new();
    namespace.print("nft", &["add", "table", "inet", "others"]);
    namespace.print("nft", &["add", "chain", "inet", "others", "c"]);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for _ in 0..60 {
                namespace.print("nft", &["add", "rule", "inet", "others", "c", "counter"]);
            }
        });
        let mut turn = 0;
        while !busy.is_finished() {
            turn += 1;
            let port = (1000 + turn % 2).to_string();
            // From one to the other takes a guard, and waits for packets.
            let mode = ["REDIRECT", "TPROXY"][turn / 2 % 2];
            namespace.ok(&["init", "-b", &port, "-i", "*", "-m", mode]);
        }
        assert!(turn > 3, "{turn}");
    });
}
