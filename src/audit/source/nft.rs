//! Tables of nf_tables, however they were listed, as [`ListedTable`]s.

use crate::audit::ruleset::Hook;
use crate::backend::Kind;
use crate::backend::nftables::everything::{FullChain, FullTable};
use crate::backend::nftables::names;
use crate::backend::nftables::read::ListedHook as NumberedHook;
use crate::config::types::Families;
use crate::plan::model::{ChainName, Rule, Table, Verdict};

use super::listing::{Holder, ListedChain, ListedHook, ListedTable, iptables_names};

/// What a base chain on a network device is called where its rules are shown.
const DEVICE: &str = "the device of a netdev table";
/// `NF_INET_INGRESS`; for `netdev` tables 0 is ingress and 1 egress.
const INET_INGRESS: u32 = 5;

/// The tables that a packet of the pod can meet.
pub fn listed(tables: &[FullTable]) -> Vec<ListedTable> {
    tables.iter().filter(|table| !table.families().is_empty()).map(listed_table).collect()
}

fn listed_table(table: &FullTable) -> ListedTable {
    let of_iptables = is_of_iptables(table);
    let holder = Holder::Kernel(if of_iptables { Kind::IptablesNft } else { Kind::Nftables });
    let chains = table.chains.iter().map(|chain| {
        let mut rules = table.decode(chain);
        if of_iptables {
            iptables_names(&mut rules);
            rules.iter_mut().for_each(close);
        }
        let name = if of_iptables { ChainName::by_name(&chain.name) } else { names::chain_by_name(&chain.name) };
        if table.is_of_devices() && chain.hook.is_some() {
            // Which device the chain is bound to is not known here.
            rules.iter_mut().for_each(|rule| rule.matches.unknown.push(DEVICE.into()));
        }
        ListedChain { name, hook: hook(table, chain), rules }
    });
    ListedTable {
        holder,
        families: table.families(),
        name: table.name.clone(),
        dormant: table.dormant,
        as_nft_shows: false,
        chains: chains.collect(),
    }
}

/// iptables' TPROXY drops where nobody listens.
fn close(rule: &mut Rule) {
    if let Verdict::Tproxy { closed, .. } = &mut rule.verdict {
        *closed = true;
    }
}

/// Whether iptables-nft made a table: its name, and nothing hooked under other names than
/// iptables' own.
fn is_of_iptables(table: &FullTable) -> bool {
    let named = Table::by_name(&table.name).is_some() || matches!(table.name.as_str(), "filter" | "security");
    let own = |chain: &FullChain| chain.hook.is_none() || Hook::by_chain(&chain.name).is_some();
    named && matches!(table.families(), Families::V4 | Families::V6) && table.chains.iter().all(own)
}

fn hook(table: &FullTable, chain: &FullChain) -> Option<ListedHook> {
    let NumberedHook { number, priority, kind, drops } = chain.hook.as_ref()?;
    let (hook, priority) = match number {
        0 if table.is_of_devices() => (Hook::Prerouting, i32::MIN),
        _ if table.is_of_devices() => (Hook::Postrouting, i32::MAX),
        // Before everything else.
        &INET_INGRESS => (Hook::Prerouting, i32::MIN),
        &number => (Hook::by_number(number)?, *priority),
    };
    Some(ListedHook { hook, priority, kind: kind.clone(), drops: *drops })
}
