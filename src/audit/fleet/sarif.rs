//! The answer as SARIF 2.1.0, for code scanning: a result for each finding of a workload, at the
//! document that it comes from. What has low severity or less is one result with all its
//! places, since every workload has it; what is accepted is suppressed.

use serde_json::{Value, json};

use crate::audit::escapes::kind::Severity;
use crate::audit::lints::OF_MANY;
use crate::audit::report::Acceptance;
use crate::audit::report::sarif::{level, log, rule, rules, uri};

use super::compare::Comparison;
use super::sum::{FindingGroup, FleetAnswer, Summed};

/// The most places of one result.
const PLACES: usize = 100;

pub fn write(answer: &FleetAnswer, comparison: Option<&Comparison>) -> String {
    let mut results = Vec::new();
    for group in &answer.groups {
        if group.finding.severity >= Severity::Medium {
            for owner in &group.workloads {
                results.extend(result(answer, group, std::slice::from_ref(owner), comparison));
            }
        } else {
            results.extend(result(answer, group, &group.workloads, comparison));
        }
    }
    let mut rules = rules();
    let of_many = OF_MANY.iter().map(|(id, severity, about)| rule(id, *severity, about, about, "see the message"));
    rules.extend(of_many);
    let missed: Vec<String> = answer.missed.iter().map(|missed| format!("{}: {}", missed.what, missed.why)).collect();
    log(&answer.about, &rules, &missed, &answer.notices, &results)
}

fn location(summed: &Summed) -> Value {
    let of = &summed.workload;
    let name = format!("{}/{}/{}", of.namespace, of.kind, of.name);
    let mut out = json!({ "logicalLocations": [{ "fullyQualifiedName": name, "kind": "resource" }] });
    if let Some(place) = summed.variants.iter().find_map(|variant| variant.place.as_ref()) {
        out["physicalLocation"] =
            json!({ "artifactLocation": { "uri": uri(&place.file) }, "region": { "startLine": place.line } });
    }
    out
}

fn result(
    answer: &FleetAnswer,
    group: &FindingGroup,
    owners: &[(usize, u64)],
    comparison: Option<&Comparison>,
) -> Option<Value> {
    let found = &group.finding;
    let (first, _) = *owners.first()?;
    let of = &answer.workloads.get(first)?.workload;
    let who = match owners.len() {
        1 => of.to_string(),
        more => format!("{more} workloads"),
    };
    let mut text = format!("{who}: {}: {}.", found.name(), found.title);
    let mut add = |name: &str, list: &[String]| {
        if !list.is_empty() {
            text += &format!(" {name}: {}.", list.join("; "));
        }
    };
    add("What", &found.what);
    add("By", &found.by);
    add("For example", found.example.as_slice());
    add("To close it", std::slice::from_ref(&found.closes));
    let places = owners.iter().take(PLACES).filter_map(|(at, _)| answer.workloads.get(*at)).map(location);
    let fingerprint = match owners.len() {
        1 => format!("{}|{}/{}/{}|{}", found.id, of.namespace, of.kind, of.name, found.items.join(",")),
        _ => format!("{}|{}", found.id, found.items.join(",")),
    };
    let mut out = json!({
        "ruleId": found.id,
        "level": level(found.severity),
        "message": { "text": text },
        "locations": places.collect::<Vec<_>>(),
        "partialFingerprints": { "podweirFinding/v1": fingerprint },
        "properties": { "severity": found.severity.name(), "workloads": owners.len() },
    });
    if let Some(Acceptance { reason, .. }) = &found.accepted {
        out["suppressions"] = json!([{ "kind": "external", "status": "accepted", "justification": reason }]);
    }
    if let Some(comparison) = comparison.filter(|_| owners.len() == 1) {
        let is_it = |row: &&super::compare::ChangedFinding| row.workload == *of && row.id == found.id;
        out["baselineState"] = match () {
            () if comparison.new.iter().any(|row| is_it(&row)) => "new".into(),
            () if comparison.worse.iter().any(|row| is_it(&row)) => "updated".into(),
            () => "unchanged".into(),
        };
    }
    Some(out)
}
