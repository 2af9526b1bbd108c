//! The routing table for packets without a mark, and other policy rules (rtnetlink(7), ip-route(8),
//! ip-rule(8)). It is only read.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_DUMP, Parseable};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

use crate::config::types::Family;
use crate::sys::netlink::{Netlink, Received};

use super::routing::{RTM_GETROUTE, RTM_GETRULE, RoutingError, family_of, message};

/// `RT_TABLE_MAIN`, and `RT_TABLE_LOCAL` with the host's own addresses.
const MAIN: u32 = 254;
const LOCAL: u32 = 255;
/// Where the kernel has its own rules: tables local, main and default.
const BUILT_IN: [u32; 3] = [0, 32766, 32767];

/// An entry of the tables main and local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRoute {
    pub to: IpNet,
    /// The interface's index; of several next hops the first one's.
    pub interface: u32,
    /// Whether the destination is an address of this host.
    pub own: bool,
}

/// Lists the routes; of several to one prefix the one that the kernel takes comes first.
///
/// # Errors
///
/// The kernel does not list its routes.
pub fn routes(netlink: &mut Netlink) -> Result<Vec<FoundRoute>, RoutingError> {
    let mut out: Vec<(u32, FoundRoute)> = Vec::new();
    netlink
        .dump(&message(RTM_GETROUTE, NLM_F_DUMP, &RouteMessage::default()), |received| {
            out.extend(parse_route(&received));
        })
        .map_err(|source| RoutingError::List { what: "routes", source })?;
    out.sort_by_key(|(metric, _)| *metric);
    Ok(out.into_iter().map(|(_, route)| route).collect())
}

/// A route with its metric.
fn parse_route(received: &Received) -> Option<(u32, FoundRoute)> {
    let route = RouteMessage::parse(received.payload).ok()?;
    let family = family_of(route.header.address_family)?;
    let (mut to, mut interface, mut metric) = (None, None, 0);
    let mut table = u32::from(route.header.table);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => interface = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    let everything = if family == Family::V4 { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let own = match (table, route.header.kind) {
        (MAIN, RouteType::Unicast) => false,
        (LOCAL, RouteType::Local) => true,
        _ => return None,
    };
    let to = IpNet::new(to.unwrap_or(everything), route.header.destination_prefix_length).ok()?;
    Some((metric, FoundRoute { to, interface: interface?, own }))
}

/// How many policy rules lead to other tables than main, without those at some priorities.
///
/// # Errors
///
/// The kernel does not list its policy rules.
pub fn other_rules(netlink: &mut Netlink, known: &[u32]) -> Result<usize, RoutingError> {
    let mut count = 0;
    let each = |received: Received| {
        let Ok(rule) = RuleMessage::parse(received.payload) else { return };
        if family_of(rule.header.family).is_none() {
            return;
        }
        let priority = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        let priority = priority.unwrap_or(0);
        count += usize::from(!BUILT_IN.contains(&priority) && !known.contains(&priority));
    };
    netlink
        .dump(&message(RTM_GETRULE, NLM_F_DUMP, &RuleMessage::default()), each)
        .map_err(|source| RoutingError::List { what: "policy routing rules", source })?;
    Ok(count)
}
