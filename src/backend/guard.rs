//! The guard: drops every packet of the pod, in and out, while rules change that cannot
//! change in one step. A killed run leaves it behind, so that nothing escapes; the next
//! run finds it, finishes the work and takes it away.
//!
//! It is an nftables table, up in both families at once. Where the kernel has no
//! nf_tables it is a chain in iptables' raw table, family by family.

use std::io;

use crate::config::types::{Families, Family};
use crate::plan::model::Table;
use crate::sys::netlink::Netlink;

use super::install::Conditions;
use super::iptables::programs::{ProgramError, Programs, Variant};
use super::nftables::names::{GUARD, Hook, LOCAL_OUT, PRE_ROUTING};
use super::nftables::transaction::{Transaction, TransactionError};
use super::survey::Survey;
use super::{Backup, Kind, Reading};

/// Before connection tracking (-200) and everything of ours, so that no connection is
/// remembered that began while the guard was up.
const PRIORITY: i32 = -500;

/// The guard's chain where it is an iptables one.
const CHAIN: &str = "PODWEIR_GUARD";

/// Why the guard could not be put up or taken away.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Nftables(#[from] TransactionError),
    #[error(transparent)]
    Iptables(#[from] ProgramError),
}

/// A guard that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    Nftables,
    Iptables { kind: Kind, families: Families },
}

impl Guard {
    /// The nftables guard of a killed run.
    pub fn left_behind(survey: &Survey) -> Option<Self> {
        survey.nftables.as_ref()?.has_guard().then_some(Guard::Nftables)
    }

    /// The iptables guard of a killed run.
    pub fn in_iptables(reading: &Reading) -> Option<Self> {
        let Backup::Iptables(saved) = &reading.backup else { return None };
        let has = |family| {
            let raw = saved.get(&family).and_then(|s| s.table(Table::Raw.name()));
            raw.is_some_and(|table| table.chains.contains_key(CHAIN))
        };
        let families = Families { v4: has(Family::V4), v6: has(Family::V6) };
        (!families.is_empty()).then_some(Guard::Iptables { kind: Kind::IptablesLegacy, families })
    }

    /// Puts the guard up: both directions, both families.
    pub fn raise(
        netlink: Option<&mut Netlink>,
        conditions: &Conditions,
        kind: Kind,
        families: Families,
    ) -> Result<Self, GuardError> {
        if let Some(netlink) = netlink {
            let mut transaction = Transaction::new(None);
            transaction.add_table(GUARD);
            for (chain, number) in [("prerouting", PRE_ROUTING), ("output", LOCAL_OUT)] {
                let hook = Hook { kind: "filter", number, priority: PRIORITY };
                transaction.add_hook(GUARD, chain, hook, true);
            }
            return match transaction.commit(netlink) {
                Ok(()) => Ok(Guard::Nftables),
                Err(error) => {
                    // The kernel's answer may have been lost. The first error is the one to tell.
                    let _ = Guard::Nftables.lower(Some(netlink), conditions);
                    Err(error.into())
                }
            };
        }
        let guard = Guard::Iptables { kind, families: Families::NONE };
        let mut up = Families::NONE;
        for family in families.iter() {
            let script = format!(
                "*raw\n:{CHAIN} - [0:0]\n-A {CHAIN} -j DROP\n-I PREROUTING 1 -j {CHAIN}\n-I OUTPUT 1 -j {CHAIN}\nCOMMIT\n"
            );
            if let Err(error) = guard.programs(conditions).restore(family, || script) {
                // The first error is the one to tell.
                let _ = Guard::Iptables { kind, families: up }.lower(None, conditions);
                return Err(error.into());
            }
            up = up.union(Families::only(family));
        }
        Ok(Guard::Iptables { kind, families: up })
    }

    /// Takes the guard away; it may be gone already.
    pub fn lower(&self, netlink: Option<&mut Netlink>, conditions: &Conditions) -> Result<(), GuardError> {
        match (self, netlink) {
            (Guard::Nftables, Some(netlink)) => {
                let mut transaction = Transaction::new(None);
                transaction.delete_table(GUARD);
                match transaction.commit(netlink) {
                    Err(TransactionError::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            (Guard::Nftables, None) => {}
            (Guard::Iptables { families, .. }, _) => {
                for family in families.iter() {
                    let script = format!(
                        "*raw\n:{CHAIN} - [0:0]\n-D PREROUTING -j {CHAIN}\n-D OUTPUT -j {CHAIN}\n-X {CHAIN}\nCOMMIT\n"
                    );
                    self.programs(conditions).restore(family, || script)?;
                }
            }
        }
        Ok(())
    }

    fn programs(&self, conditions: &Conditions) -> Programs {
        let variant = match self {
            Guard::Iptables { kind: Kind::IptablesNft, .. } => Variant::Nft,
            _ => Variant::Legacy,
        };
        Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout)
    }
}
