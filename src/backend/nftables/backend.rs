//! The native backend: the kernel's nf_tables over netlink.

use std::collections::HashSet;
use std::io;

use crate::backend::{Backend, BackendError, Backup, Kind, Reading};
use crate::config::types::Family;
use crate::plan::canon::Canon;
use crate::plan::model::{Chain, Plan, Table};
use crate::sys::netlink::Netlink;

use super::read::{self, Tables};
use super::transaction::Transaction;
use super::{errors, names};

/// The native backend, on an open socket.
pub struct Nftables<'a> {
    netlink: &'a mut Netlink,
    tables: Tables,
}

impl<'a> Nftables<'a> {
    /// `tables`: what a listing has just shown.
    pub fn new(netlink: &'a mut Netlink, tables: Tables) -> Self {
        Self { netlink, tables }
    }

    fn list_error(source: io::Error) -> BackendError {
        let hint = errors::hint(source.raw_os_error().unwrap_or(0), "", None);
        BackendError::List { backend: Kind::Nftables.name(), source, hint }
    }

    /// Commits only if nobody has changed anything since the tables were listed.
    fn transaction(&self) -> Transaction {
        Transaction::new(Some(self.tables.generation))
    }
}

/// The chains of one table of a plan.
fn chains_of(plan: &Plan, table: Table) -> Vec<&Chain> {
    plan.chains.iter().filter(|c| c.table == table).collect()
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
    fn kind(&self) -> Kind {
        Kind::Nftables
    }

    fn read(&mut self) -> Result<Reading, BackendError> {
        let present: Vec<Table> = self.tables.ours().collect();
        if present.is_empty() {
            return Ok(Reading::nothing());
        }
        let reading = read::read(self.netlink, &present).map_err(Self::list_error)?;
        Ok(Reading {
            present: reading.present,
            plan: reading.plan,
            strange: reading.strange,
            backup: Backup::Nftables(reading.backup),
        })
    }

    fn apply(&mut self, plan: &Plan, found: &Reading) -> Result<(), BackendError> {
        let present: HashSet<Table> = self.tables.ours().collect();
        let mut transaction = self.transaction();
        for table in changed(plan, found) {
            if present.contains(&table) {
                transaction.delete_table(names::table(table));
            }
            let chains = chains_of(plan, table);
            if !chains.is_empty() {
                transaction.add_plan_table(table, &chains, plan.families);
            }
        }
        Ok(transaction.commit(self.netlink)?)
    }

    fn remove(&mut self, _found: &Reading) -> Result<(), BackendError> {
        // Our own guard, or an iptables-nft run of ours, may have changed the generation.
        self.tables = read::tables(self.netlink).map_err(Self::list_error)?;
        let mut transaction = self.transaction();
        for table in self.tables.ours() {
            transaction.delete_table(names::table(table));
        }
        Ok(transaction.commit(self.netlink)?)
    }

    fn restore(&mut self, found: &Reading) -> Result<(), BackendError> {
        self.tables = read::tables(self.netlink).map_err(Self::list_error)?;
        let mut transaction = self.transaction();
        for table in self.tables.ours() {
            transaction.delete_table(names::table(table));
        }
        if let Backup::Nftables(tables) = &found.backup {
            for raw in tables.values() {
                transaction.restore(raw);
            }
        }
        Ok(transaction.commit(self.netlink)?)
    }

    fn steps(&self, _plan: &Plan, _found: &Reading) -> usize {
        1
    }
}
