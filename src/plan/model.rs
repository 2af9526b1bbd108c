//! The model: what a kernel holds, or should hold, to divert a pod's traffic.
//! Plain data, the same for every backend.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, IdList, Interface, Mark, Networks, Port, PortList, RouteTable};

use super::effect::Unmodelled;
pub use super::place::{ChainName, Dataplane, Table};
use super::why::Why;

/// A condition on a value: that it is among these, or with `negated` that it is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cond<T> {
    pub negated: bool,
    pub value: T,
}

impl<T> Cond<T> {
    pub fn is(value: T) -> Self {
        Self { negated: false, value }
    }

    pub fn is_not(value: T) -> Self {
        Self { negated: true, value }
    }
}

/// A mark compared or set under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Masked {
    pub value: u32,
    pub mask: u32,
}

/// The mask is printed only if it leaves bits out.
impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { value, mask } = self;
        if *mask == u32::MAX { write!(f, "{value:#x}") } else { write!(f, "{value:#x}/{mask:#x}") }
    }
}

impl From<Mark> for Masked {
    fn from(mark: Mark) -> Self {
        Self { value: mark.get(), mask: u32::MAX }
    }
}

/// Connection tracking states, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CtStates(pub u8);

impl CtStates {
    pub const INVALID: CtStates = CtStates(1);
    pub const ESTABLISHED: CtStates = CtStates(2);
    pub const RELATED: CtStates = CtStates(4);
    pub const NEW: CtStates = CtStates(8);
    pub const UNTRACKED: CtStates = CtStates(64);
    pub const ALL: CtStates = CtStates(1 | 2 | 4 | 8 | 64);
    /// The states with their names, in the order in which iptables-save prints them.
    pub const NAMED: [(CtStates, &'static str); 5] = [
        (Self::INVALID, "INVALID"),
        (Self::NEW, "NEW"),
        (Self::RELATED, "RELATED"),
        (Self::ESTABLISHED, "ESTABLISHED"),
        (Self::UNTRACKED, "UNTRACKED"),
    ];

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    /// The protocols whose packets have ports.
    pub const WITH_PORTS: [u8; 5] = [TCP, UDP, 33, 132, 136];

    const NAMES: [(u8, &str); 7] = [
        (TCP, "tcp"),
        (UDP, "udp"),
        (ICMP, "icmp"),
        (ICMPV6, "ipv6-icmp"),
        (132, "sctp"),
        (33, "dccp"),
        (136, "udplite"),
    ];

    /// The name of a protocol as iptables prints it; the number where it has none.
    pub fn name(number: u8) -> String {
        match NAMES.iter().find(|(known, _)| *known == number) {
            Some((_, name)) => (*name).to_owned(),
            None => number.to_string(),
        }
    }

    /// The number of a protocol, by number or name.
    pub fn by_name(text: &str) -> Option<u8> {
        let text = if text == "icmpv6" { "ipv6-icmp" } else { text };
        let known = NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        known.or_else(|| text.parse().ok())
    }
}

/// The conditions of a rule, all of which a packet must meet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Matches {
    pub source: Option<Cond<Networks>>,
    pub destination: Option<Cond<Networks>>,
    pub in_interface: Option<Cond<Vec<Interface>>>,
    pub out_interface: Option<Cond<Vec<Interface>>>,
    pub protocol: Option<Cond<RangeList<u8>>>,
    pub source_port: Option<Cond<PortList>>,
    pub destination_port: Option<Cond<PortList>>,
    pub mark: Option<Cond<Masked>>,
    pub connection_mark: Option<Cond<Masked>>,
    pub connection_state: Option<Cond<CtStates>>,
    /// The owner of the sending socket. A packet without one meets only negated conditions.
    pub uid: Option<Cond<IdList>>,
    pub gid: Option<Cond<IdList>>,
    /// The destination is in the set of this name, whose elements are not part of the rules.
    pub destination_set: Option<Cond<Box<str>>>,
    /// Conditions in the backend's own words that the model does not know.
    pub unknown: Vec<String>,
}

/// What happens to a packet that meets a rule's conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The next rule is asked.
    Continue,
    /// The packet goes back to the calling chain; in a base chain the policy decides.
    Return,
    Accept,
    Drop,
    Jump(ChainName),
    Goto(ChainName),
    /// Destination becomes this port of the pod itself.
    Redirect(Port),
    /// Source becomes this address; destination and everything else stays.
    Snat(IpAddr),
    /// Handed to the socket listening on `port`, with `mark` set. When nobody listens the
    /// packet is dropped if `closed`, and goes on to its destination otherwise.
    Tproxy {
        port: Port,
        mark: Mark,
        closed: bool,
    },
    SetMark(Masked),
    /// The packet's mark becomes its connection's.
    SaveMark,
    /// The connection's mark becomes the packet's.
    RestoreMark,
    /// The connection's mark is changed.
    SetConnectionMark(Masked),
    /// Tracked in this conntrack zone.
    CtZone(u16),
    /// Something the model does not know.
    Unknown(Unmodelled),
}

/// How often a rule applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
}

/// Where a rule was found, for people to look it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOrigin {
    /// The rule's number in its chain, from 1 on, as iptables' `--line-numbers` counts.
    pub number: usize,
    /// The rule's handle, as `nft -a` shows it.
    pub handle: Option<u64>,
    /// The rule's text in the listing; only of a rule that is not understood.
    pub text: Option<Box<str>>,
    /// Whether the listing leaves a part of the rule out, so that its meaning is not known.
    pub incomplete: bool,
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rule {}", self.number)?;
        match self.handle {
            Some(handle) => write!(f, " (handle {handle})"),
            None => Ok(()),
        }
    }
}

/// A rule of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub families: Families,
    pub matches: Matches,
    pub verdict: Verdict,
    pub why: Why,
    /// How often the rule applied; only of rules read from a kernel that counts.
    pub counters: Option<Counters>,
    /// Where the rule was found; only of rules that were read.
    pub origin: Option<Arc<RuleOrigin>>,
}

impl Rule {
    /// Whether the model knows all that the rule says.
    pub fn is_understood(&self) -> bool {
        self.matches.unknown.is_empty() && !matches!(self.verdict, Verdict::Unknown(_))
    }
}

/// A chain with its rules, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub table: Table,
    pub name: ChainName,
    pub rules: Vec<Rule>,
}

impl Dataplane {
    /// The dataplane whose chains these are, by their names.
    pub fn of(chains: &[Chain]) -> Self {
        chains.iter().find_map(|chain| chain.name.dataplane()).unwrap_or(Dataplane::Sidecar)
    }
}

/// A policy rule by which marked packets are delivered locally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MarkRoute {
    pub family: Family,
    pub mark: Masked,
    pub table: RouteTable,
}

impl MarkRoute {
    /// Where it stands among the policy rules: before the main table's (32766), and in one
    /// place for each dataplane. A sidecar's marks are compared whole, ambient's under a mask.
    pub fn priority(&self) -> u32 {
        if self.mark.mask == u32::MAX { 1337 } else { 32764 }
    }
}

/// Policy rules, routes and addresses that an interception needs beside its rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// `fwmark MARK lookup TABLE`.
    pub rules: Vec<MarkRoute>,
    /// The routing tables with the route `local default dev lo`.
    pub routes: Vec<(Family, RouteTable)>,
    /// `::6/128` on lo: the proxy's source address for connections to the app.
    pub mesh_address: bool,
}

impl Routing {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The routing of the same meaning with rules and routes in one order and without doubles.
    pub fn normalised(&self) -> Self {
        let mut out = self.clone();
        out.rules.sort_unstable();
        out.rules.dedup();
        out.routes.sort_unstable();
        out.routes.dedup();
        out
    }
}

/// Everything the kernel must hold for an interception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub dataplane: Dataplane,
    /// The families whose traffic passes the rules.
    pub families: Families,
    /// Chains with rules, by table, hooks first.
    pub chains: Vec<Chain>,
    pub routing: Routing,
}

impl Plan {
    /// A plan that holds nothing.
    pub fn empty() -> Self {
        Self::nothing_of(Dataplane::Sidecar)
    }

    /// A plan that holds nothing, for a dataplane.
    pub fn nothing_of(dataplane: Dataplane) -> Self {
        Self { dataplane, families: Families::NONE, chains: Vec::new(), routing: Routing::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.routing.is_empty()
    }

    /// The tables that have chains, in order.
    pub fn tables(&self) -> Vec<Table> {
        Table::ALL.into_iter().filter(|&t| self.chains.iter().any(|c| c.table == t)).collect()
    }

    /// The chains of one table, in order.
    pub fn chains_of(&self, table: Table) -> Vec<&Chain> {
        self.chains.iter().filter(|c| c.table == table).collect()
    }

    /// The marks that the rules set on packets and connections, without the proxy's own.
    pub fn marks(&self) -> Vec<Mark> {
        let marks = self.chains.iter().flat_map(|chain| &chain.rules).filter_map(|rule| match &rule.verdict {
            Verdict::Tproxy { mark, .. } => Some(*mark),
            Verdict::SetMark(mark) | Verdict::SetConnectionMark(mark) => Some(Mark::new(mark.value)),
            Verdict::SaveMark => rule.matches.mark.as_ref().map(|c| Mark::new(c.value.value)),
            _ => None,
        });
        marks.filter(|mark| *mark != Mark::OUTBOUND).collect()
    }

    /// The number of rules, as written (sets count once).
    pub fn rule_count(&self) -> usize {
        self.chains.iter().map(|c| c.rules.len()).sum()
    }

    pub fn chain(&self, table: Table, name: &ChainName) -> Option<&Chain> {
        self.chains.iter().find(|c| c.table == table && c.name == *name)
    }
}
