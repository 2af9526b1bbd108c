//! Tables of nf_tables, however they were listed, as [`ListedTable`]s.

use crate::backend::BackendKind;
use crate::backend::hook::Hook;
use crate::backend::listing::{Holder, ListedChain, ListedTable, iptables_names};
use crate::backend::nftables::names;
use crate::backend::nftables::table::{NftChain, NftTable};
use crate::config::types::Families;
use crate::plan::model::{ChainName, Rule, Verdict};

use super::devices;

/// The tables that a packet of the pod can meet.
pub fn listed(tables: &[NftTable]) -> Vec<ListedTable> {
    tables.iter().filter(|table| !table.families().is_empty()).map(listed_table).collect()
}

fn listed_table(table: &NftTable) -> ListedTable {
    let of_iptables = is_of_iptables(table);
    let holder = Holder::Kernel(if of_iptables { BackendKind::IptablesNft } else { BackendKind::Nftables });
    let chains = table.chains.iter().flat_map(|chain| {
        let mut rules = table.decode(chain);
        if of_iptables {
            iptables_names(&mut rules);
            rules.iter_mut().for_each(close);
        }
        let name = if of_iptables { ChainName::by_name(&chain.name) } else { names::chain_by_name(&chain.name) };
        match (chain.base, &chain.devices) {
            (Some(base), Some(devices)) => devices::chains(name, base, devices, table.families(), rules),
            (base, _) => vec![ListedChain { name, base, rules }],
        }
    });
    ListedTable {
        holder,
        families: table.families(),
        // A table of devices may be called like another one. No name has a space in it.
        name: if table.is_of_devices() { format!("netdev {}", table.name) } else { table.name.clone() },
        dormant: table.dormant,
        as_nft_shows: false,
        chains: chains.collect(),
    }
}

/// Marks a TPROXY verdict of iptables', which drops packets if nobody listens.
fn close(rule: &mut Rule) {
    if let Verdict::Tproxy { closed, .. } = &mut rule.verdict {
        *closed = true;
    }
}

/// Whether iptables-nft made a table, by its name and by base chains that are all named as iptables'
/// are.
fn is_of_iptables(table: &NftTable) -> bool {
    let named = names::is_of_iptables(&table.name);
    let own = |chain: &NftChain| chain.base.is_none() || Hook::by_chain(&chain.name).is_some();
    named && matches!(table.families(), Families::V4 | Families::V6) && table.chains.iter().all(own)
}
