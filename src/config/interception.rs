//! What the user asked for, typed and checked: which traffic of a pod goes to its
//! sidecar proxy. `plan::build` turns it into rules.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::types::{
    Families, IdList, Interface, Mark, Mode, Networks, Port, PortList, PortSelection, RangeSelection, RouteTable,
};

/// The most groups an inclusion list may name: each is one match of a single rule.
pub const MAX_INCLUDED_GROUPS: usize = 64;

/// An interception. Lists keep the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interception {
    pub families: Families,
    /// Where the proxy takes outbound TCP.
    pub outbound_port: Port,
    /// Where the proxy takes inbound TCP.
    pub inbound_port: Port,
    /// HBONE tunnel port: left alone inbound with REDIRECT, taken like any other with TPROXY.
    pub tunnel_port: Port,
    /// Users whose traffic is the proxy's own.
    pub proxy_uids: Vec<u32>,
    /// Groups whose traffic is the proxy's own.
    pub proxy_gids: Vec<u32>,
    pub mode: Mode,
    pub inbound_ports: PortSelection,
    /// TCP ports left alone inbound; used only if all inbound ports are taken.
    pub inbound_ports_exclude: PortList,
    pub exclude_interfaces: Vec<Interface>,
    /// Interfaces whose inbound traffic counts as outbound.
    pub virtual_interfaces: Vec<Interface>,
    pub outbound_ranges: RangeSelection,
    pub outbound_ranges_exclude: Networks,
    /// TCP ports always taken.
    pub outbound_ports: PortList,
    /// TCP and UDP ports left alone.
    pub outbound_ports_exclude: PortList,
    pub owner_groups: OwnerGroups,
    /// Users whose outbound traffic is left alone.
    pub outbound_uids_exclude: IdList,
    /// What counts as the pod talking to itself (IPv4; in IPv6 it is `::1/128`).
    pub loopback: Ipv4Net,
    pub dns: Option<DnsCapture>,
    pub drop_invalid: bool,
    /// The mark that intercepted packets get in TPROXY mode.
    pub mark: Mark,
    /// The routing table for marked packets in TPROXY mode.
    pub route_table: RouteTable,
}

/// From which groups' processes outbound traffic is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerGroups {
    /// Every group but these.
    Except(Vec<u32>),
    /// Only these groups, at most [`MAX_INCLUDED_GROUPS`]; an empty list takes no outbound traffic.
    Only(Vec<u32>),
}

/// Which DNS queries of the pod are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsCapture {
    /// Queries to every server.
    All,
    /// Only the servers that the resolver is configured with; at least one.
    Servers { v4: Vec<Ipv4Addr>, v6: Vec<Ipv6Addr> },
}
