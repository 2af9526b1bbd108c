//! The report as JSON: everything, for programs. `scripts/schemas/audit.schema.json` says what each member means.

use serde_json::{Map, Value, json};

use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::{Escape, scope_name};
use crate::audit::question;
use crate::audit::space::Scope;
use crate::audit::space::cube::{Cube, NOBODY, Owners};
use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::Family;
use crate::plan::canon::{Addresses, address};

use super::drift::DriftFinding;
use super::{Acceptance, Judged, Report, exits, falls_through};

pub fn write(report: &Report) -> String {
    let families: Vec<String> = report.families.iter().map(|family| family.to_string()).collect();
    let addresses: Vec<String> = report.pod.addresses.iter().map(ToString::to_string).collect();
    let mut summary: Map<String, Value> =
        Severity::ALL.into_iter().map(|severity| (severity.name().into(), report.count(severity).into())).collect();
    summary.insert("accepted".into(), report.accepted().into());
    let lints = report.lints.iter().map(|judged| {
        let lint = &judged.found;
        json!({
            "id": lint.id,
            "severity": lint.severity.name(),
            "subject": lint.subject,
            "message": lint.message,
            "advice": lint.advice,
            "accepted": acceptance(&judged.accepted),
        })
    });
    let drift = report.drift.as_ref().map(|drift| {
        let object = |d: &DriftFinding| {
            json!({
                "severity": d.severity.name(),
                "place": d.place,
                "how": d.how,
                "what": d.what,
                "why": d.why,
                "effects": d.effects,
            })
        };
        drift.iter().map(object).collect::<Vec<_>>()
    });
    let object = json!({
        "format": "podweir-audit",
        "version": 1,
        "about": report.about,
        "pod": { "addresses": addresses, "uplink": &*report.pod.uplink },
        "families": families,
        "summary": summary,
        "escapes": report.escapes.iter().map(|judged| escape(report, judged)).collect::<Vec<_>>(),
        "lints": lints.collect::<Vec<_>>(),
        "drift": drift,
        "notices": report.notices,
    });
    format!("{object:#}\n")
}

fn acceptance(accepted: &Option<Acceptance>) -> Value {
    match accepted {
        Some(a) => json!({ "reason": a.reason, "expires": a.expires.map(|date| date.to_string()) }),
        None => Value::Null,
    }
}

fn escape(report: &Report, judged: &Judged<Escape>) -> Value {
    let escape = &judged.found;
    let rules = exits(escape).into_iter().map(|e| {
        let origin = e.origin.as_ref();
        json!({
            "place": e.place,
            "number": origin.map(|origin| origin.number),
            "handle": origin.and_then(|origin| origin.handle),
            "rule": e.rule,
            "listed": origin.and_then(|origin| origin.text.as_deref()),
            "why": e.why,
        })
    });
    json!({
        "id": escape.id(),
        "kind": escape.kind.id(),
        "scope": scope_name(escape.scope),
        "severity": escape.severity.name(),
        "title": escape.title(),
        "meaning": escape.kind.meaning(),
        "closes": escape.closes(),
        "accepted": acceptance(&judged.accepted),
        "rules": rules.collect::<Vec<_>>(),
        "falls_through": falls_through(escape),
        "example": question::json(&escape.example),
        "explain": question::arguments(&escape.example),
        "flows": escape.flows.iter().map(|(family, cube)| flows(report, escape.scope, *family, cube)).collect::<Vec<_>>(),
    })
}

fn flows(report: &Report, scope: Scope, family: Family, cube: &Cube) -> Value {
    let whole = report.space.whole(family, scope);
    let mut out = Map::from_iter([("family".to_owned(), Value::from(family.to_string()))]);
    let mut add = |name: &str, is_part: bool, value: &dyn Fn() -> Vec<String>| {
        if is_part {
            out.insert(name.into(), value().into());
        }
    };
    add("protocol", !cube.protocol.is_full(), &|| spans(&cube.protocol));
    add("interface", cube.interface(scope) != whole.interface(scope), &|| {
        let (names, others) = report.space.interfaces.patterns(cube.interface(scope));
        names.iter().map(ToString::to_string).chain(others.then(|| "*".to_owned())).collect()
    });
    add("user", cube.uid != whole.uid, &|| owners(&cube.uid));
    add("group", cube.gid != whole.gid, &|| owners(&cube.gid));
    // The pod's own addresses are always told apart, so this one is never left out.
    add("destination", true, &|| addresses(&cube.destination, family));
    add("port", !cube.port.is_full(), &|| spans(&cube.port));
    add("source", cube.source != whole.source, &|| addresses(&cube.source, family));
    add("source_port", !cube.source_port.is_full(), &|| spans(&cube.source_port));
    Value::Object(out)
}

fn spans<T: Discrete>(set: &RangeList<T>) -> Vec<String> {
    set.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect()
}

fn owners(set: &Owners) -> Vec<String> {
    let ids = set.minus(&RangeList::of([NOBODY]));
    spans(&ids).into_iter().chain(set.holds(NOBODY).then(|| "none".to_owned())).collect()
}

fn addresses(set: &Addresses, family: Family) -> Vec<String> {
    let text = |number| address(family, number).to_string();
    set.iter().map(|(a, b)| if a == b { text(a) } else { format!("{}-{}", text(a), text(b)) }).collect()
}
