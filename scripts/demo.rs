//! Who answers a pod's connections, before and after `podweir init`. Run by
//! `scripts/demo`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a demonstration ends by it")]

#[allow(dead_code)] // what the tests alone use
#[path = "../tests/it/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "../tests/it/pod.rs"]
mod pod;
#[path = "../tests/it/typical.rs"]
mod typical;

use pod::{Pod, Probe, Proxy};
use typical::TYPICAL;

/// What is sent, in words and as a probe.
const FLOWS: &[(&str, &str)] = &[
    ("app to 198.51.100.7:80", "out tcp uid=1000 gid=1000 to 198.51.100.7 80"),
    ("app to [2001:db8::7]:443", "out tcp uid=1000 gid=1000 to 2001:db8::7 443"),
    ("proxy to 198.51.100.7:80", "out tcp uid=1337 gid=1337 to 198.51.100.7 80"),
    ("app to 198.51.100.7:443, UDP", "out udp uid=1000 gid=1000 to 198.51.100.7 443"),
    ("app to localhost:8080", "out tcp uid=1000 gid=1000 to 127.0.0.1 8080"),
    ("client to pod:8080", "in tcp to 10.244.0.6 8080"),
    ("client to [pod]:8080", "in tcp to fd00:10:244::6 8080"),
    ("client to pod:15021, excluded", "in tcp to 10.244.0.6 15021"),
];

fn main() {
    let pod = Pod::new(
        &[fixture::V4, fixture::V6],
        fixture::RESOLV,
        Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 },
    );
    let probes: Vec<Probe> = FLOWS.iter().map(|(_, probe)| Probe::parse(probe)).collect();
    let before = pod.probe(&probes);
    let arguments = [&["init"], TYPICAL].concat();
    let log = pod.namespace.ok(&arguments);
    let after = pod.probe(&probes);

    let quoted = |word: &&str| if word.is_empty() || *word == "*" { format!("'{word}'") } else { (*word).to_owned() };
    println!("$ podweir {}\n{log}", arguments.iter().map(quoted).collect::<Vec<_>>().join(" "));
    println!("{:32}  {:12}  after: answered by", "connection", "before");
    for (((words, _), before), after) in FLOWS.iter().zip(&before).zip(&after) {
        println!("{words:32}  {before:12}  {after}");
    }
}
