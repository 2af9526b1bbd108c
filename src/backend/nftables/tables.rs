//! Tables of nf_tables, however they were listed, as [`ListedTable`]s.

use crate::backend::Kind;
use crate::backend::hook::Hook;
use crate::backend::listing::{Holder, ListedChain, ListedHook, ListedTable, iptables_names};
use crate::backend::nftables::names;
use crate::backend::nftables::read::ListedHook as NumberedHook;
use crate::backend::nftables::table::{FullChain, FullTable};
use crate::config::types::Families;
use crate::plan::model::{ChainName, Rule, Verdict};

use super::devices;

/// The tables that a packet of the pod can meet.
pub fn listed(tables: &[FullTable]) -> Vec<ListedTable> {
    tables.iter().filter(|table| !table.families().is_empty()).map(listed_table).collect()
}

fn listed_table(table: &FullTable) -> ListedTable {
    let of_iptables = is_of_iptables(table);
    let holder = Holder::Kernel(if of_iptables { Kind::IptablesNft } else { Kind::Nftables });
    let chains = table.chains.iter().flat_map(|chain| {
        let mut rules = table.decode(chain);
        if of_iptables {
            iptables_names(&mut rules);
            rules.iter_mut().for_each(close);
        }
        let name = if of_iptables { ChainName::by_name(&chain.name) } else { names::chain_by_name(&chain.name) };
        match &chain.hook {
            Some(hook) if let Some(inward) = table.device_hook(hook) => {
                devices::chains(name, hook, inward, table.families(), rules)
            }
            hook => vec![ListedChain { name, hook: hook.as_ref().and_then(self::hook), rules }],
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

/// iptables' TPROXY drops where nobody listens.
fn close(rule: &mut Rule) {
    if let Verdict::Tproxy { closed, .. } = &mut rule.verdict {
        *closed = true;
    }
}

/// Whether iptables-nft made a table: its name, and nothing hooked under other names than
/// iptables' own.
fn is_of_iptables(table: &FullTable) -> bool {
    let named = names::is_of_iptables(&table.name);
    let own = |chain: &FullChain| chain.hook.is_none() || Hook::by_chain(&chain.name).is_some();
    named && matches!(table.families(), Families::V4 | Families::V6) && table.chains.iter().all(own)
}

fn hook(hook: &NumberedHook) -> Option<ListedHook> {
    let NumberedHook { number, priority, kind, drops, .. } = hook;
    Some(ListedHook { hook: Hook::by_number(*number)?, priority: *priority, kind: kind.clone(), drops: *drops })
}
