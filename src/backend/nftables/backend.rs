//! The native backend: the kernel's nf_tables over netlink.

use std::collections::HashMap;
use std::io;

use crate::backend::listing::Holder;
use crate::backend::{Backend, BackendError, BackendKind, Backup, Reading, ours};
use crate::config::types::Family;
use crate::plan::canon::Canon;
use crate::plan::model::{Dataplane, Plan, Table};
use crate::sys::netlink::Netlink;

use super::frame::Frame;
use super::raw::RawTable;
use super::survey::{self, Tables};
use super::tables::listed;
use super::transaction::{Transaction, TransactionError};
use super::{encode, errors, list, names};

/// The native backend, on an open socket.
pub struct Nftables<'a> {
    netlink: &'a mut Netlink,
    tables: Tables,
    /// The dataplane whose tables are read and removed.
    dataplane: Dataplane,
}

impl<'a> Nftables<'a> {
    /// `tables`: nf_tables' tables as listed last.
    pub fn new(netlink: &'a mut Netlink, tables: Tables, dataplane: Dataplane) -> Self {
        Self { netlink, tables, dataplane }
    }

    fn list_error(source: io::Error) -> BackendError {
        let hint = errors::hint(source.raw_os_error().unwrap_or(0), None, None);
        BackendError::List { backend: BackendKind::Nftables.name(), source, hint }
    }

    /// Lists the tables again: podweir's guard, or its run of iptables-nft, may have changed the
    /// generation.
    fn list_again(&mut self) -> Result<(), BackendError> {
        self.tables = survey::tables(self.netlink).map_err(Self::list_error)?;
        Ok(())
    }

    /// Restores podweir's tables to an earlier listing.
    fn put_back<'f>(
        &mut self,
        wanted: &HashMap<Table, RawTable>,
        stands: impl Fn(Table) -> Option<&'f Frame>,
    ) -> Result<(), TransactionError> {
        let mut transaction = self.transaction();
        for table in Table::ALL {
            let name = names::table(self.dataplane, table);
            match (wanted.get(&table), stands(table)) {
                (Some(listed), stands) => transaction.restore(name, stands, listed),
                (None, Some(_)) => transaction.delete_table(name),
                (None, None) => {}
            }
        }
        transaction.commit(self.netlink)
    }

    /// A transaction that the kernel refuses if anybody has changed rules since the tables were listed.
    fn transaction(&self) -> Transaction {
        Transaction::new(Some(self.tables.generation))
    }
}

/// The tables in which a plan differs from what was found, in either family; all of them
/// where nothing differs and the rules are to be written again.
fn changed(plan: &Plan, found: &Reading) -> Vec<Table> {
    if !found.present {
        return Table::ALL.to_vec();
    }
    let (want, have) = (Canon::of(plan), Canon::of(&found.plan));
    let by_rules = Family::BOTH.into_iter().flat_map(|family| want.differing_tables(&have, family));
    let tables: Vec<Table> = by_rules.chain(found.strange.iter().map(|s| s.table)).collect();
    let changed = |table: &Table| tables.is_empty() || tables.contains(table);
    Table::ALL.into_iter().filter(changed).collect()
}

impl Backend for Nftables<'_> {
    fn kind(&self) -> BackendKind {
        BackendKind::Nftables
    }

    fn read(&mut self) -> Result<Reading, BackendError> {
        let present: Vec<Table> = self.tables.ours(self.dataplane).collect();
        if present.is_empty() {
            return Ok(Reading::nothing());
        }
        let (tables, raw) = list::ours(self.netlink, self.dataplane, &present).map_err(Self::list_error)?;
        let tables = listed(&tables);
        let held = ours::of_holder(Holder::Kernel(BackendKind::Nftables), &tables.iter().collect::<Vec<_>>());
        Ok(Reading { present: true, plan: held.plan, strange: held.strange, backup: Backup::Nftables(raw) })
    }

    fn apply(&mut self, plan: &Plan, found: &Reading) -> Result<(), BackendError> {
        let mut transaction = self.transaction();
        for table in changed(plan, found) {
            transaction.set_plan_table(plan, table, frame(found, table));
        }
        Ok(transaction.commit(self.netlink)?)
    }

    fn remove(&mut self, _found: &Reading) -> Result<(), BackendError> {
        self.list_again()?;
        let mut transaction = self.transaction();
        for table in self.tables.ours(self.dataplane) {
            transaction.delete_table(names::table(self.dataplane, table));
        }
        Ok(transaction.commit(self.netlink)?)
    }

    fn restore(&mut self, found: &Reading) -> Result<(), BackendError> {
        self.list_again()?;
        let nothing = HashMap::new();
        let wanted = if let Backup::Nftables(tables) = &found.backup { tables } else { &nothing };
        let now = self.read()?;
        let stands = |table| frame(&now, table);
        match self.put_back(wanted, stands) {
            // Before Linux 6.4 a set's name is free again only once its rules are gone for good.
            Err(TransactionError::Refused { .. }) if !wanted.is_empty() => {
                self.list_again()?;
                let ours = self.tables.ours(self.dataplane);
                let odd: HashMap<Table, Frame> =
                    ours.map(|table| (table, Frame { odd: true, ..Frame::default() })).collect();
                Ok(self.put_back(wanted, |table| odd.get(&table))?)
            }
            result => Ok(result?),
        }
    }

    fn steps(&self, plan: &Plan, found: &Reading) -> usize {
        let at_once = |table: Table| {
            let chains = plan.chains_of(table);
            let stands = frame(found, table);
            // A base chain that is made again is there twice for a moment. A set of ranges is
            // empty for a moment: the kernel fills it (`nft_set_commit_update`) after the rules
            // that ask it have come into force (`nf_tables_commit`, nf_tables_api.c), and what
            // it is to divert gets past them.
            let frame_stays = stands.is_none_or(|stands| stands.fits(&Frame::of(table, &chains)));
            chains.is_empty() || frame_stays && !(found.present && encode::asks_ranges(&chains, plan.families))
        };
        if changed(plan, found).into_iter().all(at_once) { 1 } else { 2 }
    }
}

/// The chains of a table that was found.
fn frame(found: &Reading, table: Table) -> Option<&Frame> {
    match &found.backup {
        Backup::Nftables(tables) => tables.get(&table).map(|raw| &raw.frame),
        _ => None,
    }
}
