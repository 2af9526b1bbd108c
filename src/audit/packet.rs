//! A packet on its way, and which conditions it meets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::types::{Family, Interface};
use crate::plan::canon::{CanonMatches, number};
use crate::plan::model::{Cond, CtStates, Masked, Verdict, protocol};

use super::flow::{Direction, Flow, Surroundings};
use super::ruleset::{Base, ChainRules};

/// A packet on its way.
#[derive(Debug, Clone)]
pub(super) struct Packet<'a> {
    pub(super) family: Family,
    pub(super) protocol: u8,
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) local: bool,
    pub(super) source_port: Option<u16>,
    pub(super) port: u16,
    pub(super) in_interface: Option<&'a str>,
    pub(super) out_interface: Option<&'a str>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mark: u32,
    pub(super) connection_mark: u32,
    /// What conntrack says about it, once it knows it.
    pub(super) state: CtStates,
    pub(super) tracking: Tracking,
    /// Whether native nftables asks, where packets have no owner: it has no answer about
    /// that, and iptables says "not owned by".
    pub(super) asked_by_nft: bool,
}

/// How far conntrack is with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tracking {
    /// It comes to it at priority -200 (`NF_IP_PRI_CONNTRACK`).
    NotYet,
    /// So does this one; but a rule has said in which zone, by a connection that stands for
    /// the one to come (`xt_CT.c`, `nft_ct.c`).
    InZone,
    Known,
}

impl Tracking {
    /// What it is in a base chain. A packet that is looped back stays known.
    pub(super) fn at(self, base: &Base) -> Self {
        if base.is_before_conntrack() { self } else { Tracking::Known }
    }

    /// What a rule is told about the state of a connection in `state`.
    pub(super) fn told(self, state: CtStates) -> CtStates {
        match self {
            Tracking::NotYet => CtStates::INVALID,
            Tracking::InZone => CtStates::NEW,
            Tracking::Known => state,
        }
    }

    /// Whether packets with these marks are as before behind a rule, whether they meet it
    /// or not.
    pub(super) fn changes_nothing(self, verdict: &Verdict, packet: u32, connection: u32) -> bool {
        match verdict {
            Verdict::CtZone(_) => self != Tracking::NotYet,
            Verdict::SetMark(Masked { value, mask }) => (packet & !mask) ^ value == packet,
            Verdict::SaveMark | Verdict::RestoreMark => self != Tracking::Known || packet == connection,
            _ => false,
        }
    }

    /// What it is behind a rule that gives a zone.
    pub(super) fn with_zone(self) -> Self {
        if self == Tracking::NotYet { Tracking::InZone } else { self }
    }
}

impl<'a> Packet<'a> {
    pub(super) fn of(flow: &'a Flow, pod: &'a Surroundings) -> Self {
        let family = flow.family();
        let local = pod.is_local(flow.destination);
        let interface = flow.interface.as_deref();
        let interface = Some(interface.unwrap_or_else(|| pod.interface(flow.direction, flow.destination)));
        let (in_interface, out_interface) = match flow.direction {
            Direction::Inbound => (interface, None),
            Direction::Outbound => (None, interface),
        };
        let source = flow.source.unwrap_or_else(|| usual_source(flow, pod, local));
        Self {
            family,
            protocol: flow.protocol,
            source: number(source),
            destination: number(flow.destination),
            local,
            source_port: flow.source_port,
            port: flow.port,
            in_interface,
            out_interface,
            uid: flow.uid,
            gid: flow.gid,
            mark: flow.mark,
            connection_mark: 0,
            state: CtStates::NEW,
            tracking: Tracking::NotYet,
            asked_by_nft: false,
        }
    }

    /// Comes to a base chain.
    pub(super) fn enter(&mut self, chain: &ChainRules, base: &Base) {
        self.tracking = self.tracking.at(base);
        self.asked_by_nft = chain.is_native() && !base.hook.is_outbound();
    }

    pub(super) fn give_zone(&mut self) {
        self.tracking = self.tracking.with_zone();
    }

    /// Whether the packet meets a rule's conditions.
    pub(super) fn meets(&self, m: &CanonMatches) -> Meets {
        let p = self;
        // A packet without ports has none that could be asked for.
        let ports = |list: &crate::config::types::PortList, port: Option<u16>| match port {
            _ if list.is_full() => Meets::Yes,
            Some(port) => Meets::from(list.holds(port)),
            None => Meets::Maybe,
        };
        let has_ports = protocol::WITH_PORTS.contains(&p.protocol);
        let known = m.protocol.holds(p.protocol)
            && m.destination.holds(p.destination)
            && m.source.holds(p.source)
            && (m.connection_state.0 & p.tracking.told(p.state).0 != 0)
            && owner(&m.uid, p.uid, p.asked_by_nft)
            && owner(&m.gid, p.gid, p.asked_by_nft)
            && interface(&m.in_interface, p.in_interface)
            && interface(&m.out_interface, p.out_interface)
            && mark(&m.mark, p.mark)
            && match p.tracking {
                // Of no connection nothing can be asked, not even what it is not.
                Tracking::NotYet => m.connection_mark.is_none(),
                Tracking::InZone => mark(&m.connection_mark, 0),
                Tracking::Known => mark(&m.connection_mark, p.connection_mark),
            }
            && ports(&m.destination_port, has_ports.then_some(p.port)) != Meets::No;
        if !known {
            return Meets::No;
        }
        // Which port a connection comes from is chance, unless it is said. Whoever
        // chooses it does not choose a low one or a well-known one.
        let from_port = match p.source_port {
            Some(port) => ports(&m.source_port, Some(port)),
            None => Meets::from(m.source_port.is_full() || m.source_port.holds(EPHEMERAL)),
        };
        match from_port {
            Meets::No => Meets::No,
            _ if !m.unknown.is_empty() => Meets::Maybe,
            other => other,
        }
    }
}

/// The source address the kernel would choose; of another host, one that is nobody's.
pub(super) fn usual_source(flow: &Flow, pod: &Surroundings, local: bool) -> IpAddr {
    let v4 = flow.destination.is_ipv4();
    match flow.direction {
        Direction::Outbound if local && v4 && flow.destination.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        Direction::Outbound if local => flow.destination,
        Direction::Outbound => {
            let mut own = pod.addresses.iter().filter(|a| a.is_ipv4() == v4 && crate::config::facts::is_global(a));
            let way = pod.routes.to(flow.destination);
            let of_way = own.clone().find(|a| way.is_some() && pod.routes.of(**a) == way);
            of_way.or(own.next()).copied().unwrap_or(nobody(v4))
        }
        Direction::Inbound => nobody(v4),
    }
}

/// Addresses for documentation (RFC 5737, RFC 3849).
fn nobody(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() }
}

/// A port in the middle of those from which clients connect.
pub(super) const EPHEMERAL: u16 = 45_678;

/// Whether a packet meets conditions; `Maybe`: some are not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meets {
    Yes,
    No,
    Maybe,
}

impl From<bool> for Meets {
    fn from(yes: bool) -> Self {
        if yes { Meets::Yes } else { Meets::No }
    }
}

/// A packet without an owner meets only "not owned by", and of nftables not even that.
fn owner(cond: &Option<Cond<crate::config::types::IdList>>, id: Option<u32>, asked_by_nft: bool) -> bool {
    match (cond, id) {
        (None, _) => true,
        (Some(cond), Some(id)) => cond.value.holds(id) != cond.negated,
        (Some(cond), None) => cond.negated && !asked_by_nft,
    }
}

/// A packet that has no such interface here has one without a name.
fn interface(cond: &Option<Cond<Vec<Interface>>>, name: Option<&str>) -> bool {
    let Some(cond) = cond else { return true };
    let is = name.is_some_and(|name| cond.value.iter().any(|i| i.matches(name)));
    is != cond.negated
}

fn mark(cond: &Option<Cond<Masked>>, mark: u32) -> bool {
    cond.as_ref().is_none_or(|cond| (mark & cond.value.mask == cond.value.value) != cond.negated)
}
