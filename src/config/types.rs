//! The types of the values that options hold.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges::RangeList;

/// A TCP or UDP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl Port {
    /// DNS (RFC 1035).
    pub const DNS: Port = Port::literal(53);
    /// Where a mesh agent answers DNS.
    pub const AGENT_DNS: Port = Port::literal(15053);

    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    /// A port known when this is compiled; 0 does not compile.
    #[expect(clippy::panic, reason = "it is the compiler's, not the program's")]
    pub const fn literal(port: u16) -> Self {
        match NonZeroU16::new(port) {
            Some(port) => Self(port),
            None => panic!("0 is not a port"),
        }
    }

    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ports and ranges of ports, in the order given.
pub type PortList = RangeList<u16>;
/// User or group ids and ranges of them.
pub type IdList = RangeList<u32>;

/// A network interface, or with `any_ending` every interface whose name starts so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface {
    pub name: Box<str>,
    pub any_ending: bool,
}

impl Interface {
    pub fn new(name: &str, any_ending: bool) -> Self {
        Self { name: name.into(), any_ending }
    }

    /// The loopback interface.
    pub fn lo() -> Self {
        Self::new("lo", false)
    }

    pub fn matches(&self, interface: &str) -> bool {
        if self.any_ending { interface.starts_with(&*self.name) } else { interface == &*self.name }
    }
}

/// iptables' notation: a trailing `+` for any ending.
impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.any_ending { "+" } else { "" })
    }
}

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The length of an address in bits.
    pub fn bits(self) -> u8 {
        if self == Family::V4 { 32 } else { 128 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if *self == Family::V4 { "IPv4" } else { "IPv6" })
    }
}

/// Which of the two families; by default none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    pub const NONE: Families = Families { v4: false, v6: false };
    pub const V4: Families = Families { v4: true, v6: false };
    pub const V6: Families = Families { v4: false, v6: true };
    pub const BOTH: Families = Families { v4: true, v6: true };

    pub fn only(family: Family) -> Self {
        if family == Family::V4 { Self::V4 } else { Self::V6 }
    }

    pub fn has(self, family: Family) -> bool {
        if family == Family::V4 { self.v4 } else { self.v6 }
    }

    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(move |&f| self.has(f))
    }

    pub fn union(self, other: Self) -> Self {
        Self { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
    }

    pub fn intersection(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match (self.v4, self.v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            (false, false) => "no family",
        })
    }
}

/// IP ranges of both families, each in the order given. Host bits are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Networks {
    pub v4: Vec<Ipv4Net>,
    pub v6: Vec<Ipv6Net>,
}

impl Networks {
    pub fn push(&mut self, net: IpNet) {
        match net {
            IpNet::V4(net) => self.v4.push(net.trunc()),
            IpNet::V6(net) => self.v6.push(net.trunc()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many ranges of one family it holds.
    pub fn len_of(&self, family: Family) -> usize {
        if family == Family::V4 { self.v4.len() } else { self.v6.len() }
    }

    /// The ranges of one family, in order.
    pub fn of(&self, family: Family) -> Vec<IpNet> {
        match family {
            Family::V4 => self.v4.iter().copied().map(IpNet::V4).collect(),
            Family::V6 => self.v6.iter().copied().map(IpNet::V6).collect(),
        }
    }

    /// Whether a range that starts in the loopback range of its family is among them.
    pub fn has_loopback(&self) -> bool {
        self.v4.iter().any(|n| n.network().is_loopback()) || self.v6.iter().any(|n| n.network().is_loopback())
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(iter: I) -> Self {
        let mut list = Self::default();
        iter.into_iter().for_each(|net| list.push(net));
        list
    }
}

/// How inbound connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Destination rewritten to the proxy's port.
    Redirect,
    /// Handed to the proxy's socket with both addresses as they are.
    Tproxy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(if *self == Mode::Redirect { "REDIRECT" } else { "TPROXY" })
    }
}

/// What happens to established connections that are older than the rules, and that these
/// would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OlderConnections {
    /// The connections go on as they can.
    Leave,
    /// The connections are ended, so that they begin again by way of the proxy.
    Reset,
}

/// Inbound ports to take.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortSelection {
    All,
    /// Only these ports; an empty list takes none.
    Only(PortList),
}

/// Outbound ranges to take.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RangeSelection {
    All,
    /// Only these ranges; an empty list takes none.
    Only(Networks),
}

/// A packet mark (`skb->mark`), compared and set whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark(u32);

impl Mark {
    /// On packets that the proxy sends to its own pod (TPROXY mode).
    pub const OUTBOUND: Mark = Mark(1338);

    pub fn new(mark: u32) -> Self {
        Self(mark)
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A routing table number (rtnetlink(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteTable(u32);

impl RouteTable {
    pub fn new(table: u32) -> Self {
        Self::literal(table)
    }

    /// A table whose number is known when this is compiled, and right.
    pub const fn literal(table: u32) -> Self {
        Self(table)
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}
