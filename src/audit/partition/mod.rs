//! Who gets what, completely: the space of flows (direction, protocol, interface, owner,
//! destination, port, source) cut by the rules into sets that share a fate. What
//! `explain` does with one flow, this does with all of them at once, in sets of
//! intervals; nothing is sampled.
//!
//! The space is that of flows that can occur: what a process sends to the pod's own
//! addresses leaves by lo, all else by another interface; what comes in comes by any
//! interface but lo, and not for a loopback address; nothing is sent to 0.0.0.0, `::` or
//! an IPv4 address in IPv6, nor comes from there. Packets start unmarked.

pub mod cube;
mod guesses;
pub mod interfaces;
mod limits;
mod near;
mod settle;
mod state;
mod walk;

use std::net::IpAddr;

use crate::config::ranges::RangeList;
use crate::config::types::{Family, Interface};
use crate::plan::canon::{Addresses, address, all_addresses, number};
use crate::plan::why::Why;

use super::explain::Decider;
use super::flow::{Direction, Flow, Surroundings, Taker};
use super::packet::{EPHEMERAL, Packet};
use super::ruleset::Ruleset;
use cube::{Cube, NOBODY, Owners, Point, everyone, owner};
use interfaces::Interfaces;
pub use limits::TooManyParts;

/// Where a flow starts and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// From a process of the pod to another host.
    Outbound,
    /// From a process of the pod to the pod itself.
    Local,
    /// From elsewhere to the pod.
    Inbound,
    /// From elsewhere, through the pod, to elsewhere.
    Transit,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Outbound, Scope::Local, Scope::Inbound, Scope::Transit];

    pub fn direction(self) -> Direction {
        match self {
            Scope::Outbound | Scope::Local => Direction::Outbound,
            Scope::Inbound | Scope::Transit => Direction::Inbound,
        }
    }

    /// Whether a process of the pod sends its flows.
    pub fn is_outbound(self) -> bool {
        self.direction() == Direction::Outbound
    }

    /// Whether its flows end in the pod.
    pub fn is_local(self) -> bool {
        matches!(self, Scope::Local | Scope::Inbound)
    }
}

/// Flows with one fate.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    pub family: Family,
    pub scope: Scope,
    pub flows: Cube,
    pub taker: Taker,
    /// The rule that decides, and the reason for it; `None`: no rule says anything.
    pub decider: Option<(Decider<'a>, &'a Why)>,
}

impl Part<'_> {
    /// Whether both are decided by the same rule for the same reason.
    pub fn same_decider(&self, other: &Self) -> bool {
        match (&self.decider, &other.decider) {
            (None, None) => true,
            (Some((a, why)), Some((b, other))) => std::ptr::eq(a.rule, b.rule) && why == other,
            _ => false,
        }
    }
}

/// The space of flows around a pod.
#[derive(Debug, Clone)]
pub struct Space<'p> {
    pub pod: &'p Surroundings,
    pub interfaces: Interfaces,
}

impl<'p> Space<'p> {
    /// The space that all of these rulesets can be compared in.
    pub fn of(rulesets: &[&Ruleset], pod: &'p Surroundings) -> Self {
        Self::telling_apart(rulesets, pod, &[])
    }

    /// The same, where some more interfaces are to be told from others.
    pub fn telling_apart(rulesets: &[&Ruleset], pod: &'p Surroundings, more: &[Interface]) -> Self {
        Self { pod, interfaces: Interfaces::of(rulesets, pod, more) }
    }

    /// Cuts all flows of a family by a ruleset. The parts share nothing and leave nothing out.
    pub fn parts<'a>(&self, ruleset: &'a Ruleset, family: Family) -> Result<Vec<Part<'a>>, TooManyParts> {
        let mut out = Vec::new();
        let chains = near::Chains::new(ruleset.family(family));
        for scope in Scope::ALL {
            walk::walk(self, &chains, family, scope, 0, &mut out)?;
        }
        Ok(out)
    }

    /// The same of one scope's flows, where packets start with a mark.
    pub fn parts_of<'a>(
        &self,
        ruleset: &'a Ruleset,
        family: Family,
        scope: Scope,
        mark: u32,
    ) -> Result<Vec<Part<'a>>, TooManyParts> {
        let mut out = Vec::new();
        walk::walk(self, &near::Chains::new(ruleset.family(family)), family, scope, mark, &mut out)?;
        Ok(out)
    }

    /// Every flow of a family and scope.
    pub fn whole(&self, family: Family, scope: Scope) -> Cube {
        let (own, lo) = (self.own(family), self.interfaces.lo());
        let on_wire = all_addresses(family).minus(&on_no_wire(family));
        let others = on_wire.minus(&own);
        let nobody: Owners = RangeList::of([NOBODY]);
        let owners = if scope.direction() == Direction::Outbound { everyone() } else { nobody };
        Cube {
            interface: if scope == Scope::Local { lo.clone() } else { self.interfaces.all().minus(lo) },
            destination: match scope {
                Scope::Local => own,
                Scope::Inbound => own.minus(&loopback(family)),
                Scope::Outbound | Scope::Transit => others,
            },
            uid: owners.clone(),
            gid: owners,
            source: on_wire,
            ..Cube::whole(family)
        }
    }

    /// The addresses that the pod takes for its own.
    pub fn own(&self, family: Family) -> Addresses {
        let mut out = loopback(family);
        let mesh = IpAddr::V6(crate::backend::routing::MESH_ADDRESS);
        let own = self.pod.addresses.iter().chain([&mesh]);
        own.filter(|a| a.is_ipv4() == (family == Family::V4)).for_each(|&a| out.push(number(a), number(a)));
        out.normalised()
    }

    /// Where a flow is in the space.
    pub fn point(&self, flow: &Flow) -> (Scope, Point) {
        let packet = Packet::of(flow, self.pod);
        let scope = match (flow.direction, packet.local) {
            (Direction::Outbound, false) => Scope::Outbound,
            (Direction::Outbound, true) => Scope::Local,
            (Direction::Inbound, true) => Scope::Inbound,
            (Direction::Inbound, false) => Scope::Transit,
        };
        let point = Point {
            protocol: packet.protocol,
            interface: self.interfaces.named(packet.in_interface.or(packet.out_interface).unwrap_or_default()),
            uid: owner(packet.uid),
            gid: owner(packet.gid),
            destination: packet.destination,
            port: packet.port,
            source: packet.source,
            source_port: packet.source_port.unwrap_or(EPHEMERAL),
        };
        (scope, point)
    }

    /// The flow at a place in the space.
    pub fn flow(&self, family: Family, scope: Scope, point: &Point) -> Flow {
        let id = |owner: u64| u32::try_from(owner).ok();
        Flow {
            direction: scope.direction(),
            protocol: point.protocol,
            uid: id(point.uid),
            gid: id(point.gid),
            source: Some(address(family, point.source)),
            source_port: Some(point.source_port),
            destination: address(family, point.destination),
            port: point.port,
            interface: self.interfaces.examples(&point.interface).first().map(|&name| name.into()),
            mark: 0,
        }
    }
}

/// Addresses that no packet of a connection has: a program that asks for them gets others.
fn on_no_wire(family: Family) -> Addresses {
    const MAPPED: u128 = 0xffff << 32;
    match family {
        Family::V4 => RangeList::of([0]),
        Family::V6 => RangeList::new([(0, 0), (MAPPED, MAPPED + 0xffff_ffff)]),
    }
}

/// The addresses that never leave a host.
pub fn loopback(family: Family) -> Addresses {
    match family {
        Family::V4 => RangeList::new([(0x7f00_0000, 0x7fff_ffff)]),
        Family::V6 => RangeList::of([1]),
    }
}
