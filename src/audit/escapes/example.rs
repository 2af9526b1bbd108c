//! An example flow of a class, as ordinary as the class allows, for a reader to try.

use std::net::IpAddr;

use crate::audit::flow::{Direction, Flow};
use crate::audit::space::EPHEMERAL;
use crate::audit::space::cube::{Cube, NOBODY, Owners};
use crate::audit::space::{Scope, Space};
use crate::config::facts::is_global;
use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::Family;
use crate::plan::canon::{address, number};
use crate::plan::model::protocol;

/// The most sets of a class among whose flows the most ordinary one is looked for.
const MOST_SETS: usize = 100;

/// The most ordinary flow of several sets: TCP if any of them has it, of an ordinary user,
/// from and to where nothing special need be said.
pub fn of_any(flows: &[(Family, Cube)], scope: Scope, space: &Space) -> Option<Flow> {
    let tcp = |(_, cube): &&(Family, Cube)| cube.protocol.holds(protocol::TCP);
    let some_tcp = flows.iter().any(|set| tcp(&set));
    let sets = flows.iter().filter(|set| !some_tcp || tcp(set)).take(MOST_SETS);
    sets.map(|(family, cube)| of(*family, scope, cube, space)).min_by_key(oddity)
}

/// How much about a flow is out of the ordinary.
fn oddity(flow: &Flow) -> usize {
    let outbound = flow.direction == Direction::Outbound;
    let owners = [flow.uid, flow.gid].iter().filter(|id| outbound && **id != Some(ORDINARY)).count();
    let said = [flow.source.is_some(), flow.source_port.is_some(), flow.interface.is_some()];
    let usual = if outbound { OUTBOUND_PORTS } else { INBOUND_PORTS };
    let port = match usual.iter().position(|&port| port == flow.port) {
        _ if !flow.has_ports() => 0,
        // Nobody connects to port 0.
        None if flow.port == 0 => 100,
        place => place.unwrap_or(usual.len()),
    };
    // What has to be said besides the port counts for more than any port.
    10 * (owners + said.iter().filter(|said| **said).count()) + port
}

/// A user or group without special rights.
const ORDINARY: u32 = 1000;
/// Ports that connections usually go to.
const OUTBOUND_PORTS: &[u16] = &[443, 80, 53, 5432, 8080];
const INBOUND_PORTS: &[u16] = &[8080, 80, 443, 9090, 53];

/// An ordinary flow of a set.
pub fn of(family: Family, scope: Scope, flows: &Cube, space: &Space) -> Flow {
    let protocols = [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::ICMPV6, 132];
    // Of another family's ICMP nobody would speak.
    let odd = if family == Family::V4 { protocol::ICMPV6 } else { protocol::ICMP };
    let protocol = first(&flows.protocol, protocols.into_iter().filter(|&p| p != odd));
    let ports: &[u16] = match scope.direction() {
        Direction::Outbound => OUTBOUND_PORTS,
        Direction::Inbound => INBOUND_PORTS,
    };
    let port = first(&flows.port, ports.iter().copied().chain([1]));
    let destination = address(family, first(&flows.destination, destinations(space, family, scope)));
    let kinds = flows.interface(scope);
    let examples = space.interfaces.examples(kinds);
    let usual = space.interfaces.named(space.pod.interface(scope.direction(), destination));
    let interface = match kinds.overlaps(&usual) {
        true => None,
        false => examples.first().map(|&name| name.into()),
    };
    let (uid, gid) = sender(&flows.uid, &flows.gid);
    let mut flow = Flow {
        direction: scope.direction(),
        protocol,
        uid,
        gid,
        source: None,
        source_port: None,
        destination,
        port: if protocol::WITH_PORTS.contains(&protocol) { port } else { 0 },
        interface,
        mark: 0,
    };
    let source = space.pod.usual_source(&flow);
    if !flows.source.holds(number(source)) {
        flow.source = Some(address(family, first(&flows.source, [])));
    }
    if !flows.source_port.holds(EPHEMERAL) {
        flow.source_port = Some(first(&flows.source_port, [1024, 1000, 1]));
    }
    flow
}

/// The first wanted number that a set holds, else its smallest. A set of flows has no
/// empty dimension.
fn first<T: Discrete>(set: &RangeList<T>, wanted: impl IntoIterator<Item = T>) -> T {
    let found = wanted.into_iter().find(|&item| set.holds(item));
    found.or_else(|| set.iter().next().map(|(first, _)| first)).unwrap_or(T::MIN)
}

/// The sender's user and group: a process has both, a packet of no process has neither.
fn sender(uids: &Owners, gids: &Owners) -> (Option<u32>, Option<u32>) {
    let id = |owners: &Owners| {
        // The last number is no owner's: it means "none" to the kernel's calls.
        let id = first(owners, [ORDINARY.into(), 0, 1337]);
        u32::try_from(id).ok().filter(|&id| id != u32::MAX || !owners.holds(NOBODY))
    };
    match (id(uids), id(gids)) {
        (None, Some(_)) if gids.holds(NOBODY) => (None, None),
        (Some(_), None) if uids.holds(NOBODY) => (None, None),
        ids => ids,
    }
}

/// Addresses that a reader takes for the pod's, or for somebody else's.
fn destinations(space: &Space, family: Family, scope: Scope) -> Vec<u128> {
    let of_family = |a: &&IpAddr| a.is_ipv4() == (family == Family::V4);
    let own = space.pod.addresses.iter().filter(of_family);
    let texts: &[&str] = match (scope, family) {
        (Scope::Local | Scope::Inbound, Family::V4) => &["127.0.0.1"],
        (Scope::Local | Scope::Inbound, Family::V6) => &["::1"],
        // For documentation (RFC 5737, RFC 3849).
        (_, Family::V4) => &["203.0.113.10", "10.0.0.10"],
        (_, Family::V6) => &["2001:db8::10"],
    };
    let usual = texts.iter().filter_map(|text| text.parse().ok());
    own.copied().filter(is_global).chain(usual).map(number).collect()
}
