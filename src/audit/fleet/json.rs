//! The answer as JSON: everything, for programs, and for a later comparison. What the members
//! mean is said in `scripts/schemas/cluster-audit.schema.json`.

use serde_json::{Map, Value, json};

use crate::audit::escapes::kind::Severity;
use crate::audit::report::Acceptance;

use super::compare::{ChangedFinding, Comparison, FORMAT, VERSION};
use super::sum::{FleetAnswer, Summed};
use super::{FleetFinding, PodOutcome, WorkloadVariant};

pub fn write(answer: &FleetAnswer, comparison: Option<&Comparison>) -> String {
    let mut summary: Map<String, Value> =
        Severity::ALL.into_iter().map(|severity| (severity.name().into(), answer.count(severity).into())).collect();
    summary.insert("accepted".into(), answer.accepted().into());
    summary.insert("workloads".into(), answer.workloads.len().into());
    summary.insert("pods".into(), if answer.live { answer.pods().into() } else { Value::Null });
    summary.insert("namespaces".into(), answer.namespaces().len().into());
    summary.insert("interceptions".into(), answer.interceptions().into());
    summary.insert("passed_over".into(), answer.passed_over.into());
    let findings = answer.groups.iter().map(|group| {
        let mut value = details(&group.finding);
        let owner = |(at, pods): &(usize, u64)| {
            let summed = answer.workloads.get(*at)?;
            let mut owner = workload(summed);
            if answer.live {
                owner.insert("pods".into(), (*pods).into());
            }
            Some(Value::Object(owner))
        };
        value.insert("workloads".into(), group.workloads.iter().filter_map(owner).collect());
        Value::Object(value)
    });
    let interceptions = answer.shapes.iter().zip(&answer.pods_of).map(|(shape, pods)| {
        let families: Vec<String> = shape.families.iter().map(|family| family.to_string()).collect();
        json!({
            "digest": shape.digest,
            "families": families,
            "pods": answer.live.then_some(*pods),
            "findings": shape.findings.iter().map(|found| short(found)).collect::<Vec<_>>(),
        })
    });
    let object = json!({
        "format": FORMAT,
        "version": VERSION,
        "about": answer.about,
        "source": if answer.live { "cluster" } else { "manifests" },
        "partial": !answer.missed.is_empty(),
        "summary": summary,
        "findings": findings.collect::<Vec<_>>(),
        "workloads": answer.workloads.iter().map(|summed| of_workload(answer, summed)).collect::<Vec<_>>(),
        "interceptions": interceptions.collect::<Vec<_>>(),
        "not_looked_at": answer.missed.iter().map(|missed| json!({ "what": missed.what, "why": missed.why })).collect::<Vec<_>>(),
        "notices": answer.notices,
        "comparison": comparison.map(compared),
    });
    format!("{object:#}\n")
}

fn workload(summed: &Summed) -> Map<String, Value> {
    let of = &summed.workload;
    Map::from_iter([
        ("namespace".to_owned(), of.namespace.clone().into()),
        ("kind".to_owned(), of.kind.clone().into()),
        ("name".to_owned(), of.name.clone().into()),
    ])
}

fn acceptance(accepted: &Option<Acceptance>) -> Value {
    match accepted {
        Some(a) => json!({ "reason": a.reason, "expires": a.expires.map(|date| date.to_string()) }),
        None => Value::Null,
    }
}

fn short(found: &FleetFinding) -> Value {
    json!({
        "id": found.id,
        "severity": found.severity.name(),
        "items": found.items,
        "accepted": acceptance(&found.accepted),
    })
}

fn details(found: &FleetFinding) -> Map<String, Value> {
    let Value::Object(mut value) = short(found) else { return Map::new() };
    value.insert("title".into(), found.title.clone().into());
    value.insert("meaning".into(), found.meaning.clone().into());
    value.insert("what".into(), found.what.clone().into());
    value.insert("by".into(), found.by.clone().into());
    value.insert("example".into(), found.example.clone().into());
    value.insert("closes".into(), found.closes.clone().into());
    value
}

fn of_workload(answer: &FleetAnswer, summed: &Summed) -> Value {
    let mut out = workload(summed);
    out.insert("labels".into(), json!(summed.labels));
    out.insert("pods".into(), if answer.live { summed.pods().into() } else { Value::Null });
    let variants = summed.variants.iter().map(|variant| of_variant(answer, variant));
    out.insert("variants".into(), variants.collect());
    let findings = summed.findings.iter().map(|(found, pods)| {
        let mut value = short(found);
        if answer.live {
            value["pods"] = (*pods).into();
        }
        value
    });
    out.insert("findings".into(), findings.collect());
    Value::Object(out)
}

fn of_variant(answer: &FleetAnswer, variant: &WorkloadVariant) -> Value {
    let mut value = json!({
        "standing": variant.standing.name(),
        "why": variant.standing.why(),
        "known_by": variant.origin.name(),
    });
    if let PodOutcome::Intercepted(at) = variant.standing {
        value["interception"] = at.into();
    }
    if answer.live {
        value["pods"] = variant.count.into();
        value["names"] = variant.pods.clone().into();
    }
    if let Some(place) = &variant.place {
        value["place"] = json!({ "file": place.file, "document": place.document, "line": place.line });
    }
    value
}

fn compared(comparison: &Comparison) -> Value {
    let rows = |rows: &[ChangedFinding]| {
        let row = |row: &ChangedFinding| {
            json!({
                "namespace": row.workload.namespace,
                "kind": row.workload.kind,
                "name": row.workload.name,
                "id": row.id,
                "severity": row.severity.name(),
                "items": row.items,
                "why": row.why,
            })
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    json!({
        "baseline": comparison.baseline,
        "new": rows(&comparison.new),
        "worse": rows(&comparison.worse),
        "gone": rows(&comparison.gone),
    })
}
