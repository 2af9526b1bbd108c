//! DOT, for Graphviz: chains as records with a port for each rule.

use std::fmt::Write;

use super::model::{Drawing, RowEnd};
use crate::audit::escapes::kind::Severity;

pub(super) fn write(drawing: &Drawing) -> String {
    let all = drawing.families();
    let mut out = String::from(
        "digraph podweir {\n  rankdir=LR;\n  node [shape=record, fontname=\"monospace\", fontsize=10];\n  edge [fontname=\"monospace\", fontsize=9];\n",
    );
    for (at, chain_box) in drawing.boxes.iter().enumerate() {
        let rows: Vec<String> = chain_box
            .rows
            .iter()
            .enumerate()
            .map(|(number, row)| format!("|<r{number}>{}\\l", record(&row.text(all))))
            .collect();
        let style = if chain_box.base.is_some() { ", style=bold" } else { "" };
        let _ = writeln!(out, "  c{at} [label=\"<top>{}{}\"{style}];", record(&chain_box.title()), rows.concat());
    }
    for (at, chain_box) in drawing.boxes.iter().enumerate() {
        for (number, row) in chain_box.rows.iter().enumerate() {
            let (from, end) = (format!("c{at}:r{number}"), format!("e{at}_{number}"));
            let label = plain(&row.fate.label());
            let _ = match &row.fate {
                RowEnd::Chain(to) => writeln!(out, "  {from} -> c{to}:top;"),
                RowEnd::Escapes(severity, _) => {
                    let colour = match severity {
                        Severity::High => "#b3261e",
                        Severity::Medium => "#b4540a",
                        _ => "#8a6d00",
                    };
                    writeln!(
                        out,
                        "  {end} [label=\"{label}\", shape=rarrow, style=filled, fillcolor=\"{colour}\", fontcolor=white];\n  {from} -> {end} [color=\"{colour}\", penwidth=2];"
                    )
                }
                RowEnd::Proxy { .. } => writeln!(
                    out,
                    "  {end} [label=\"{label}\", shape=oval, style=filled, fillcolor=\"#1557a8\", fontcolor=white];\n  {from} -> {end};"
                ),
                RowEnd::Dropped => writeln!(out, "  {end} [label=\"{label}\", shape=box];\n  {from} -> {end};"),
                RowEnd::Inside | RowEnd::CannotTell | RowEnd::Back(_) | RowEnd::Changed(_) => {
                    writeln!(out, "  {end} [label=\"{label}\", shape=plaintext];\n  {from} -> {end} [style=dashed];")
                }
            };
        }
    }
    out.push_str("}\n");
    out
}

/// Escapes text for the label of a record.
fn record(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(c, '{' | '}' | '|' | '<' | '>' | '"' | '\\') {
            out.push('\\');
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

fn plain(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ")
}
