//! Changes to policy rules, routes and the address on lo, and taking them back.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use nix::libc;

use crate::config::types::{Family, RouteTable};
use crate::plan::model::{MarkRoute, Routing};
use crate::sys::netlink::Netlink;

use super::{FoundRouting, Item, LO, MESH_ADDRESS, RoutingError, message};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

/// Changes to routing that were made, and can be undone in reverse order.
#[derive(Debug, Default)]
pub struct Changes {
    done: Vec<(bool, Item)>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    fn make(&mut self, netlink: &mut Netlink, add: bool, item: Item) -> Result<(), RoutingError> {
        let result = change(netlink, add, item);
        // Where the kernel's answer was lost, it may have been done.
        if !matches!(result, Ok(false) | Err(RoutingError::Change { refused: true, .. })) {
            self.done.push((add, item));
        }
        result.map(|_| ())
    }

    /// Changes the routing from what was found to what is wanted. On an error all changes are undone.
    ///
    /// # Errors
    ///
    /// The change that the kernel refused.
    pub fn apply(netlink: &mut Netlink, found: &FoundRouting, wanted: &Routing) -> Result<Self, RoutingError> {
        let mut changes = Changes::default();
        match changes.try_apply(netlink, found, wanted) {
            Ok(()) => Ok(changes),
            Err(error) => {
                // The first error is the one to tell; going back is tried in any case.
                let _ = changes.undo(netlink);
                Err(error)
            }
        }
    }

    fn try_apply(&mut self, netlink: &mut Netlink, found: &FoundRouting, wanted: &Routing) -> Result<(), RoutingError> {
        let wanted = wanted.normalised();
        if wanted.mesh_address && !found.mesh_address {
            self.make(netlink, true, Item::MeshAddress)?;
        }
        // A route before the rule that leads to it.
        for &(family, table) in wanted.routes.iter().filter(|r| !found.routes.contains(r)) {
            self.make(netlink, true, Item::Route(family, table))?;
        }
        for &rule in wanted.rules.iter().filter(|r| !found.rules.iter().any(|f| f.rule == **r)) {
            self.make(netlink, true, Item::Rule { rule, priority: rule.priority() })?;
        }
        let keep = |item: &Item| match item {
            Item::Rule { rule, .. } => wanted.rules.contains(rule),
            Item::Route(family, table) => wanted.routes.contains(&(*family, *table)),
            Item::MeshAddress => wanted.mesh_address,
        };
        for item in found.items().into_iter().filter(|item| !keep(item)) {
            self.make(netlink, false, item)?;
        }
        Ok(())
    }

    /// Takes everything back, going on after an error; the first one is returned.
    ///
    /// # Errors
    ///
    /// The first change that the kernel refused to take back.
    pub fn undo(self, netlink: &mut Netlink) -> Result<(), RoutingError> {
        let mut first = Ok(());
        for (added, item) in self.done.into_iter().rev() {
            let result = change(netlink, !added, item).map(|_| ());
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}

/// Adds or removes an object; `false` if it was there, or missing, already.
fn change(netlink: &mut Netlink, add: bool, item: Item) -> Result<bool, RoutingError> {
    let flags = NLM_F_ACK | if add { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
    let bytes = match item {
        Item::Rule { rule, priority } => {
            let kind = if add { RTM_NEWRULE } else { RTM_DELRULE };
            message(kind, flags, &rule_message(rule, priority))
        }
        Item::Route(family, table) => {
            let kind = if add { RTM_NEWROUTE } else { RTM_DELROUTE };
            message(kind, flags, &route_message(family, table))
        }
        Item::MeshAddress => {
            let kind = if add { RTM_NEWADDR } else { RTM_DELADDR };
            message(kind, flags, &mesh_address_message())
        }
    };
    let (source, refused) = match netlink.transact(&bytes, 0) {
        Err(error) => (error, false),
        Ok(refusals) => match refusals.first().map(|r| r.errno) {
            None => return Ok(true),
            Some(libc::EEXIST) if add => return Ok(false),
            Some(libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL) if !add => return Ok(false),
            Some(errno) => (io::Error::from_raw_os_error(errno), true),
        },
    };
    let verb = if add { "add" } else { "remove" };
    Err(RoutingError::Change { verb, what: item.to_string(), hint: hint(&source, item), source, refused })
}

fn hint(source: &io::Error, item: Item) -> &'static str {
    match (source.raw_os_error(), item) {
        (Some(libc::EPERM), _) => "; the process lacks CAP_NET_ADMIN",
        (Some(libc::ENETDOWN), _) => "; the interface lo is down: bring it up first (ip link set lo up)",
        (Some(libc::EACCES), Item::MeshAddress) => {
            "; IPv6 is disabled in this namespace (sysctl net.ipv6.conf.lo.disable_ipv6): leave the family out with --ip-families ipv4, or enable it"
        }
        (Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP), _) => {
            "; the kernel has no IPv6 or no policy routing: leave the family out with --ip-families ipv4 (pods in ambient mode: podweir node run --ambient-ip-families ipv4)"
        }
        _ => "",
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Item::Rule { rule, .. } => {
                write!(f, "the {} rule 'fwmark {} lookup {}'", rule.family, rule.mark, rule.table)
            }
            Item::Route(family, table) => write!(f, "the {family} route 'local default dev lo table {table}'"),
            Item::MeshAddress => write!(f, "the address {MESH_ADDRESS}/128 on lo"),
        }
    }
}

fn rule_message(rule: MarkRoute, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table.get()).unwrap_or(0);
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(rule.mark.value),
        RuleAttribute::FwMask(rule.mark.mask),
        RuleAttribute::Table(rule.table.get()),
    ];
    message
}

fn route_message(family: Family, table: RouteTable) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = u8::try_from(table.get()).unwrap_or(0);
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = if family == Family::V4 { RouteScope::Host } else { RouteScope::Universe };
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(LO), RouteAttribute::Table(table.get())];
    message
}

fn mesh_address_message() -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = LO;
    // Nobody else can have it: no duplicate detection, usable at once.
    message.header.flags = AddressHeaderFlags::Nodad;
    let address = IpAddr::V6(MESH_ADDRESS);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn address_family(family: Family) -> AddressFamily {
    if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
