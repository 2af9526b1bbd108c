//! Random valid interceptions.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use podweir::config::interception::{DnsCapture, Interception, OwnerGroups};
use podweir::config::ranges::RangeList;
use podweir::config::types::{
    Families, IdList, Interface, Mark, Mode, Networks, Port, PortList, PortSelection, RangeSelection, RouteTable,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

/// Any valid interception; lists are short more often than long.
pub fn interceptions() -> impl Strategy<Value = Interception> {
    let ports = (port(), port(), port());
    let owners = (vec(id(), 1..3), vec(id(), 1..3));
    let inbound = (port_selection(), port_list(5), mode());
    let interfaces = (vec(interface(), 0..3), vec(interface(), 0..3));
    let outbound = (range_selection(), networks(4), port_list(4), port_list(4));
    let senders = (owner_groups(), id_list(3));
    let rest = (families(), loopback(), weighted(0.4, dns()), any::<bool>(), mark(), 1..252u32);
    (ports, owners, inbound, interfaces, outbound, senders, rest).prop_map(
        |(ports, owners, inbound, interfaces, outbound, senders, rest)| Interception {
            families: rest.0,
            outbound_port: ports.0,
            inbound_port: ports.1,
            tunnel_port: ports.2,
            proxy_uids: owners.0,
            proxy_gids: owners.1,
            mode: inbound.2,
            inbound_ports: inbound.0,
            inbound_ports_exclude: inbound.1,
            exclude_interfaces: interfaces.0,
            virtual_interfaces: interfaces.1,
            outbound_ranges: outbound.0,
            outbound_ranges_exclude: outbound.1,
            outbound_ports: outbound.2,
            outbound_ports_exclude: outbound.3,
            owner_groups: senders.0,
            outbound_uids_exclude: senders.1,
            loopback: rest.1,
            dns: rest.2,
            drop_invalid: rest.3,
            mark: rest.4,
            route_table: RouteTable::new(rest.5),
        },
    )
}

pub fn families() -> impl Strategy<Value = Families> {
    prop_oneof![Just(Families::V4), Just(Families::V6), Just(Families::BOTH)]
}

fn port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX).prop_map(|p| Port::new(p).unwrap())
}

fn port_range() -> impl Strategy<Value = (u16, u16)> {
    // Near each other, so that ranges touch and overlap; at both ends; anywhere.
    let near = (80..90u16, 0..4u16).prop_map(|(a, n)| (a, a + n));
    let single = prop_oneof![Just(1), Just(u16::MAX), 1..=u16::MAX].prop_map(|p| (p, p));
    let wide = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![3 => near, 4 => single, 1 => wide]
}

fn port_list(most: usize) -> impl Strategy<Value = PortList> {
    vec(port_range(), 0..=most).prop_map(RangeList::new)
}

fn port_selection() -> impl Strategy<Value = PortSelection> {
    prop_oneof![2 => Just(PortSelection::All), 3 => port_list(4).prop_map(PortSelection::Only)]
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![0..5u32, 1335..1340u32, Just(u32::MAX - 1), 0..u32::MAX]
}

fn id_list(most: usize) -> impl Strategy<Value = IdList> {
    vec((id(), 0..3u32).prop_map(|(a, n)| (a, a.saturating_add(n).min(u32::MAX - 1))), 0..=most)
        .prop_map(RangeList::new)
}

fn interface() -> impl Strategy<Value = Interface> {
    let names = prop_oneof![Just("eth1"), Just("net1"), Just("veth"), Just("exactly15chars1"), Just("a")];
    (names, any::<bool>()).prop_map(|(name, any_ending)| Interface::new(name, any_ending && name.len() < 15))
}

fn ipv4_net() -> impl Strategy<Value = Ipv4Net> {
    let bits = prop_oneof![Just(0u8), Just(8), Just(32), 0..=32u8];
    let near = (0..4u32).prop_map(|n| Ipv4Addr::from(0x0a00_0000 + n));
    (prop_oneof![any::<u32>().prop_map(Ipv4Addr::from), near], bits)
        .prop_map(|(a, n)| Ipv4Net::new(a, n).unwrap().trunc())
}

fn ipv6_net() -> impl Strategy<Value = Ipv6Net> {
    let bits = prop_oneof![Just(0u8), Just(64), Just(128), 0..=128u8];
    let near = (0..4u128).prop_map(|n| Ipv6Addr::from((0x2001_0db8_u128 << 96) + n));
    (prop_oneof![any::<u128>().prop_map(Ipv6Addr::from), near], bits)
        .prop_map(|(a, n)| Ipv6Net::new(a, n).unwrap().trunc())
}

fn networks(most: usize) -> impl Strategy<Value = Networks> {
    (vec(ipv4_net(), 0..=most), vec(ipv6_net(), 0..=most)).prop_map(|(v4, v6)| Networks { v4, v6 })
}

fn range_selection() -> impl Strategy<Value = RangeSelection> {
    let with_loopback = networks(3).prop_map(|mut nets| {
        nets.v4.push(Ipv4Net::new(Ipv4Addr::new(127, 1, 2, 3), 32).unwrap());
        RangeSelection::Only(nets)
    });
    prop_oneof![2 => Just(RangeSelection::All), 3 => networks(4).prop_map(RangeSelection::Only), 1 => with_loopback]
}

fn owner_groups() -> impl Strategy<Value = OwnerGroups> {
    prop_oneof![
        3 => vec(id(), 0..3).prop_map(OwnerGroups::Except),
        2 => vec(id(), 0..4).prop_map(OwnerGroups::Only),
    ]
}

fn loopback() -> impl Strategy<Value = Ipv4Net> {
    prop_oneof![3 => Just(32u8), 1 => 8..=32u8]
        .prop_map(|bits| Ipv4Net::new(Ipv4Addr::LOCALHOST, bits).unwrap().trunc())
}

fn dns() -> impl Strategy<Value = DnsCapture> {
    let servers = (vec(any::<u32>().prop_map(Ipv4Addr::from), 0..3), vec(any::<u128>().prop_map(Ipv6Addr::from), 0..3));
    let servers = servers.prop_filter("a server", |(v4, v6)| !v4.is_empty() || !v6.is_empty());
    prop_oneof![Just(DnsCapture::All), servers.prop_map(|(v4, v6)| DnsCapture::Servers { v4, v6 })]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Redirect), Just(Mode::Tproxy)]
}

fn mark() -> impl Strategy<Value = Mark> {
    prop_oneof![Just(1337), 1..1000u32, Just(u32::MAX)].prop_map(Mark::new)
}
