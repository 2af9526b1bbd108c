//! An ambient pod's namespace: installing a plan, comparing it with what is held, and removing
//! everything. The rest is the same as for a sidecar ([`super::install`]).

use crate::config::settings::BackendChoice;
use crate::plan::diff;
use crate::plan::model::{Dataplane, Plan, Routing};
use crate::sys::netlink::Netlink;

use super::conditions::Conditions;
use super::install::{InstallError, InstallRequest, Outcome, Prospect, Session, without_routes_by_lo};
use super::{BackendKind, Reading};

/// How rules are changed in an ambient pod's namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub choice: BackendChoice,
    pub conditions: Conditions,
    /// Whether rules of iptables that differ are replaced; those of nftables always are.
    pub reconcile: bool,
}

impl Namespace {
    /// A session in the namespace that the calling thread is in, for callers that may have to undo their
    /// change ([`Session::undo`]).
    ///
    /// # Errors
    ///
    /// That the kernel's sockets cannot be opened, or that somebody else changes the rules.
    pub fn session(&self) -> Result<Session, InstallError> {
        let route = Netlink::open(Netlink::ROUTE).map_err(InstallError::Socket)?;
        Session::open_for(Dataplane::Ambient, self.conditions.clone(), route)
    }

    fn request<'a>(&self, plan: &'a Plan) -> InstallRequest<'a> {
        InstallRequest { plan, choice: self.choice, reconcile: self.reconcile, force: false, strict: false }
    }

    /// Makes the namespace that the calling thread is in hold a plan.
    ///
    /// # Errors
    ///
    /// What failed; the state before the call is back.
    pub fn apply(&self, plan: &Plan) -> Result<Outcome, InstallError> {
        self.apply_by(&mut self.session()?, plan)
    }

    /// [`Namespace::apply`] by a session that the caller keeps.
    ///
    /// # Errors
    ///
    /// As for [`Namespace::apply`].
    pub fn apply_by(&self, session: &mut Session, plan: &Plan) -> Result<Outcome, InstallError> {
        session.install(&self.request(plan), false)
    }

    /// What [`Namespace::apply`] would do.
    ///
    /// # Errors
    ///
    /// That the rules cannot be looked at.
    pub fn foresee(&self, plan: &Plan) -> Result<Prospect, InstallError> {
        self.session()?.foresee(&self.request(plan))
    }

    /// The differences between what is held and a plan, in words; empty if there are none.
    ///
    /// # Errors
    ///
    /// That the rules cannot be looked at.
    pub fn verify(&self, plan: &Plan) -> Result<Vec<String>, InstallError> {
        let readings = self.session()?.read(&plan.routing)?;
        let mut out: Vec<String> = Vec::new();
        if let [(first, _), (second, _), ..] = readings.as_slice() {
            out.push(format!("both {first} and {second} hold {}", Dataplane::Ambient.rules()));
        }
        let nothing = (BackendKind::Nftables, Reading::nothing());
        let held = if readings.is_empty() { std::slice::from_ref(&nothing) } else { &readings };
        for (_, reading) in held {
            let plan = without_routes_by_lo(plan, &reading.plan.routing.routes, &mut Vec::new());
            out.extend(diff::from_plan(&plan, &reading.plan).iter().map(ToString::to_string));
            out.extend(reading.strange.iter().map(ToString::to_string));
        }
        Ok(out)
    }

    /// Takes every trace of an ambient pod's rules away, from every backend.
    ///
    /// # Errors
    ///
    /// What failed; the state before the call is back.
    pub fn remove(&self) -> Result<Outcome, InstallError> {
        self.session()?.clean()
    }

    /// The backends that hold an ambient pod's rules in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// That the rules cannot be looked at.
    pub fn holders(&self) -> Result<Vec<BackendKind>, InstallError> {
        let readings = self.session()?.read(&Routing::default())?;
        Ok(readings.into_iter().map(|(kind, _)| kind).collect())
    }
}
