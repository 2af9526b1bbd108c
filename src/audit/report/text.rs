//! The report as text, for a terminal or a log.

use std::collections::HashMap;
use std::fmt::Write;

use crate::audit::escapes::Escape;
use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::words;
use crate::audit::question;
use crate::config::facts::is_global;

use super::{Acceptance, Judged, Report, by};

/// The most lines of one list that are printed; JSON has all.
const LINES: usize = 8;

pub fn write(report: &Report) -> String {
    let mut out = format!("{}: {}\n{}\n", report.about, pod(report), summary(report));
    for judged in &report.escapes {
        out.push('\n');
        escape(&mut out, report, judged);
    }
    if report.drift.as_ref().is_some_and(Vec::is_empty) {
        out += "\nNo drift: the rules are what they should be.\n";
    }
    for drift in report.drift.iter().flatten() {
        let _ = writeln!(out, "\n{}drift: {}", heading(drift.severity, &None), drift.line());
        fields(&mut out, "effect", &drift.effects());
    }
    let mut told: HashMap<(&str, bool), usize> = HashMap::new();
    for judged in &report.lints {
        let lint = &judged.found;
        let count = told.entry((lint.id, judged.accepted.is_some())).or_default();
        *count += 1;
        if *count > LINES {
            continue;
        }
        let _ = writeln!(out, "\n{}{} ({})", heading(lint.severity, &judged.accepted), lint.id, lint.subject);
        field(&mut out, "", &lint.message);
        acceptance(&mut out, &judged.accepted);
        field(&mut out, "to do", &lint.advice);
    }
    let mut more: Vec<_> = told.into_iter().filter(|(_, count)| *count > LINES).collect();
    more.sort_unstable();
    for ((id, accepted), count) in more {
        let accepted = if accepted { ", accepted" } else { "" };
        let _ = writeln!(out, "\nand {} more of {id}{accepted} (--format json has all)", count - LINES);
    }
    if !report.notices.is_empty() {
        out.push('\n');
        report.notices.iter().for_each(|notice| out += &format!("note: {notice}\n"));
    }
    out
}

/// The pod in a few words.
pub fn pod(report: &Report) -> String {
    let addresses = report.pod.addresses.iter().filter(|address| is_global(address));
    let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
    match addresses.len() {
        0 => format!("a pod without known addresses ({})", report.families),
        _ => format!("the pod with {} ({})", addresses.join(", "), report.families),
    }
}

/// How many findings there are of each severity.
pub fn summary(report: &Report) -> String {
    let counts = Severity::ALL.into_iter().map(|severity| format!("{} {severity}", report.count(severity)));
    format!("{}; {} accepted", counts.collect::<Vec<_>>().join(", "), report.accepted())
}

fn heading(severity: Severity, accepted: &Option<Acceptance>) -> String {
    match accepted {
        Some(_) => "accepted  ".to_owned(),
        None => format!("{:<8}  ", severity.name().to_uppercase()),
    }
}

fn field(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "  {name:<8}{text}");
}

fn fields(out: &mut String, name: &str, lines: &[String]) {
    for (at, line) in lines.iter().take(LINES).enumerate() {
        field(out, if at == 0 { name } else { "" }, line);
    }
    if lines.len() > LINES {
        field(out, "", &format!("and {} more (--format json has all)", lines.len() - LINES));
    }
}

fn acceptance(out: &mut String, accepted: &Option<Acceptance>) {
    if let Some(Acceptance { reason, expires }) = accepted {
        let until = expires.map(|date| format!(" (until {date})")).unwrap_or_default();
        field(out, "wanted", &format!("{reason}{until}"));
    }
}

fn escape(out: &mut String, report: &Report, judged: &Judged<Escape>) {
    let escape = &judged.found;
    let _ = writeln!(out, "{}{}: {}", heading(escape.severity, &judged.accepted), escape.id(), escape.title());
    field(out, "", escape.kind.meaning());
    acceptance(out, &judged.accepted);
    fields(out, "what", &words::flows(escape, report.space));
    fields(out, "by", &by(escape));
    field(out, "try", &escape.example.to_string());
    if let Some(rules) = report.explain {
        field(out, "", &question::command(&escape.example, rules));
    }
    field(out, "close", escape.closes());
}
