//! A node's network namespace is told from a pod's, and refused. The nodes here are
//! namespaces that the tests make: nothing is ever tried in the machine's own.

use std::fs;
use std::os::fd::AsRawFd;

use nix::mount::{MsFlags, mount};
use podweir::backend::node::{self, Evidence};
use podweir::sys::netlink::Netlink;
use podweir::sys::netns;

use crate::fixture::{Namespace, RESOLV};

const FACES: [&[&str]; 3] = [&["init"], &["istio-iptables", "-b", "*", "-i", "*"], &["clean"]];

/// A namespace with an uplink, as a node has one.
fn node() -> Namespace {
    let node = Namespace::bare(RESOLV);
    node.batch("link add eth0 type bridge\naddr add 192.0.2.10/24 dev eth0\nlink set eth0 up\n");
    node
}

/// Connects a pod to a node, as a runtime's plugin does.
fn connect(node: &Namespace, pod: &Namespace, number: u8) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.net().as_raw_fd());
    let end = format!("veth{number}");
    node.print("ip", &["link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &path]);
    node.batch(&format!("link set {end} up\n"));
    pod.batch(&format!("addr add 10.244.0.{number}/24 dev eth0\nlink set eth0 up\n"));
}

/// Puts a file in the place of `/etc/hosts`.
fn hosts(namespace: &Namespace, text: &str) {
    let file = namespace.directory().join("hosts");
    fs::write(&file, text).unwrap();
    namespace.run(|| {
        let none: Option<&str> = None;
        mount(Some(&file), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
    });
}

fn refused(namespace: &Namespace, words: &[&str]) {
    let before = namespace.everything();
    for face in FACES {
        let output = namespace.podweir(face);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{face:?}: {log}");
        for word in words.iter().chain(&["a node's own network namespace", "--host-network"]) {
            assert!(log.contains(word), "{face:?}: {word}: {log}");
        }
        assert_eq!(namespace.everything(), before, "{face:?}");
    }
    // Ambient mode has a part of its own for a node.
    for arguments in [&["ambient"][..], &["ambient", "--remove"]] {
        let output = namespace.podweir(arguments);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {log}");
        for word in words.iter().chain(&["a node's own network namespace", "podweir ambient-host"]) {
            assert!(log.contains(word), "{arguments:?}: {word}: {log}");
        }
        assert_eq!(namespace.everything(), before, "{arguments:?}");
    }
    for face in FACES {
        // Where it is meant, each of them works; the first one's rules go again.
        namespace.ok(&[face, &["--host-network"]].concat());
        namespace.ok(&["clean", "--host-network"]);
    }
}

#[test]
fn who_connects_several_others_is_a_node() {
    let (node, pods) = (node(), [Namespace::bare(RESOLV), Namespace::bare(RESOLV)]);
    connect(&node, &pods[0], 6);
    // One pod alone could as well be the node, seen from the pod.
    node.ok(&["init"]);
    node.ok(&["clean"]);
    connect(&node, &pods[1], 7);
    refused(&node, &["veth6", "veth7", "2 other network namespaces"]);
    pods.iter().for_each(|pod| drop(pod.ok(&["init"])));
}

#[test]
fn a_pod_may_have_virtual_machines_behind_interfaces() {
    let (node, pod, machines) = (node(), Namespace::bare(RESOLV), Namespace::bare(RESOLV));
    connect(&node, &pod, 6);
    for tap in ["tap0", "tap1"] {
        let path = format!("/proc/{}/fd/{}", std::process::id(), machines.net().as_raw_fd());
        pod.print("ip", &["link", "add", tap, "type", "veth", "peer", "name", &format!("of-{tap}"), "netns", &path]);
    }
    let bare = pod.everything();
    let output = pod.podweir(&["ambient", "--virtual-interfaces", "tap+"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("taken for a pod with virtual machines"), "{log}");
    assert!(log.contains("tap0") && log.contains("eth0"), "{log}");
    pod.ok(&["ambient", "--remove"]);
    assert_eq!(pod.everything(), bare);
    // A third network is one too many for a pod.
    let other = Namespace::bare(RESOLV);
    connect(&pod, &other, 7);
    refused(&pod, &["eth0", "tap0", "3 other network namespaces"]);
}

#[test]
fn the_gateway_of_another_is_a_node() {
    let (node, pod) = (node(), Namespace::bare(RESOLV));
    connect(&node, &pod, 6);
    node.batch("link add cni0 type bridge\nlink set cni0 up\nlink set veth6 master cni0\n");
    node.ok(&["init"]);
    node.ok(&["clean"]);
    node.batch("addr add 10.244.0.1/24 dev cni0\n");
    refused(&node, &["cni0", "veth6", "gateway"]);
    pod.ok(&["init"]);
}

#[test]
fn what_the_kubelet_says_of_the_network_counts() {
    let node = node();
    hosts(&node, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
    refused(&node, &["/etc/hosts", "hostNetwork"]);
    // It speaks of the container's own namespace, not of one given by its path.
    let pod = Namespace::bare(RESOLV);
    connect(&node, &pod, 6);
    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.net().as_raw_fd());
    node.ok(&["init", "--network-namespace", &path]);
    assert!(pod.rules().contains("istio-proxy-nat"));

    // A pod with networks that lead to several places, of which a kubelet says what it is.
    let (pod, others) = (Namespace::bare(RESOLV), [Namespace::bare(RESOLV), Namespace::bare(RESOLV)]);
    connect(&pod, &others[0], 8);
    connect(&pod, &others[1], 9);
    pod.batch("addr add 10.244.0.5/24 dev veth8\n");
    hosts(&pod, "# Kubernetes-managed hosts file.\n127.0.0.1 localhost\n");
    pod.ok(&["init"]);
}

#[test]
fn only_a_machine_that_forwards_nothing_and_connects_nobody_is_taken_for_a_virtual_one() {
    let machine = node();
    let looks = || {
        machine.run(|| {
            let mut netlink = Netlink::open(Netlink::ROUTE).unwrap();
            node::looks_like_a_virtual_machine(&mut netlink).unwrap()
        })
    };
    let forward = |on: &str| {
        machine.print("sh", &["-c", &format!("echo {on} >/proc/sys/net/ipv4/ip_forward")]);
    };
    forward("0");
    assert!(looks());
    forward("1");
    assert!(!looks());
    forward("0");
    let pod = Namespace::bare(RESOLV);
    connect(&machine, &pod, 6);
    assert!(!looks());
}

#[test]
fn the_machines_first_namespace_is_known_by_its_number() {
    let machine = node();
    let evidence = |inode: u64| {
        machine.run(|| {
            let mut netlink = Netlink::open(Netlink::ROUTE).unwrap();
            node::evidence(inode, None, &mut netlink, &[]).unwrap()
        })
    };
    for inode in [4026531833, 4026531840] {
        assert!(matches!(evidence(inode), Some(Evidence::FirstNamespace { inode: n, .. }) if n == inode));
    }
    let own = machine.run(|| netns::current().unwrap());
    assert_eq!(evidence(own), None);
}
