//! Mermaid: a flowchart that Markdown viewers draw.

use std::fmt::Write;

use super::model::{Drawing, RowEnd};
use crate::audit::escapes::kind::Severity;

pub(super) fn write(drawing: &Drawing) -> String {
    let all = drawing.families();
    let mut out = String::from("flowchart LR\n");
    for (at, chain_box) in drawing.boxes.iter().enumerate() {
        let title = quoted(&chain_box.title());
        // What the kernel enters by itself is round.
        let _ = match chain_box.base {
            Some(_) => writeln!(out, "  c{at}([\"{title}\"])"),
            None => writeln!(out, "  c{at}[\"{title}\"]"),
        };
    }
    for (at, chain_box) in drawing.boxes.iter().enumerate() {
        for (number, row) in chain_box.rows.iter().enumerate() {
            let text = quoted(&format!("{}. {}", number + 1, row.text(all)));
            let end = format!("c{at}r{number}");
            let label = quoted(&row.fate.label());
            let _ = match &row.fate {
                RowEnd::Chain(to) => writeln!(out, "  c{at} -->|\"{text}\"| c{to}"),
                RowEnd::Escapes(severity, _) => {
                    let class = severity_class(*severity);
                    writeln!(out, "  c{at} ==>|\"{text}\"| {end}>\"{label}\"]:::{class}")
                }
                RowEnd::Proxy { .. } => writeln!(out, "  c{at} -->|\"{text}\"| {end}([\"{label}\"]):::proxy"),
                RowEnd::Inside => writeln!(out, "  c{at} -.->|\"{text}\"| {end}[\"{label}\"]:::inside"),
                RowEnd::CannotTell => writeln!(out, "  c{at} -.->|\"{text}\"| {end}{{\"{label}\"}}:::high"),
                RowEnd::Dropped => writeln!(out, "  c{at} -->|\"{text}\"| {end}[[\"{label}\"]]"),
                RowEnd::Back(_) | RowEnd::Changed(_) => writeln!(out, "  c{at} -.->|\"{text}\"| {end}[\"{label}\"]"),
            };
        }
    }
    out.push_str("  classDef high fill:#b3261e,color:#fff,stroke:#7a1a14\n");
    out.push_str("  classDef medium fill:#b4540a,color:#fff,stroke:#7a3906\n");
    out.push_str("  classDef low fill:#8a6d00,color:#fff,stroke:#5c4900\n");
    out.push_str("  classDef proxy fill:#1557a8,color:#fff,stroke:#0e3a70\n");
    out.push_str("  classDef inside stroke-dasharray:4 2\n");
    out
}

fn severity_class(severity: Severity) -> &'static str {
    match severity {
        Severity::High => "high",
        Severity::Medium => "medium",
        _ => "low",
    }
}

/// Quotes text: within double quotes only these characters have a meaning, and are written as entities.
fn quoted(text: &str) -> String {
    text.replace('#', "#35;")
        .replace('"', "#quot;")
        .replace('<', "#lt;")
        .replace('>', "#gt;")
        .replace(['\n', '\r'], " ")
}
