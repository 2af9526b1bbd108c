//! Ztunnels and agents that are replaced while pods talk to each other.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::place::{Place, addresses, connect};

/// Connects again and again until told to stop; how often, and what failed.
fn load(place: &Place, to: IpAddr, stop: &AtomicBool) -> (usize, Vec<String>) {
    let mut failed = Vec::new();
    let mut count = 0;
    // At most a minute of it.
    while !stop.load(Ordering::Relaxed) && count < 12_000 {
        count += 1;
        if let Err(error) = place.ask(0, to) {
            failed.push(format!("connection {count}: {error}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (count, failed)
}

#[test]
#[ignore = "needs a ztunnel: set PODWEIR_ZTUNNEL, and run ./scripts/test"]
fn a_ztunnel_is_replaced_by_another_under_load() {
    let (place, old) = Place::running(2);
    let to = addresses(1)[0];
    let stop = AtomicBool::new(false);
    // One that goes on all the time.
    let (mut held, _) = place.pods[0].namespace.run(|| connect(to)).unwrap();
    let ((count, failed), said) = std::thread::scope(|scope| {
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
        (loaded.join().unwrap(), new.log())
    });
    eprintln!("{count} connections");
    assert!(count > 20, "{count} are too few to tell");
    // What was on its way when the older one ended its HTTP/2 connections is ztunnel's own to drop
    // (GOAWAY without an error), and it says so of each.
    let dropped = (old.log() + &said).matches("not a result of an error").count();
    assert!(failed.len() <= dropped, "{} of {count}, {dropped} by ztunnel: {failed:?}", failed.len());
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
