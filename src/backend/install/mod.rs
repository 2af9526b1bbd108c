//! Installing and removing: reads what is held, decides what has to be done, does it, and undoes
//! everything when a part of it fails.
//!
//! The order is: the guard, if one is needed; routing, which has no effect without rules; the rules;
//! removing what another backend holds; ending connections that lose their mark; removing the guard. On
//! failure all steps are undone in reverse order, behind the same guard.

mod compare;
mod error;
mod execute;
mod forsaken;
mod look;
mod outcome;

use std::borrow::Cow;
use std::time::Instant;

use tracing::{Level, debug, enabled, warn};

use crate::backend::conditions::Conditions;
use crate::backend::guard::Guard;
use crate::backend::held::Held;
use crate::backend::iptables::backend::Iptables;
use crate::backend::iptables::programs::{Programs, Variant};
use crate::backend::nftables::backend::Nftables;
use crate::backend::nftables::survey::Tables;
use crate::backend::routing::FoundRouting;
use crate::backend::routing::changes::Changes;
use crate::backend::{Backend, BackendError, BackendKind, Reading};
use crate::config::types::{Families, Family, RouteTable};
use crate::plan::diff;
use crate::plan::model::{Dataplane, Plan, Routing};
use crate::sys::lock;
use crate::sys::netlink::Netlink;
use crate::sys::proc_net;

use compare::{adds_nothing, holds, is_unfinished};
pub use error::InstallError;
use forsaken::{Lost, Marks};
pub use look::choose_unseen;
use look::{KernelState, marks};
pub use outcome::{Action, InstallRequest, Outcome, Prospect};

/// How often an operation is repeated when the rules change meanwhile.
const ATTEMPTS: usize = 20;

/// What an install has to do, and from where it starts.
struct InstallDecision {
    action: Action,
    /// What the chosen backend holds.
    reading: Reading,
    /// The routing that belongs to the interception.
    ours: FoundRouting,
    /// Other backends with rules of an interception, which are removed.
    elsewhere: Vec<BackendKind>,
}

/// A step that was done, with what undoing it takes.
enum UndoableStep {
    /// A guard is up. `left`: a killed run left it, so undoing keeps it.
    Guard {
        guard: Guard,
        held: Held,
        left: bool,
    },
    /// The guard was removed; undoing puts it up again first.
    Lowered {
        guard: Guard,
        held: Held,
        lost_by_undo: Lost,
    },
    Routing(Changes),
    Rules {
        kind: BackendKind,
        found: Reading,
        families: Families,
    },
}

/// A locked network namespace whose rules are changed: the calling thread's.
pub struct Session {
    conditions: Conditions,
    programs_nft: Programs,
    programs_legacy: Programs,
    netfilter: Option<Netlink>,
    route: Netlink,
    /// The dataplane whose rules are installed and removed; others are not touched.
    dataplane: Dataplane,
    /// nf_tables' tables as last looked at: a transaction is refused if they have changed since.
    tables: Tables,
    done: Vec<UndoableStep>,
    _lock: lock::Lock,
}

impl Session {
    /// Takes the current namespace's lock and opens sockets, to work on a sidecar's
    /// interception; `route` is one that is open already.
    ///
    /// # Errors
    ///
    /// Somebody else holds the lock, or a socket could not be opened.
    pub fn open(conditions: Conditions, route: Netlink) -> Result<Self, InstallError> {
        Self::open_for(Dataplane::Sidecar, conditions, route)
    }

    /// Takes the current namespace's lock and opens sockets, to work on the rules of a dataplane.
    ///
    /// # Errors
    ///
    /// The lock is not to be had, or netlink is not.
    pub fn open_for(dataplane: Dataplane, conditions: Conditions, route: Netlink) -> Result<Self, InstallError> {
        let lock = lock::acquire(conditions.lock_timeout)?;
        let netfilter = match Netlink::open(Netlink::NETFILTER) {
            Ok(netlink) => Some(netlink),
            Err(e) if crate::backend::survey::is_unsupported(&e) => None,
            Err(e) => return Err(InstallError::Socket(e)),
        };
        let programs = |variant| Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout);
        Ok(Self {
            programs_nft: programs(Variant::Nft),
            programs_legacy: programs(Variant::Legacy),
            conditions,
            netfilter,
            route,
            dataplane,
            tables: Tables::default(),
            done: Vec::new(),
            _lock: lock,
        })
    }

    /// Makes the kernel hold the plan. `mesh_address`: whether `::6` was on lo a moment ago.
    ///
    /// # Errors
    ///
    /// What was refused, by whom; the namespace is as it was before, or the error says what could
    /// not be put back.
    pub fn install(&mut self, request: &InstallRequest, mesh_address: bool) -> Result<Outcome, InstallError> {
        self.repeatedly(|session| session.try_install(request, mesh_address))
    }

    /// Removes every trace of an interception from every backend.
    ///
    /// # Errors
    ///
    /// What was refused, by whom; the namespace is as it was before, or the error says what could
    /// not be put back.
    pub fn clean(&mut self) -> Result<Outcome, InstallError> {
        self.repeatedly(Self::try_clean)
    }

    /// Begins again when somebody else changed the rules between reading and writing.
    fn repeatedly<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T, InstallError>) -> Result<T, InstallError> {
        let mut attempt = 1;
        loop {
            let error = match work(self) {
                Ok(value) => return Ok(value),
                Err(error) => self.take_back(error)?,
            };
            if attempt == ATTEMPTS || !error.raced() {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// What every backend holds of an interception, routing included.
    ///
    /// # Errors
    ///
    /// A backend or routing could not be read.
    pub fn read(&mut self, wanted: &Routing) -> Result<Vec<(BackendKind, Reading)>, InstallError> {
        let found = self.look(true, None)?;
        let routing = found.routing.ours(self.dataplane, &marks(&found), wanted).routing();
        let mut readings = found.readings;
        readings.retain(|(_, reading)| reading.present);
        readings.iter_mut().for_each(|(_, reading)| reading.plan.routing = routing.clone());
        Ok(readings)
    }

    /// Undoes what was done; gives the error back, or says that undoing failed too.
    fn take_back(&mut self, error: InstallError) -> Result<InstallError, InstallError> {
        match self.undo() {
            Ok(()) => Ok(error),
            Err((undo, guarded)) => Err(InstallError::Stuck {
                error: Box::new(error),
                undo,
                left: error::left_behind(self.dataplane, guarded),
            }),
        }
    }

    /// Takes back the last install or clean. On failure the guard stays up.
    ///
    /// # Errors
    ///
    /// What could not be put back, and whether the guard is still up.
    pub fn undo(&mut self) -> Result<(), (String, bool)> {
        let mut problems: Vec<String> = Vec::new();
        let (mut guarded, mut lost) = (false, None);
        for done in std::mem::take(&mut self.done).into_iter().rev() {
            match done {
                UndoableStep::Lowered { guard, held, lost_by_undo } => {
                    problems.extend(self.raise_again(&guard, &held).err().map(|e| e.to_string()));
                    lost = Some(lost_by_undo);
                }
                UndoableStep::Guard { left: true, .. } => {}
                UndoableStep::Guard { guard, .. } if problems.is_empty() => {
                    let said = lost.take().and_then(|lost| forsaken::end(&lost, &mut self.route));
                    said.into_iter().for_each(|said| warn!("{said}"));
                    if let Err(e) = guard.lower(self.netfilter.as_mut(), &self.conditions) {
                        problems.push(e.to_string());
                        guarded = true;
                    }
                }
                UndoableStep::Guard { .. } => guarded = true,
                UndoableStep::Routing(changes) => {
                    problems.extend(changes.undo(&mut self.route).err().map(|e| e.to_string()))
                }
                UndoableStep::Rules { kind, found, families } => {
                    let result = self.backend(kind, families).and_then(|mut b| Ok(b.restore(&found)?));
                    problems.extend(result.err().map(|e| e.to_string()));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err((problems.join("; "), guarded)) }
    }

    fn programs(&self, variant: Variant) -> &Programs {
        match variant {
            Variant::Nft => &self.programs_nft,
            Variant::Legacy => &self.programs_legacy,
        }
    }

    /// The backend of a kind. `families`: those in which an iptables variant has tables.
    fn backend(&mut self, kind: BackendKind, families: Families) -> Result<Box<dyn Backend + '_>, InstallError> {
        let comments = self.conditions.rule_comments;
        Ok(match kind {
            BackendKind::Nftables => {
                let netlink = self.netfilter.as_mut().ok_or(InstallError::NoNftables)?;
                Box::new(Nftables::new(netlink, self.tables.clone(), self.dataplane))
            }
            BackendKind::IptablesNft => Box::new(Iptables::new(&self.programs_nft, comments, families)),
            BackendKind::IptablesLegacy => Box::new(Iptables::new(&self.programs_legacy, comments, families)),
        })
    }

    fn try_install(&mut self, request: &InstallRequest, mesh_address: bool) -> Result<Outcome, InstallError> {
        let plan = request.plan;
        let started = Instant::now();
        let mut found = self.look(!plan.routing.routes.is_empty(), Some(mesh_address))?;
        if mesh_address != plan.routing.mesh_address && found.readings.iter().any(|(_, reading)| reading.present) {
            // Read before the lock was ours, and whoever had it may have changed it.
            found = self.look(!plan.routing.routes.is_empty(), None)?;
        }
        let read = started.elapsed();
        let mut warnings = Vec::new();
        let kind = self.choose(request.choice, &found, &mut warnings);
        let plan = without_routes_by_lo(request.plan, &found.routing.routes, &mut warnings);
        let request = &InstallRequest { plan: &plan, ..*request };
        let InstallDecision { action, reading, ours, elsewhere } = self.decide(request, &found, kind, &mut warnings)?;
        if action != Action::Unchanged {
            warnings.extend(self.execute(request, kind, &found, &reading, &ours, &elsewhere)?);
        }
        Ok(Outcome { action, backend: kind, removed_from: elsewhere, warnings, read })
    }

    /// What [`Session::install`] would do in this namespace.
    ///
    /// # Errors
    ///
    /// That this namespace's rules cannot be looked at. What an install would fail for is no
    /// error: it is in the prospect.
    pub fn foresee(&mut self, request: &InstallRequest) -> Result<Prospect, InstallError> {
        let found = self.look(!request.plan.routing.routes.is_empty(), None)?;
        let mut warnings = Vec::new();
        let backend = self.choose(request.choice, &found, &mut warnings);
        let plan = without_routes_by_lo(request.plan, &found.routing.routes, &mut warnings);
        let request = &InstallRequest { plan: &plan, ..*request };
        let would = self.decide(request, &found, backend, &mut warnings).map(|decision| decision.action);
        Ok(Prospect { backend, would, warnings })
    }

    /// Decides what an installation has to do, by what is held.
    fn decide(
        &mut self,
        request: &InstallRequest,
        found: &KernelState,
        kind: BackendKind,
        warnings: &mut Vec<String>,
    ) -> Result<InstallDecision, InstallError> {
        let plan = request.plan;
        if kind == BackendKind::Nftables && found.survey.nftables.is_none() {
            return Err(InstallError::NoNftables);
        }
        if let Some(&(backend, there)) = found.of_others.first() {
            return Err(InstallError::OtherDataplane { backend, there, wanted: self.dataplane });
        }
        debug!(backend = kind.name(), asked = ?request.choice, "backend chosen");
        if let Some(problem) = self.interference(found, plan, kind)? {
            if request.strict {
                return Err(InstallError::Interference { problem });
            }
            warnings
                .push(format!("{problem}; podweir audit --live tells what, --strict refuses to install beside them"));
        }
        let reading = found.reading(kind);
        let ours = found.routing.ours(self.dataplane, &marks(found), &plan.routing);
        let elsewhere: Vec<BackendKind> =
            BackendKind::ALL.into_iter().filter(|&k| k != kind && found.holds(k)).collect();
        let have_routing = ours.routing().normalised();
        let same_rules = holds(&reading, plan);
        let same = same_rules && have_routing == plan.routing.normalised();
        if same && elsewhere.is_empty() && found.guard.is_none() && !request.force {
            return Ok(InstallDecision { action: Action::Unchanged, reading, ours, elsewhere });
        }
        let moves = same_rules && !elsewhere.is_empty();
        let moved = moves && elsewhere.iter().all(|&kind| adds_nothing(plan, &found.reading(kind)));
        let interrupted = found.guard.is_some() || is_unfinished(&reading) || moved;
        let differs = (reading.present && !same) || !elsewhere.is_empty();
        let refuses = kind != BackendKind::Nftables && differs && !interrupted && !request.reconcile;
        let mut differences: Vec<String> = Vec::new();
        if reading.present && differs && (refuses || enabled!(Level::DEBUG)) {
            let have = Plan { routing: have_routing, ..reading.plan.clone() };
            differences.extend(diff::from_plan(plan, &have).iter().map(ToString::to_string));
            differences.extend(reading.strange.iter().map(ToString::to_string));
            differences.iter().for_each(|difference| debug!("{difference}"));
        }
        if refuses {
            let removal = self.dataplane.removal();
            return Err(InstallError::Drift { backend: kind, elsewhere, differences, removal });
        }
        self.check_programs(kind, plan.families)?;
        for &other in &elsewhere {
            self.check_programs(other, found.reading(other).plan.families)?;
        }
        let action = if reading.present || !elsewhere.is_empty() { Action::Replaced } else { Action::Installed };
        Ok(InstallDecision { action, reading, ours, elsewhere })
    }

    /// Whether the programs that a backend needs are there, before anything is touched.
    fn check_programs(&self, kind: BackendKind, families: Families) -> Result<(), InstallError> {
        let variant = match kind {
            BackendKind::Nftables => return Ok(()),
            BackendKind::IptablesNft => Variant::Nft,
            BackendKind::IptablesLegacy => Variant::Legacy,
        };
        let programs = self.programs(variant);
        families.iter().try_for_each(|family| programs.check(family).map_err(BackendError::from))?;
        Ok(())
    }

    fn try_clean(&mut self) -> Result<Outcome, InstallError> {
        let started = Instant::now();
        let found = self.look(true, None)?;
        let read = started.elapsed();
        if found.legacy_unknown {
            return Err(InstallError::CannotTellLegacy);
        }
        let ours = found.routing.ours(self.dataplane, &marks(&found), &Routing::default());
        let holders: Vec<BackendKind> = BackendKind::ALL.into_iter().filter(|&kind| found.holds(kind)).collect();
        let nothing = holders.is_empty() && ours.routing().is_empty() && found.guard.is_none();
        if let Some(guard) = found.guard.clone() {
            let held = Held::of(&Plan::nothing_of(self.dataplane), found.plans());
            self.done.push(UndoableStep::Guard { guard, held, left: true });
        }
        for &kind in &holders {
            self.check_programs(kind, found.reading(kind).plan.families)?;
        }
        for &kind in &holders {
            self.remove(kind, &found)?;
        }
        let changes = Changes::apply(&mut self.route, &ours, &Routing::default())?;
        self.done.push(UndoableStep::Routing(changes));
        let was = forsaken::marks(found.plans());
        let lost = if found.guard.is_some() { Lost::AllBut(Marks::new()) } else { Lost::These(was) };
        let said = forsaken::end(&lost, &mut self.route);
        let stays = found.of_others.iter().map(|&(kind, there)| stays(kind, there));
        let warnings = said.into_iter().chain(stays).collect();
        self.lower_guard(&Lost::These(Marks::new()))?;
        self.sweep(&found);
        Ok(Outcome {
            action: if nothing { Action::Nothing } else { Action::Removed },
            backend: holders.first().copied().unwrap_or(BackendKind::Nftables),
            removed_from: holders,
            warnings,
            read,
        })
    }
}

/// A note about rules of another dataplane, which are not removed.
fn stays(kind: BackendKind, there: Dataplane) -> String {
    format!("{} stays in {kind}: {} removes it", there.rules(), there.removal())
}

/// The plan without the IPv6 routes of ambient mode that this namespace cannot have: where lo
/// has no IPv6, no packet comes back by it either.
pub(super) fn without_routes_by_lo<'a>(
    plan: &'a Plan,
    found: &[(Family, RouteTable)],
    warnings: &mut Vec<String>,
) -> Cow<'a, Plan> {
    let v6 = |(family, _): &(Family, RouteTable)| *family == Family::V6;
    let missing = plan.routing.routes.iter().any(|route| v6(route) && !found.contains(route));
    let mut plan = Cow::Borrowed(plan);
    if plan.dataplane == Dataplane::Ambient && missing && proc_net::is_without_ipv6("lo") {
        plan.to_mut().routing.routes.retain(|route| !v6(route));
        warnings.push("IPv6 is disabled on lo (sysctl net.ipv6.conf.lo.disable_ipv6): answers of the app to IPv6 connections of ztunnel do not come back to it; enable it, or leave the family out with --ip-families ipv4 (podweir node run: --ambient-ip-families ipv4)".into());
    }
    plan
}
