//! The space of packets: the dimensions in which they differ (`dimensions`), sets of them
//! as products of intervals ([`cube`]), and those of its sets that flows start from.
//!
//! The flows are those that can occur: what a process sends to the pod's own addresses leaves
//! by lo, all else by another interface; what comes in comes by any interface but lo, and not
//! for a loopback address; nothing is sent to 0.0.0.0, `::` or an IPv4 address in IPv6, nor
//! comes from there.

pub(in crate::audit) mod connection;
pub mod cube;
pub(in crate::audit) mod dimensions;
pub(in crate::audit) mod index;
pub mod interfaces;
pub(in crate::audit) mod known;

use std::net::IpAddr;

use crate::config::ranges::RangeList;
use crate::config::types::{Family, Interface};
use crate::plan::canon::{Addresses, address, all_addresses, number};
use crate::plan::model::CtStates;

use super::flow::{Direction, Flow, Surroundings};
use super::ruleset::Ruleset;
use cube::{Cube, NOBODY, Owners, Point, everyone, owner};
use interfaces::{Interfaces, Kinds, NO_INTERFACE};
pub use known::EPHEMERAL;

/// The kind of a flow by its ends.
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

    /// The direction of the scope's flows, as the pod sees it.
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

impl Cube {
    /// The interfaces that packets of a scope leave or come in by.
    pub fn interface(&self, scope: Scope) -> &Kinds {
        if scope.is_outbound() { &self.out_interface } else { &self.in_interface }
    }
}

/// The space of packets around a pod.
#[derive(Debug, Clone)]
pub struct Space<'p> {
    pub pod: &'p Surroundings,
    pub interfaces: Interfaces,
}

impl<'p> Space<'p> {
    /// The space in which all of these rulesets can be compared.
    pub fn of(rulesets: &[&Ruleset], pod: &'p Surroundings) -> Self {
        Self::telling_apart(rulesets, pod, &[])
    }

    /// The space in which all of these rulesets can be compared, and in which some more
    /// interfaces are told from others.
    pub fn telling_apart(rulesets: &[&Ruleset], pod: &'p Surroundings, more: &[Interface]) -> Self {
        Self { pod, interfaces: Interfaces::of(rulesets, pod, more) }
    }

    /// Every flow of a family and scope.
    pub fn whole(&self, family: Family, scope: Scope) -> Cube {
        let (own, lo) = (self.own(family), self.interfaces.lo());
        let on_wire = all_addresses(family).minus(&on_no_wire(family));
        let others = on_wire.minus(&own);
        let nobody: Owners = RangeList::of([NOBODY]);
        let owners = if scope.is_outbound() { everyone() } else { nobody };
        let interface = if scope == Scope::Local { lo.clone() } else { self.interfaces.all().minus(lo) };
        let no_interface: Kinds = RangeList::of([NO_INTERFACE]);
        let (in_interface, out_interface) =
            if scope.is_outbound() { (no_interface, interface) } else { (interface, no_interface) };
        Cube {
            in_interface,
            out_interface,
            destination: match scope {
                Scope::Local => own,
                Scope::Inbound => own.minus(&loopback(family)),
                Scope::Outbound | Scope::Transit => others,
            },
            uid: owners.clone(),
            gid: owners,
            source: on_wire,
            state: dimensions::states(CtStates::NEW),
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
        let scope = match (flow.direction, self.pod.is_local(flow.destination)) {
            (Direction::Outbound, false) => Scope::Outbound,
            (Direction::Outbound, true) => Scope::Local,
            (Direction::Inbound, true) => Scope::Inbound,
            (Direction::Inbound, false) => Scope::Transit,
        };
        let usual = || self.pod.interface(flow.direction, flow.destination);
        let interface = self.interfaces.kind_of(flow.interface.as_deref().unwrap_or_else(usual));
        let (in_interface, out_interface) =
            if scope.is_outbound() { (NO_INTERFACE, interface) } else { (interface, NO_INTERFACE) };
        let point = Point {
            protocol: flow.protocol,
            in_interface,
            out_interface,
            uid: owner(flow.uid),
            gid: owner(flow.gid),
            destination: number(flow.destination),
            port: flow.port,
            source: number(flow.source.unwrap_or_else(|| self.pod.usual_source(flow))),
            source_port: flow.source_port.unwrap_or(EPHEMERAL),
            state: CtStates::NEW.0.trailing_zeros() as u8,
        };
        (scope, point)
    }

    /// The flow at a point of the space.
    pub fn flow(&self, family: Family, scope: Scope, point: &Point) -> Flow {
        let id = |owner: u64| u32::try_from(owner).ok();
        let interface = if scope.is_outbound() { point.out_interface } else { point.in_interface };
        Flow {
            direction: scope.direction(),
            protocol: point.protocol,
            uid: id(point.uid),
            gid: id(point.gid),
            source: Some(address(family, point.source)),
            source_port: Some(point.source_port),
            destination: address(family, point.destination),
            port: point.port,
            interface: self.interfaces.examples(&RangeList::of([interface])).first().map(|&name| name.into()),
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
