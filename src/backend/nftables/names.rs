//! What an interception's tables and chains are called in nftables.

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

/// A base chain: what hook it sits on, in which kind of chain, at which priority
/// (linux/netfilter_ipv4.h, `enum nf_ip_hook_priorities`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat`, `filter` or `route`.
    pub kind: &'static str,
    /// `NF_INET_*`.
    pub number: u32,
    pub priority: i32,
}

/// `NF_INET_PRE_ROUTING`.
pub const PRE_ROUTING: u32 = 0;
/// `NF_INET_LOCAL_OUT`.
pub const LOCAL_OUT: u32 = 3;

/// The hook of one of our base chains; `None` for a chain that is only jumped to.
pub fn hook(table: Table, chain: &ChainName) -> Option<Hook> {
    let number = match chain {
        ChainName::Prerouting => PRE_ROUTING,
        ChainName::Output => LOCAL_OUT,
        _ => return None,
    };
    let (kind, priority) = match table {
        Table::Raw => ("filter", -300),
        // Only a chain of kind `route` looks the route up again after changing the mark.
        Table::Mangle if number == LOCAL_OUT => ("route", -150),
        Table::Mangle => ("filter", -150),
        Table::Nat => ("nat", -100),
    };
    Some(Hook { kind, number, priority })
}
