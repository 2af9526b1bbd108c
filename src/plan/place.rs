//! Where rules stand: whose they are, in which table, in which chain.

use std::fmt;

/// What rules are for, and thereby whose chains and tables they are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dataplane {
    /// A pod with a proxy of its own.
    Sidecar,
    /// A pod whose traffic its node's ztunnel takes.
    Ambient,
    /// A node: probes that its kubelet sends to ambient pods are told from other traffic.
    Node,
}

impl Dataplane {
    pub const ALL: [Dataplane; 3] = [Dataplane::Sidecar, Dataplane::Ambient, Dataplane::Node];

    /// Its name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Dataplane::Sidecar => "sidecar",
            Dataplane::Ambient => "ambient",
            Dataplane::Node => "node",
        }
    }

    /// What rules for it are called in messages.
    pub fn rules(self) -> &'static str {
        match self {
            Dataplane::Sidecar => "a sidecar's interception",
            Dataplane::Ambient => "the rules of an ambient pod",
            Dataplane::Node => "a node's rules for probes of ambient pods",
        }
    }

    /// The command that takes them away.
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

    /// iptables' name for it.
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

/// A chain: one of the hooks that rules of ours use, one of their own chains, or another's.
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

    /// The chains that belong to rules of ours, in the order they are written.
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

    /// iptables' name for it.
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

    /// Whether it is a chain that only rules of ours make.
    pub fn is_own(&self) -> bool {
        Self::OWN.contains(self)
    }

    /// Whether the kernel enters it by itself.
    pub fn is_hook(&self) -> bool {
        Self::HOOKS.contains(self)
    }

    /// Whose chain it is, where the name alone tells.
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
