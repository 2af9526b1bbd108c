//! IPv6 by link-local addresses: what happens to it, and what is said about it.

use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::fixture::{Namespace, RESOLV, V4, V6};
use crate::plugin::{Cluster, Plugin, path, sidecar};
use crate::pod::{Server, serve, wire};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 6);
const FAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A pod and a neighbour on its link, with somebody who answers on port 80 of each, and
/// somebody in the proxy's place.
struct Link {
    pod: Namespace,
    neighbour: Namespace,
    _servers: [Server; 3],
}

impl Link {
    fn new(addresses: &[&str]) -> Self {
        let (pod, neighbour) = (Namespace::bare(RESOLV), Namespace::bare(""));
        wire(&pod, &neighbour, addresses);
        for (namespace, device, address) in [(&pod, "eth0", NEAR), (&neighbour, "up0", FAR)] {
            namespace.batch(&format!("addr add {address}/64 dev {device} nodad\n"));
        }
        let servers = [
            pod.run(|| serve(&[("app", 80)], 1000, 1000)),
            pod.run(|| serve(&[("out-proxy", 15001), ("in-proxy", 15006)], 1337, 1337)),
            neighbour.run(|| serve(&[("neighbour", 80)], 0, 0)),
        ];
        Self { pod, neighbour, _servers: servers }
    }

    /// Who answers the app when it calls the neighbour, and the neighbour when it calls the app.
    fn answers(&self) -> [String; 2] {
        [self.pod.run(|| ask("eth0", FAR)), self.neighbour.run(|| ask("up0", NEAR))]
    }
}

fn ask(device: &str, to: Ipv6Addr) -> String {
    let scope = nix::net::if_::if_nametoindex(device).unwrap();
    setfsgid(Gid::from_raw(1000));
    setfsuid(Uid::from_raw(1000));
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    let to = SocketAddr::V6(SocketAddrV6::new(to, 80, 0, scope));
    // Long enough for a first packet to be sent again.
    let mut answer = String::new();
    match socket.connect_timeout(&to.into(), Duration::from_secs(2)) {
        Ok(()) => (&socket).read_to_string(&mut answer).map(|_| answer).unwrap(),
        Err(_) => "silent".into(),
    }
}

/// How severe the finding is, and the exit status where that counts.
fn found(pod: &Namespace) -> (Option<String>, Option<i32>) {
    let arguments = ["audit", "--live", "--format", "json", "--fail-on", "medium", "--accept", "-"];
    // What every pod has counts as well.
    let accepted = "accept:\n- {class: inbound-excluded-port, reason: x}\n- {class: outbound-proxy-own, reason: x}\n- {class: outbound-quic, reason: x}\n";
    let output = pod.feed(crate::fixture::PODWEIR, &arguments, &[], accepted);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lint = report["lints"].as_array().unwrap().iter().find(|lint| lint["id"] == "link-local-ipv6");
    (lint.map(|lint| lint["severity"].as_str().unwrap().to_owned()), output.status.code())
}

#[test]
fn a_pod_that_has_no_other_ipv6_is_passed_by_both_ways_and_it_is_said() {
    const WORDS: &str = "the pod has IPv6 by link-local addresses only";
    for backend in BACKENDS {
        let link = Link::new(&[V4]);
        for face in ["init", "istio-iptables"] {
            let log = link.pod.ok(&[face, "--backend", backend, "-b", "*", "-i", "*", "--reconcile"]);
            assert!(log.contains(WORDS) && log.contains("families=IPv4 "), "{backend}: {log}");
        }
        assert_eq!(link.answers(), ["neighbour", "app"], "{backend}");
        assert_eq!(found(&link.pod), (Some("medium".into()), Some(1)), "{backend}");
        // As the advice says.
        link.pod.print("ip", &["-6", "addr", "flush", "dev", "eth0"]);
        assert!(!link.pod.ok(&["init", "--backend", backend, "--reconcile"]).contains(WORDS), "{backend}");
        assert_eq!(found(&link.pod), (None, Some(0)), "{backend}");
    }
    let link = Link::new(&[V4]);
    let cluster = Cluster::new(&sidecar(serde_json::json!({})));
    Plugin::add(&path(&link.pod), cluster.run_dir.path()).call().ok();
    assert!(cluster.run_dir.log().contains(WORDS), "{}", cluster.run_dir.log());
}

/// What goes out is bound to its link, on which there is no way to the proxy.
#[test]
fn with_ipv6_programmed_it_is_taken_and_breaks_unless_it_is_excluded() {
    for backend in BACKENDS {
        let link = Link::new(&[V4, V6]);
        let log = link.pod.ok(&["init", "--backend", backend, "--reconcile"]);
        assert!(!log.contains("link-local"), "{backend}: {log}");
        assert_eq!(link.answers(), ["silent", "in-proxy"], "{backend}");
        assert_eq!(found(&link.pod), (None, Some(0)), "{backend}");
        link.pod.ok(&["init", "--backend", backend, "-i", "*", "-x", "fe80::/10", "--reconcile"]);
        assert_eq!(link.answers()[0], "neighbour", "{backend}");
    }
}
