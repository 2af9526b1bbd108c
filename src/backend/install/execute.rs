//! Carrying out an installation: every step is recorded with what undoing it takes.

use tracing::debug;

use crate::backend::guard::{Guard, GuardError};
use crate::backend::held::{Held, Tcp};
use crate::backend::nftables::transaction::TransactionError;
use crate::backend::nftables::{cleanup, survey};
use crate::backend::routing::FoundRouting;
use crate::backend::routing::changes::Changes;
use crate::backend::{Backend, BackendError, BackendKind, Reading};
use crate::config::types::Families;
use crate::plan::model::{ChainName, Plan, Table};
use crate::sys::grace;

use super::compare::holds;
use super::error::{self, InstallError};
use super::forsaken::{self, Lost};
use super::look::KernelState;
use super::{InstallRequest, Session, UndoableStep};

impl Session {
    /// Carries out an installation; returns warnings.
    pub(super) fn execute(
        &mut self,
        request: &InstallRequest,
        kind: BackendKind,
        found: &KernelState,
        reading: &Reading,
        ours: &FoundRouting,
        elsewhere: &[BackendKind],
    ) -> Result<Vec<String>, InstallError> {
        let plan = request.plan;
        let families = found.families(kind);
        let writes = request.force || !holds(reading, plan);
        let in_steps = writes && needs_guard(plan, reading) && self.backend(kind, families)?.steps(plan, reading) > 1;
        let moves = !elsewhere.is_empty() || ours.loses_routes(&plan.routing);
        let (was, is) = (forsaken::marks(found.plans()), forsaken::marks([plan]));
        let mut said = Vec::new();
        if found.guard.is_some() {
            // Behind the guard of a killed run, which this one's need not be as tight as.
            said.extend(forsaken::end(&Lost::AllBut(is.clone()), &mut self.route));
        }
        // What a killed run left goes on, as this one needs it.
        if in_steps || found.guard.is_some() || two_at_once(plan, found, moves) {
            self.raise_guard(kind, found, Held::of(plan, found.plans()))?;
        }
        let changes = Changes::apply(&mut self.route, ours, &plan.routing)?;
        debug!(?changes, "routing done");
        self.done.push(UndoableStep::Routing(changes));
        if writes {
            let touched = families.union(plan.families);
            self.change(kind, reading, touched, |backend| backend.apply(plan, reading))?;
        }
        for &other in elsewhere {
            debug!(backend = other.name(), "removing what is there");
            self.remove(other, found)?;
        }
        // Last, since it cannot be undone, and before anything gets through.
        said.extend(forsaken::end(&Lost::by_change(&was, &is), &mut self.route));
        self.lower_guard(&Lost::by_change(&is, &was))?;
        self.sweep(found);
        Ok(said)
    }

    /// Removes tables of iptables-nft that held an interception and are empty now. They have no effect,
    /// so a failure is ignored.
    pub(super) fn sweep(&mut self, found: &KernelState) {
        if let Some(netlink) = self.netfilter.as_mut().filter(|_| found.holds(BackendKind::IptablesNft)) {
            let _ = cleanup::remove_empty_iptables_tables(netlink);
        }
    }

    /// Lets a backend change its rules, and remembers what was there.
    fn change(
        &mut self,
        kind: BackendKind,
        reading: &Reading,
        families: Families,
        work: impl FnOnce(&mut dyn Backend) -> Result<(), BackendError>,
    ) -> Result<(), InstallError> {
        let result = work(&mut *self.backend(kind, families)?);
        // A refused transaction has changed nothing. In all other cases something may have
        // changed: iptables got halfway, or the kernel's answer was lost.
        if !matches!(&result, Err(error) if error.changed_nothing()) {
            self.done.push(UndoableStep::Rules { kind, found: reading.clone(), families });
        }
        Ok(result?)
    }

    pub(super) fn remove(&mut self, kind: BackendKind, found: &KernelState) -> Result<(), InstallError> {
        let reading = found.reading(kind);
        self.change(kind, &reading, found.families(kind), |backend| backend.remove(&reading))
    }

    fn raise_guard(&mut self, kind: BackendKind, found: &KernelState, held: Held) -> Result<(), InstallError> {
        debug!(tcp = ?held.tcp, "traffic is held back meanwhile");
        let guard = Guard::raise(self.netfilter.as_mut(), &self.conditions, kind, &held, found.guard.as_ref())?;
        if found.plans().next().is_some() {
            let_packets_pass(&held);
        }
        let form = std::mem::discriminant::<Guard>;
        let replaced = found.guard.as_ref().is_some_and(|left| form(left) == form(&guard));
        if let Some(other) = found.guard.clone().filter(|_| !replaced) {
            self.done.push(UndoableStep::Guard { guard: other, held: held.clone(), left: true });
        }
        self.done.push(UndoableStep::Guard { guard, held, left: replaced });
        if kind == BackendKind::Nftables { self.look_again(found) } else { Ok(()) }
    }

    /// Lists nf_tables' tables again. The native transaction demands that nobody has changed the rules
    /// since they were listed, and the guard has changed them.
    fn look_again(&mut self, found: &KernelState) -> Result<(), InstallError> {
        let netlink = self.netfilter.as_mut().ok_or(InstallError::NoNftables)?;
        self.tables = survey::tables(netlink).map_err(error::survey)?;
        let (before, now) =
            (found.reading(BackendKind::Nftables), self.backend(BackendKind::Nftables, Families::NONE)?.read()?);
        if now.says_the_same(&before) { Ok(()) } else { Err(TransactionError::Raced.into()) }
    }

    /// Puts a guard up again that was removed, to undo a change behind it.
    pub(super) fn raise_again(&mut self, guard: &Guard, held: &Held) -> Result<(), GuardError> {
        let kind = if let Guard::Iptables { kind, .. } = guard { *kind } else { BackendKind::Nftables };
        Guard::raise(self.netfilter.as_mut(), &self.conditions, kind, held, None)?;
        let_packets_pass(held);
        Ok(())
    }

    /// Removes the guard. `lost_by_undo`: the marks that rules know from now on, and that undoing would
    /// take away.
    pub(super) fn lower_guard(&mut self, lost_by_undo: &Lost) -> Result<(), InstallError> {
        let mut lowered = None;
        for done in &self.done {
            let UndoableStep::Guard { guard, held, .. } = done else { break };
            guard.lower(self.netfilter.as_mut(), &self.conditions)?;
            lowered = Some(UndoableStep::Lowered {
                guard: guard.clone(),
                held: held.clone(),
                lost_by_undo: lost_by_undo.clone(),
            });
        }
        self.done.extend(lowered);
        Ok(())
    }
}

/// Waits for packets that met the hook before the guard was in it and are still among the old rules. It
/// is needed where each packet of a connection is decided about anew.
fn let_packets_pass(held: &Held) {
    if held.tcp == Tcp::All {
        grace::let_packets_pass();
    }
}

/// Whether packets could meet two sets of rules that both mark, and leave their connection with a mark
/// that neither would have given it: rules are in more than one backend for a while, or a rule that
/// marks is added, removed or gets another mark. The nat table decides about a connection once, in the
/// chain that comes first, so its changes need no guard.
fn two_at_once(plan: &Plan, found: &KernelState, moves: bool) -> bool {
    let wanted = forsaken::marks([plan]);
    found.plans().map(|other| forsaken::marks([other])).any(|other| other != wanted || (moves && !other.is_empty()))
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
