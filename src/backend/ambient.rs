//! An ambient pod's namespace: installing a plan, comparing it with what is held, and removing
//! everything. The rest is the same as for a sidecar ([`super::install`]).

use std::io;

use crate::config::settings::BackendChoice;
use crate::plan::diff;
use crate::plan::model::{Dataplane, Plan, Routing};
use crate::sys::netlink::Netlink;

use super::conditions::Conditions;
use super::install::{InstallError, InstallRequest, Outcome, Prospect, Session, without_routes_by_lo};
use super::listing::Holder;
use super::routing::{self, FoundRouting};
use super::{BackendKind, Reading, everything, ours};

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

    /// The differences between what iptables holds and a plan, in words, read from nf_tables: for nodes
    /// without programs of iptables, where another agent made the rules with its own. `None`: there are
    /// no such rules, or more than these.
    ///
    /// # Errors
    ///
    /// That the rules cannot be looked at.
    pub fn verify_without_programs(&self, plan: &Plan) -> Result<Option<Vec<String>>, InstallError> {
        let survey = |source| InstallError::Survey { source, hint: String::new() };
        let listed = everything::listing(&self.conditions.programs, self.conditions.lock_timeout);
        let listed = listed.map_err(|e| survey(io::Error::other(e.to_string())))?;
        let [held] = &ours::holdings(&listed.tables)[..] else { return Ok(None) };
        if held.holder != Holder::Kernel(BackendKind::IptablesNft) || held.plan.dataplane != Dataplane::Ambient {
            return Ok(None);
        }
        let mut netlink = Netlink::open(Netlink::ROUTE).map_err(InstallError::Socket)?;
        let routing = FoundRouting {
            rules: routing::mark_rules(&mut netlink)?,
            routes: routing::local_routes(&mut netlink)?,
            mesh_address: false,
        };
        let routing = routing.ours(Dataplane::Ambient, &held.plan.marks(), &plan.routing).routing().normalised();
        let found = Plan { routing, ..held.plan.clone() };
        let plan = without_routes_by_lo(plan, &found.routing.routes, &mut Vec::new());
        let differences = diff::from_plan(&plan, &found);
        let strange = held.strange.iter().map(ToString::to_string);
        Ok(Some(differences.iter().map(ToString::to_string).chain(strange).collect()))
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
