//! What is configured for ambient mode, in which the node's ztunnel takes a pod's traffic.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::settings::BackendChoice;
use super::types::{Families, Interface, Port, RouteTable};
use super::value::{self, Invalid, Parsed};

/// The ports on which ztunnel listens in a pod: for what the pod sends, and for plain text that is sent
/// to it.
pub const OUTBOUND_PORT: Port = Port::literal(15001);
pub const INBOUND_PORT: Port = Port::literal(15006);
/// The port of HBONE tunnels, on which ztunnel listens itself: inbound connections to it are not
/// redirected.
pub const TUNNEL_PORT: Port = Port::literal(15008);

/// The bits of a mark that ambient mode uses.
pub const MARK_MASK: u32 = 0xfff;
/// The mark on packets that ztunnel sends.
pub const ZTUNNEL_MARK: u32 = 0x539;
/// On connections that ztunnel opened to the app, and so on the app's answers to them.
pub const ANSWER_MARK: u32 = 0x111;
/// The routing table that brings these answers back to ztunnel.
pub const ROUTE_TABLE: RouteTable = RouteTable::literal(100);

/// The addresses that the node's probes of a pod come from.
pub const PROBE_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
pub const PROBE_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// What is to happen to an ambient pod's traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmbientOptions {
    /// The families to program, whatever addresses the pod has.
    pub families: Families,
    /// Whether DNS goes to ztunnel, as the pod, its node and the default decide together.
    pub dns: bool,
    /// Whether the pod is in ingress mode, in which inbound traffic is left alone.
    pub ingress: bool,
    /// Interfaces of virtual machines in the pod: TCP from them counts as outbound.
    pub virtual_interfaces: Vec<Interface>,
}

impl Default for AmbientOptions {
    fn default() -> Self {
        Self { families: Families::BOTH, dns: true, ingress: false, virtual_interfaces: Vec::new() }
    }
}

/// Interfaces as an option or annotation lists them; each counts once.
///
/// # Errors
///
/// The first item that cannot be an interface's name.
pub fn virtual_interfaces(text: &str) -> Parsed<Vec<Interface>> {
    let mut out: Vec<Interface> = Vec::new();
    for interface in value::interfaces(text)? {
        if !out.contains(&interface) {
            out.push(interface);
        }
    }
    Ok(out)
}

/// The families to program, by name.
///
/// # Errors
///
/// The text names none.
pub fn families(text: &str) -> Parsed<Families> {
    match text {
        "both" => Ok(Families::BOTH),
        "ipv4" => Ok(Families::V4),
        "ipv6" => Ok(Families::V6),
        _ => Err(Invalid {
            item: text.into(),
            problem: "is no choice of families".into(),
            expected: "both, ipv4 or ipv6",
        }),
    }
}

/// Reads which backend programs the kernel.
///
/// # Errors
///
/// The text names no backend.
pub fn backend(text: &str) -> Parsed<BackendChoice> {
    match text {
        "auto" => Ok(BackendChoice::Auto),
        "nftables" => Ok(BackendChoice::Nftables),
        "iptables-nft" => Ok(BackendChoice::IptablesNft),
        "iptables-legacy" => Ok(BackendChoice::IptablesLegacy),
        _ => Err(Invalid {
            item: text.into(),
            problem: "is no backend".into(),
            expected: "auto, nftables, iptables-nft or iptables-legacy",
        }),
    }
}

/// Whose connections are probes, which the node's rules tell from other traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prober {
    /// The processes of the kubelet's user.
    User(u32),
    /// Every process of the node.
    Anybody,
}

/// What is to be programmed in a node's own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOptions {
    pub families: Families,
    /// Whose connections are probes, where the backend can tell.
    pub kubelet_uid: u32,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { families: Families::BOTH, kubelet_uid: 0 }
    }
}
