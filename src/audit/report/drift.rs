//! Drift, as findings of an audit: what is not as it should be, and how bad it is by what it changes.

use crate::audit::escapes::kind::Severity;
use crate::audit::source::Source;
use crate::audit::undo::is_policy;
use crate::audit::verification::{Finding, TrafficChange, Verification, What};
use crate::audit::verify::verify;
use crate::plan::diff::Side;

/// One difference between what was found and what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftFinding {
    /// High if traffic escapes by it, medium if it has another effect, low if it has none.
    pub severity: Severity,
    /// The chain, or what else the difference is about.
    pub place: String,
    /// `missing`, `unexpected` or `changed`.
    pub how: &'static str,
    pub what: String,
    pub why: String,
    /// The affected traffic, a line for each set of flows.
    pub effects: Vec<String>,
}

/// The worst that drift can be.
pub const WORST: Severity = Severity::High;

/// Compares what was found with what is wanted; gives the findings, the worst first, and notes.
pub fn drift(wanted: &Source, found: &Source) -> (Vec<DriftFinding>, Vec<String>) {
    if let Some(problem) = found.opaque_rule() {
        // What is not seen may be anything.
        let unseen = DriftFinding {
            severity: WORST,
            place: "interception".into(),
            how: "changed",
            what: "it cannot be told whether the rules are the plan's".into(),
            why: String::new(),
            effects: vec![problem],
        };
        return (vec![unseen], Vec::new());
    }
    let report = verify(wanted, found);
    let mut out: Vec<DriftFinding> = report.findings.iter().map(|finding| of_finding(finding, &report)).collect();
    let told = |at: &usize| report.findings.iter().any(|finding| finding.effects.contains(at));
    // What others drop (a network policy) is none of an interception's business.
    let counts = |effect: &&TrafficChange| !is_policy(effect);
    let untold = (0..report.effects.len()).filter(|at| !told(at)).map(|at| &report.effects[at]);
    let effects: Vec<&TrafficChange> = untold.filter(counts).collect();
    if !effects.is_empty() {
        let whose =
            if effects.iter().any(|effect| effect.ours) { "the differences together" } else { "rules of others" };
        out.push(DriftFinding {
            severity: severity(&effects, true),
            place: whose.into(),
            how: "changed",
            what: "where traffic goes".into(),
            why: String::new(),
            effects: effects.into_iter().flat_map(lines).collect(),
        });
    }
    out.sort_by_key(|drift| std::cmp::Reverse(drift.severity));
    let mut notes = report.notes;
    notes.extend(report.blind.map(|problem| format!("which traffic the drift affects cannot be told: {problem}")));
    (out, notes)
}

fn severity(effects: &[&TrafficChange], has_effect: bool) -> Severity {
    match has_effect {
        _ if effects.iter().any(|effect| effect.escapes()) => Severity::High,
        true => Severity::Medium,
        false => Severity::Low,
    }
}

fn of_finding(finding: &Finding, report: &Verification) -> DriftFinding {
    let effects: Vec<&TrafficChange> = finding.effects.iter().map(|&at| &report.effects[at]).collect();
    let has_effect = !effects.is_empty() || finding.consequence.is_some();
    let severity = match (&finding.what, &report.blind) {
        // Where it cannot be told, the worst is to be feared.
        (What::Nothing, _) | (_, Some(_)) => Severity::High,
        _ => severity(&effects, has_effect),
    };
    let lines = effects.into_iter().flat_map(lines).chain(finding.consequence.map(str::to_owned)).collect();
    let (place, how, why) = match &finding.what {
        What::Difference(difference) => {
            let place = difference.place.as_ref();
            let place = place.map(|(family, table, chain)| format!("{family} {} {chain}", table.name()));
            let how = if difference.side == Side::Missing { "missing" } else { "unexpected" };
            (place, how, difference.why.clone())
        }
        What::Strange(_) => (None, "changed", None),
        What::Second(_) => (None, "unexpected", None),
        What::Nothing => (None, "missing", None),
    };
    // Behind the word "missing" it needs another form.
    let what = match &finding.what {
        What::Nothing => "all rules of the interception".into(),
        what => what.to_string(),
    };
    let holder = || finding.holder.map_or("interception".into(), |holder| holder.to_string());
    DriftFinding {
        severity,
        place: place.unwrap_or_else(holder),
        how,
        what,
        why: why.unwrap_or_default(),
        effects: lines,
    }
}

fn lines(effect: &TrafficChange) -> Vec<String> {
    effect.flows.iter().map(|flows| format!("{}: {flows}: {}", effect.family, effect.outcome())).collect()
}

impl DriftFinding {
    /// The finding in one line.
    pub fn line(&self) -> String {
        let why = if self.why.is_empty() { String::new() } else { format!(" ({})", self.why) };
        format!("{}: {}: {}{why}", self.place, self.how, self.what)
    }

    /// The effects; for a finding without any, a line that says so.
    pub fn effects(&self) -> Vec<String> {
        match self.effects.is_empty() {
            true if self.severity == Severity::Low => vec!["no effect: all traffic goes where it should".into()],
            _ => self.effects.clone(),
        }
    }
}
