//! The report as one HTML file that needs nothing else: no script, no network. Light or
//! dark as the reader prefers, made to be printed, and every part reached by keyboard.

use std::fmt::Write;

use crate::audit::draw::svg::escaped;
use crate::audit::escapes::Escape;
use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::words;
use crate::audit::question;

use super::text::{pod, summary};
use super::{Acceptance, Judged, Report, by};

const STYLE: &str = include_str!("report.css");
/// The most lines of one list.
const LINES: usize = 40;

pub fn write(report: &Report) -> String {
    let mut out = String::new();
    begin(&mut out, &format!("podweir audit: {}", report.about));
    out.push_str("<a class=\"skip\" href=\"#escapes\">To the escapes</a>\n");
    head(&mut out, report);
    out.push_str("<main>\n");
    notices(&mut out, report);
    drawing(&mut out, &report.drawing);
    escapes(&mut out, report);
    lints(&mut out, report);
    drift(&mut out, report);
    counters(&mut out, report);
    out.push_str("</main>\n");
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(out, "<footer>podweir {version}. {}</footer>\n</body>\n</html>\n", escaped(&summary(report)));
    out
}

/// Just the drawing, and the rules as a table.
pub fn drawing_page(drawing: &str, table: &str) -> String {
    let mut out = String::new();
    begin(&mut out, "podweir render");
    out.push_str("<main>\n");
    self::drawing(&mut out, drawing);
    let _ = write!(
        out,
        "<section id=\"rules\">\n<h2>Rules</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Rules\"><pre>{}</pre></div>\n</section>\n</main>\n</body>\n</html>\n",
        escaped(table)
    );
    out
}

/// Everything up to the body's first element.
pub(in crate::audit) fn begin(out: &mut String, title: &str) {
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escaped(title)
    );
}

fn head(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<header>\n<h1>{}</h1>\n<p>{}</p>", escaped(&report.about), escaped(&pod(report)));
    out.push_str("<ul class=\"counts\" aria-label=\"Findings by severity\">\n");
    for severity in Severity::ALL {
        let (name, count) = (severity.name(), report.count(severity));
        let _ = writeln!(out, "<li class=\"count {name}\"><b>{count}</b> {name}</li>");
    }
    let _ = writeln!(out, "<li class=\"count\"><b>{}</b> accepted</li>\n</ul>", report.accepted());
    out.push_str("<nav aria-label=\"Parts of the report\"><ul>\n");
    let mut parts = vec![("drawing", "Drawing"), ("escapes", "Escapes"), ("lints", "Lints")];
    parts.extend(report.drift.is_some().then_some(("drift", "Drift")));
    parts.extend((!report.counted.is_empty()).then_some(("counters", "Counters")));
    for (id, name) in parts {
        let _ = writeln!(out, "<li><a href=\"#{id}\">{name}</a></li>");
    }
    out.push_str("</ul></nav>\n</header>\n");
}

fn notices(out: &mut String, report: &Report) {
    if report.notices.is_empty() {
        return;
    }
    out.push_str("<section class=\"notices\" aria-label=\"Notes\">\n<ul>\n");
    report.notices.iter().for_each(|notice| *out += &format!("<li>{}</li>\n", escaped(notice)));
    out.push_str("</ul>\n</section>\n");
}

fn drawing(out: &mut String, svg: &str) {
    out.push_str(
        "<section id=\"drawing\">\n<h2>Which way packets go</h2>\n\
         <p>From the kernel's hooks through the chains. An arrow that sticks out of its box is a way past the proxy.</p>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Drawing of the rules\">\n",
    );
    out.push_str(svg);
    out.push_str("</div>\n</section>\n");
}

fn escapes(out: &mut String, report: &Report) {
    out.push_str("<section id=\"escapes\">\n<h2>Escapes</h2>\n");
    if report.escapes.is_empty() {
        out.push_str("<p>Nothing passes the proxy by.</p>\n");
    } else {
        out.push_str(
            "<p>Every class of traffic that reaches its destination without the proxy, the worst first.</p>\n",
        );
    }
    for judged in &report.escapes {
        escape(out, report, judged);
    }
    out.push_str("</section>\n");
}

fn badge(severity: Severity, accepted: &Option<Acceptance>) -> String {
    match accepted {
        Some(_) => "<span class=\"badge\">accepted</span>".into(),
        None => format!("<span class=\"badge {severity}\">{severity}</span>"),
    }
}

fn open(out: &mut String, severity: Severity, accepted: &Option<Acceptance>, title: &str, id: &str) {
    let class = if accepted.is_some() { "accepted" } else { severity.name() };
    let _ = writeln!(
        out,
        "<article class=\"finding {class}\">\n<h3>{} {} <code>{}</code></h3>",
        badge(severity, accepted),
        escaped(title),
        escaped(id)
    );
    if let Some(Acceptance { reason, expires }) = accepted {
        let until = expires.map(|date| format!(", until {date}")).unwrap_or_default();
        let _ = writeln!(out, "<p class=\"wanted\">Accepted{until}: {}</p>", escaped(reason));
    }
}

fn escape(out: &mut String, report: &Report, judged: &Judged<Escape>) {
    let escape = &judged.found;
    open(out, escape.severity, &judged.accepted, &escape.title(), &escape.id());
    let _ = writeln!(out, "<p>{}</p>\n<dl>", escaped(escape.kind.meaning()));
    let list = |out: &mut String, name: &str, lines: &[String]| {
        let _ = writeln!(out, "<dt>{name}</dt>");
        for line in lines.iter().take(LINES) {
            let _ = writeln!(out, "<dd>{}</dd>", escaped(line));
        }
        if lines.len() > LINES {
            let _ = writeln!(out, "<dd>and {} more (--format json has all)</dd>", lines.len() - LINES);
        }
    };
    list(out, "What", &words::flows(escape, report.space));
    list(out, "By", &by(escape));
    let _ = writeln!(out, "<dt>For example</dt>\n<dd>{}</dd>", escaped(&escape.example.to_string()));
    if let Some(rules) = report.explain {
        let _ = writeln!(out, "<dd><code>{}</code></dd>", escaped(&question::command(&escape.example, rules)));
    }
    let _ = writeln!(out, "<dt>To close it</dt>\n<dd>{}</dd>\n</dl>\n</article>", escaped(escape.closes()));
}

fn lints(out: &mut String, report: &Report) {
    out.push_str("<section id=\"lints\">\n<h2>Lints</h2>\n");
    if report.lints.is_empty() {
        out.push_str("<p>Nothing that looks unintended.</p>\n");
    }
    for judged in &report.lints {
        let lint = &judged.found;
        open(out, lint.severity, &judged.accepted, &lint.subject, lint.id);
        let _ = writeln!(
            out,
            "<p>{}</p>\n<dl><dt>To do</dt><dd>{}</dd></dl>\n</article>",
            escaped(&lint.message),
            escaped(&lint.advice)
        );
    }
    out.push_str("</section>\n");
}

fn drift(out: &mut String, report: &Report) {
    let Some(drift) = &report.drift else { return };
    out.push_str("<section id=\"drift\">\n<h2>Drift</h2>\n");
    if drift.is_empty() {
        out.push_str("<p>None: the rules are what they should be.</p>\n</section>\n");
        return;
    }
    for drift in drift {
        open(out, drift.severity, &None, &format!("{}: {}", drift.place, drift.how), "drift");
        let _ = writeln!(
            out,
            "<p><code>{}</code> {}</p>\n<dl>\n<dt>Effect</dt>",
            escaped(&drift.what),
            escaped(&drift.why)
        );
        for line in drift.effects().iter().take(LINES) {
            let _ = writeln!(out, "<dd>{}</dd>", escaped(line));
        }
        out.push_str("</dl>\n</article>\n");
    }
    out.push_str("</section>\n");
}

fn counters(out: &mut String, report: &Report) {
    if report.counted.is_empty() {
        return;
    }
    out.push_str(
        "<section id=\"counters\">\n<h2>Counters</h2>\n<p>How often each rule applied since it was made.</p>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Counters\">\n<table>\n\
         <thead><tr><th scope=\"col\">Rule</th><th scope=\"col\">What</th><th scope=\"col\">Why</th><th scope=\"col\" class=\"n\">Packets</th><th scope=\"col\" class=\"n\">Bytes</th></tr></thead>\n<tbody>\n",
    );
    for row in &report.counted {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&row.place),
            escaped(&row.rule),
            escaped(&row.why),
            row.counters.packets,
            row.counters.bytes
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}
