//! Where rules stand: in which table, in which chain, and of which dataplane these are.

use std::fmt;

/// What rules are for, which decides about the names of their chains and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dataplane {
    /// A pod with a proxy of its own.
    Sidecar,
    /// A pod whose traffic its node's ztunnel takes.
    Ambient,
    /// Rules of a node, by which ambient pods can tell the kubelet's probes from other traffic.
    Node,
}

impl Dataplane {
    pub const ALL: [Dataplane; 3] = [Dataplane::Sidecar, Dataplane::Ambient, Dataplane::Node];

    /// The dataplane's name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Dataplane::Sidecar => "sidecar",
            Dataplane::Ambient => "ambient",
            Dataplane::Node => "node",
        }
    }

    /// What messages call the dataplane's rules.
    pub fn rules(self) -> &'static str {
        match self {
            Dataplane::Sidecar => "a sidecar's interception",
            Dataplane::Ambient => "the rules of an ambient pod",
            Dataplane::Node => "a node's rules for probes of ambient pods",
        }
    }

    /// The command that removes the dataplane's rules.
    pub fn removal(self) -> &'static str {
        match self {
            Dataplane::Sidecar => "podweir clean",
            Dataplane::Ambient => "podweir ambient --remove",
            Dataplane::Node => "podweir ambient-host --remove",
        }
    }
}

/// A netfilter table of the kinds an interception uses, in the order packets meet them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Raw,
    Mangle,
    Nat,
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

    /// The name that iptables has for the table.
    pub fn name(self) -> &'static str {
        match self {
            Table::Raw => "raw",
            Table::Mangle => "mangle",
            Table::Nat => "nat",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }
}

/// A chain: a hook that podweir's rules use, one of podweir's own chains, or a foreign one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainName {
    Prerouting,
    Output,
    Postrouting,
    Inbound,
    InRedirect,
    Redirect,
    OutputMain,
    OutputDns,
    Divert,
    Tproxy,
    Drop,
    /// What comes in to an ambient pod. What it sends goes to [`ChainName::OutputMain`].
    AmbientIn,
    /// What a node sends to ambient pods: its rules for probes.
    NodeOut,
    Other(Box<str>),
}

impl ChainName {
    /// The chains that the kernel enters by itself.
    pub const HOOKS: [ChainName; 3] = [ChainName::Prerouting, ChainName::Output, ChainName::Postrouting];

    /// Podweir's own chains, in the order in which they are written.
    pub const OWN: [ChainName; 10] = [
        ChainName::Inbound,
        ChainName::InRedirect,
        ChainName::OutputMain,
        ChainName::OutputDns,
        ChainName::Redirect,
        ChainName::Divert,
        ChainName::Tproxy,
        ChainName::Drop,
        ChainName::AmbientIn,
        ChainName::NodeOut,
    ];

    /// The name that iptables has for the chain.
    pub fn name(&self) -> &str {
        match self {
            ChainName::Prerouting => "PREROUTING",
            ChainName::Output => "OUTPUT",
            ChainName::Postrouting => "POSTROUTING",
            ChainName::Inbound => "ISTIO_INBOUND",
            ChainName::InRedirect => "ISTIO_IN_REDIRECT",
            ChainName::Redirect => "ISTIO_REDIRECT",
            ChainName::OutputMain => "ISTIO_OUTPUT",
            ChainName::OutputDns => "ISTIO_OUTPUT_DNS",
            ChainName::Divert => "ISTIO_DIVERT",
            ChainName::Tproxy => "ISTIO_TPROXY",
            ChainName::Drop => "ISTIO_DROP",
            ChainName::AmbientIn => "ISTIO_PRERT",
            ChainName::NodeOut => "ISTIO_POSTRT",
            ChainName::Other(name) => name,
        }
    }

    pub fn by_name(name: &str) -> Self {
        match Self::HOOKS.into_iter().chain(Self::OWN).find(|c| c.name() == name) {
            Some(known) => known,
            None => ChainName::Other(name.into()),
        }
    }

    /// Whether the chain is one of podweir's own.
    pub fn is_own(&self) -> bool {
        Self::OWN.contains(self)
    }

    /// Whether the kernel enters it by itself.
    pub fn is_hook(&self) -> bool {
        Self::HOOKS.contains(self)
    }

    /// The dataplane whose chain this is, where the name alone tells.
    pub fn dataplane(&self) -> Option<Dataplane> {
        match self {
            ChainName::AmbientIn => Some(Dataplane::Ambient),
            ChainName::NodeOut => Some(Dataplane::Node),
            // A sidecar's and an ambient pod's are called the same.
            ChainName::OutputMain => None,
            own => own.is_own().then_some(Dataplane::Sidecar),
        }
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}
