//! `podweir verify`: whether the kernel, or a dump, holds what options ask for.

use std::fmt::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::audit::compare::Side;
use crate::audit::escapes::words;
use crate::audit::source::Source;
use crate::audit::verify::{Effect, Finding, Report, What, verify};
use crate::config::types::Families;

use super::error::CliError;
use super::{output, source};

const EXAMPLES: &str = "\
The rules wanted are those of the options behind --, the rules found those of the kernel
or of a dump. Differences are told rule by rule, in order, whichever backend holds the
rules, and what they change: which traffic somebody else gets than should, with an
example. A difference that changes nothing says so.

Rules of others count where they take traffic from the proxy or let it past; where they
only drop, as a network policy does, they are shown and do not count.

Exit status: 0 same, 1 different (or it could not be told), 2 usage.

Examples:
  podweir verify -- -b 8080 -i 10.0.0.0/8
      Does this namespace hold what these options ask for?
  podweir verify --pid 4711 -- istio-iptables -p 15001 -z 15006 -u 1337 -b '*' -i '*'
      The same for a pod's process, with an init container's arguments.
  podweir verify --dump v4.txt v6.txt --pod-ip 10.244.0.6,fd00::6 --json -- -b '*'
      From what iptables-save and ip6tables-save printed, for a pipeline.
";

/// The `verify` subcommand.
pub fn command() -> Command {
    let about = "Compare the rules that options ask for with those that are there, and say what differences change";
    Command::new("verify").about(about).defer(|command| {
        let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Report as JSON");
        source::with_source(command.arg(json)).after_long_help(EXAMPLES)
    })
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    output::check()?;
    // Mistakes in the options show before anything is read, as far as they can.
    source::check_options(matches)?;
    let found = source::found(matches)?;
    source::warn(&found);
    let wanted = source::wanted(matches, Some(&found))?;
    source::warn(&wanted);
    check_families(&wanted, &found)?;
    let report = verify(&wanted, &found);
    let drift = report.drift();
    let text = if matches.get_flag("json") { format!("{:#}\n", json_of(&report)) } else { text(&report, &wanted) };
    output::print(&text)?;
    match &report.blind {
        _ if drift => Err(CliError::Failed("the rules differ from the plan".into())),
        Some(problem) => Err(CliError::Failed(format!("what others' rules change cannot be told: {problem}"))),
        None => Ok(()),
    }
}

/// A dump of one family says nothing about the other.
fn check_families(wanted: &Source, found: &Source) -> Result<(), CliError> {
    let wants = wanted.canon().families();
    let missing = Families { v4: wants.v4 && !found.told.v4, v6: wants.v6 && !found.told.v6 };
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "the options ask for rules of {missing}, of which the dump says nothing: add it (iptables-save prints IPv4, ip6tables-save IPv6), name the pod's addresses with --pod-ip, or give --ip-families behind --"
    )))
}

fn text(report: &Report, wanted: &Source) -> String {
    let mut out = String::new();
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for finding in &report.findings {
        out += &finding_text(finding, report);
    }
    let told: Vec<usize> = report.findings.iter().flat_map(|finding| finding.effects.iter().copied()).collect();
    for (_, effect) in report.effects.iter().enumerate().filter(|(at, _)| !told.contains(at)) {
        let whose = if effect.ours { "together" } else { "rules of others" };
        let _ = writeln!(out, "{whose}:");
        effect_text(effect, &mut out);
    }
    if let Some(problem) = &report.blind {
        let _ = writeln!(out, "note: which traffic is affected cannot be told: {problem}");
    }
    let holders: Vec<&str> = report.holders.iter().map(|holder| holder.name()).collect();
    let holders = if holders.is_empty() { "the kernel".to_owned() } else { holders.join(" and ") };
    let _ = match report.findings.len() {
        0 if report.drift() => writeln!(out, "different: {holders} holds the plan, and rules of others change it"),
        0 => writeln!(out, "same: {holders} holds the plan's {} rules", wanted.plan().rule_count()),
        n => {
            let without = report.findings.iter().filter(|f| f.effects.is_empty() && f.consequence.is_none()).count();
            let differences = if n == 1 { "difference" } else { "differences" };
            writeln!(out, "different: {n} {differences}, {} of them without effect", without)
        }
    };
    out
}

fn finding_text(finding: &Finding, report: &Report) -> String {
    let mut out = String::new();
    let _ = match &finding.what {
        What::Nothing => writeln!(out, "no rule of an interception is there"),
        What::Second(holder) => writeln!(out, "unexpected: rules of an interception in {holder} as well"),
        What::Strange(strange) => writeln!(out, "{strange}"),
        What::Difference(difference) => writeln!(out, "{}", difference_text(difference)),
    };
    if let Some(consequence) = finding.consequence {
        let _ = writeln!(out, "    effect: {consequence}");
    }
    for &at in &finding.effects {
        if matches!(finding.what, What::Nothing | What::Second(_)) && !report.effects[at].escapes() {
            continue;
        }
        effect_text(&report.effects[at], &mut out);
    }
    if finding.effects.is_empty() && finding.consequence.is_none() && report.blind.is_none() {
        let _ = writeln!(out, "    no effect: all traffic goes where it should");
    }
    out
}

fn difference_text(difference: &crate::audit::compare::Difference) -> String {
    let mut out = String::new();
    if let Some((family, table, chain)) = &difference.place {
        let _ = write!(out, "{family} {} {chain}: ", table.name());
    }
    let _ = match difference.side {
        Side::Missing => write!(out, "expected, not found: {}", difference.what),
        Side::Unexpected => write!(out, "found, not expected: {}", difference.what),
    };
    match difference.why.as_deref().filter(|why| !why.is_empty()) {
        Some(why) => out + " (" + why + ")",
        None => out,
    }
}

fn effect_text(effect: &Effect, out: &mut String) {
    const SHOWN: usize = 4;
    for flows in effect.flows.iter().take(SHOWN) {
        let scope = words::scope(effect.scope);
        let _ = writeln!(out, "    effect: {} {scope}: {flows} {}", effect.family, effect.outcome());
    }
    if effect.flows.len() > SHOWN {
        let _ = writeln!(out, "    effect: and {} more sets of flows", effect.flows.len() - SHOWN);
    }
    let _ = writeln!(out, "      for example {} {}", effect.example, effect.outcome());
    if let Some(rule) = &effect.found_rule {
        let _ = writeln!(out, "      by {rule}");
    }
}

fn json_of(report: &Report) -> Value {
    let finding = |finding: &Finding| {
        let (kind, place, text, why) = match &finding.what {
            What::Nothing => ("nothing", None, "no rule of an interception is there".to_owned(), None),
            What::Second(holder) => ("second", None, format!("rules of an interception in {holder} as well"), None),
            What::Strange(strange) => ("strange", None, strange.to_string(), None),
            What::Difference(d) => {
                let kind = if d.side == Side::Missing { "missing" } else { "unexpected" };
                (kind, d.place.as_ref(), d.what.clone(), d.why.clone().filter(|why| !why.is_empty()))
            }
        };
        json!({
            "kind": kind,
            "holder": finding.holder.map(|holder| holder.name()),
            "family": place.map(|(family, ..)| family.to_string()),
            "table": place.map(|(_, table, _)| table.name()),
            "chain": place.map(|(.., chain)| chain.name()),
            "text": text,
            "why": why,
            "effects": finding.effects,
            "consequence": finding.consequence,
        })
    };
    let effect = |effect: &Effect| {
        json!({
            "family": effect.family.to_string(),
            "scope": words::scope(effect.scope),
            "flows": effect.flows,
            "wanted": effect.wanted.name(),
            "found": effect.found.name(),
            "escapes": effect.escapes(),
            "by_others": !effect.ours,
            "wanted_rule": effect.wanted_rule,
            "found_rule": effect.found_rule,
            "example": {
                "flow": effect.example.to_string(),
                "explain": words::explain_arguments(&effect.example),
            },
        })
    };
    json!({
        "same": !report.drift(),
        "holders": report.holders.iter().map(|holder| holder.name()).collect::<Vec<_>>(),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "effects": report.effects.iter().map(effect).collect::<Vec<_>>(),
        "notes": report.notes.iter().chain(&report.blind).collect::<Vec<_>>(),
    })
}
