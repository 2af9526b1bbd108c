//! Where the kernel asks chains, and in which order.

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
    /// In the order of their numbers (`enum nf_inet_hooks`).
    pub const ALL: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// By the kernel's number for it.
    pub fn by_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u32 == number)
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// Whether it is known already where packets go: there only sources are rewritten.
    pub fn is_behind_routing(self) -> bool {
        matches!(self, Hook::Input | Hook::Postrouting)
    }

    /// Whether packets of the pod's own processes come to it, which have an owner.
    pub fn is_outbound(self) -> bool {
        matches!(self, Hook::Output | Hook::Postrouting)
    }

    /// By the name of iptables' built-in chain on it.
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

/// What kind of chain the kernel takes a base chain for (`NFTA_CHAIN_TYPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    Filter,
    /// Sees only the first packet of a connection, and not again once one has been rewritten.
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

    /// By its name; packets meet a chain of a kind that is not known as they meet a filter's.
    pub fn by_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(ChainKind::Filter)
    }
}

/// Where the kernel enters a base chain, and what it does with packets that come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    /// Lower ones come first.
    pub priority: i32,
    pub kind: ChainKind,
    /// The policy: whether a packet that no rule decides about is dropped.
    pub drops: bool,
}

/// The most by which priorities count among the chains of devices.
const SPAN: i32 = 100_000;
/// Packets meet ingress before every other hook, and egress behind all of them.
const INGRESS: i32 = i32::MIN + SPAN;
const EGRESS: i32 = i32::MAX - SPAN;

impl Base {
    /// One that lets pass what no rule decides about.
    pub const fn accepting(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { hook, priority, kind, drops: false }
    }

    /// Where packets of devices come in: in front of everything else on prerouting.
    pub fn ingress(kind: ChainKind, priority: i32) -> Self {
        Self::accepting(kind, Hook::Prerouting, INGRESS + priority.clamp(-SPAN, SPAN))
    }

    /// Where packets leave by devices: behind everything else on postrouting.
    pub fn egress(kind: ChainKind, priority: i32) -> Self {
        Self::accepting(kind, Hook::Postrouting, EGRESS + priority.clamp(-SPAN, SPAN))
    }

    /// The hook by nft's name for it, and the priority that the chain was made with.
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
