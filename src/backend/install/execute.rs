//! Carrying out: every step is remembered with what it takes to undo it.

use tracing::debug;

use crate::backend::guard::Guard;
use crate::backend::nftables::cleanup;
use crate::backend::routing::{Changes, FoundRouting};
use crate::backend::{Backend, BackendError, Kind, Reading};
use crate::config::types::Families;
use crate::plan::model::{ChainName, Plan, Table};

use super::error::InstallError;
use super::look::Found;
use super::{Done, Request, Session, holds};

impl Session {
    pub(super) fn execute(
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
    pub(super) fn sweep(&mut self, found: &Found) {
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

    pub(super) fn remove(&mut self, kind: Kind, found: &Found) -> Result<(), InstallError> {
        let reading = found.reading(kind);
        self.change(kind, &reading, found.families(kind), |backend| backend.remove(&reading))
    }

    pub(super) fn lower_guard(&mut self) -> Result<(), InstallError> {
        if let Some(Done::Guard(guard)) = self.done.first() {
            guard.lower(self.netfilter.as_mut(), &self.conditions)?;
            self.done.remove(0);
        }
        Ok(())
    }
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
