//! `--dry-run`: what would be done in this namespace, as a script for the backend's own program.

use std::fmt::Write;

use tracing::{info, warn};

use crate::backend::BackendKind;
use crate::backend::conditions::Conditions;
use crate::backend::facts::NamespaceFacts;
use crate::backend::install::{self, Action, InstallRequest, Prospect, Session};
use crate::backend::iptables::script;
use crate::backend::nftables;
use crate::backend::routing;
use crate::config::settings::{BackendChoice, Face, Settings};
use crate::config::types::Family;
use crate::plan::lower::lower;
use crate::plan::model::{Plan, Routing, Table};

use super::error::CliError;
use super::{output, session};

/// Prints the script, and says on stderr which backend it is for, how that is known, and
/// what a run would do to the rules that are here.
///
/// # Errors
///
/// That the script cannot be written.
pub(super) fn print(face: Face, plan: &Plan, settings: &Settings, system: NamespaceFacts) -> Result<(), CliError> {
    if settings.run.cleanup_only {
        say_cleanup(settings, system);
        return output::print("# podweir: every trace of an interception would be removed from every backend\n");
    }
    let backend = foresee(face, plan, settings, system);
    output::print(&text(plan, backend, settings.run.rule_comments))
}

/// Reads the rules, if this process may, and returns the backend that would be used.
fn foresee(face: Face, plan: &Plan, settings: &Settings, system: NamespaceFacts) -> BackendKind {
    let run = &settings.run;
    let request = InstallRequest {
        choice: run.backend,
        reconcile: run.reconcile,
        force: run.force_apply,
        strict: run.strict,
        plan,
    };
    let looked = || -> Result<(Prospect, Option<CliError>), CliError> {
        let (mut route, addresses) = system.into_addresses().map_err(CliError::Addresses)?;
        let refused = session::check_namespace(face, run, &mut route, &addresses).err();
        Ok((Session::open(session::conditions(run), route)?.foresee(&request)?, refused))
    };
    let (looked, refused) = match looked() {
        Ok((prospect, refused)) => (Ok(prospect), refused),
        Err(why) => (Err(why), None),
    };
    say(looked, refused, &session::conditions(run), run.backend)
}

/// Says on stderr what a run would do, what is known of that by, and gives the backend. `looked`:
/// what this kernel's rules make of it; where they cannot be looked at, the options alone decide.
pub(super) fn say(
    looked: Result<Prospect, CliError>,
    refused: Option<CliError>,
    conditions: &Conditions,
    choice: BackendChoice,
) -> BackendKind {
    let (prospect, decided_by) = match looked {
        Ok(prospect) => (prospect, "this kernel"),
        Err(why) => {
            info!("this kernel's rules cannot be looked at, so the options alone decide: {why}");
            (install::choose_unseen(conditions, choice), "the options alone")
        }
    };
    prospect.warnings.iter().for_each(|warning| warn!("{warning}"));
    let backend = prospect.backend.name();
    match (refused, prospect.would) {
        (Some(error), _) => warn!(backend, decided_by, "would fail: {error}"),
        (None, Err(error)) => warn!(backend, decided_by, "would fail: {error}"),
        (None, Ok(Action::Unchanged)) => {
            info!(backend, decided_by, "would change nothing: the kernel holds it already")
        }
        (None, Ok(Action::Replaced)) => info!(backend, decided_by, "would replace what is there"),
        (None, Ok(_)) => info!(backend, decided_by, "would be installed"),
    }
    prospect.backend
}

fn say_cleanup(settings: &Settings, system: NamespaceFacts) {
    let looked = || -> Result<Vec<&'static str>, CliError> {
        let (route, _) = system.into_addresses().map_err(CliError::Addresses)?;
        let held = Session::open(session::conditions(&settings.run), route)?.read(&Routing::default())?;
        Ok(held.iter().map(|(kind, _)| kind.name()).collect())
    };
    match looked() {
        Ok(held) if held.is_empty() => info!(decided_by = "this kernel", "no rules to remove"),
        Ok(held) => info!(from = %held.join(", "), decided_by = "this kernel", "would be removed"),
        Err(why) => info!("this kernel's rules cannot be looked at: {why}"),
    }
}

/// The script of a plan for a backend, and the commands for routing.
pub(super) fn text(plan: &Plan, backend: BackendKind, comments: bool) -> String {
    let mut out = match backend {
        BackendKind::Nftables => nftables_script(plan),
        BackendKind::IptablesNft | BackendKind::IptablesLegacy => iptables_scripts(plan, comments),
    };
    let commands = routing::commands(&plan.routing);
    if !commands.is_empty() {
        out.push_str("# routing\n");
    }
    for command in commands {
        let _ = writeln!(out, "# {command}");
    }
    out
}

fn nftables_script(plan: &Plan) -> String {
    format!("# podweir: load with nft -f\n{}", nftables::script::script(plan))
}

/// The scripts of a plan for IPv4, then for IPv6.
pub(super) fn iptables_scripts(plan: &Plan, comments: bool) -> String {
    let mut out = String::new();
    for family in plan.families.iter() {
        let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let _ = writeln!(out, "# podweir: {family}, load with {program}-restore --noflush");
        let lowered = lower(plan, family);
        for table in Table::ALL {
            out += &script::table(table, None, &script::wanted(&lowered, table, family, comments));
        }
    }
    out
}
