//! Installing and removing: reads what is there, decides what has to be done, does it,
//! and takes everything back when a part of it fails.
//!
//! Order: the guard, if one is needed; routing, which without rules does nothing; the
//! rules; what another backend holds; the guard goes. Everything done is undone in
//! reverse order on failure.

use std::io;
use std::time::{Duration, Instant};

use tracing::{Level, debug, enabled};

use crate::audit::compare;
use crate::config::settings::BackendChoice;
use crate::config::types::{Families, Family, Mark};
use crate::plan::canon::Canon;
use crate::plan::model::{ChainName, Plan, Routing, Table};
use crate::sys::lock::{self, LockError};
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::guard::{self, Guard};
use super::iptables::backend::Iptables;
use super::iptables::programs::{ProgramEnvironment, Programs, Variant};
use super::nftables::backend::Nftables;
use super::nftables::cleanup;
use super::nftables::read::Tables;
use super::nftables::transaction::TransactionError;
use super::routing::{self, Changes, FoundRouting, RoutingError};
use super::survey::{self, Survey};
use super::{Backend, BackendError, Kind, Reading};

/// How often to begin again when others change the rules at the same time.
const ATTEMPTS: usize = 20;

/// Why nothing was installed or removed. The state before the call is back, unless the
/// message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error("cannot look at the kernel's rules: {source}{hint}")]
    Survey { source: io::Error, hint: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error("cannot guard the change: {0}")]
    Guard(#[from] guard::GuardError),
    #[error("the kernel has no nf_tables: load the module nf_tables on the node, or use --backend iptables-legacy")]
    NoNftables,
    #[error("{}", drift_message(.backend, .elsewhere, .differences))]
    Drift { backend: Kind, elsewhere: Vec<Kind>, differences: Vec<String> },
    #[error(
        "iptables-legacy has tables in this namespace, but there is no iptables-legacy-save to tell what they hold; install the package iptables here, or run where it is"
    )]
    CannotTellLegacy,
    #[error("{error}; going back failed too: {undo}; {left}")]
    Stuck { error: Box<InstallError>, undo: String, left: &'static str },
}

fn drift_message(backend: &Kind, elsewhere: &[Kind], differences: &[String]) -> String {
    let mut out = String::new();
    for other in elsewhere {
        out += &format!("rules of an interception are in {other} already, and {backend} is to be used; ");
    }
    if !differences.is_empty() {
        out += &format!("the rules in {backend} differ from the plan:\n  {}\n", differences.join("\n  "));
    }
    out + "give --reconcile to replace them, or remove them with podweir clean"
}

impl InstallError {
    /// Whether somebody else changed the rules meanwhile, so that trying again may help.
    fn raced(&self) -> bool {
        match self {
            Self::Backend(error) => error.raced(),
            Self::Survey { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            Self::Routing(RoutingError::List { source, .. }) => source.kind() == io::ErrorKind::Interrupted,
            _ => false,
        }
    }
}

/// What to install, and how.
pub struct Request<'a> {
    pub plan: &'a Plan,
    pub choice: BackendChoice,
    pub reconcile: bool,
    pub force: bool,
}

/// How to run in this namespace.
#[derive(Debug, Clone)]
pub struct Conditions {
    pub rule_comments: bool,
    pub lock_timeout: Duration,
    pub programs: ProgramEnvironment,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Installed,
    Replaced,
    /// The kernel held the plan already: nothing was written.
    Unchanged,
    Removed,
    /// There was nothing to remove.
    Nothing,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub action: Action,
    pub backend: Kind,
    /// Other backends from which rules were removed.
    pub removed_from: Vec<Kind>,
    pub warnings: Vec<String>,
    /// How long it took to read what was there.
    pub read: Duration,
}

/// Something done, with what it takes to undo it.
enum Done {
    Guard(Guard),
    Routing(Changes),
    Rules { kind: Kind, found: Reading, families: Families },
}

/// A network namespace being worked on: the current one.
pub struct Session {
    conditions: Conditions,
    programs_nft: Programs,
    programs_legacy: Programs,
    netfilter: Option<Netlink>,
    route: Netlink,
    /// nf_tables' tables as last looked at: a transaction is refused if they have changed since.
    tables: Tables,
    done: Vec<Done>,
    _lock: lock::Lock,
}

/// What is in the kernel.
struct Found {
    survey: Survey,
    readings: Vec<(Kind, Reading)>,
    routing: FoundRouting,
    guard: Option<Guard>,
    /// iptables-legacy has tables, and no program to list them.
    legacy_unknown: bool,
}

impl Found {
    fn reading(&self, kind: Kind) -> Reading {
        let found = self.readings.iter().find(|(k, _)| *k == kind);
        found.map_or_else(Reading::nothing, |(_, reading)| reading.clone())
    }

    fn holds(&self, kind: Kind) -> bool {
        self.readings.iter().any(|(k, reading)| *k == kind && reading.present)
    }
}

impl Session {
    /// Takes the current namespace's lock and opens sockets; `route` is one that is open already.
    pub fn open(conditions: Conditions, namespace: netns::Current, route: Netlink) -> Result<Self, InstallError> {
        let lock = lock::acquire(namespace.file, "the network namespace", conditions.lock_timeout)?;
        let netfilter = match Netlink::open(Netlink::NETFILTER) {
            Ok(netlink) => Some(netlink),
            Err(e) if survey::is_unsupported(&e) => None,
            Err(e) => return Err(InstallError::Socket(e)),
        };
        let programs = |variant| Programs::new(variant, conditions.programs.clone(), conditions.lock_timeout);
        Ok(Self {
            programs_nft: programs(Variant::Nft),
            programs_legacy: programs(Variant::Legacy),
            conditions,
            netfilter,
            route,
            tables: Tables::default(),
            done: Vec::new(),
            _lock: lock,
        })
    }

    /// Makes the kernel hold the plan. `mesh_address`: whether `::6` was on lo a moment ago.
    pub fn install(&mut self, request: &Request, mesh_address: bool) -> Result<Outcome, InstallError> {
        self.repeatedly(|session| session.try_install(request, mesh_address))
    }

    /// Removes every trace of an interception from every backend.
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
    pub fn read(&mut self, wanted: &Routing) -> Result<Vec<(Kind, Reading)>, InstallError> {
        let found = self.look(true, None)?;
        let routing = found.routing.ours(&marks(&found), wanted).routing();
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
                left: if guarded {
                    "all traffic of the namespace is dropped (table inet podweir-guard) until podweir init or podweir clean succeeds"
                } else {
                    "the rules may be incomplete: run podweir init or podweir clean"
                },
            }),
        }
    }

    /// Takes back the last install or clean. On failure the guard stays up.
    pub fn undo(&mut self) -> Result<(), (String, bool)> {
        let mut problems: Vec<String> = Vec::new();
        let mut guarded = false;
        for done in std::mem::take(&mut self.done).into_iter().rev() {
            match done {
                Done::Guard(guard) if problems.is_empty() => {
                    if let Err(e) = guard.lower(self.netfilter.as_mut(), &self.conditions) {
                        problems.push(e.to_string());
                        guarded = true;
                    }
                }
                Done::Guard(_) => guarded = true,
                Done::Routing(changes) => problems.extend(changes.undo(&mut self.route).err().map(|e| e.to_string())),
                Done::Rules { kind, found, families } => {
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

    /// A backend. `families`: those in which an iptables variant has tables.
    fn backend(&mut self, kind: Kind, families: Families) -> Result<Box<dyn Backend + '_>, InstallError> {
        let comments = self.conditions.rule_comments;
        Ok(match kind {
            Kind::Nftables => {
                let netlink = self.netfilter.as_mut().ok_or(InstallError::NoNftables)?;
                Box::new(Nftables::new(netlink, self.tables.clone()))
            }
            Kind::IptablesNft => Box::new(Iptables::new(&self.programs_nft, comments, families)),
            Kind::IptablesLegacy => Box::new(Iptables::new(&self.programs_legacy, comments, families)),
        })
    }

    /// What is there. `mesh_address`: whether `::6` is on lo, where that is known and decides nothing.
    fn look(&mut self, wants_routes: bool, mesh_address: Option<bool>) -> Result<Found, InstallError> {
        let survey = survey::survey(self.netfilter.as_mut()).map_err(survey_error)?;
        self.tables = survey.nftables.clone().unwrap_or_default();
        let mut found = Found {
            readings: Vec::new(),
            routing: FoundRouting { mesh_address: mesh_address.unwrap_or_default(), ..FoundRouting::default() },
            guard: Guard::left_behind(&survey),
            legacy_unknown: false,
            survey,
        };
        let has_nft = found.survey.nftables.as_ref().is_some_and(|tables| tables.ours().next().is_some());
        if has_nft {
            self.read_into(Kind::Nftables, Families::NONE, &mut found)?;
        }
        if found.survey.iptables_nft {
            let families = found.survey.iptables_nft_tables();
            self.read_into(Kind::IptablesNft, families, &mut found)?;
        }
        let legacy = found.survey.iptables_legacy;
        if !legacy.is_empty() {
            let programs = self.programs(Variant::Legacy);
            if legacy.iter().all(|family| programs.exist(family)) {
                self.read_into(Kind::IptablesLegacy, legacy, &mut found)?;
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

    fn read_into(&mut self, kind: Kind, families: Families, found: &mut Found) -> Result<(), InstallError> {
        let reading = self.backend(kind, families)?.read()?;
        debug!(backend = kind.name(), present = reading.present, rules = reading.plan.rule_count(), "read");
        found.readings.push((kind, reading));
        Ok(())
    }

    fn choose(&self, choice: BackendChoice, found: &Found, warnings: &mut Vec<String>) -> Result<Kind, InstallError> {
        let holder = |kinds: &[Kind]| kinds.iter().copied().find(|&kind| found.holds(kind));
        let iptables = [Kind::IptablesNft, Kind::IptablesLegacy];
        let installed = |variant| self.programs(variant).exist(Family::V4);
        Ok(match choice {
            BackendChoice::Nftables => Kind::Nftables,
            BackendChoice::IptablesNft => Kind::IptablesNft,
            BackendChoice::IptablesLegacy => Kind::IptablesLegacy,
            BackendChoice::Auto => match holder(&Kind::ALL) {
                Some(kind) => kind,
                None if found.survey.nftables.is_some() => Kind::Nftables,
                None if installed(Variant::Nft) => Kind::IptablesNft,
                None => Kind::IptablesLegacy,
            },
            BackendChoice::AutoIptables => {
                let tables = |kind: &Kind| match kind {
                    Kind::IptablesLegacy => found.legacy_has_rules(),
                    _ => !found.survey.iptables_nft_tables().is_empty(),
                };
                let usable = |kind: &Kind| match kind {
                    Kind::IptablesLegacy => installed(Variant::Legacy),
                    _ => found.survey.nftables.is_some() && installed(Variant::Nft),
                };
                let in_use = iptables.iter().copied().filter(usable).find(|kind| tables(kind));
                match holder(&iptables).or(in_use).or_else(|| iptables.iter().copied().find(usable)) {
                    Some(kind) => kind,
                    None if found.survey.nftables.is_some() => {
                        warnings.push("there is no iptables program here: native nftables is used".into());
                        Kind::Nftables
                    }
                    None => Kind::IptablesLegacy,
                }
            }
        })
    }

    fn try_install(&mut self, request: &Request, mesh_address: bool) -> Result<Outcome, InstallError> {
        let plan = request.plan;
        let started = Instant::now();
        let mut found = self.look(!plan.routing.routes.is_empty(), Some(mesh_address))?;
        if mesh_address != plan.routing.mesh_address && found.readings.iter().any(|(_, reading)| reading.present) {
            // Read before the lock was ours, and whoever had it may have changed it.
            found = self.look(!plan.routing.routes.is_empty(), None)?;
        }
        let read = started.elapsed();
        let mut warnings = Vec::new();
        let kind = self.choose(request.choice, &found, &mut warnings)?;
        if kind == Kind::Nftables && found.survey.nftables.is_none() {
            return Err(InstallError::NoNftables);
        }
        if found.legacy_unknown {
            warnings.push("iptables-legacy has tables in this namespace, but there is no iptables-legacy-save to tell what they hold: an interception in them, if any, stays".into());
        }
        debug!(backend = kind.name(), asked = ?request.choice, "backend chosen");
        let reading = found.reading(kind);
        let ours = found.routing.ours(&marks(&found), &plan.routing);
        let elsewhere: Vec<Kind> = Kind::ALL.into_iter().filter(|&k| k != kind && found.holds(k)).collect();
        let have_routing = ours.routing().normalised();
        let same_rules = holds(&reading, plan);
        let same = same_rules && have_routing == plan.routing.normalised();
        if same && elsewhere.is_empty() && found.guard.is_none() && !request.force {
            return Ok(Outcome { action: Action::Unchanged, backend: kind, removed_from: Vec::new(), warnings, read });
        }
        let interrupted = found.guard.is_some() || is_unfinished(&reading);
        let differs = (reading.present && !same) || !elsewhere.is_empty();
        let refuses = kind != Kind::Nftables && differs && !interrupted && !request.reconcile;
        let mut differences: Vec<String> = Vec::new();
        if reading.present && differs && (refuses || enabled!(Level::DEBUG)) {
            let have = Canon { routing: have_routing, ..Canon::of(&reading.plan) };
            differences.extend(compare::differences(&Canon::of(plan), &have).iter().map(ToString::to_string));
            differences.extend(reading.strange.iter().map(ToString::to_string));
            differences.iter().for_each(|difference| debug!("{difference}"));
        }
        if refuses {
            return Err(InstallError::Drift { backend: kind, elsewhere, differences });
        }
        self.check_programs(kind, plan)?;
        self.execute(request, kind, &found, &reading, &ours, &elsewhere)?;
        let action = if reading.present || !elsewhere.is_empty() { Action::Replaced } else { Action::Installed };
        Ok(Outcome { action, backend: kind, removed_from: elsewhere, warnings, read })
    }

    /// Whether the programs that a backend needs are there, before anything is touched.
    fn check_programs(&self, kind: Kind, plan: &Plan) -> Result<(), InstallError> {
        let variant = match kind {
            Kind::Nftables => return Ok(()),
            Kind::IptablesNft => Variant::Nft,
            Kind::IptablesLegacy => Variant::Legacy,
        };
        let programs = self.programs(variant);
        plan.families.iter().try_for_each(|family| programs.check(family).map_err(BackendError::from))?;
        Ok(())
    }

    fn execute(
        &mut self,
        request: &Request,
        kind: Kind,
        found: &Found,
        reading: &Reading,
        ours: &FoundRouting,
        elsewhere: &[Kind],
    ) -> Result<(), InstallError> {
        let plan = request.plan;
        let families = found.families(kind);
        let writes = request.force || !holds(reading, plan);
        let in_steps = writes && needs_guard(plan, reading) && self.backend(kind, families)?.steps(plan, reading) > 1;
        match &found.guard {
            // A killed run's guard serves this one.
            Some(guard) => self.done.push(Done::Guard(guard.clone())),
            None if in_steps => {
                debug!("the change takes more than one step: all traffic is held back meanwhile");
                let guard = Guard::raise(self.netfilter.as_mut(), &self.conditions, kind, plan.families)?;
                self.done.push(Done::Guard(guard));
            }
            None => {}
        }
        let changes = Changes::apply(&mut self.route, ours, &plan.routing)?;
        debug!(?changes, "routing done");
        self.done.push(Done::Routing(changes));
        if writes {
            let touched = families.union(plan.families);
            self.change(kind, reading, touched, |backend| backend.apply(plan, reading))?;
        }
        for &other in elsewhere {
            debug!(backend = other.name(), "removing what is there");
            self.remove(other, found)?;
        }
        self.lower_guard()?;
        self.sweep(found);
        Ok(())
    }

    /// Takes away tables of iptables-nft that held something of ours and hold nothing now.
    /// They have no effect: it is no failure if they stay.
    fn sweep(&mut self, found: &Found) {
        if let Some(netlink) = self.netfilter.as_mut().filter(|_| found.holds(Kind::IptablesNft)) {
            let _ = cleanup::remove_empty_iptables_tables(netlink);
        }
    }

    /// Lets a backend change its rules, and remembers what was there.
    fn change(
        &mut self,
        kind: Kind,
        reading: &Reading,
        families: Families,
        work: impl FnOnce(&mut dyn Backend) -> Result<(), BackendError>,
    ) -> Result<(), InstallError> {
        let result = work(&mut *self.backend(kind, families)?);
        // A refused transaction has changed nothing. In all other cases something may have
        // changed: iptables got halfway, or the kernel's answer was lost.
        if !matches!(&result, Err(error) if error.changed_nothing()) {
            self.done.push(Done::Rules { kind, found: reading.clone(), families });
        }
        Ok(result?)
    }

    fn remove(&mut self, kind: Kind, found: &Found) -> Result<(), InstallError> {
        let reading = found.reading(kind);
        self.change(kind, &reading, found.families(kind), |backend| backend.remove(&reading))
    }

    fn lower_guard(&mut self) -> Result<(), InstallError> {
        if let Some(Done::Guard(guard)) = self.done.first() {
            guard.lower(self.netfilter.as_mut(), &self.conditions)?;
            self.done.remove(0);
        }
        Ok(())
    }

    fn try_clean(&mut self) -> Result<Outcome, InstallError> {
        let started = Instant::now();
        let found = self.look(true, None)?;
        let read = started.elapsed();
        if found.legacy_unknown {
            return Err(InstallError::CannotTellLegacy);
        }
        let ours = found.routing.ours(&marks(&found), &Routing::default());
        let holders: Vec<Kind> = Kind::ALL.into_iter().filter(|&kind| found.holds(kind)).collect();
        let nothing = holders.is_empty() && ours.routing().is_empty() && found.guard.is_none();
        self.done.extend(found.guard.clone().map(Done::Guard));
        for &kind in &holders {
            self.remove(kind, &found)?;
        }
        let changes = Changes::apply(&mut self.route, &ours, &Routing::default())?;
        self.done.push(Done::Routing(changes));
        self.lower_guard()?;
        self.sweep(&found);
        Ok(Outcome {
            action: if nothing { Action::Nothing } else { Action::Removed },
            backend: holders.first().copied().unwrap_or(Kind::Nftables),
            removed_from: holders,
            warnings: Vec::new(),
            read,
        })
    }
}

impl Found {
    /// The families in which an iptables variant has tables.
    fn families(&self, kind: Kind) -> Families {
        match kind {
            Kind::Nftables => Families::NONE,
            Kind::IptablesNft => self.survey.iptables_nft_tables(),
            Kind::IptablesLegacy => self.survey.iptables_legacy,
        }
    }

    /// Whether iptables-legacy has rules of anybody.
    fn legacy_has_rules(&self) -> bool {
        self.readings.iter().any(|(kind, reading)| {
            *kind == Kind::IptablesLegacy
                && match &reading.backup {
                    super::Backup::Iptables(saved) => {
                        saved.values().flat_map(|s| &s.tables).any(|t| !t.rules.is_empty())
                    }
                    _ => false,
                }
        })
    }
}

fn survey_error(source: io::Error) -> InstallError {
    let denied = source.raw_os_error() == Some(nix::libc::EPERM);
    let hint = if denied { format!("; {}", crate::sys::caps::NET_ADMIN_HINT) } else { String::new() };
    InstallError::Survey { source, hint }
}

/// The marks that the rules found set or ask for.
fn marks(found: &Found) -> Vec<Mark> {
    found.readings.iter().flat_map(|(_, reading)| reading.plan.marks()).collect()
}

/// Whether exactly the plan's rules were found. Comparing with nothing would only take time.
fn holds(reading: &Reading, plan: &Plan) -> bool {
    let comparable = reading.present && reading.strange.is_empty();
    comparable && Canon::of(plan).same_rules(&Canon::of(&reading.plan))
}

/// Whether a run was killed before its last step: it is the nat table that redirects, and
/// no interception is without a jump from its output hook.
fn is_unfinished(reading: &Reading) -> bool {
    reading.present && reading.plan.chain(Table::Nat, &ChainName::Output).is_none()
}

/// Whether a stop between the steps of an installation could let traffic escape that is
/// intercepted before or after. On a first installation for one family everything but
/// the nat table, which comes last, is without effect; except that TPROXY takes inbound
/// traffic in the mangle table.
fn needs_guard(plan: &Plan, reading: &Reading) -> bool {
    let one_family = plan.families.iter().count() == 1;
    let tproxy = plan.chain(Table::Mangle, &ChainName::Inbound).is_some();
    reading.present || !one_family || tproxy
}

impl From<TransactionError> for InstallError {
    fn from(error: TransactionError) -> Self {
        InstallError::Backend(error.into())
    }
}
