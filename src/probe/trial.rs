//! One trial: the way through the rules, the connection that takes it, and what came of it.

use std::fmt;
use std::net::SocketAddr;

use crate::config::interception::Interception;
use crate::config::types::{Family, Port};

/// A way through the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A process of the pod calls somebody else.
    Outbound,
    /// The proxy calls its own pod: in through the inbound side.
    Loop,
    /// Somebody else calls the pod.
    Inbound,
    DnsUdp,
    DnsTcp,
}

/// A path through the rules, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    pub route: PathKind,
    pub family: Family,
}

impl Path {
    /// The proxy's port that it leads to.
    pub(super) fn port(&self, interception: &Interception) -> u16 {
        match self.route {
            PathKind::Outbound => interception.outbound_port.get(),
            PathKind::Loop | PathKind::Inbound => interception.inbound_port.get(),
            PathKind::DnsUdp | PathKind::DnsTcp => Port::AGENT_DNS.get(),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let route = match self.route {
            PathKind::Outbound => "outbound",
            PathKind::Loop => "proxy to its own pod",
            PathKind::Inbound => "inbound",
            PathKind::DnsUdp => "DNS over UDP",
            PathKind::DnsTcp => "DNS over TCP",
        };
        write!(f, "{} {route}", self.family)
    }
}

/// A connection to make, and the user and group that make it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub to: SocketAddr,
    pub uid: u32,
    pub gid: u32,
}

/// The result of testing one path.
pub enum Trial {
    Passed,
    Untested(String),
    Failed(String),
    /// The time was over before it began.
    Late,
}

impl Trial {
    /// The result for a path that one foreign rule may take, with that rule named.
    pub(super) fn because_of(self, rule: &str) -> Self {
        match self {
            Self::Failed(problem) => Self::Failed(format!("{problem}; a rule of somebody else's takes it: {rule}")),
            Self::Untested(why) => Self::Untested(format!("{why}; a rule of somebody else's may let it out: {rule}")),
            other => other,
        }
    }
}

/// The bytes that a probe sends and expects back.
pub(super) const TOKEN: &[u8; 16] = b"podweir-probe-01";
