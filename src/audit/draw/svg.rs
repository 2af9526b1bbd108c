//! SVG, drawn by hand: columns of boxes from left to right, a line for each jump. What
//! escapes has a colour and a shape of its own, an arrow that sticks out of its box, so
//! that it is found without colour too. Light or dark is what the viewer prefers.

use std::fmt::Write;

use crate::config::types::Families;

use super::model::{ChainBox, Drawing, Row, RowEnd};
use crate::audit::escapes::kind::Severity;
use crate::audit::flow::Taker;
use crate::audit::ruleset::Hook;

/// Room for one character of the fixed-width text, at its size.
const CHARACTER: usize = 7;
/// The longest line of a rule's conditions.
const LINE: usize = 48;
const LINE_HEIGHT: usize = 15;
const WHY_HEIGHT: usize = 14;
const PADDING: usize = 10;
const HEADER: usize = 40;
/// Between boxes of a column, and between columns.
const GAP: usize = 26;
const GUTTER: usize = 72;
/// How far an escape sticks out of its box.
const TIP: usize = 16;
const BADGE_HEIGHT: usize = 22;

const STYLE: &str = "
svg.podweir{--paper:#fff;--ink:#1c2430;--dim:#5b6675;--box:#f5f7fa;--edge:#b9c3d0;--head:#e4e9f0;--line:#7b8899;--high:#b3261e;--medium:#b4540a;--low:#8a6d00;--inside:#4d6b5a;--proxy:#1557a8;--drop:#3d4551;--on:#fff;font-family:system-ui,sans-serif;background:var(--paper)}
@media (prefers-color-scheme:dark){svg.podweir{--paper:#12161c;--ink:#e6ebf2;--dim:#9aa7b8;--box:#1b222c;--edge:#3a4656;--head:#26303d;--line:#8291a5;--high:#ff8a80;--medium:#ffb067;--low:#e6cf6a;--inside:#9cc7ad;--proxy:#8ab8ff;--drop:#c3ccd8;--on:#12161c}}
@media print{svg.podweir{--paper:#fff;--ink:#000;--dim:#444;--box:#fff;--edge:#888;--head:#eee;--line:#555;--high:#b3261e;--medium:#b4540a;--low:#8a6d00;--inside:#4d6b5a;--proxy:#1557a8;--drop:#3d4551;--on:#fff}}
.podweir text{fill:var(--ink);font-size:12px}
.podweir .c{font:11.5px ui-monospace,Menlo,Consolas,monospace}
.podweir .w{fill:var(--dim);font-size:11px}
.podweir .t{font-weight:600;font-size:13px}
.podweir .box{fill:var(--box);stroke:var(--edge)}
.podweir .head{fill:var(--head)}
.podweir .rule{stroke:var(--edge)}
.podweir .jump{fill:none;stroke:var(--line);stroke-width:1.5}
.podweir .end{fill:var(--line)}
.podweir .b{fill:var(--on);font-size:11px;font-weight:600}
.podweir .on{fill:var(--dim);font-size:11px}
.podweir .high{fill:var(--high)}
.podweir .medium{fill:var(--medium)}
.podweir .low{fill:var(--low)}
.podweir .inside{fill:none;stroke:var(--inside);stroke-dasharray:4 2}
.podweir .insidet{fill:var(--inside);font-size:11px}
.podweir .proxy{fill:var(--proxy)}
.podweir .drop{fill:var(--drop)}
.podweir .unknown{fill:none;stroke:var(--high);stroke-dasharray:3 3}
.podweir .unknownt{fill:var(--high);font-size:11px;font-weight:600}
";

/// Where a box is.
#[derive(Debug, Clone, Default)]
struct BoxPlace {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    /// The tops of the rows.
    rows: Vec<usize>,
}

pub fn write(drawing: &Drawing) -> String {
    let all = drawing.families();
    let places = places(drawing, all);
    let right = places.iter().map(|p| p.x + p.width).max().unwrap_or(300) + TIP + PADDING;
    let bottom = places.iter().map(|p| p.y + p.height).max().unwrap_or(60) + PADDING;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"podweir\" viewBox=\"0 0 {right} {bottom}\" width=\"{right}\" height=\"{bottom}\" role=\"img\" aria-label=\"Which way packets go through the rules, and where they escape\">\n<style>{STYLE}</style>\n<defs><marker id=\"podweir-end\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path class=\"end\" d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    if drawing.boxes.is_empty() {
        text(&mut out, "t", PADDING, 30, "no rules: everything reaches its destination");
    }
    for (chain_box, place) in drawing.boxes.iter().zip(&places) {
        write_box(&mut out, chain_box, place, all);
        for (row, &top) in chain_box.rows.iter().zip(&place.rows) {
            if let RowEnd::Chain(to) = row.fate
                && let Some(target) = places.get(to)
            {
                let (from_x, from_y) = (place.x + place.width, top + row_height(row, all) / 2);
                jump(&mut out, from_x, from_y, target);
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Columns by distance from the hooks; in a column each box beside what leads to it.
fn places(drawing: &Drawing, all: Families) -> Vec<BoxPlace> {
    let boxes = &drawing.boxes;
    let mut places = vec![BoxPlace::default(); boxes.len()];
    let deepest = boxes.iter().map(|b| b.depth).max().unwrap_or(0);
    let mut x = PADDING;
    for depth in 0..=deepest {
        let mut column: Vec<usize> = (0..boxes.len()).filter(|&at| boxes[at].depth == depth).collect();
        let wanted = |at: usize, places: &[BoxPlace]| {
            let jumps = boxes.iter().zip(places).filter(|(b, _)| b.depth < depth);
            let tops = jumps.flat_map(|(b, place)| b.rows.iter().zip(&place.rows));
            tops.filter(|(row, _)| row.fate == RowEnd::Chain(at)).map(|(_, &top)| top).min()
        };
        if depth > 0 {
            column.sort_by_key(|&at| wanted(at, &places));
        }
        let width = column.iter().map(|&at| width(&boxes[at], all)).max().unwrap_or(0);
        let mut y = PADDING;
        for at in column {
            let start = wanted(at, &places).map_or(y, |top| y.max(top.saturating_sub(HEADER / 2)));
            let mut top = start + HEADER;
            let mut rows = Vec::new();
            for row in &boxes[at].rows {
                rows.push(top);
                top += row_height(row, all);
            }
            places[at] = BoxPlace { x, y: start, width, height: top - start + 4, rows };
            y = top + GAP;
        }
        x += width + GUTTER;
    }
    places
}

fn lines(row: &Row, all: Families) -> Vec<String> {
    let mut out = vec![String::new()];
    // After a comma or a space a line may end.
    for word in row.text(all).split_inclusive([',', ' ']) {
        match out.last_mut() {
            Some(line) if line.is_empty() || line.len() + word.trim_end().len() <= LINE => line.push_str(word),
            _ => out.push(word.into()),
        }
    }
    out
}

fn row_height(row: &Row, all: Families) -> usize {
    let why = if row.why.is_empty() { 0 } else { WHY_HEIGHT };
    (lines(row, all).len() * LINE_HEIGHT + why + 10).max(BADGE_HEIGHT + 8)
}

fn badge_width(row: &Row) -> usize {
    match row.fate.label() {
        label if label.is_empty() => 0,
        label => label.len() * CHARACTER + 16,
    }
}

fn width(chain_box: &ChainBox, all: Families) -> usize {
    let of_row = |row: &Row| {
        let conditions = lines(row, all).iter().map(|line| line.trim_end().len() * CHARACTER).max().unwrap_or(0);
        conditions.max(row.why.len() * 6) + badge_width(row) + 3 * PADDING
    };
    let title = (chain_box.title().len() * 8).max(subtitle(chain_box).len() * 6) + 2 * PADDING;
    chain_box.rows.iter().map(of_row).max().unwrap_or(0).max(title).max(190)
}

fn subtitle(chain_box: &ChainBox) -> &'static str {
    match chain_box.base.map(|base| base.hook) {
        Some(Hook::Prerouting) => "what comes in",
        Some(Hook::Input) => "what comes in for the pod",
        Some(Hook::Forward) => "what goes through",
        Some(Hook::Output) => "what processes of the pod send",
        Some(Hook::Postrouting) => "what goes out",
        None => "",
    }
}

fn write_box(out: &mut String, chain_box: &ChainBox, place: &BoxPlace, all: Families) {
    let BoxPlace { x, y, width, height, .. } = *place;
    let _ =
        writeln!(out, "<g><rect class=\"box\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>");
    let (inner_x, inner_y, inner) = (x + 1, y + 1, width - 2);
    let head = HEADER - 4;
    let _ = writeln!(
        out,
        "<rect class=\"head\" x=\"{inner_x}\" y=\"{inner_y}\" width=\"{inner}\" height=\"{head}\" rx=\"5\"/>"
    );
    let subtitle = subtitle(chain_box);
    let title_y = if subtitle.is_empty() { y + 24 } else { y + 17 };
    text(out, "t", x + PADDING, title_y, &chain_box.title());
    if !subtitle.is_empty() {
        text(out, "w", x + PADDING, y + 31, subtitle);
    }
    for (at, (row, &top)) in chain_box.rows.iter().zip(&place.rows).enumerate() {
        if at > 0 {
            let end = x + width;
            let _ = writeln!(out, "<path class=\"rule\" d=\"M{x} {top}H{end}\"/>");
        }
        let lines = lines(row, all);
        for (number, line) in lines.iter().enumerate() {
            text(out, "c", x + PADDING, top + 16 + number * LINE_HEIGHT, line.trim_end());
        }
        if !row.why.is_empty() {
            text(out, "w", x + PADDING, top + 16 + lines.len() * LINE_HEIGHT, &row.why);
        }
        badge(out, row, x + width, top + row_height(row, all) / 2);
    }
    out.push_str("</g>\n");
}

/// The end of a row: `right` is the edge of the box, `middle` the row's.
fn badge(out: &mut String, row: &Row, right: usize, middle: usize) {
    let label = row.fate.label();
    let width = badge_width(row);
    if width == 0 {
        return;
    }
    let (top, bottom) = (middle - BADGE_HEIGHT / 2, middle + BADGE_HEIGHT / 2);
    let left = right - PADDING / 2 - width;
    let rect = |out: &mut String, class: &str, radius: usize| {
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{BADGE_HEIGHT}\" rx=\"{radius}\"/>"
        );
    };
    let class = match &row.fate {
        RowEnd::Chain(_) => return,
        RowEnd::Escapes(severity, classes) => {
            let shape = match severity {
                Severity::High => "high",
                Severity::Medium => "medium",
                _ => "low",
            };
            let (neck, tip) = (right, right + TIP);
            let _ = writeln!(
                out,
                "<path class=\"{shape}\" d=\"M{left} {top}H{neck}L{tip} {middle}L{neck} {bottom}H{left}z\"><title>{}</title></path>",
                escaped(&classes.join(", "))
            );
            "b"
        }
        RowEnd::Proxy { taker, .. } => {
            rect(out, if *taker == Taker::Unknown { "unknown" } else { "proxy" }, BADGE_HEIGHT / 2);
            "b"
        }
        RowEnd::Dropped => {
            rect(out, "drop", 0);
            "b"
        }
        RowEnd::Inside => {
            rect(out, "inside", 4);
            "insidet"
        }
        RowEnd::CannotTell => {
            rect(out, "unknown", 4);
            "unknownt"
        }
        RowEnd::Back(_) | RowEnd::Changed(_) => "on",
    };
    let (x, y) = (left + width / 2, middle + 4);
    let _ =
        writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escaped(&label));
}

fn jump(out: &mut String, from_x: usize, from_y: usize, target: &BoxPlace) {
    let (x, y) = (target.x, target.y + HEADER / 2);
    let bend = if x > from_x { (x - from_x) / 2 } else { GUTTER / 2 };
    let (first, second) = (from_x + bend, x.saturating_sub(bend));
    let _ = writeln!(
        out,
        "<path class=\"jump\" marker-end=\"url(#podweir-end)\" d=\"M{from_x} {from_y}C{first} {from_y} {second} {y} {x} {y}\"/>"
    );
}

fn text(out: &mut String, class: &str, x: usize, y: usize, words: &str) {
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(words));
}

/// Escapes text for XML and HTML.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Of the control characters XML allows only these.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
