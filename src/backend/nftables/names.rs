//! The names of podweir's tables and chains in nftables.

use crate::backend::hook::{Base, ChainKind, Hook};
use crate::plan::model::{ChainName, Dataplane, Table};

/// The name of our table for one kind of rules; its family is `inet`.
pub fn table(dataplane: Dataplane, table: Table) -> &'static str {
    match (dataplane, table) {
        (Dataplane::Sidecar, Table::Raw) => "istio-proxy-raw",
        (Dataplane::Sidecar, Table::Mangle) => "istio-proxy-mangle",
        (Dataplane::Sidecar, Table::Nat) => "istio-proxy-nat",
        // A node is no pod: there the same names are of other rules.
        (Dataplane::Ambient | Dataplane::Node, Table::Raw) => "istio-ambient-raw",
        (Dataplane::Ambient | Dataplane::Node, Table::Mangle) => "istio-ambient-mangle",
        (Dataplane::Ambient | Dataplane::Node, Table::Nat) => "istio-ambient-nat",
    }
}

/// The table of a dataplane with this name.
pub fn table_of(dataplane: Dataplane, name: &str) -> Option<Table> {
    Table::ALL.into_iter().find(|&t| table(dataplane, t) == name)
}

/// The dataplane and the table with this name; a node's tables have the same names as an ambient pod's.
pub fn table_by_name(name: &str) -> Option<(Dataplane, Table)> {
    let mut whose = [Dataplane::Sidecar, Dataplane::Ambient].into_iter();
    whose.find_map(|dataplane| Some((dataplane, table_of(dataplane, name)?)))
}

/// Whether a name is one that iptables-nft gives its tables.
pub fn is_of_iptables(name: &str) -> bool {
    Table::by_name(name).is_some() || matches!(name, "filter" | "security")
}

/// The name of the guard's table, which drops traffic while rules change.
pub const GUARD: &str = "podweir-guard";

/// A chain's name: the iptables one in lower case with dashes, where that is not cut short.
pub fn chain(name: &ChainName) -> String {
    match name {
        ChainName::AmbientIn => "istio-prerouting".into(),
        ChainName::NodeOut => "istio-postrouting".into(),
        ChainName::Other(name) => name.to_string(),
        known => known.name().to_ascii_lowercase().replace('_', "-"),
    }
}

pub fn chain_by_name(name: &str) -> ChainName {
    match ChainName::HOOKS.into_iter().chain(ChainName::OWN).find(|c| chain(c) == name) {
        Some(known) => known,
        None => ChainName::Other(name.into()),
    }
}

/// Where one of our base chains sits (linux/netfilter_ipv4.h, `enum nf_ip_hook_priorities`);
/// `None` for a chain that is only jumped to.
pub fn base(table: Table, chain: &ChainName) -> Option<Base> {
    let hook = match chain {
        ChainName::Prerouting => Hook::Prerouting,
        ChainName::Output => Hook::Output,
        ChainName::Postrouting => Hook::Postrouting,
        _ => return None,
    };
    let (kind, priority) = match table {
        Table::Raw => (ChainKind::Filter, -300),
        // Only a chain of kind `route` looks the route up again after changing the mark.
        Table::Mangle if hook == Hook::Output => (ChainKind::Route, -150),
        Table::Mangle => (ChainKind::Filter, -150),
        // Where sources are rewritten (`NF_IP_PRI_NAT_SRC`).
        Table::Nat if hook == Hook::Postrouting => (ChainKind::Nat, 100),
        Table::Nat => (ChainKind::Nat, -100),
    };
    Some(Base::accepting(kind, hook, priority))
}
