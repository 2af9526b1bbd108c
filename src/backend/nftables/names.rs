//! What an interception's tables and chains are called in nftables.

use crate::backend::hook::{Base, ChainKind, Hook};
use crate::plan::model::{ChainName, Table};

/// The name of our table for one kind of rules; its family is `inet`.
pub fn table(table: Table) -> &'static str {
    match table {
        Table::Raw => "istio-proxy-raw",
        Table::Mangle => "istio-proxy-mangle",
        Table::Nat => "istio-proxy-nat",
    }
}

/// Which of our tables a name means.
pub fn table_by_name(name: &str) -> Option<Table> {
    Table::ALL.into_iter().find(|&t| table(t) == name)
}

/// Whether iptables-nft calls a table so, and nobody else should.
pub fn is_of_iptables(name: &str) -> bool {
    Table::by_name(name).is_some() || matches!(name, "filter" | "security")
}

/// The guard: a table that holds back what is taken while rules are being changed.
pub const GUARD: &str = "podweir-guard";

/// A chain's name: the iptables one in lower case with dashes.
pub fn chain(name: &ChainName) -> String {
    match name {
        ChainName::Other(name) => name.to_string(),
        known => known.name().to_ascii_lowercase().replace('_', "-"),
    }
}

pub fn chain_by_name(name: &str) -> ChainName {
    let hooks = [ChainName::Prerouting, ChainName::Output];
    match hooks.into_iter().chain(ChainName::OWN).find(|c| chain(c) == name) {
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
        _ => return None,
    };
    let (kind, priority) = match table {
        Table::Raw => (ChainKind::Filter, -300),
        // Only a chain of kind `route` looks the route up again after changing the mark.
        Table::Mangle if hook == Hook::Output => (ChainKind::Route, -150),
        Table::Mangle => (ChainKind::Filter, -150),
        Table::Nat => (ChainKind::Nat, -100),
    };
    Some(Base::accepting(kind, hook, priority))
}
