//! An ambient pod's namespace: making it hold a plan, holding it against one, and taking
//! everything away. The rest is the same as for a sidecar ([`super::install`]).

use crate::config::settings::BackendChoice;
use crate::plan::diff;
use crate::plan::model::{Dataplane, Plan, Routing};
use crate::sys::netlink::Netlink;

use super::conditions::Conditions;
use super::install::{InstallError, InstallRequest, Outcome, Prospect, Session, without_routes_by_lo};
use super::{BackendKind, Reading};

/// How to work in a namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub choice: BackendChoice,
    pub conditions: Conditions,
    /// Whether rules of iptables that differ are replaced; those of nftables always are.
    pub reconcile: bool,
}

impl Namespace {
    /// A session in the namespace that the calling thread is in, for who may have to take back
    /// what it did ([`Session::undo`]).
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
    /// What kept it from it; what was there before is there again.
    pub fn apply(&self, plan: &Plan) -> Result<Outcome, InstallError> {
        self.apply_by(&mut self.session()?, plan)
    }

    /// [`Namespace::apply`] by a session that the caller keeps.
    ///
    /// # Errors
    ///
    /// As there.
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

    /// How what is there differs from a plan, in words; empty where it does not.
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
    /// What kept it from it; what was there before is there again.
    pub fn remove(&self) -> Result<Outcome, InstallError> {
        self.session()?.clean()
    }

    /// What every backend holds, in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// That the rules cannot be looked at.
    pub fn holders(&self) -> Result<Vec<BackendKind>, InstallError> {
        let readings = self.session()?.read(&Routing::default())?;
        Ok(readings.into_iter().map(|(kind, _)| kind).collect())
    }
}
