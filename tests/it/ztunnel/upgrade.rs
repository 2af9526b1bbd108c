//! Ztunnels and agents that are replaced while pods talk to each other.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::place::{Place, addresses, connect, first_line};

/// Connects from the first pod again and again until told to stop. Returns how often, and of each connection that failed
/// its own address and what happened.
fn load(place: &Place, to: IpAddr, stop: &AtomicBool) -> (usize, Vec<(SocketAddr, String)>) {
    let mut failed = Vec::new();
    let mut count = 0;
    // At most a minute of it.
    while !stop.load(Ordering::Relaxed) && count < 12_000 {
        count += 1;
        place.pods[0].namespace.run(|| {
            // The kernel accepts for a ztunnel, so that this never fails while one of them listens.
            let mut stream = connect(to).unwrap();
            if let Err(error) = first_line(&mut stream) {
                failed.push((stream.local_addr().unwrap(), error));
            }
        });
        std::thread::sleep(Duration::from_millis(5));
    }
    (count, failed)
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn a_ztunnel_is_replaced_by_another_under_load() {
    let (place, old) = Place::running(2);
    for pod in &place.pods {
        // The kernel resets what a listener that closes has not accepted yet, unless it may hand that to the other
        // listener of the port (ip-sysctl.rst, tcp_migrate_req). Without such resets every failure is accounted for.
        pod.namespace.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1").unwrap());
    }
    let to = addresses(1)[0];
    let stop = AtomicBool::new(false);
    // One that goes on all the time.
    let mut held = place.pods[0].namespace.run(|| connect(to)).unwrap();
    first_line(&mut held).unwrap();
    let (new, (count, failed)) = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| load(&place, to, &stop));
        std::thread::sleep(Duration::from_millis(300));
        let new = place.ztunnel(1);
        place.wait_until_enrolled(2);
        std::thread::sleep(Duration::from_millis(300));
        old.terminate();
        std::thread::sleep(Duration::from_secs(2));
        // The older one drains: what it has goes on.
        held.write_all(b"still there").unwrap();
        let mut back = [0; 11];
        held.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still there");
        stop.store(true, Ordering::Relaxed);
        (new, loaded.join().unwrap())
    });
    eprintln!("{count} connections");
    assert!(count > 20, "{count} are too few to tell");
    // Ztunnel drops what is on its way to the older one when that ends its listeners and its HTTP/2 connections. It says
    // so of each, in a log that it writes late; what it does not own up to is the fault of somebody else.
    for (from, error) in &failed {
        place.node.wait(&format!("ztunnel to log that it dropped the connection from {from}: {error}"), || {
            let logs = old.log() + &new.log();
            let source = format!("src.addr={from} ");
            let mut lines = logs.lines().filter(|line| line.contains("\terror\taccess\t") && line.contains(&source));
            lines.any(|line| line.contains("direction=\"outbound\"")).then_some(())
        });
    }
    assert!(failed.len() * 10 < count, "{} of {count} failed: {failed:?}", failed.len());
    let [_, plain] = place.wire();
    assert_eq!(plain, 0, "plain text");
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn an_agent_that_starts_anew_is_not_noticed() {
    let (mut place, _ztunnel) = Place::running(2);
    let to = addresses(1)[0];
    let rules = place.pods[0].namespace.rules();
    place.node.kill();
    for _ in 0..20 {
        assert!(place.ask(0, to).is_ok());
        assert!(place.probe(0, to).is_ok());
    }
    crate::agent::ambient::start(&mut place.node, &[]);
    for _ in 0..50 {
        assert!(place.ask(0, to).is_ok());
        assert!(place.probe(0, to).is_ok());
        std::thread::sleep(Duration::from_millis(5));
    }
    place.wait_until_enrolled(1);
    assert!(place.ask(0, to).is_ok());
    assert_eq!(place.pods[0].namespace.rules(), rules);
    assert_eq!(place.wire()[1], 0, "plain text");
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn without_a_ztunnel_nothing_escapes() {
    let (place, ztunnel) = Place::running(2);
    let to = addresses(1)[0];
    assert!(place.ask(0, to).is_ok());
    drop(ztunnel);
    let refused = place.ask(0, to);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(place.wire()[1], 0, "plain text");
    // Probes need no ztunnel.
    assert!(place.probe(0, to).is_ok());
    let _again = place.ztunnel(2);
    place.node.wait("traffic", || place.ask(0, to).ok());
    assert_eq!(place.wire()[1], 0, "plain text");
}
