//! Where the kernel enters chains, and in which order.

/// Where in the kernel a chain is entered (linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    /// The hooks in the order of their numbers (`enum nf_inet_hooks`).
    pub const ALL: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// The hook with a number of the kernel's.
    pub fn by_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u32 == number)
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// Whether the hook comes after the routing decision, where only sources can be rewritten.
    pub fn is_behind_routing(self) -> bool {
        matches!(self, Hook::Input | Hook::Postrouting)
    }

    /// Whether packets of the pod's own processes, which have an owner, pass the hook.
    pub fn is_outbound(self) -> bool {
        matches!(self, Hook::Output | Hook::Postrouting)
    }

    /// The hook of a built-in chain of iptables, by the chain's name.
    pub fn by_chain(chain: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name().to_ascii_uppercase() == chain)
    }

    pub fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// The type of a base chain (`NFTA_CHAIN_TYPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    Filter,
    /// Sees only the first packet of a connection, and no more once another chain has rewritten it.
    Nat,
    /// Looks the route up again after a change of the mark; on the output hook only.
    Route,
}

impl ChainKind {
    pub const ALL: [ChainKind; 3] = [ChainKind::Filter, ChainKind::Nat, ChainKind::Route];

    pub fn name(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        }
    }

    /// The kind with a name; a chain of an unknown kind is treated as a filter.
    pub fn by_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(ChainKind::Filter)
    }
}

/// Where the kernel enters a base chain, and its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    /// The chain's priority: lower ones come first.
    pub priority: i32,
    pub kind: ChainKind,
    /// Whether the policy drops packets that no rule decides about.
    pub drops: bool,
}

/// The largest priority that is kept apart among the chains of devices.
const SPAN: i32 = 100_000;
/// Packets meet ingress before every other hook, and egress behind all of them.
const INGRESS: i32 = i32::MIN + SPAN;
const EGRESS: i32 = i32::MAX - SPAN;

impl Base {
    /// A base chain whose policy accepts.
    pub const fn accepting(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { hook, priority, kind, drops: false }
    }

    /// The ingress hook of devices, modelled as a chain before all others on prerouting.
    pub fn ingress(kind: ChainKind, priority: i32) -> Self {
        Self::accepting(kind, Hook::Prerouting, INGRESS + priority.clamp(-SPAN, SPAN))
    }

    /// The egress hook of devices, modelled as a chain behind all others on postrouting.
    pub fn egress(kind: ChainKind, priority: i32) -> Self {
        Self::accepting(kind, Hook::Postrouting, EGRESS + priority.clamp(-SPAN, SPAN))
    }

    /// The hook as nft names it, and the chain's own priority.
    pub fn told(&self) -> (&'static str, i32) {
        match self.hook {
            Hook::Prerouting if self.priority <= INGRESS + SPAN => ("ingress", self.priority.wrapping_sub(INGRESS)),
            Hook::Postrouting if self.priority >= EGRESS - SPAN => ("egress", self.priority.wrapping_sub(EGRESS)),
            other => (other.name(), self.priority),
        }
    }

    pub fn is_nat(&self) -> bool {
        self.kind == ChainKind::Nat
    }

    /// Where on its hook packets meet it. The kernel has one place for all nat chains of a
    /// hook (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`): their priority only orders them
    /// among themselves.
    pub fn place(&self) -> i32 {
        match self.is_nat() {
            false => self.priority,
            true if self.hook.is_behind_routing() => 100,
            true => -100,
        }
    }

    /// Whether packets come to it before conntrack knows them (`NF_IP_PRI_CONNTRACK`).
    pub fn is_before_conntrack(&self) -> bool {
        self.place() < -200
    }
}

/// Which order is assumed for base chains of equal priority, one of them iptables-legacy's, whose
/// creation order the kernel does not report. Of one holder's chains the one that was made last comes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    First,
    /// The order in which the other one of two such chains comes first.
    Second,
}
