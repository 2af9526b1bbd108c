//! A node's own namespace in ambient mode: the rules that give its kubelet's probes a source address of
//! their own, and the sets of pods that these rules are for. Each call reads what is held first, so that
//! changes by others are repaired.

mod iptables;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use tracing::debug;

use crate::config::ambient::{HostOptions, Prober};
use crate::config::settings::BackendChoice;
use crate::config::types::{Families, Family};
use crate::plan::build;
use crate::plan::model::{Dataplane, Plan};
use crate::sys::lock::{KeptLock, LockError};
use crate::sys::netlink::Netlink;

use super::BackendKind;
use super::conditions::Conditions;
use super::iptables::programs::{ProgramError, Programs, Variant};
use super::nftables::probes::{self, WantedProbes};
use super::nftables::transaction::TransactionError;
use super::survey::{self, Survey};

/// How often an operation is repeated when the rules change meanwhile.
const ATTEMPTS: usize = 20;

/// Why a node's rules or sets are not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error("cannot list {what} of the node: {source}")]
    List { what: &'static str, source: io::Error },
    #[error("cannot {verb} the ipset {set}: {source}")]
    Set { verb: &'static str, set: &'static str, source: io::Error },
    #[error(transparent)]
    Nftables(#[from] TransactionError),
    #[error(transparent)]
    Iptables(#[from] ProgramError),
    #[error("the kernel has no nf_tables: load the module nf_tables on the node, or use --backend iptables-legacy")]
    NoNftables,
    #[error(
        "{} is in {backend} of the node's namespace, and its chains are not touched: remove it first, with {}", .there.rules(), .there.removal()
    )]
    OtherDataplane { backend: BackendKind, there: Dataplane },
}

impl HostError {
    /// Whether somebody else changed the rules meanwhile, so that trying again may help.
    fn raced(&self) -> bool {
        match self {
            Self::Nftables(TransactionError::Raced) => true,
            Self::List { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            _ => false,
        }
    }
}

/// The node's rules and sets for probes. It works in the namespace that the calling thread is in.
pub struct HostProbes {
    kind: BackendKind,
    plan: Plan,
    netfilter: Netlink,
    programs: Programs,
    conditions: Conditions,
    lock: KeptLock,
    /// Whether it is known that no other backend holds rules or sets for probes.
    alone: bool,
}

/// What stays when a node's rules are removed from iptables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    Nothing,
    /// The rules of this variant stay, and the sets, which both variants use.
    Variant(Variant),
    /// Rules stay that no program is there to change, and their sets, which are emptied.
    WhatMust,
}

/// What is to become of the sets' entries.
enum Entries<'a> {
    Keep,
    /// The entries are to be exactly these.
    Hold(&'a BTreeMap<IpAddr, String>),
    Change {
        add: &'a [(IpAddr, &'a str)],
        delete: &'a [(IpAddr, &'a str)],
    },
}

impl Entries<'_> {
    /// The entries that are wanted, given those that are held. Those of a family that the plan leaves
    /// out are dropped.
    fn of(&self, plan: &Plan, have: BTreeMap<IpAddr, String>) -> BTreeMap<IpAddr, String> {
        let mut out = match self {
            Entries::Keep => have,
            Entries::Hold(entries) => (*entries).clone(),
            Entries::Change { add, delete } => {
                let mut out = have;
                // An address that is used again belongs to the newer pod.
                for (ip, uid) in *delete {
                    if out.get(ip).is_some_and(|holder| holder == uid) {
                        out.remove(ip);
                    }
                }
                out.extend(add.iter().map(|(ip, uid)| (*ip, (*uid).to_owned())));
                out
            }
        };
        out.retain(|ip, _| plan.families.has(if ip.is_ipv4() { Family::V4 } else { Family::V6 }));
        out
    }
}

impl HostProbes {
    /// Chooses the backend, by what is asked for and what is there; nothing is changed.
    ///
    /// # Errors
    ///
    /// The kernel cannot be read, or lacks the backend.
    pub fn open(choice: BackendChoice, options: HostOptions, conditions: Conditions) -> Result<Self, HostError> {
        let mut netfilter = Netlink::open(Netlink::NETFILTER).map_err(HostError::Socket)?;
        let list = |source| HostError::List { what: "the tables", source };
        let programs = |variant| Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout);
        let there = survey::survey(Some(&mut netfilter)).map_err(list)?;
        let native = there.nftables.is_some();
        let holds = |kind| -> Result<bool, HostError> {
            Ok(match kind {
                BackendKind::Nftables => {
                    there.nftables.as_ref().is_some_and(|t| t.ours(Dataplane::Node).next().is_some())
                }
                BackendKind::IptablesNft => {
                    let (families, programs) = (there.iptables_nft_tables(), programs(Variant::Nft));
                    // What cannot be changed here is left for nftables, which says so.
                    there.iptables_nft
                        && families.iter().all(|f| programs.exist(f))
                        && iptables::holds(&programs, families)?
                }
                BackendKind::IptablesLegacy => {
                    let families = there.iptables_legacy;
                    let programs = programs(Variant::Legacy);
                    !families.is_empty()
                        && families.iter().all(|f| programs.exist(f))
                        && iptables::holds(&programs, families)?
                }
            })
        };
        let kind = match choice {
            BackendChoice::Nftables => BackendKind::Nftables,
            BackendChoice::IptablesNft => BackendKind::IptablesNft,
            BackendChoice::IptablesLegacy => BackendKind::IptablesLegacy,
            BackendChoice::Auto | BackendChoice::AutoIptables => {
                let mut holder = None;
                for kind in BackendKind::ALL {
                    holder = holder.or(holds(kind)?.then_some(kind));
                }
                holder.unwrap_or(if native { BackendKind::Nftables } else { BackendKind::IptablesLegacy })
            }
        };
        if kind != BackendKind::IptablesLegacy && !native {
            return Err(HostError::NoNftables);
        }
        // iptables could tell users apart as well; there everybody in ambient mode goes by
        // any process of the node.
        let prober = if kind == BackendKind::Nftables { Prober::User(options.kubelet_uid) } else { Prober::Anybody };
        debug!(backend = kind.name(), ?prober, "probes of ambient pods");
        let variant = if kind == BackendKind::IptablesNft { Variant::Nft } else { Variant::Legacy };
        let plan = build::host(options.families, prober);
        Ok(Self {
            kind,
            plan,
            netfilter,
            programs: programs(variant),
            conditions,
            lock: KeptLock::default(),
            alone: false,
        })
    }

    /// The backend that holds the rules, or is to.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// What the kernel is to hold, the sets' entries apart.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Makes sets and rules, and keeps the entries that are held; `false` if nothing had to be written.
    ///
    /// # Errors
    ///
    /// What failed: a lock, the kernel, or a program.
    pub fn set_up(&mut self) -> Result<bool, HostError> {
        self.repeatedly(|this| this.make(true, &Entries::Keep))
    }

    /// Makes sets and rules, with exactly these entries; `false` if nothing had to be written.
    ///
    /// # Errors
    ///
    /// As for [`HostProbes::set_up`].
    pub fn hold(&mut self, entries: &BTreeMap<IpAddr, String>) -> Result<bool, HostError> {
        self.repeatedly(|this| this.make(true, &Entries::Hold(entries)))
    }

    /// Makes sets and rules, without entries; `false` if nothing had to be written.
    ///
    /// # Errors
    ///
    /// As for [`HostProbes::set_up`].
    pub fn flush(&mut self) -> Result<bool, HostError> {
        self.hold(&BTreeMap::new())
    }

    /// Removes addresses that still belong to the pod named, and adds others. Missing sets are made,
    /// missing rules are not. `false` if nothing had to be written.
    ///
    /// # Errors
    ///
    /// As for [`HostProbes::set_up`].
    pub fn change(&mut self, add: &[(IpAddr, &str)], delete: &[(IpAddr, &str)]) -> Result<bool, HostError> {
        self.repeatedly(|this| this.make(false, &Entries::Change { add, delete }))
    }

    /// The addresses in the sets, with the pods that they belong to; also those that another
    /// backend still has.
    ///
    /// # Errors
    ///
    /// That they cannot be listed.
    pub fn entries(&mut self) -> Result<BTreeMap<IpAddr, String>, HostError> {
        self.repeatedly(|this| {
            let mut entries = if this.alone { BTreeMap::new() } else { this.entries_elsewhere()? };
            entries.extend(match this.kind {
                BackendKind::Nftables => this.read_native()?.entries(),
                _ => this.ipset_entries(this.plan.families)?,
            });
            Ok(entries)
        })
    }

    /// Takes rules and sets away, of every backend; tells whether there were any.
    ///
    /// # Errors
    ///
    /// As for [`HostProbes::set_up`].
    pub fn remove(&mut self) -> Result<bool, HostError> {
        self.repeatedly(|this| {
            let _lock = this.lock.acquire(this.conditions.lock_timeout)?;
            let there = this.survey()?;
            let mut removed = false;
            if there.nftables.is_some() {
                let held = this.read_native()?;
                removed |= probes::remove(&mut this.netfilter, &held)?;
            }
            Ok(this.remove_iptables(&there, Stay::Nothing)? | removed)
        })
    }

    fn survey(&mut self) -> Result<Survey, HostError> {
        survey::survey(Some(&mut self.netfilter)).map_err(|source| HostError::List { what: "the tables", source })
    }

    /// The entries of the other kind of set, where an agent before this one, or another
    /// mesh's, used another backend.
    fn entries_elsewhere(&mut self) -> Result<BTreeMap<IpAddr, String>, HostError> {
        match self.kind {
            BackendKind::Nftables => self.ipset_entries(Families::BOTH),
            _ => match self.survey()?.nftables {
                Some(_) => Ok(self.read_native()?.entries()),
                None => Ok(BTreeMap::new()),
            },
        }
    }

    /// Takes away what other backends hold, once this one holds everything.
    fn leave_others(&mut self) -> Result<bool, HostError> {
        let there = self.survey()?;
        match self.kind {
            BackendKind::Nftables => self.remove_iptables(&there, Stay::WhatMust),
            kind => {
                let mut removed = false;
                if there.nftables.is_some() {
                    let held = self.read_native()?;
                    removed |= probes::remove(&mut self.netfilter, &held)?;
                }
                let own = if kind == BackendKind::IptablesNft { Variant::Nft } else { Variant::Legacy };
                Ok(self.remove_iptables(&there, Stay::Variant(own))? | removed)
            }
        }
    }

    fn make(&mut self, rules: bool, entries: &Entries) -> Result<bool, HostError> {
        let _lock = self.lock.acquire(self.conditions.lock_timeout)?;
        // Who only changes entries does so in sets that were set up. And no probe is to be
        // without its set, nor meet two rules, where a backend takes the place of another.
        let moves = rules && !self.alone;
        let elsewhere = if moves { self.entries_elsewhere()? } else { BTreeMap::new() };
        let mut written = match self.kind {
            BackendKind::Nftables => {
                let held = self.read_native()?;
                let have = elsewhere.into_iter().chain(held.entries()).collect();
                let entries = entries.of(&self.plan, have);
                let wanted = WantedProbes { plan: &self.plan, rules, entries: &entries };
                probes::write(&mut self.netfilter, &held, &wanted)?
            }
            _ => self.make_iptables(rules, entries, &elsewhere)?,
        };
        if moves {
            written |= self.leave_others()?;
            self.alone = true;
        }
        Ok(written)
    }

    fn read_native(&mut self) -> Result<probes::HeldProbes, HostError> {
        probes::read(&mut self.netfilter)
            .map_err(|source| HostError::List { what: "nf_tables' rules and sets", source })
    }

    /// Begins again when somebody else changed the rules between reading and writing.
    fn repeatedly<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T, HostError>) -> Result<T, HostError> {
        let mut attempt = 1;
        loop {
            match work(self) {
                Err(error) if error.raced() && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }
}
