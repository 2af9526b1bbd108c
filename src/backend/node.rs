//! Whether a network namespace is a node's. A pod with hostNetwork shares it: rules for the pod would
//! divert the node and every pod whose traffic it forwards.
//!
//! What shows that it is a node's, and why no pod has it when its network is set up:
//!
//! | evidence | why never in a pod |
//! |---|---|
//! | it is the machine's first namespace, by its inode number | a pod has one that was made for it |
//! | `/etc/hosts` begins with the kubelet's words for hostNetwork | a pod with a network of its own has the kubelet's other words there (`managedHostsHeader`, kubernetes/pkg/kubelet/kubelet_pods.go) |
//! | the other ends of its veth or netkit pairs are in several other namespaces | a runtime connects a pod to one place, its node; only who connects others has several neighbours |
//! | a veth whose other end is in another namespace is a port of a bridge that has an address here | that bridge is the gateway of others |
//!
//! What is no evidence, although nodes have it: forwarding (a new namespace inherits IPv4's from the
//! first one), one veth pair, bridges without such a port, hardware (SR-IOV), tunnels and routes to
//! other pods, all of which pods have too. A pod that runs containers of its own (Docker in Docker)
//! looks like a node once they run, and is one: the user has to say that it is a pod.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use crate::config::facts::is_global;
use crate::sys::link::{self, Link};
use crate::sys::netlink::Netlink;
use crate::sys::netns;

/// The first line of `/etc/hosts` in a container of a pod with hostNetwork.
const KUBELET_HOST: &[u8] = b"# Kubernetes-managed hosts file (host network).\n";
/// The first line of `/etc/hosts` in a container of a pod with a network of its own.
const KUBELET_POD: &[u8] = b"# Kubernetes-managed hosts file.\n";

/// The kinds of interfaces that come in pairs.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// What shows that a namespace is a node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    FirstNamespace {
        inode: u64,
        why: &'static str,
    },
    /// The kubelet says so in `/etc/hosts`.
    Kubelet,
    /// Pairs of interfaces lead into several other namespaces; with two of these interfaces.
    Neighbours {
        count: usize,
        links: [String; 2],
    },
    /// A bridge with an address, and a port of it that leads into another namespace.
    Gateway {
        bridge: String,
        port: String,
    },
}

impl Evidence {
    /// Whether a pod with virtual machines may look like this, too: its eth0 leads to its node, and another pair to
    /// the machines' network. On a node both links lead to pods, and its eth0 is no pair, unless the node is a
    /// container itself (kind) and has no more than one pod.
    #[must_use]
    pub fn fits_a_pod_with_machines(&self) -> bool {
        matches!(self, Self::Neighbours { count: 2, links } if links.iter().any(|name| name == "eth0"))
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::FirstNamespace { inode, why } => write!(f, "its inode {inode} is {why}"),
            Self::Kubelet => f.write_str("/etc/hosts is the kubelet's for a pod with hostNetwork"),
            Self::Neighbours { count, links: [one, other] } => {
                write!(f, "interfaces such as {one} and {other} lead into {count} other network namespaces")
            }
            Self::Gateway { bridge, port } => {
                write!(f, "the bridge {bridge} is the gateway of another network namespace, by its port {port}")
            }
        }
    }
}

/// What shows that the current namespace is a node's. `addresses`: of its interfaces, by
/// index. `hosts`: `/etc/hosts`, where that speaks of this namespace.
///
/// # Errors
///
/// The kernel's, when its links cannot be listed.
pub fn evidence(
    inode: u64,
    hosts: Option<&Path>,
    netlink: &mut Netlink,
    addresses: &[(u32, IpAddr)],
) -> io::Result<Option<Evidence>> {
    if let Some(host) = netns::is_host(inode) {
        return Ok(Some(Evidence::FirstNamespace { inode, why: host.why }));
    }
    match hosts.and_then(kubelet_says) {
        Some(true) => return Ok(Some(Evidence::Kubelet)),
        Some(false) => return Ok(None),
        None => {}
    }
    Ok(of_links(&links(netlink)?, addresses))
}

/// Lists the interfaces, again if they changed meanwhile.
fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    const TRIES: usize = 5;
    let mut tries = 1;
    loop {
        match link::list(netlink) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

/// Whether this container shares its node's network, if a kubelet says.
fn kubelet_says(hosts: &Path) -> Option<bool> {
    let mut line = Vec::with_capacity(KUBELET_HOST.len());
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(hosts).ok()?;
    file.take(KUBELET_HOST.len() as u64).read_to_end(&mut line).ok()?;
    match line {
        line if line == KUBELET_HOST => Some(true),
        line if line.starts_with(KUBELET_POD) => Some(false),
        _ => None,
    }
}

fn of_links(links: &[Link], addresses: &[(u32, IpAddr)]) -> Option<Evidence> {
    let pairs = || links.iter().filter(|link| PAIRS.contains(&&*link.kind) && link.elsewhere.is_some());
    let first = pairs().next()?;
    if let Some(other) = pairs().find(|link| link.elsewhere != first.elsewhere) {
        let mut namespaces: Vec<i32> = pairs().filter_map(|link| link.elsewhere).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let links = [first.name.clone(), other.name.clone()];
        return Some(Evidence::Neighbours { count: namespaces.len(), links });
    }
    let has_address = |index: u32| addresses.iter().any(|(of, address)| *of == index && is_global(address));
    pairs().find_map(|port| {
        let bridge = links.iter().find(|link| link.index == port.master && link.kind == "bridge")?;
        has_address(bridge.index).then(|| Evidence::Gateway { bridge: bridge.name.clone(), port: port.name.clone() })
    })
}

/// Whether a machine's first namespace looks like that of a virtual machine that is
/// intercepted itself, and not like a node: nothing is forwarded, and no pair of
/// interfaces is there to lead into a pod.
///
/// # Errors
///
/// The kernel's, when its links cannot be listed.
pub fn looks_like_a_virtual_machine(netlink: &mut Netlink) -> io::Result<bool> {
    let on = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    let forwards = on("/proc/sys/net/ipv4/ip_forward") || on("/proc/sys/net/ipv6/conf/all/forwarding");
    Ok(!forwards && !links(netlink)?.iter().any(|link| PAIRS.contains(&&*link.kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str, master: u32, elsewhere: Option<i32>) -> Link {
        Link { index, name: format!("if{index}"), kind: kind.into(), master, elsewhere }
    }

    #[test]
    fn neighbours_and_gateways_are_nodes_and_pods_are_not() {
        let lo = link(1, "", 0, None);
        let address = |index: u32| (index, "10.244.0.1".parse().unwrap());
        let node_of_two = [lo.clone(), link(2, "veth", 0, Some(0)), link(3, "netkit", 0, Some(1))];
        let found = of_links(&node_of_two, &[]).unwrap();
        assert!(matches!(found, Evidence::Neighbours { count: 2, .. }) && !found.fits_a_pod_with_machines());
        // Three interfaces of one network of virtual machines, beside the one to the node.
        let uplink = Link { name: "eth0".into(), ..link(2, "veth", 0, Some(0)) };
        let machines = [3, 4, 5].map(|index| link(index, "veth", 0, Some(1)));
        let pod = [&[lo.clone(), uplink.clone()], &machines[..]].concat();
        assert!(of_links(&pod, &[]).unwrap().fits_a_pod_with_machines());
        let node = [&pod[..], &[link(6, "veth", 0, Some(2))]].concat();
        assert!(!of_links(&node, &[]).unwrap().fits_a_pod_with_machines());
        let node_of_one = [lo.clone(), link(2, "", 0, None), link(3, "bridge", 0, None), link(4, "veth", 3, Some(0))];
        assert!(matches!(of_links(&node_of_one, &[address(3)]), Some(Evidence::Gateway { .. })));
        let pods: [&[Link]; 5] = [
            std::slice::from_ref(&lo),
            &[lo.clone(), link(2, "veth", 0, Some(0))],
            // Several networks (Multus) of all kinds, each from the node.
            &[lo.clone(), link(2, "veth", 0, Some(0)), link(3, "macvlan", 0, Some(1)), link(4, "veth", 0, Some(0))],
            // Hardware handed over, a tunnel, a pair with both ends here.
            &[lo.clone(), link(2, "", 0, None), link(3, "wireguard", 0, Some(0)), link(4, "veth", 0, None)],
            // A bridge to a virtual machine in the pod, without an address of its own.
            &[lo.clone(), link(2, "veth", 3, Some(0)), link(3, "bridge", 0, None), link(4, "tun", 3, None)],
        ];
        for pod in pods {
            assert_eq!(of_links(pod, &[address(2)]), None, "{pod:?}");
        }
    }

    #[test]
    fn the_kubelet_tells_both_ways() {
        let path = std::env::temp_dir().join(format!("podweir-hosts-{}", std::process::id()));
        let says = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            kubelet_says(&path)
        };
        assert_eq!(says(&[KUBELET_HOST, b"127.0.0.1 localhost\n"].concat()), Some(true));
        assert_eq!(says(&[KUBELET_POD, b"127.0.0.1 localhost\n"].concat()), Some(false));
        assert_eq!(says(b"127.0.0.1 localhost\n"), None);
        assert_eq!(says(b""), None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(kubelet_says(&path), None);
    }
}
