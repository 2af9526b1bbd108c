//! The result of a verification as text and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::audit::escapes::words;
use crate::audit::question;
use crate::audit::undo::is_policy;
use crate::audit::verification::{Finding, TrafficChange, Verification, What};
use crate::plan::diff::{Difference, Side};

/// The words for the two sides of a difference.
type Sides = [&'static str; 2];
const FOUND: Sides = ["expected, not found", "found, not expected"];
const CHANGED: Sides = ["gone", "new"];

/// The most effects of one difference that are written out.
const EFFECTS: usize = 8;
/// The most that are written out at all: many differences may have the same ones.
const EFFECTS_IN_ALL: usize = 500;

/// The differences, their effects, and a summary in the last line.
pub fn text(report: &Verification, rules: usize) -> String {
    let mut out = String::new();
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    let mut room = EFFECTS_IN_ALL;
    for finding in &report.findings {
        out += &finding_text(finding, report, FOUND, &mut room);
    }
    let told: Vec<usize> = report.findings.iter().flat_map(|finding| finding.effects.iter().copied()).collect();
    for (_, effect) in report.effects.iter().enumerate().filter(|(at, _)| !told.contains(at)) {
        let whose = match (effect.ours, is_policy(effect)) {
            (true, _) => "the differences together",
            (false, true) => "rules of others, which drop it (no drift)",
            (false, false) => "rules of others",
        };
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
        0 => {
            let dropped = report.effects.iter().any(is_policy);
            let but = if dropped { ", and rules of others drop traffic, which is no drift" } else { "" };
            writeln!(out, "same: {holders} holds the plan's {rules} rules{but}")
        }
        n => {
            let without = report.findings.iter().filter(|f| f.effects.is_empty() && f.consequence.is_none()).count();
            let differences = if n == 1 { "difference" } else { "differences" };
            writeln!(out, "different: {n} {differences}, {} of them without effect", without)
        }
    };
    out
}

fn finding_text(finding: &Finding, report: &Verification, sides: Sides, room: &mut usize) -> String {
    let mut out = String::new();
    let _ = match &finding.what {
        What::Difference(difference) => writeln!(out, "{}", difference_text(difference, sides)),
        What::Second(_) => writeln!(out, "unexpected: {}", finding.what),
        What::Nothing | What::Strange(_) => writeln!(out, "{}", finding.what),
    };
    if let Some(consequence) = finding.consequence {
        let _ = writeln!(out, "    effect: {consequence}");
    }
    let only_escapes = matches!(finding.what, What::Nothing | What::Second(_));
    let effects = finding.effects.iter().map(|&at| &report.effects[at]);
    let effects: Vec<&TrafficChange> = effects.filter(|effect| !only_escapes || effect.escapes()).collect();
    let shown = effects.len().min(EFFECTS).min(*room);
    *room -= shown;
    effects.iter().take(shown).for_each(|effect| effect_text(effect, &mut out));
    if effects.len() > shown {
        let more = if shown > 0 { "and " } else { "on " };
        let _ = writeln!(out, "    effect: {more}{} more kinds of traffic (--json has all)", effects.len() - shown);
    }
    if finding.effects.is_empty() && finding.consequence.is_none() && report.blind.is_none() {
        let _ = writeln!(out, "    no effect: all traffic goes where it should");
    }
    out
}

fn difference_text(difference: &Difference, [missing, unexpected]: Sides) -> String {
    let mut out = String::new();
    if let Some((family, table, chain)) = &difference.place {
        let _ = write!(out, "{family} {} {chain}: ", table.name());
    }
    let _ = match difference.side {
        Side::Missing => write!(out, "{missing}: {}", difference.what),
        Side::Unexpected => write!(out, "{unexpected}: {}", difference.what),
    };
    match difference.why.as_deref().filter(|why| !why.is_empty()) {
        Some(why) => out + " (" + why + ")",
        None => out,
    }
}

fn effect_text(effect: &TrafficChange, out: &mut String) {
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

/// What differs and what it changes, as JSON.
pub fn json(report: &Verification) -> Value {
    let finding = |finding: &Finding| {
        let (kind, place, why) = match &finding.what {
            What::Nothing => ("nothing", None, None),
            What::Second(_) => ("second", None, None),
            What::Strange(_) => ("strange", None, None),
            What::Difference(d) => {
                let kind = if d.side == Side::Missing { "missing" } else { "unexpected" };
                (kind, d.place.as_ref(), d.why.clone().filter(|why| !why.is_empty()))
            }
        };
        let rule = match &finding.what {
            What::Difference(d) if d.side == Side::Unexpected => d.rule.as_ref(),
            _ => None,
        };
        let origin = rule.and_then(|rule| rule.origin.as_deref());
        json!({
            "kind": kind,
            "holder": finding.holder.map(|holder| holder.name()),
            "family": place.map(|(family, ..)| family.to_string()),
            "table": place.map(|(_, table, _)| table.name()),
            "chain": place.map(|(.., chain)| chain.name()),
            "number": origin.map(|origin| origin.number),
            "handle": origin.and_then(|origin| origin.handle),
            "text": finding.what.to_string(),
            "listed": origin.and_then(|origin| origin.text.as_deref()),
            "why": why,
            "effects": finding.effects,
            "consequence": finding.consequence,
        })
    };
    let effect = |effect: &TrafficChange| {
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
                "explain": question::arguments(&effect.example),
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

/// The effects of a change of options, as text.
pub fn changes(report: &Verification) -> String {
    if report.findings.is_empty() {
        return "no change\n".into();
    }
    let mut room = EFFECTS_IN_ALL;
    let findings = report.findings.iter().map(|finding| match &finding.what {
        What::Nothing => "nothing is intercepted any more\n".to_owned(),
        _ => finding_text(finding, report, CHANGED, &mut room),
    });
    findings.collect()
}
