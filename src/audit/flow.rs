//! A flow: a connection or datagram that somebody starts, and who gets it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::types::{Families, Family};
use crate::plan::model::protocol;

use super::routes::Routes;

/// Which way a flow goes, as the pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub fn name(self) -> &'static str {
        if self == Direction::Inbound { "inbound" } else { "outbound" }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Inbound, Self::Outbound].into_iter().find(|direction| direction.name() == name)
    }
}

/// The first packet of a connection, or a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub direction: Direction,
    /// IP protocol number.
    pub protocol: u8,
    /// The sender's owner; `None` for a packet of no process (or of another host).
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// The source address; `None`: the one that the kernel would choose.
    pub source: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    /// Destination port; of no meaning without ports.
    pub port: u16,
    /// The interface by which the packet comes in or leaves; `None`: the one that routing tells.
    pub interface: Option<Box<str>>,
    pub mark: u32,
}

impl Flow {
    /// Whether its packets have ports.
    pub fn has_ports(&self) -> bool {
        protocol::WITH_PORTS.contains(&self.protocol)
    }

    pub fn family(&self) -> Family {
        if self.destination.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Who gets a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Taker {
    OutboundProxy,
    InboundProxy,
    DnsProxy,
    /// The destination, past the proxy.
    Direct,
    Dropped,
    /// A rule decides that is not understood.
    Unknown,
}

impl Taker {
    pub const ALL: [Taker; 6] =
        [Self::OutboundProxy, Self::InboundProxy, Self::DnsProxy, Self::Direct, Self::Dropped, Self::Unknown];

    /// Whether it is one of the proxy's listeners, its DNS included.
    pub fn is_proxy(self) -> bool {
        matches!(self, Taker::OutboundProxy | Taker::InboundProxy | Taker::DnsProxy)
    }

    pub fn name(self) -> &'static str {
        match self {
            Taker::OutboundProxy => "outbound-proxy",
            Taker::InboundProxy => "inbound-proxy",
            Taker::DnsProxy => "dns-proxy",
            Taker::Direct => "direct",
            Taker::Dropped => "dropped",
            Taker::Unknown => "unknown",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|taker| taker.name() == name)
    }
}

impl fmt::Display for Taker {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a pod besides its rules.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The pod's own addresses; loopback ones need not be named.
    pub addresses: Vec<IpAddr>,
    /// The name servers it asks; `None` where they are not known.
    pub dns_servers: Option<Vec<IpAddr>>,
    /// The interface by which the pod's traffic to and from other hosts goes, where routes do not name
    /// another one.
    pub uplink: Box<str>,
    /// The interfaces of routes and addresses; empty if they are not known.
    pub routes: Routes,
}

impl Surroundings {
    pub fn of(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, dns_servers: None, uplink: "eth0".into(), routes: Routes::default() }
    }

    /// The surroundings of this pod with an address in each of these families: where none of its own
    /// is known, one for documentation (RFC 5737, RFC 3849) stands in for it.
    pub fn with_stand_ins(&self, families: Families) -> Self {
        let mut pod = self.clone();
        let known = self.families();
        let stand_ins: [(bool, IpAddr); 2] = [
            (families.v4 && !known.v4, Ipv4Addr::new(192, 0, 2, 2).into()),
            (families.v6 && !known.v6, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into()),
        ];
        pod.addresses.extend(stand_ins.into_iter().filter(|(wanted, _)| *wanted).map(|(_, address)| address));
        pod
    }

    /// Whether packets to an address stay within the pod.
    pub fn is_local(&self, address: IpAddr) -> bool {
        let loopback = match address {
            IpAddr::V4(a) => a.is_loopback(),
            IpAddr::V6(a) => a.is_loopback() || a == crate::backend::routing::MESH_ADDRESS,
        };
        loopback || self.addresses.contains(&address)
    }

    /// The source address that the kernel would choose for a flow of the pod; for a flow of
    /// another host one that is nobody's.
    pub fn usual_source(&self, flow: &Flow) -> IpAddr {
        let (to, v4) = (flow.destination, flow.destination.is_ipv4());
        match flow.direction {
            Direction::Inbound => nobodys_address(v4),
            Direction::Outbound if self.is_local(to) => {
                if v4 && to.is_loopback() {
                    Ipv4Addr::LOCALHOST.into()
                } else {
                    to
                }
            }
            Direction::Outbound => {
                let mut own = self.addresses.iter().filter(|a| a.is_ipv4() == v4 && crate::config::facts::is_global(a));
                let egress = self.routes.egress_interface(to);
                let of_egress = own.clone().find(|a| egress.is_some() && self.routes.interface_of(**a) == egress);
                of_egress.or(own.next()).copied().unwrap_or(nobodys_address(v4))
            }
        }
    }

    /// The interface by which a flow goes, where none is given.
    pub fn interface(&self, direction: Direction, destination: IpAddr) -> &str {
        let known = match direction {
            Direction::Outbound if self.is_local(destination) => Some("lo"),
            Direction::Outbound => self.routes.egress_interface(destination),
            Direction::Inbound => self.routes.interface_of(destination),
        };
        known.unwrap_or(&self.uplink)
    }

    /// The families the pod has a global address in.
    pub fn families(&self) -> Families {
        crate::config::facts::families_of(&self.addresses)
    }
}

/// An address for documentation (RFC 5737, RFC 3849).
fn nobodys_address(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() }
}

/// A protocol's name as people write it.
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::ICMPV6 => "ICMPv6".into(),
        _ => protocol::name(number).to_uppercase(),
    }
}

/// The one sentence for a flow: "TCP to 10.0.0.1:443 from uid 1000", "inbound UDP to 10.244.0.6:53 from
/// 192.0.2.1".
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.direction == Direction::Inbound {
            f.write_str("inbound ")?;
        }
        write!(f, "{}", protocol_name(self.protocol))?;
        match self.destination {
            _ if !self.has_ports() => write!(f, " to {}", self.destination)?,
            std::net::IpAddr::V4(address) => write!(f, " to {address}:{}", self.port)?,
            std::net::IpAddr::V6(address) => write!(f, " to [{address}]:{}", self.port)?,
        }
        let source = self.source.map(|address| address.to_string());
        let port = self.source_port.map(|port| format!("port {port}"));
        let uid = self.uid.map(|uid| format!("uid {uid}"));
        let gid = self.gid.filter(|gid| self.uid != Some(*gid)).map(|gid| format!("gid {gid}"));
        let from: Vec<String> = [source, port, uid, gid].into_iter().flatten().collect();
        if !from.is_empty() {
            write!(f, " from {}", from.join(" "))?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " {} {interface}", if self.direction == Direction::Inbound { "in by" } else { "out by" })?;
        }
        if self.mark != 0 {
            write!(f, " marked {:#x}", self.mark)?;
        }
        Ok(())
    }
}
