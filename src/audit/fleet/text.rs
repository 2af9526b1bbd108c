//! The answer as text: a screen first, and with `-v` everything.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::audit::escapes::kind::Severity;

use super::compare::Comparison;
use super::sum::{FindingGroup, FleetAnswer, Stand, WITH_REASON};

/// How many workloads with one finding are named on a screen.
const NAMED: usize = 3;
/// How many findings of one severity are on a screen, and how many of one class.
const FINDINGS: usize = 8;
const OF_CLASS: usize = 3;
/// How many things that were not looked at are on a screen.
const MISSED: usize = 8;

/// A number with its noun, in the singular or plural.
pub fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// What was looked at, in a line.
pub fn scope(answer: &FleetAnswer) -> String {
    let mut parts = vec![counted(answer.workloads.len() as u64, "workload")];
    if answer.live {
        parts.push(counted(answer.pods(), "pod"));
    }
    parts.push(counted(answer.namespaces().len() as u64, "namespace"));
    parts.push(counted(answer.interceptions() as u64, "distinct interception"));
    if answer.passed_over > 0 {
        parts.push(format!("{} of other kinds passed over", counted(answer.passed_over as u64, "document")));
    }
    parts.join(", ")
}

/// How many findings there are of each severity.
pub fn summary(answer: &FleetAnswer) -> String {
    let counts = Severity::ALL.into_iter().map(|severity| format!("{} {severity}", answer.count(severity)));
    format!("{}; {} accepted", counts.collect::<Vec<_>>().join(", "), answer.accepted())
}

/// Formats the answer as text; `all` lifts the limit of one screen.
pub fn write(answer: &FleetAnswer, comparison: Option<&Comparison>, all: bool) -> String {
    let mut out = format!("{}: {}\n{}\n", answer.about, scope(answer), summary(answer));
    for severity in Severity::ALL {
        let of = |group: &&FindingGroup| group.finding.accepted.is_none() && group.finding.severity == severity;
        let groups: Vec<&FindingGroup> = answer.groups.iter().filter(of).collect();
        if !groups.is_empty() {
            out.push('\n');
        }
        // Of every class there is something to see before there is all of one.
        let (mut shown, mut classes, mut hidden) = (0, BTreeMap::new(), BTreeMap::<&str, usize>::new());
        for group in groups {
            let id = group.finding.id.as_str();
            let of_class = classes.entry(id).or_insert(0);
            *of_class += 1;
            if all || (*of_class <= OF_CLASS && shown < FINDINGS) {
                shown += 1;
                self::group(&mut out, answer, group, all);
            } else {
                *hidden.entry(id).or_default() += 1;
            }
        }
        if !hidden.is_empty() {
            let hidden: Vec<String> = hidden.iter().map(|(id, count)| format!("{count} {id}")).collect();
            let _ = writeln!(out, "{:<8}and {} more (-v has all)", "", hidden.join(", "));
        }
    }
    accepted(&mut out, answer, all);
    standings(&mut out, answer, all);
    missed(&mut out, answer, all);
    if let Some(comparison) = comparison {
        self::comparison(&mut out, comparison, all);
    }
    if !answer.notices.is_empty() {
        out.push('\n');
        answer.notices.iter().for_each(|notice| out += &format!("note: {notice}\n"));
    }
    out
}

fn group(out: &mut String, answer: &FleetAnswer, group: &FindingGroup, all: bool) {
    let found = &group.finding;
    let _ = writeln!(
        out,
        "{:<8}{}: {}{}{}",
        found.severity.name().to_uppercase(),
        found.name(),
        found.title,
        if WITH_REASON.contains(&found.id.as_str()) { format!(": {}", found.what.join("; ")) } else { String::new() },
        // What almost everybody has needs no names on a screen.
        if all || found.severity >= Severity::Medium { String::new() } else { format!(": {}", spread(answer, group)) }
    );
    if all {
        let mut field = |name: &str, lines: &[String]| {
            for (at, line) in lines.iter().enumerate() {
                let _ = writeln!(out, "  {:<6}{line}", if at == 0 { name } else { "" });
            }
        };
        field("what", &found.what);
        field("by", &found.by);
        field("try", found.example.as_slice());
        field("close", std::slice::from_ref(&found.closes));
        for (at, pods) in &group.workloads {
            let _ = writeln!(out, "        {}", owner(answer, *at, *pods));
        }
    } else if found.severity >= Severity::Medium {
        for (at, pods) in group.workloads.iter().take(NAMED) {
            let _ = writeln!(out, "        {}", owner(answer, *at, *pods));
        }
        if group.workloads.len() > NAMED {
            let rest = FindingGroup { finding: found.clone(), workloads: group.workloads[NAMED..].to_vec() };
            let _ = writeln!(out, "        and {}", spread(answer, &rest));
        }
    }
}

/// A workload with its pods.
pub fn owner(answer: &FleetAnswer, at: usize, pods: u64) -> String {
    let Some(summed) = answer.workloads.get(at) else { return String::new() };
    let total = summed.pods();
    let pods = match answer.live {
        false => String::new(),
        true if pods == total => format!(", {}", counted(pods, "pod")),
        true => format!(", {pods} of {}", counted(total, "pod")),
    };
    let variant = summed.variants.iter().find_map(|variant| variant.place.as_ref());
    let place = variant.map(|place| format!(" ({place})")).unwrap_or_default();
    format!("{}{pods}{place}", summed.workload)
}

/// How many workloads have a finding, in how many namespaces.
fn spread(answer: &FleetAnswer, group: &FindingGroup) -> String {
    let mut namespaces: BTreeMap<&str, u64> = BTreeMap::new();
    let mut pods = 0;
    for (at, of) in &group.workloads {
        pods += of;
        let Some(summed) = answer.workloads.get(*at) else { continue };
        *namespaces.entry(&summed.workload.namespace).or_default() += 1;
    }
    let pods = if answer.live { format!(" ({})", counted(pods, "pod")) } else { String::new() };
    let workloads = counted(group.workloads.len() as u64, "workload");
    match (namespaces.len(), namespaces.keys().next()) {
        (1, Some(namespace)) => format!("{workloads} in {namespace}{pods}"),
        (count, _) => format!("{workloads} in {}{pods}", counted(count as u64, "namespace")),
    }
}

fn accepted(out: &mut String, answer: &FleetAnswer, all: bool) {
    let groups: Vec<&FindingGroup> = answer.groups.iter().filter(|group| group.finding.accepted.is_some()).collect();
    if groups.is_empty() {
        return;
    }
    out.push('\n');
    let shown = if all { groups.len() } else { FINDINGS };
    for group in groups.iter().take(shown) {
        let Some(acceptance) = &group.finding.accepted else { continue };
        let until = acceptance.expires.map(|date| format!(" (until {date})")).unwrap_or_default();
        let (name, spread) = (group.finding.name(), spread(answer, group));
        let _ = writeln!(out, "accepted {name}: {spread}: {}{until}", acceptance.reason);
    }
    if groups.len() > shown {
        let _ = writeln!(out, "accepted and {} more (-v has all)", groups.len() - shown);
    }
}

/// An outcome's name in words.
pub fn meaning(name: &str) -> &'static str {
    match name {
        "intercepted" => "traffic is diverted to a sidecar",
        "not-intercepted" => "is to be in the mesh, and nothing diverts its traffic",
        "refused" => "asks for what makes no sense, and does not start",
        "ambient" => "the node's ztunnel takes its traffic: not looked into here",
        "host-network" => "in its node's network namespace: cannot be intercepted",
        "left-alone" => "no sidecar, on purpose",
        "outside" => "no sidecar: nobody asked for one",
        _ => "could not be looked at",
    }
}

fn standings(out: &mut String, answer: &FleetAnswer, all: bool) {
    out.push('\n');
    let stands = answer.standings();
    for name in super::PodOutcome::NAMES {
        let of: Vec<&Stand> = stands.iter().filter(|stand| stand.name == name).collect();
        if of.is_empty() {
            continue;
        }
        let workloads: usize = of.iter().map(|stand| stand.workloads.len()).sum();
        let pods: u64 = of.iter().map(|stand| stand.pods).sum();
        let pods = if answer.live { format!(", {}", counted(pods, "pod")) } else { String::new() };
        let _ = writeln!(out, "{name:<16}{}{pods}: {}", counted(workloads as u64, "workload"), meaning(name));
        for stand in of.iter().filter(|stand| stand.why.is_some() || (all && name != "intercepted")).take(if all {
            usize::MAX
        } else {
            NAMED
        }) {
            let named: Vec<String> = stand
                .workloads
                .iter()
                .take(if all { usize::MAX } else { NAMED })
                .filter_map(|at| Some(answer.workloads.get(*at)?.workload.to_string()))
                .collect();
            let more = stand.workloads.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let why = stand.why.as_deref().map(|why| format!("{why}: ")).unwrap_or_default();
            let _ = writeln!(out, "{:<16}{why}{}{more}", "", named.join(", "));
        }
    }
}

fn missed(out: &mut String, answer: &FleetAnswer, all: bool) {
    if answer.missed.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nThis answer is partial: {} not looked at", answer.missed.len());
    let shown = if all { answer.missed.len() } else { MISSED };
    for missed in answer.missed.iter().take(shown) {
        let _ = writeln!(out, "  {}: {}", missed.what, missed.why);
    }
    if answer.missed.len() > shown {
        let _ = writeln!(out, "  and {} more (-v has all)", answer.missed.len() - shown);
    }
}

fn comparison(out: &mut String, comparison: &Comparison, all: bool) {
    let _ = writeln!(out, "\nSince {}: {}", comparison.baseline, comparison.summary());
    for (word, rows) in [("new", &comparison.new), ("worse", &comparison.worse), ("gone", &comparison.gone)] {
        let shown = if all { rows.len() } else { FINDINGS };
        for row in rows.iter().take(shown) {
            let _ = writeln!(out, "  {word:<6}{row}");
        }
        if rows.len() > shown {
            let _ = writeln!(out, "  {word:<6}and {} more (-v has all)", rows.len() - shown);
        }
    }
}
