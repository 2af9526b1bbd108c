//! Routing and addresses next to the rules: policy rules for marked packets, their
//! routing table, and `::6` on lo (rtnetlink(7), ip-rule(8)).

pub mod changes;

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::config::ambient::{ANSWER_MARK, MARK_MASK, ROUTE_TABLE};
use crate::config::types::{Family, Mark, RouteTable};
use crate::plan::model::{Dataplane, MarkRoute, Masked, Routing};
use crate::sys::netlink::{Netlink, Received};

const RTM_GETADDR: u16 = 22;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_GETRULE: u16 = 34;

/// The index of lo, the same in every network namespace.
const LO: u32 = 1;
/// The proxy's source address for its connections to the app.
pub const MESH_ADDRESS: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Why routing could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    #[error("cannot list {what}: {source}")]
    List { what: &'static str, source: io::Error },
    /// A change failed. `refused`: the kernel said so, and has changed nothing.
    #[error("cannot {verb} {what}: {source}{hint}")]
    Change { verb: &'static str, what: String, source: io::Error, hint: &'static str, refused: bool },
}

/// One thing to add or to take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Rule { rule: MarkRoute, priority: u32 },
    Route(Family, RouteTable),
    MeshAddress,
}

/// A policy rule on a mark, as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRule {
    pub rule: MarkRoute,
    pub priority: u32,
}

/// What was found that an interception may have made.
#[derive(Debug, Clone, Default)]
pub struct FoundRouting {
    pub rules: Vec<FoundRule>,
    pub routes: Vec<(Family, RouteTable)>,
    pub mesh_address: bool,
}

pub(super) fn family_of(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn message(kind: u16, flags: u16, body: &impl Emitable) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    header.flags = flags | NLM_F_REQUEST;
    header.length = (header.buffer_len() + body.buffer_len()) as u32;
    let mut bytes = vec![0; header.length as usize];
    header.emit(&mut bytes);
    body.emit(&mut bytes[header.buffer_len()..]);
    bytes
}

/// The addresses of all interfaces, with the interface's index, IPv4 first.
///
/// # Errors
///
/// The kernel does not list its addresses.
pub fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut out = Vec::new();
    netlink.dump(&message(RTM_GETADDR, NLM_F_DUMP, &AddressMessage::default()), |received| {
        let Some(address) = parse_address(&received) else { return };
        let local = address.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let any = address.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        // On a point-to-point link IFA_ADDRESS is the peer's.
        if let Some(ip) = local.or(any) {
            out.push((address.header.index, ip));
        }
    })?;
    Ok(out)
}

fn parse_address(received: &Received) -> Option<AddressMessage> {
    AddressMessage::parse(received.payload).ok()
}

/// Whether `::6` is on lo.
pub fn has_mesh_address(addresses: &[(u32, IpAddr)]) -> bool {
    addresses.contains(&(LO, IpAddr::V6(MESH_ADDRESS)))
}

/// Lists the policy rules on marks.
///
/// # Errors
///
/// The kernel does not list its policy rules.
pub fn mark_rules(netlink: &mut Netlink) -> Result<Vec<FoundRule>, RoutingError> {
    let mut out = Vec::new();
    let each = |received: Received| out.extend(parse_rule(&received));
    netlink
        .dump(&message(RTM_GETRULE, NLM_F_DUMP, &RuleMessage::default()), each)
        .map_err(|source| RoutingError::List { what: "policy routing rules", source })?;
    Ok(out)
}

/// Reads a policy rule that matches a mark and nothing else, and looks a table up.
fn parse_rule(received: &Received) -> Option<FoundRule> {
    let rule = RuleMessage::parse(received.payload).ok()?;
    if rule.header.action != RuleAction::ToTable || rule.header.dst_len != 0 || rule.header.src_len != 0 {
        return None;
    }
    let family = family_of(rule.header.family)?;
    let (mut mark, mut mask, mut table, mut priority) = (None, u32::MAX, u32::from(rule.header.table), 0);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => return None,
            _ => {}
        }
    }
    let rule = MarkRoute { family, mark: Masked { value: mark?, mask }, table: RouteTable::new(table) };
    Some(FoundRule { rule, priority })
}

/// Lists the tables that hold `local default dev lo`.
///
/// # Errors
///
/// The kernel does not list its routes.
pub fn local_routes(netlink: &mut Netlink) -> Result<Vec<(Family, RouteTable)>, RoutingError> {
    let mut out = Vec::new();
    netlink
        .dump(&message(RTM_GETROUTE, NLM_F_DUMP, &RouteMessage::default()), |received| {
            out.extend(parse_route(&received));
        })
        .map_err(|source| RoutingError::List { what: "routes", source })?;
    Ok(out)
}

fn parse_route(received: &Received) -> Option<(Family, RouteTable)> {
    let route = RouteMessage::parse(received.payload).ok()?;
    if route.header.kind != RouteType::Local || route.header.destination_prefix_length != 0 {
        return None;
    }
    let by_lo = route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(LO)));
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or_else(|| u32::from(route.header.table));
    by_lo.then_some((family_of(route.header.address_family)?, RouteTable::new(table)))
}

impl FoundRouting {
    /// The part of it that belongs to a dataplane. To a sidecar belong rules at its priority, with the
    /// usual mark and table, with a mark that its rules use, or wanted ones; and the tables that these
    /// rules name.
    pub fn ours(&self, dataplane: Dataplane, marks: &[Mark], wanted: &Routing) -> FoundRouting {
        match dataplane {
            Dataplane::Sidecar => self.sidecars(marks, wanted),
            Dataplane::Ambient => self.ambients(wanted),
            Dataplane::Node => FoundRouting::default(),
        }
    }

    /// The part that belongs to an ambient pod: one rule, and its table. Others like to use the same
    /// table: if a foreign rule leads to it, its routes are foreign too, unless they are wanted.
    fn ambients(&self, wanted: &Routing) -> FoundRouting {
        let is_ours = |found: &FoundRule| {
            let MarkRoute { mark, table, .. } = found.rule;
            (mark.value, mark.mask, table) == (ANSWER_MARK, MARK_MASK, ROUTE_TABLE)
                && found.priority == found.rule.priority()
        };
        let shared = |family| {
            self.rules
                .iter()
                .any(|found| !is_ours(found) && found.rule.family == family && found.rule.table == ROUTE_TABLE)
        };
        let is_our_route = |route: &&(Family, RouteTable)| {
            route.1 == ROUTE_TABLE && (wanted.routes.contains(route) || !shared(route.0))
        };
        FoundRouting {
            rules: self.rules.iter().filter(|found| is_ours(found)).copied().collect(),
            routes: self.routes.iter().filter(is_our_route).copied().collect(),
            mesh_address: false,
        }
    }

    fn sidecars(&self, marks: &[Mark], wanted: &Routing) -> FoundRouting {
        let is_ours = |found: &&FoundRule| {
            let rule = &found.rule;
            let whole = rule.mark.mask == u32::MAX;
            let usual = (rule.mark.value, rule.table.get()) == (1337, 133);
            let marked = marks.iter().any(|mark| mark.get() == rule.mark.value);
            let same = |w: &MarkRoute| w.mark == rule.mark && w.table == rule.table;
            whole && (found.priority == rule.priority() || usual || marked || wanted.rules.iter().any(same))
        };
        let rules: Vec<FoundRule> = self.rules.iter().filter(is_ours).copied().collect();
        let named = |table: &RouteTable| {
            table.get() == 133
                || rules.iter().any(|r| r.rule.table == *table)
                || wanted.routes.iter().any(|(_, t)| t == table)
        };
        let routes = self.routes.iter().filter(|(_, table)| named(table)).copied().collect();
        FoundRouting { rules, routes, mesh_address: self.mesh_address }
    }

    /// Whether one of the rules or routes is not wanted any more.
    pub fn loses_routes(&self, wanted: &Routing) -> bool {
        self.rules.iter().any(|found| !wanted.rules.contains(&found.rule))
            || self.routes.iter().any(|found| !wanted.routes.contains(found))
    }

    /// The same routing as part of a plan.
    pub fn routing(&self) -> Routing {
        Routing {
            rules: self.rules.iter().map(|r| r.rule).collect(),
            routes: self.routes.clone(),
            mesh_address: self.mesh_address,
        }
    }

    /// The objects in the order of their removal, routes first: as long as the rule is there, the rest
    /// of a killed run is found.
    fn items(&self) -> Vec<Item> {
        let rules = self.rules.iter().map(|r| Item::Rule { rule: r.rule, priority: r.priority });
        let routes = self.routes.iter().map(|&(family, table)| Item::Route(family, table));
        let address = self.mesh_address.then_some(Item::MeshAddress);
        routes.chain(rules).chain(address).collect()
    }
}

/// The `ip` commands that would make this routing.
pub fn commands(routing: &Routing) -> Vec<String> {
    let flag = |family| if family == Family::V4 { "-4" } else { "-6" };
    let mut out = Vec::new();
    if routing.mesh_address {
        out.push(format!("ip -6 addr add {MESH_ADDRESS}/128 dev lo"));
    }
    for (family, table) in &routing.routes {
        out.push(format!("ip {} route add local default dev lo table {table}", flag(*family)));
    }
    for rule in &routing.rules {
        let (mark, table, priority) = (rule.mark, rule.table, rule.priority());
        out.push(format!("ip {} rule add priority {priority} fwmark {mark} lookup {table}", flag(rule.family)));
    }
    out
}
