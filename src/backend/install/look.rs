//! Looking at what a namespace holds, and choosing the backend by it.

use std::collections::BTreeSet;
use std::io;

use tracing::debug;

use crate::backend::conditions::Conditions;
use crate::backend::guard::Guard;
use crate::backend::interference;
use crate::backend::iptables::parse::Saved;
use crate::backend::iptables::programs::{Programs, Variant};
use crate::backend::limit::Most;
use crate::backend::listing::{self, Holder};
use crate::backend::nftables::survey::Tables;
use crate::backend::nftables::{list, tables};
use crate::backend::ours::{self, Holding};
use crate::backend::routing::{self, FoundRouting, RoutingError};
use crate::backend::survey::{self, Survey};
use crate::backend::{BackendKind, Backup, Reading};
use crate::config::settings::BackendChoice;
use crate::config::types::{Families, Family, Mark};
use crate::plan::model::{Dataplane, Plan};

use super::Session;
use super::error::{self, InstallError};
use super::outcome::{Action, Prospect};

/// The most rules and elements of others' that an installation looks at: reading them takes
/// milliseconds.
const MOST_OF_OTHERS: usize = 10_000;
const MOST: Most = Most { rules: MOST_OF_OTHERS, elements: MOST_OF_OTHERS };

/// What the kernel holds of an interception.
pub(super) struct KernelState {
    pub(super) survey: Survey,
    pub(super) readings: Vec<(BackendKind, Reading)>,
    pub(super) routing: FoundRouting,
    pub(super) guard: Option<Guard>,
    /// iptables-legacy has tables, and no program to list them.
    pub(super) legacy_unknown: bool,
    /// Backends that hold rules for another dataplane.
    pub(super) of_others: Vec<(BackendKind, Dataplane)>,
}

impl KernelState {
    pub(super) fn reading(&self, kind: BackendKind) -> Reading {
        let found = self.readings.iter().find(|(k, _)| *k == kind);
        found.map_or_else(Reading::nothing, |(_, reading)| reading.clone())
    }

    pub(super) fn holds(&self, kind: BackendKind) -> bool {
        self.readings.iter().any(|(k, reading)| *k == kind && reading.present)
    }

    /// The plans of the backends that hold rules.
    pub(super) fn plans(&self) -> impl Iterator<Item = &Plan> {
        self.readings.iter().filter(|(_, reading)| reading.present).map(|(_, reading)| &reading.plan)
    }

    /// The families in which an iptables variant has tables.
    pub(super) fn families(&self, kind: BackendKind) -> Families {
        match kind {
            BackendKind::Nftables => Families::NONE,
            BackendKind::IptablesNft => self.survey.iptables_nft_tables(),
            BackendKind::IptablesLegacy => self.survey.iptables_legacy,
        }
    }

    /// Whether iptables-legacy has rules of anybody.
    pub(super) fn legacy_has_rules(&self) -> bool {
        self.readings.iter().any(|(kind, reading)| {
            *kind == BackendKind::IptablesLegacy
                && match &reading.backup {
                    Backup::Iptables(saved) => saved.values().flat_map(|s| &s.tables).any(|t| !t.rules.is_empty()),
                    _ => false,
                }
        })
    }
}

impl Session {
    /// Reads what the namespace holds. `mesh_address`: whether `::6` is on lo, where that is known
    /// already.
    pub(super) fn look(&mut self, wants_routes: bool, mesh_address: Option<bool>) -> Result<KernelState, InstallError> {
        let survey = survey::survey(self.netfilter.as_mut()).map_err(error::survey)?;
        self.tables = survey.nftables.clone().unwrap_or_default();
        let mut found = KernelState {
            readings: Vec::new(),
            routing: FoundRouting { mesh_address: mesh_address.unwrap_or_default(), ..FoundRouting::default() },
            guard: Guard::left_behind(&survey),
            legacy_unknown: false,
            of_others: Vec::new(),
            survey,
        };
        // `::6` is a sidecar's.
        let mesh_address = if self.dataplane == Dataplane::Sidecar { mesh_address } else { Some(false) };
        let has = |dataplane| self.tables.ours(dataplane).next().is_some();
        let has_nft = has(self.dataplane);
        let other = match self.dataplane {
            Dataplane::Sidecar => Dataplane::Ambient,
            _ => Dataplane::Sidecar,
        };
        found.of_others.extend(has(other).then_some((BackendKind::Nftables, other)));
        if has_nft {
            self.read_into(BackendKind::Nftables, Families::NONE, &mut found)?;
        }
        if found.survey.iptables_nft {
            let families = found.survey.iptables_nft_tables();
            if families.iter().all(|family| self.programs(Variant::Nft).exist(family)) {
                self.read_into(BackendKind::IptablesNft, families, &mut found)?;
            } else {
                self.read_without_programs(&mut found)?;
            }
        }
        let legacy = found.survey.iptables_legacy;
        if !legacy.is_empty() {
            let programs = self.programs(Variant::Legacy);
            if legacy.iter().all(|family| programs.exist(family)) {
                self.read_into(BackendKind::IptablesLegacy, legacy, &mut found)?;
            } else {
                found.legacy_unknown = true;
            }
        }
        if found.guard.is_none() {
            found.guard = found.readings.iter().find_map(|(_, reading)| Guard::in_iptables(reading));
        }
        if mesh_address.is_none() {
            let addresses = routing::addresses(&mut self.route);
            let addresses = addresses.map_err(|source| RoutingError::List { what: "addresses", source })?;
            found.routing.mesh_address = routing::has_mesh_address(&addresses);
        }
        found.routing.rules = routing::mark_rules(&mut self.route)?;
        if wants_routes || !found.routing.rules.is_empty() || found.guard.is_some() {
            found.routing.routes = routing::local_routes(&mut self.route)?;
        }
        Ok(found)
    }

    fn read_into(
        &mut self,
        kind: BackendKind,
        families: Families,
        found: &mut KernelState,
    ) -> Result<(), InstallError> {
        let reading = self.backend(kind, families)?.read()?;
        debug!(backend = kind.name(), present = reading.present, rules = reading.plan.rule_count(), "read");
        let whose = match &reading.backup {
            Backup::Iptables(saved) => saved.values().flat_map(Saved::whose).collect(),
            _ => BTreeSet::new(),
        };
        found.of_others.extend(whose.iter().filter(|whose| **whose != self.dataplane).map(|whose| (kind, *whose)));
        if !whose.is_empty() && !whose.contains(&self.dataplane) {
            return Ok(());
        }
        found.readings.push((kind, reading));
        Ok(())
    }

    /// Reads what iptables-nft holds as nf_tables itself tells it, where its programs are not
    /// there. Such rules can be held against a plan, and not be changed.
    fn read_without_programs(&mut self, found: &mut KernelState) -> Result<(), InstallError> {
        const HOLDER: Holder = Holder::Kernel(BackendKind::IptablesNft);
        let netlink = self.netfilter.as_mut().ok_or(InstallError::NoNftables)?;
        let all = list::everything(netlink, MOST).map_err(error::survey)?;
        let tables = tables::listed(&all);
        let Holding { plan, strange, .. } =
            ours::of_holder(HOLDER, &tables.iter().filter(|table| table.holder == HOLDER).collect::<Vec<_>>());
        debug!(rules = plan.rule_count(), "read what iptables-nft holds without its programs");
        if plan.families.is_empty() {
            return Ok(());
        }
        if plan.dataplane != self.dataplane {
            found.of_others.push((BackendKind::IptablesNft, plan.dataplane));
            return Ok(());
        }
        let reading = Reading { present: true, plan, strange, backup: Backup::Nothing };
        found.readings.push((BackendKind::IptablesNft, reading));
        Ok(())
    }

    /// What is to be said of rules of others that can keep the plan's from working. Where nobody
    /// else has a table nothing is read for it.
    pub(super) fn interference(
        &mut self,
        found: &KernelState,
        plan: &Plan,
        kind: BackendKind,
    ) -> Result<Option<String>, InstallError> {
        let mut tables = Vec::new();
        let saved = |kind| found.readings.iter().find(|(k, _)| *k == kind).map(|(_, reading)| &reading.backup);
        let of_others = found.survey.nftables.as_ref().is_some_and(Tables::has_others);
        let unread = !found.survey.iptables_nft_tables().is_empty() && saved(BackendKind::IptablesNft).is_none();
        let mut listed = vec![BackendKind::IptablesLegacy];
        match self.netfilter.as_mut().filter(|_| of_others || unread) {
            None => listed.push(BackendKind::IptablesNft),
            Some(netlink) => match list::everything(netlink, MOST) {
                Ok(all) => tables.extend(tables::listed(&all)),
                Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                    return Ok(Some(format!(
                        "there are more than {MOST_OF_OTHERS} rules or elements of sets of others: whether they keep the interception from working is not looked at"
                    )));
                }
                Err(e) => return Err(error::survey(e)),
            },
        }
        for kind in listed {
            let Some(Backup::Iptables(saved)) = saved(kind) else { continue };
            for (family, saved) in saved {
                tables.extend(listing::of_saved(saved.clone(), *family, Holder::Kernel(kind)));
            }
        }
        if tables.is_empty() {
            return Ok(None);
        }
        debug!(tables = tables.len(), "rules of others are looked at");
        listing::make_printable(&mut tables);
        let found = interference::find(&tables, plan, kind);
        Ok((!found.is_empty()).then(|| interference::told(&found)))
    }

    /// The backend to use, by what is asked for and what is there.
    pub(super) fn choose(&self, choice: BackendChoice, found: &KernelState, warnings: &mut Vec<String>) -> BackendKind {
        if found.legacy_unknown {
            warnings.push("iptables-legacy has tables in this namespace, but there is no iptables-legacy-save to tell what they hold: an interception in them, if any, stays".into());
        }
        choose(choice, found, &|variant| self.programs(variant).exist(Family::V4), warnings)
    }
}

/// The backend that would be used in a namespace without any rules, on a kernel with nf_tables: for a
/// dry run that cannot read the kernel.
pub fn choose_unseen(conditions: &Conditions, choice: BackendChoice) -> Prospect {
    let nothing = KernelState {
        survey: Survey { nftables: Some(Tables::default()), ..Survey::default() },
        readings: Vec::new(),
        routing: FoundRouting::default(),
        guard: None,
        legacy_unknown: false,
        of_others: Vec::new(),
    };
    let programs = |variant| Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout);
    let mut warnings = Vec::new();
    let backend = choose(choice, &nothing, &|variant| programs(variant).exist(Family::V4), &mut warnings);
    Prospect { backend, would: Ok(Action::Installed), warnings }
}

fn choose(
    choice: BackendChoice,
    found: &KernelState,
    installed: &dyn Fn(Variant) -> bool,
    warnings: &mut Vec<String>,
) -> BackendKind {
    let holder = |kinds: &[BackendKind]| kinds.iter().copied().find(|&kind| found.holds(kind));
    let iptables = [BackendKind::IptablesNft, BackendKind::IptablesLegacy];
    match choice {
        BackendChoice::Nftables => BackendKind::Nftables,
        BackendChoice::IptablesNft => BackendKind::IptablesNft,
        BackendChoice::IptablesLegacy => BackendKind::IptablesLegacy,
        BackendChoice::Auto => match holder(&BackendKind::ALL) {
            Some(kind) => kind,
            None if found.survey.nftables.is_some() => BackendKind::Nftables,
            None if installed(Variant::Nft) => BackendKind::IptablesNft,
            None => BackendKind::IptablesLegacy,
        },
        BackendChoice::AutoIptables => {
            let tables = |kind: &BackendKind| match kind {
                BackendKind::IptablesLegacy => found.legacy_has_rules(),
                _ => !found.survey.iptables_nft_tables().is_empty(),
            };
            let usable = |kind: &BackendKind| match kind {
                BackendKind::IptablesLegacy => installed(Variant::Legacy),
                _ => found.survey.nftables.is_some() && installed(Variant::Nft),
            };
            let in_use = iptables.iter().copied().filter(usable).find(|kind| tables(kind));
            match holder(&iptables).or(in_use).or_else(|| iptables.iter().copied().find(usable)) {
                Some(kind) => kind,
                None if found.survey.nftables.is_some() => {
                    warnings.push("there is no iptables program here: native nftables is used".into());
                    BackendKind::Nftables
                }
                None => BackendKind::IptablesLegacy,
            }
        }
    }
}

/// The marks that the rules found set or ask for.
pub(super) fn marks(found: &KernelState) -> Vec<Mark> {
    found.readings.iter().flat_map(|(_, reading)| reading.plan.marks()).collect()
}
