//! The report as SARIF 2.1.0 (OASIS), which code scanning shows. Each class of escapes and
//! each lint is a rule; what is accepted is a suppressed result.

use serde_json::{Value, json};

use crate::audit::escapes::kind::{EscapeKind, Severity};
use crate::audit::escapes::{scope_name, words};
use crate::audit::lints::LINTS;
use crate::audit::space::Scope;

use super::drift::WORST;
use super::{Acceptance, Report, by, exits};

const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";
const DRIFT_ID: &str = "drift";

pub fn write(report: &Report) -> String {
    let mut results = Vec::new();
    for judged in &report.escapes {
        let escape = &judged.found;
        let exits = exits(escape);
        let mut text = format!("{}: {}.", escape.title(), escape.kind.meaning());
        text += &format!(" What escapes: {}.", words::flows(escape, report.space).join("; "));
        text += &format!(" By: {}.", by(escape).join("; "));
        text += &format!(" For example: {}. To close it: {}.", escape.example, escape.closes());
        let places = exits.into_iter().map(|e| (format!("{}: {}", e.place, e.rule), "rule")).collect();
        results.push(result(report, &escape.id(), escape.severity, text, places, &judged.accepted));
    }
    for judged in &report.lints {
        let lint = &judged.found;
        let text = format!("{}: {}. {}.", lint.subject, lint.message, lint.advice);
        results.push(result(
            report,
            lint.id,
            lint.severity,
            text,
            vec![(lint.subject.clone(), "subject")],
            &judged.accepted,
        ));
    }
    for drift in report.drift.iter().flatten() {
        let text = format!("{}. Effect: {}.", drift.line(), drift.effects().join("; "));
        let place = (format!("{}: {}", drift.place, drift.what), "rule");
        results.push(result(report, DRIFT_ID, drift.severity, text, vec![place], &None));
    }
    log(&report.about, &rules(), &[], &report.notices, &results)
}

/// A log of one run. `problems`: what failed; `notices`: other messages.
pub(in crate::audit) fn log(
    about: &str,
    rules: &[Value],
    problems: &[String],
    notices: &[String],
    results: &[Value],
) -> String {
    let note = |level: &str, text: &String| json!({ "level": level, "message": { "text": text } });
    let problems: Vec<Value> = problems.iter().map(|text| note("error", text)).collect();
    let notices = notices.iter().map(|text| note("note", text));
    let object = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [ {
            "tool": { "driver": {
                "name": "podweir",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "invocations": [ {
                "executionSuccessful": problems.is_empty(),
                "toolConfigurationNotifications": problems.iter().cloned().chain(notices).collect::<Vec<_>>(),
            } ],
            "results": results,
            "properties": { "about": about },
        } ],
    });
    format!("{object:#}\n")
}

pub(in crate::audit) fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "error",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "note",
    }
}

/// Every rule there can be, so that numbers and names stay the same from run to run.
pub(in crate::audit) fn rules() -> Vec<Value> {
    let mut out = Vec::new();
    for scope in Scope::ALL {
        for kind in EscapeKind::ALL {
            let id = format!("{}-{}", scope_name(scope), kind.id());
            let mut closes = kind.closes(scope, false).to_owned();
            closes.extend(kind.closes_in_ambient_mode(scope).map(|other| format!("; in ambient mode: {other}")));
            out.push(rule(&id, kind.severity(), &kind.title(scope), kind.meaning(), &closes));
        }
    }
    for &(id, severity, about) in LINTS {
        out.push(rule(id, severity, about, about, "see the message"));
    }
    let about = "the rules are not what they should be";
    out.push(rule(DRIFT_ID, WORST, about, about, "podweir init installs them again"));
    out
}

pub(in crate::audit) fn rule(id: &str, severity: Severity, short: &str, full: &str, help: &str) -> Value {
    json!({
        "id": id,
        "shortDescription": { "text": short },
        "fullDescription": { "text": full },
        "help": { "text": help },
        "defaultConfiguration": { "level": level(severity) },
        "properties": { "severity": severity.name() },
    })
}

fn result(
    report: &Report,
    id: &str,
    severity: Severity,
    text: String,
    places: Vec<(String, &str)>,
    accepted: &Option<Acceptance>,
) -> Value {
    let logical: Vec<Value> =
        places.iter().map(|(place, kind)| json!({ "fullyQualifiedName": place, "kind": kind })).collect();
    let mut location = json!({});
    if let Some(file) = &report.file {
        location["physicalLocation"] =
            json!({ "artifactLocation": { "uri": uri(file) }, "region": { "startLine": 1 } });
    }
    if !logical.is_empty() {
        location["logicalLocations"] = logical.into();
    }
    let mut out = json!({
        "ruleId": id,
        "level": level(severity),
        "message": { "text": text },
        "partialFingerprints": { "podweirFinding/v1": fingerprint(id, &places) },
        "properties": { "severity": severity.name() },
    });
    if location.as_object().is_some_and(|fields| !fields.is_empty()) {
        out["locations"] = json!([location]);
    }
    if let Some(Acceptance { reason, .. }) = accepted {
        out["suppressions"] = json!([{ "kind": "external", "status": "accepted", "justification": reason }]);
    }
    out
}

/// The identity of a finding, which is the same in the next run.
fn fingerprint(id: &str, places: &[(String, &str)]) -> String {
    let names: Vec<&str> = places.iter().map(|(place, _)| place.as_str()).collect();
    format!("{id}|{}", names.join("|"))
}

/// A file name as a URI reference (RFC 3986).
pub(in crate::audit) fn uri(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte.into()),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}
