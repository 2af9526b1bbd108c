//! The answer as one HTML file that needs nothing else: no script, no network. What is found
//! first, then every namespace with its workloads, then a drawing of each distinct
//! interception; long lists are folded, and open without a script.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::audit::draw::svg::escaped;
use crate::audit::escapes::kind::Severity;
use crate::audit::report::html::begin;

use super::compare::{ChangedFinding, Comparison};
use super::sum::{FindingGroup, FleetAnswer, Summed};
use super::text::{counted, meaning, owner, scope, summary};
use super::{FleetFinding, PodOutcome};

const STYLE: &str = include_str!("fleet.css");
/// The most lines of one list.
const LINES: usize = 200;
/// The most drawings, those that most pods have.
const DRAWINGS: usize = 40;
/// The most bytes of all drawings together.
const DRAWN: usize = 1 << 20;

pub fn write(answer: &FleetAnswer, comparison: Option<&Comparison>) -> String {
    let mut out = String::new();
    begin(&mut out, &format!("podweir audit: {}", answer.about));
    let _ = write!(out, "<style>\n{STYLE}</style>\n<a class=\"skip\" href=\"#findings\">To the findings</a>\n");
    head(&mut out, answer, comparison);
    out.push_str("<main>\n");
    missed(&mut out, answer);
    list(&mut out, "notices", "Notes", &answer.notices);
    if let Some(comparison) = comparison {
        changes(&mut out, comparison);
    }
    findings(&mut out, answer);
    standings(&mut out, answer);
    namespaces(&mut out, answer);
    drawings(&mut out, answer);
    let version = env!("CARGO_PKG_VERSION");
    let _ =
        write!(out, "</main>\n<footer>podweir {version}. {}</footer>\n</body>\n</html>\n", escaped(&summary(answer)));
    out
}

fn head(out: &mut String, answer: &FleetAnswer, comparison: Option<&Comparison>) {
    let _ = writeln!(out, "<header>\n<h1>{}</h1>\n<p>{}</p>", escaped(&answer.about), escaped(&scope(answer)));
    out.push_str("<ul class=\"counts\" aria-label=\"Findings of workloads by severity\">\n");
    for severity in Severity::ALL {
        let (name, count) = (severity.name(), answer.count(severity));
        let _ = writeln!(out, "<li class=\"count {name}\"><b>{count}</b> {name}</li>");
    }
    let _ = writeln!(out, "<li class=\"count\"><b>{}</b> accepted</li>\n</ul>", answer.accepted());
    out.push_str("<nav aria-label=\"Parts of the report\"><ul>\n");
    let mut parts = Vec::new();
    parts.extend((!answer.missed.is_empty()).then_some(("missed", "Not looked at")));
    parts.extend(comparison.map(|_| ("changes", "Changes")));
    parts.extend([
        ("findings", "Findings"),
        ("standings", "Who is intercepted"),
        ("namespaces", "Namespaces"),
        ("interceptions", "Interceptions"),
    ]);
    for (id, name) in parts {
        let _ = writeln!(out, "<li><a href=\"#{id}\">{name}</a></li>");
    }
    out.push_str("</ul></nav>\n</header>\n");
}

fn list(out: &mut String, class: &str, label: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "<section class=\"{class}\" aria-label=\"{label}\">\n<ul>");
    lines.iter().for_each(|line| *out += &format!("<li>{}</li>\n", escaped(line)));
    out.push_str("</ul>\n</section>\n");
}

fn missed(out: &mut String, answer: &FleetAnswer) {
    if answer.missed.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<section id=\"missed\" class=\"notices\">\n<h2>Not looked at</h2>\n<p>This answer is partial: {}.</p>\n<ul>",
        escaped(&format!("{} could not be looked at", answer.missed.len()))
    );
    for missed in answer.missed.iter().take(LINES) {
        let _ = writeln!(out, "<li><b>{}</b>: {}</li>", escaped(&missed.what), escaped(&missed.why));
    }
    more(out, answer.missed.len(), LINES);
    out.push_str("</ul>\n</section>\n");
}

/// Writes how many items are left out of a list.
fn more(out: &mut String, all: usize, shown: usize) {
    if all > shown {
        let _ = writeln!(out, "<li>and {} more (--format json has all)</li>", all - shown);
    }
}

fn badge(severity: Severity) -> String {
    format!("<span class=\"badge {severity}\">{severity}</span>")
}

fn changes(out: &mut String, comparison: &Comparison) {
    let _ = writeln!(
        out,
        "<section id=\"changes\">\n<h2>Since {}</h2>\n<p>{}</p>",
        escaped(&comparison.baseline),
        escaped(&comparison.summary())
    );
    let rows = |out: &mut String, name: &str, rows: &[ChangedFinding]| {
        if rows.is_empty() {
            return;
        }
        let _ = writeln!(out, "<details open><summary>{} {name}</summary>\n<ul class=\"rows\">", rows.len());
        for row in rows.iter().take(LINES) {
            let _ = writeln!(out, "<li>{} {}</li>", badge(row.severity), escaped(&row.to_string()));
        }
        more(out, rows.len(), LINES);
        out.push_str("</ul></details>\n");
    };
    rows(out, "new", &comparison.new);
    rows(out, "worse", &comparison.worse);
    rows(out, "gone", &comparison.gone);
    out.push_str("</section>\n");
}

fn findings(out: &mut String, answer: &FleetAnswer) {
    out.push_str("<section id=\"findings\">\n<h2>Findings</h2>\n");
    match answer.groups.is_empty() {
        true => out.push_str("<p>Nothing passes a proxy by.</p>\n"),
        false => out.push_str("<p>The worst first. What many workloads have in common is told once.</p>\n"),
    }
    classes(out, answer);
    for (at, group) in answer.groups.iter().enumerate() {
        finding(out, answer, at, group);
    }
    out.push_str("</section>\n");
}

/// The order of classes: those that count before accepted ones, then by severity, then by name.
type Class<'a> = (bool, Reverse<Severity>, &'a str);

/// An overview of classes, for when many findings are of one.
fn classes(out: &mut String, answer: &FleetAnswer) {
    let mut classes: BTreeMap<Class, (usize, usize, BTreeSet<usize>)> = BTreeMap::new();
    for (at, group) in answer.groups.iter().enumerate() {
        let found = &group.finding;
        let key = (found.accepted.is_some(), Reverse(found.severity), found.id.as_str());
        let (_, distinct, workloads) = classes.entry(key).or_insert((at, 0, BTreeSet::new()));
        *distinct += 1;
        workloads.extend(group.workloads.iter().map(|(at, _)| *at));
    }
    if classes.len() == answer.groups.len() {
        return;
    }
    table(out, "Findings by class", &["Severity", "Class", "Distinct", "Workloads"]);
    for ((accepted, Reverse(severity), id), (first, distinct, workloads)) in classes {
        let badge = if accepted { "<span class=\"badge\">accepted</span>".into() } else { badge(severity) };
        let _ = writeln!(
            out,
            "<tr><td>{badge}</td><td><a href=\"#f{first}\">{}</a></td><td class=\"n\">{distinct}</td><td class=\"n\">{}</td></tr>",
            escaped(id),
            workloads.len()
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn finding(out: &mut String, answer: &FleetAnswer, at: usize, group: &FindingGroup) {
    let found = &group.finding;
    let class = if found.accepted.is_some() { "accepted" } else { found.severity.name() };
    let badge = if found.accepted.is_some() {
        "<span class=\"badge\">accepted</span>".to_owned()
    } else {
        badge(found.severity)
    };
    let _ = writeln!(
        out,
        "<article id=\"f{at}\" class=\"finding {class}\">\n<h3>{badge} {} <code>{}</code></h3>",
        escaped(&found.title),
        escaped(&found.name())
    );
    if let Some(acceptance) = &found.accepted {
        let until = acceptance.expires.map(|date| format!(", until {date}")).unwrap_or_default();
        let _ = writeln!(out, "<p class=\"wanted\">Accepted{until}: {}</p>", escaped(&acceptance.reason));
    }
    about(out, found);
    let open = if group.workloads.len() <= 8 && found.severity >= Severity::Medium { " open" } else { "" };
    let pods: u64 = group.workloads.iter().map(|(_, pods)| pods).sum();
    let pods = if answer.live { format!(", {}", counted(pods, "pod")) } else { String::new() };
    let _ = writeln!(
        out,
        "<details{open}><summary>{}{pods}</summary>\n<ul class=\"rows\">",
        counted(group.workloads.len() as u64, "workload")
    );
    for (at, pods) in group.workloads.iter().take(LINES) {
        let _ = writeln!(out, "<li>{}</li>", escaped(&owner(answer, *at, *pods)));
    }
    more(out, group.workloads.len(), LINES);
    out.push_str("</ul></details>\n</article>\n");
}

/// What it is, and what closes it.
fn about(out: &mut String, found: &FleetFinding) {
    if !found.meaning.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escaped(&found.meaning));
    }
    out.push_str("<dl>\n");
    let mut rows = |name: &str, lines: &[String]| {
        for (at, line) in lines.iter().take(8).enumerate() {
            if at == 0 {
                let _ = writeln!(out, "<dt>{name}</dt>");
            }
            let _ = writeln!(out, "<dd>{}</dd>", escaped(line));
        }
    };
    rows("What", &found.what);
    rows("By", &found.by);
    rows("For example", found.example.as_slice());
    rows("To close it", std::slice::from_ref(&found.closes));
    out.push_str("</dl>\n");
}

fn standings(out: &mut String, answer: &FleetAnswer) {
    out.push_str("<section id=\"standings\">\n<h2>Who is intercepted, and who is not</h2>\n");
    table(out, "Who is intercepted", &["Standing", "Why", "Workloads", "Such as"]);
    for stand in answer.standings() {
        let names =
            stand.workloads.iter().take(4).filter_map(|at| Some(answer.workloads.get(*at)?.workload.to_string()));
        let names = names.collect::<Vec<_>>().join(", ");
        let why = stand.why.as_deref().unwrap_or_else(|| meaning(stand.name));
        let pods = if answer.live { format!(" ({})", counted(stand.pods, "pod")) } else { String::new() };
        let _ = writeln!(
            out,
            "<tr><td><b class=\"standing {0}\">{0}</b></td><td>{1}</td><td class=\"n\">{2}{pods}</td><td>{3}</td></tr>",
            stand.name,
            escaped(why),
            stand.workloads.len(),
            escaped(&names)
        );
    }
    out.push_str("</tbody></table></div>\n</section>\n");
}

fn table(out: &mut String, label: &str, heads: &[&str]) {
    let _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\n<table>\n<thead><tr>",
        escaped(label)
    );
    heads.iter().for_each(|head| *out += &format!("<th scope=\"col\">{head}</th>"));
    out.push_str("</tr></thead>\n<tbody>\n");
}

fn namespaces(out: &mut String, answer: &FleetAnswer) {
    let mut all: BTreeMap<&str, Vec<&Summed>> = BTreeMap::new();
    for summed in &answer.workloads {
        all.entry(&summed.workload.namespace).or_default().push(summed);
    }
    out.push_str("<section id=\"namespaces\">\n<h2>Namespaces</h2>\n");
    let few = all.len() <= 3 && answer.workloads.len() <= 60;
    for (namespace, workloads) in all {
        let worst = workloads.iter().filter_map(|summed| summed.worst()).max();
        let badge = worst.map(badge).unwrap_or_else(|| "<span class=\"badge\">none</span>".into());
        let pods: u64 = workloads.iter().map(|summed| summed.pods()).sum();
        let pods = if answer.live { format!(", {}", counted(pods, "pod")) } else { String::new() };
        let open = if few { " open" } else { "" };
        let _ = writeln!(
            out,
            "<details class=\"namespace\"{open}><summary>{badge} <b>{}</b> <span class=\"wanted\">{}{pods}</span></summary>",
            escaped(namespace),
            counted(workloads.len() as u64, "workload")
        );
        table(
            out,
            &format!("Workloads of {namespace}"),
            &["Workload", "Standing", "Findings", "High", "Medium", "Low", "Info"],
        );
        for summed in workloads {
            workload(out, answer, summed);
        }
        out.push_str("</tbody></table></div></details>\n");
    }
    out.push_str("</section>\n");
}

fn workload(out: &mut String, answer: &FleetAnswer, summed: &Summed) {
    let of = &summed.workload;
    let pods = if answer.live { format!(" <span class=\"wanted\">{}</span>", summed.pods()) } else { String::new() };
    let _ = write!(out, "<tr><td>{} <b>{}</b>{pods}</td><td>", escaped(&of.kind), escaped(&of.name));
    let mut stands: Vec<String> = Vec::new();
    for variant in &summed.variants {
        let text = match variant.standing {
            PodOutcome::Intercepted(at) if at < DRAWINGS => format!("<a href=\"#i{0}\">intercepted ({0})</a>", at + 1),
            PodOutcome::Intercepted(at) => format!("intercepted ({})", at + 1),
            _ => variant.standing.name().into(),
        };
        if !stands.contains(&text) {
            stands.push(text);
        }
    }
    out.push_str(&stands.join(", "));
    out.push_str("</td><td>");
    let counting = || summed.findings.iter().map(|(found, _)| found).filter(|found| found.accepted.is_none());
    let names: Vec<String> =
        counting().filter(|found| found.severity >= Severity::Medium).map(|found| escaped(&found.name())).collect();
    out.push_str(&names.join("<br>"));
    out.push_str("</td>");
    for severity in Severity::ALL {
        let count = counting().filter(|found| found.severity == severity).count();
        let _ = write!(out, "<td class=\"n\">{count}</td>");
    }
    out.push_str("</tr>\n");
}

fn drawings(out: &mut String, answer: &FleetAnswer) {
    if answer.shapes.is_empty() {
        return;
    }
    out.push_str(
        "<section id=\"interceptions\">\n<h2>Distinct interceptions</h2>\n\
         <p>From the kernel's hooks through the chains. An arrow that sticks out of its box is a way past the proxy.</p>\n",
    );
    let mut left = DRAWN;
    for (at, shape) in answer.shapes.iter().enumerate().take(DRAWINGS) {
        let who = answer
            .workloads
            .iter()
            .filter(|summed| summed.variants.iter().any(|variant| variant.standing == PodOutcome::Intercepted(at)));
        let names: Vec<String> = who.map(|summed| summed.workload.to_string()).collect();
        let pods = answer.pods_of.get(at).copied().unwrap_or_default();
        let pods = if answer.live { format!(", {}", counted(pods, "pod")) } else { String::new() };
        let open = if at == 0 { " open" } else { "" };
        let _ = writeln!(
            out,
            "<details class=\"namespace\" id=\"i{0}\"{open}><summary><b>Interception {0}</b> <span class=\"wanted\">{1}{pods}, {2}</span></summary>\n<p>{3}{4}</p>",
            at + 1,
            counted(names.len() as u64, "workload"),
            escaped(&shape.families.to_string()),
            escaped(&names.iter().take(6).cloned().collect::<Vec<_>>().join(", ")),
            if names.len() > 6 { format!(" and {} more", names.len() - 6) } else { String::new() }
        );
        match left.checked_sub(shape.drawing.len()) {
            Some(rest) => {
                left = rest;
                let _ = writeln!(
                    out,
                    "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Drawing of interception {}\">\n{}</div>",
                    at + 1,
                    // What is in a folded drawing cannot be pointed at from another.
                    shape.drawing.replace("podweir-end", &format!("podweir-end-{at}"))
                );
            }
            None => out.push_str("<p>Not drawn: the page would be too large.</p>\n"),
        }
        out.push_str("</details>\n");
    }
    if answer.shapes.len() > DRAWINGS {
        let _ = writeln!(out, "<p>and {} more (--format json has all)</p>", answer.shapes.len() - DRAWINGS);
    }
    out.push_str("</section>\n");
}
