//! `--dry-run`: what would be done, as scripts that the backends' own programs load.

use std::fmt::Write;

use crate::backend::iptables::script;
use crate::backend::nftables;
use crate::backend::routing;
use crate::config::settings::{BackendChoice, Settings};
use crate::config::types::Family;
use crate::plan::lower::lower;
use crate::plan::model::{Plan, Table};

use super::error::CliError;
use super::output;

/// Prints the scripts. Nothing is read that could differ between two runs.
pub fn print(plan: &Plan, settings: &Settings) -> Result<(), CliError> {
    output::print(&text(plan, settings))
}

fn text(plan: &Plan, settings: &Settings) -> String {
    if settings.run.cleanup_only {
        return "# podweir: every trace of an interception would be removed from every backend\n".into();
    }
    let native = matches!(settings.run.backend, BackendChoice::Auto | BackendChoice::Nftables);
    let mut out = if native { nftables_script(plan) } else { iptables_scripts(plan, settings.run.rule_comments) };
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

/// IPv4, then IPv6.
pub fn iptables_scripts(plan: &Plan, comments: bool) -> String {
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
