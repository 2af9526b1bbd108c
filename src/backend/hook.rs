//! Where the kernel asks chains, and in which order.

use crate::backend::nftables::names;
use crate::plan::model::{ChainName, Table};

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

/// Entered by the kernel itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    /// Lower ones come first.
    pub priority: i32,
    /// Sees only the first packet of a connection, and not again once one has been rewritten.
    pub nat: bool,
    /// What happens to a packet that no rule decides about.
    pub drops: bool,
}

impl Base {
    /// Where on its hook packets meet it. The kernel has one place for all nat chains of a
    /// hook (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`): their priority only orders them
    /// among themselves.
    pub fn place(&self) -> i32 {
        match self.nat {
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

/// Which of two chains comes first that want the same place: of one holder's chains the one
/// that was made last. When iptables-legacy made its own nothing tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    First,
    /// The other possible one.
    Second,
}

/// The base chain that one of the hooks of a plan is.
pub fn base_of(table: Table, chain: &ChainName) -> Option<Base> {
    let hook = names::hook(table, chain)?;
    Some(Base {
        hook: if hook.number == names::LOCAL_OUT { Hook::Output } else { Hook::Prerouting },
        priority: hook.priority,
        nat: table == Table::Nat,
        drops: false,
    })
}
