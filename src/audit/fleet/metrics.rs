//! The answer in the text format of Prometheus, for a job whose metrics are pushed, or put
//! into a file that an exporter reads. No workload and no pod is in a label: a namespace and a
//! class are few.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::audit::escapes::kind::Severity;

use super::compare::Comparison;
use super::sum::FleetAnswer;

pub fn write(answer: &FleetAnswer, comparison: Option<&Comparison>) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, help: &str, rows: Vec<(String, u64)>| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in rows {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let mut findings: BTreeMap<(&str, &str, Severity, bool), (u64, u64)> = BTreeMap::new();
    let mut standings: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for summed in &answer.workloads {
        let namespace = summed.workload.namespace.as_str();
        for (found, pods) in &summed.findings {
            let key = (namespace, found.id.as_str(), found.severity, found.accepted.is_some());
            let (workloads, all) = findings.entry(key).or_default();
            *workloads += 1;
            *all += pods;
        }
        for variant in &summed.variants {
            let (workloads, pods) = standings.entry((namespace, variant.standing.name())).or_default();
            *workloads += 1;
            *pods += variant.count;
        }
    }
    let labels = |(namespace, id, severity, accepted): &(&str, &str, Severity, bool)| {
        format!(
            "{{namespace=\"{}\",class=\"{id}\",severity=\"{severity}\",accepted=\"{accepted}\"}}",
            escaped(namespace)
        )
    };
    metric(
        "podweir_audit_findings",
        "Workloads with a finding of this class.",
        findings.iter().map(|(key, (workloads, _))| (labels(key), *workloads)).collect(),
    );
    let standing =
        |(namespace, name): &(&str, &str)| format!("{{namespace=\"{}\",standing=\"{name}\"}}", escaped(namespace));
    metric(
        "podweir_audit_workloads",
        "Workloads by what becomes of their pods' traffic.",
        standings.iter().map(|(key, (workloads, _))| (standing(key), *workloads)).collect(),
    );
    if answer.live {
        metric(
            "podweir_audit_pods_with_findings",
            "Pods with a finding of this class.",
            findings.iter().map(|(key, (_, pods))| (labels(key), *pods)).collect(),
        );
        metric(
            "podweir_audit_pods",
            "Pods by what becomes of their traffic.",
            standings.iter().map(|(key, (_, pods))| (standing(key), *pods)).collect(),
        );
    }
    let one = |value: u64| vec![(String::new(), value)];
    metric("podweir_audit_interceptions", "Distinct interceptions.", one(answer.interceptions() as u64));
    metric("podweir_audit_not_looked_at", "What could not be looked at.", one(answer.missed.len() as u64));
    if let Some(comparison) = comparison {
        let changes = [("new", &comparison.new), ("worse", &comparison.worse), ("gone", &comparison.gone)];
        let mut rows: BTreeMap<(&str, Severity), u64> = BTreeMap::new();
        for (change, list) in changes {
            Severity::ALL.into_iter().for_each(|severity| {
                rows.insert((change, severity), list.iter().filter(|row| row.severity == severity).count() as u64);
            });
        }
        let row = |((change, severity), count): (&(&str, Severity), &u64)| {
            (format!("{{change=\"{change}\",severity=\"{severity}\"}}"), *count)
        };
        metric(
            "podweir_audit_changes",
            "Findings of workloads that changed since the baseline.",
            rows.iter().map(row).collect(),
        );
    }
    out
}

/// Escapes the value of a label, as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
