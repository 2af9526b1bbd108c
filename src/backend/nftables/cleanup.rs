//! Removing the tables that iptables-nft leaves behind, if they are empty.

use std::collections::HashMap;

use crate::plan::model::Table;
use crate::sys::netlink::Netlink;

use super::dump::{dump, dump_all};
use super::nfta::*;
use super::survey::tables;
use super::transaction::{Transaction, TransactionError};
use super::wire::{Msg, NfFamily, NfMessage, find};

/// Removes the `ip` and `ip6` tables nat, mangle and raw that hold nothing but hooks with
/// the policy accept: the same as no table at all.
///
/// # Errors
///
/// The kernel refused the listing or the transaction.
pub fn remove_empty_iptables_tables(netlink: &mut Netlink) -> Result<(), TransactionError> {
    let generation = tables(netlink)?.generation;
    for family in [NfFamily::IPV4, NfFamily::IPV6] {
        // Table name to whether there is anything in it.
        let mut used: HashMap<String, bool> = HashMap::new();
        dump_all(netlink, Msg::GetTable, family, |message| {
            used.extend(find(message.attributes(), NFTA_TABLE_NAME).map(|name| (name.string(), false)));
        })?;
        dump_all(netlink, Msg::GetChain, family, |message| {
            let attributes = message.attributes();
            let table = find(attributes, NFTA_CHAIN_TABLE).map(|a| a.string()).unwrap_or_default();
            let policy = find(attributes, NFTA_CHAIN_POLICY).and_then(|a| a.u32());
            let accepts = find(attributes, NFTA_CHAIN_HOOK).is_some() && policy == Some(NF_ACCEPT);
            *used.entry(table).or_default() |= !accepts;
        })?;
        for object in [Msg::GetRule, Msg::GetSet] {
            dump(
                netlink,
                object,
                family,
                |_| (),
                |message| {
                    // NFTA_SET_TABLE is the same number.
                    let table = find(message.attributes(), NFTA_RULE_TABLE).map(|a| a.string()).unwrap_or_default();
                    used.insert(table, true);
                },
            )?;
        }
        let mut transaction = Transaction::new(Some(generation));
        let empty = used.iter().filter(|(name, used)| !**used && Table::by_name(name).is_some());
        for (name, _) in empty {
            transaction.delete_table_in(family, name);
        }
        let removed = !transaction.is_empty();
        transaction.commit(netlink)?;
        if removed {
            // The next family's transaction would find a newer generation than it was told.
            return remove_empty_iptables_tables(netlink);
        }
    }
    Ok(())
}
