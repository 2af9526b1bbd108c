//! The guard: rules that drop the packets that a plan takes, while rules change that cannot change in
//! one step. A killed run leaves the guard behind, so that nothing escapes; the next run finds it,
//! finishes the work and removes it.
//!
//! It is an nftables table for both families. Where the kernel has no nf_tables it is two chains in
//! iptables' raw table, for each family.

use std::fmt::Write;
use std::io;

use crate::config::types::{Families, Family};
use crate::plan::lower::lower;
use crate::plan::model::{ChainName, Dataplane, Matches, Plan, Routing, Rule, Table, protocol};
use crate::sys::netlink::Netlink;

use super::conditions::Conditions;
use super::held::{Held, Tcp};
use super::hook::{Base, ChainKind, Hook};
use super::iptables::programs::{ProgramError, Programs, Variant};
use super::iptables::render;
use super::nftables::names::{self, GUARD};
use super::nftables::transaction::{Transaction, TransactionError};
use super::survey::Survey;
use super::{BackendKind, Backup, Reading};

/// The priority of a guard that drops every packet: before connection tracking (-200) and podweir's
/// rules, so that no connection that began while it was up is remembered.
const FIRST: i32 = -500;
/// The priority of a guard that drops new connections: right behind connection tracking, which tells
/// them. A connection is remembered only once its first packet gets through.
const BEHIND_TRACKING: i32 = -199;

/// The guard's chains in iptables: for inbound packets, and for outbound ones, which alone have an owner
/// to match.
const CHAIN: &str = "PODWEIR_GUARD";
const CHAIN_OUT: &str = "PODWEIR_GUARD_OUT";

/// Why the guard could not be put up or taken away.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Nftables(#[from] TransactionError),
    #[error(transparent)]
    Iptables(#[from] ProgramError),
}

/// A guard that is up, by the backend that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    Nftables,
    Iptables { kind: BackendKind, families: Families },
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
        (!families.is_empty()).then_some(Guard::Iptables { kind: BackendKind::IptablesLegacy, families })
    }

    /// Puts the guard up, for both directions and at once for all families where that is possible.
    /// `left`: the guard of a killed run is replaced without a gap.
    ///
    /// # Errors
    ///
    /// That the kernel or the iptables program refused it; then no guard is up that was not up
    /// before.
    pub fn raise(
        netlink: Option<&mut Netlink>,
        conditions: &Conditions,
        kind: BackendKind,
        held: &Held,
        left: Option<&Guard>,
    ) -> Result<Self, GuardError> {
        if let Some(netlink) = netlink {
            let mut transaction = Transaction::new(None);
            if left == Some(&Guard::Nftables) {
                transaction.delete_table(GUARD);
            }
            transaction.add_table(GUARD);
            let priority = if held.tcp == Tcp::All { FIRST } else { BEHIND_TRACKING };
            for (chain, hook) in [(ChainName::Prerouting, Hook::Prerouting), (ChainName::Output, Hook::Output)] {
                let base = Base::accepting(ChainKind::Filter, hook, priority);
                transaction.add_base(GUARD, &names::chain(&chain), base);
            }
            transaction.add_rules(GUARD, &held.chains.iter().collect::<Vec<_>>(), held.families);
            return match transaction.commit(netlink) {
                Ok(()) => Ok(Guard::Nftables),
                Err(error) => {
                    // The kernel's answer may have been lost. The first error is the one to tell.
                    if left.is_none() && !matches!(error, TransactionError::Refused { .. }) {
                        let _ = Guard::Nftables.lower(Some(netlink), conditions);
                    }
                    Err(error.into())
                }
            };
        }
        let there = match left {
            Some(Guard::Iptables { families, .. }) => *families,
            _ => Families::NONE,
        };
        let guard = Guard::Iptables { kind, families: Families::NONE };
        let mut up = Families::NONE;
        for family in held.families.iter() {
            if let Err(error) = guard.programs(conditions).restore(family, || script(held, family, there.has(family))) {
                // The first error is the one to tell.
                let _ = Guard::Iptables { kind, families: up }.lower(None, conditions);
                return Err(error.into());
            }
            up = up.union(Families::only(family));
        }
        Ok(Guard::Iptables { kind, families: up.union(there) })
    }

    /// Takes the guard away; it may be gone already.
    ///
    /// # Errors
    ///
    /// That the kernel or the iptables program refused it; then the guard is still up.
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
                        "*raw\n:{CHAIN} - [0:0]\n:{CHAIN_OUT} - [0:0]\n-D PREROUTING -j {CHAIN}\n-D OUTPUT -j {CHAIN_OUT}\n-X {CHAIN}\n-X {CHAIN_OUT}\nCOMMIT\n"
                    );
                    self.programs(conditions).restore(family, || script)?;
                }
            }
        }
        Ok(())
    }

    fn programs(&self, conditions: &Conditions) -> Programs {
        let variant = match self {
            Guard::Iptables { kind: BackendKind::IptablesNft, .. } => Variant::Nft,
            _ => Variant::Legacy,
        };
        Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout)
    }
}

/// The guard's chains for iptables-restore. They stand before connection tracking: what
/// begins is told by TCP's flags, and of DNS every query is held back.
fn script(held: &Held, family: Family, is_there: bool) -> String {
    let plan = Plan {
        dataplane: Dataplane::Sidecar,
        families: held.families,
        chains: held.chains.clone(),
        routing: Routing::default(),
    };
    let mut out = format!("*raw\n:{CHAIN} - [0:0]\n:{CHAIN_OUT} - [0:0]\n");
    for chain in lower(&plan, family) {
        let name = if chain.name == ChainName::Prerouting { CHAIN } else { CHAIN_OUT };
        for rule in chain.rules {
            let is_tcp = rule.matches.protocol.as_ref().and_then(|c| c.value.single()) == Some(protocol::TCP);
            let words = if is_tcp && held.tcp == Tcp::Openings {
                "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j DROP".to_owned()
            } else {
                let matches = Matches { connection_state: None, ..rule.matches };
                render::rule(&Rule { matches, ..rule }, family, false)
            };
            let _ = writeln!(out, "-A {name} {words}");
        }
    }
    if !is_there {
        let _ = writeln!(out, "-I PREROUTING 1 -j {CHAIN}\n-I OUTPUT 1 -j {CHAIN_OUT}");
    }
    out + "COMMIT\n"
}
