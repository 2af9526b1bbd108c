//! The report of an audit: all findings, judged by what is accepted, in order of importance. The files
//! below write it in several formats.

pub mod differences;
pub mod drift;
pub mod html;
pub mod json;
pub mod sarif;
pub mod text;

use std::collections::HashSet;

use jiff::civil::Date;

use crate::config::facts::is_global;
use crate::config::pod::manifest::Manifest;
use crate::config::types::{Families, Family};
use crate::plan::canon::CanonMatches;
use crate::plan::model::{Counters, Rule, RuleOrigin, Verdict};

use super::accept::{Accepted, AcceptedEntry};
use super::draw::{self, DrawingFormat};
use super::escapes::kind::Severity;
use super::escapes::{self, Escape};
use super::established::{self, Established, Fate};
use super::flow::Surroundings;
use super::lints::{self, Lint, containers, tproxy};
use super::partition::TooManyParts;
use super::ruleset::Ruleset;
use super::source::Source;
use super::space::Space;
use crate::plan::words;
use drift::DriftFinding;

/// What an audit starts from.
pub struct Input<'a> {
    /// What is looked at, in a few words.
    pub about: String,
    /// The file that the rules come from, if there is one.
    pub file: Option<String>,
    pub source: &'a Source,
    /// The rules that are wanted, if they are known.
    pub wanted: Option<&'a Source>,
    pub manifest: Option<&'a Manifest>,
    /// The user that the proxy runs as, where a manifest says so.
    pub proxy_user: Option<u32>,
    /// The established connections of a running pod.
    pub established: Option<&'a Established>,
    /// The arguments by which `podweir explain` asks these rules; `None`: it cannot.
    pub explain: Option<&'a [String]>,
    pub accepted: &'a Accepted,
    pub today: Date,
}

/// All findings of an audit.
pub struct Report<'a> {
    pub about: String,
    pub file: Option<String>,
    pub pod: &'a Surroundings,
    pub families: Families,
    /// The arguments by which `podweir explain` asks these rules; `None`: it cannot.
    pub explain: Option<&'a [String]>,
    pub escapes: Vec<Judged<Escape<'a>>>,
    pub lints: Vec<Judged<Lint>>,
    /// Differences from the wanted rules; `None` if these are not known.
    pub drift: Option<Vec<DriftFinding>>,
    /// Rules that count, and how often they applied.
    pub counted: Vec<Counted>,
    pub notices: Vec<String>,
    /// The entries of the accept file whose class some finding has, by index.
    pub used: Vec<usize>,
    pub drawing: String,
    pub space: &'a Space<'a>,
}

/// A finding, and whether it is accepted.
pub struct Judged<T> {
    pub found: T,
    pub accepted: Option<Acceptance>,
}

/// The entry of the accept file by which a finding is accepted.
#[derive(Debug, Clone)]
pub struct Acceptance {
    pub reason: String,
    pub expires: Option<Date>,
}

/// A rule that counts.
#[derive(Debug, Clone)]
pub struct Counted {
    pub place: String,
    pub rule: String,
    pub why: String,
    pub counters: Counters,
}

impl<'a> Report<'a> {
    /// Audits the rules of a source.
    ///
    /// # Errors
    ///
    /// More parts than an audit takes, with the chain that makes them.
    pub fn new(input: Input<'a>, space: &'a Space<'a>) -> Result<Self, TooManyParts> {
        let Input { source, wanted, .. } = input;
        let ruleset = &source.ruleset;
        let looked_at = escapes::families(ruleset, space.pod);
        let families = looked_at.intersection(source.told);
        let found = escapes::find_in(ruleset, space, families)?;
        let drawing = draw::draw(ruleset, &found, DrawingFormat::Svg);
        let mut notices = source.notes.clone();
        notices.extend(looked_at.iter().filter(|&f| !source.told.has(f)).map(|family| {
            format!("the source tells nothing about {family}, though the pod has it: its escapes are not known")
        }));
        if !space.pod.addresses.iter().any(is_global) {
            notices.push("the pod's addresses are not known (--pod-ip): traffic to them is taken for outbound".into());
        }
        if let Some(found) = input.established {
            let sentences =
                [Fate::Breaks, Fate::MayBreak].into_iter().filter_map(|fate| established::words::sentence(found, fate));
            notices.extend(sentences.chain(established::words::aside(found)).chain(established::words::unsure(found)));
        }
        let mut judge = Judge { accepted: input.accepted, today: input.today, notices, used: Vec::new() };
        let escapes = found.into_iter().flat_map(|escape| judge.escape(escape, space)).collect();
        let lints =
            lints::sorted(all_lints(&input, space, families)?).into_iter().map(|lint| judge.lint(lint)).collect();
        judge.name_unused();
        let (drift, notes) = wanted.map(|wanted| drift::drift(wanted, source)).unzip();
        judge.notices.extend(notes.into_iter().flatten());
        Ok(Self {
            about: input.about,
            file: input.file,
            pod: space.pod,
            families,
            explain: input.explain,
            escapes,
            lints,
            drift,
            counted: counted(source),
            notices: judge.notices,
            used: judge.used,
            drawing,
            space,
        })
    }

    /// How many findings of a severity count.
    pub fn count(&self, severity: Severity) -> usize {
        let escapes = self.escapes.iter().filter(|e| e.accepted.is_none()).map(|e| e.found.severity);
        let lints = self.lints.iter().filter(|l| l.accepted.is_none()).map(|l| l.found.severity);
        let drift = self.drift.iter().flatten().map(|drift| drift.severity);
        escapes.chain(lints).chain(drift).filter(|found| *found == severity).count()
    }

    /// How many findings have a severity or a higher one.
    pub fn count_from(&self, severity: Severity) -> usize {
        Severity::ALL.into_iter().filter(|s| *s >= severity).map(|s| self.count(s)).sum()
    }

    /// How many findings are accepted.
    pub fn accepted(&self) -> usize {
        let escapes = self.escapes.iter().filter(|e| e.accepted.is_some()).count();
        escapes + self.lints.iter().filter(|l| l.accepted.is_some()).count()
    }
}

fn all_lints(input: &Input, space: &Space, families: Families) -> Result<Vec<Lint>, TooManyParts> {
    let ruleset = &input.source.ruleset;
    let mut out = lints::shadow::lints(ruleset, &space.interfaces);
    out.extend(lints::foreign::lints(ruleset));
    out.extend(lints::marks::lints(ruleset, space, families, input.explain)?);
    out.extend(lints::link_local::lint(ruleset, space.pod).filter(|_| input.source.told.v6));
    out.extend(input.established.into_iter().flat_map(lints::established::lints));
    // Options are those of the source, or those it is compared with.
    for source in [Some(input.source), input.wanted].into_iter().flatten() {
        if let (Some(given), Some(settings)) = (&source.given, &source.settings) {
            out.extend(lints::options::lints(given, &settings.interception));
        }
    }
    let (uids, gids) = proxy_owners(input.source, input.wanted);
    let proxy = tproxy::Proxy::seen(input.established);
    let proxy = proxy.or_else(|| input.proxy_user.map(tproxy::Proxy::RunsAs));
    out.extend(tproxy::lint(has_tproxy(ruleset), &uids, &gids, proxy.unwrap_or(tproxy::Proxy::Unknown)));
    let ports = input.established.and_then(|found| found.source_ports.as_ref());
    out.extend(tproxy::source_ports(has_tproxy(ruleset), ports));
    if let Some(manifest) = input.manifest {
        out.extend(containers::lints(manifest, &uids, &gids));
    }
    Ok(out)
}

/// The users and groups that are taken for the proxy's.
pub(in crate::audit) fn proxy_owners(source: &Source, wanted: Option<&Source>) -> (Vec<u32>, Vec<u32>) {
    let settings = [wanted, Some(source)].into_iter().flatten().find_map(|s| s.settings.as_ref());
    match settings {
        Some(settings) => (settings.interception.proxy_uids.clone(), settings.interception.proxy_gids.clone()),
        None => source.proxy_owners(),
    }
}

fn has_tproxy(ruleset: &Ruleset) -> bool {
    let rules = Family::BOTH.into_iter().flat_map(|family| &ruleset.family(family).chains).flat_map(|c| &c.rules);
    rules.into_iter().any(|rule| matches!(rule.verdict, Verdict::Tproxy { .. }))
}

struct Judge<'a> {
    accepted: &'a Accepted,
    today: Date,
    notices: Vec<String>,
    /// The entries whose class some finding has, by index.
    used: Vec<usize>,
}

impl Judge<'_> {
    /// The entries about a class that still count.
    fn entries(&mut self, class: &str) -> Vec<(usize, AcceptedEntry)> {
        let mut out = Vec::new();
        for (at, entry) in self.accepted.entries.iter().enumerate().filter(|(_, entry)| entry.class == class) {
            self.used.push(at);
            match entry.expires {
                Some(last) if entry.is_expired(self.today) => {
                    let notice = format!("{class}: accepted until {last}, which is over; it counts again");
                    self.notices.push(notice);
                }
                _ => out.push((at, entry.clone())),
            }
        }
        out
    }

    /// An escape, cut into what is accepted and what is not.
    fn escape<'e>(&mut self, escape: Escape<'e>, space: &Space) -> Vec<Judged<Escape<'e>>> {
        let mut out = Vec::new();
        let mut left = Some(escape);
        let id = left.as_ref().map(Escape::id).unwrap_or_default();
        for (_, entry) in self.entries(&id) {
            let Some(whole) = left.take() else { break };
            let acceptance = Some(Acceptance { reason: entry.reason.clone(), expires: entry.expires });
            let Some(flows) = entry.flows(&whole, space) else {
                out.push(Judged { found: whole, accepted: acceptance });
                break;
            };
            left = whole.without(&flows, space);
            match whole.within(&flows, space) {
                Some(found) => out.push(Judged { found, accepted: acceptance }),
                None => self.notices.push(format!("{id}: 'only' names none of its flows, so nothing is accepted")),
            }
        }
        out.extend(left.map(|found| Judged { found, accepted: None }));
        // What counts comes first.
        out.sort_by_key(|judged| judged.accepted.is_some());
        out
    }

    fn lint(&mut self, lint: Lint) -> Judged<Lint> {
        let entry = self.entries(lint.id).into_iter().next();
        let accepted = entry.map(|(_, entry)| Acceptance { reason: entry.reason, expires: entry.expires });
        Judged { found: lint, accepted }
    }

    fn name_unused(&mut self) {
        for (at, entry) in self.accepted.entries.iter().enumerate() {
            if !self.used.contains(&at) {
                self.notices.push(format!("{}: accepted, but not found: the entry can go", entry.class));
            }
        }
        self.notices.dedup();
    }
}

/// A rule's number in its chain; `at`: its index in the decoded chain.
pub(in crate::audit) fn number(at: usize, rule: &Rule) -> usize {
    rule.origin.as_ref().map_or(at + 1, |origin| origin.number)
}

fn counted(source: &Source) -> Vec<Counted> {
    let mut out = Vec::new();
    for table in &source.tables {
        for chain in &table.chains {
            for (at, rule) in chain.rules.iter().enumerate() {
                let Some(counters) = rule.counters else { continue };
                let family = if rule.families.v4 { Family::V4 } else { Family::V6 };
                let conditions = CanonMatches::of(&rule.matches, family).map(|m| words::matches(&m, family));
                let verdict = words::verdict(&rule.verdict);
                let rule_words = match conditions.unwrap_or_default() {
                    conditions if conditions.is_empty() => verdict,
                    conditions => format!("{conditions}: {verdict}"),
                };
                out.push(Counted {
                    place: format!("{} {} {}, rule {}", table.holder, table.name, chain.name, number(at, rule)),
                    rule: rule_words,
                    why: rule.why.sentence().to_owned(),
                    counters,
                });
            }
        }
    }
    out
}

/// A rule that lets an escape out: where it stands, what it says and why it is there.
pub struct Exit {
    pub place: String,
    /// The rule's number and handle, if its words do not identify it.
    pub origin: Option<RuleOrigin>,
    pub rule: String,
    pub why: String,
}

/// The rules that let an escape out, each once.
pub fn exits(escape: &Escape) -> Vec<Exit> {
    let mut out: Vec<Exit> = Vec::new();
    let mut known = HashSet::new();
    for (family, decider, why) in escape.rules() {
        let place = decider.chain.full_name();
        // Of rules that were put together just the one that has this reason.
        let part = decider.rule.parts.iter().find(|(known, _)| known == why);
        let conditions = words::matches(part.map_or(&decider.rule.matches, |(_, matches)| matches), family);
        let verdict = words::verdict(&decider.rule.verdict);
        let rule = if conditions.is_empty() { verdict } else { format!("{conditions}: {verdict}") };
        if known.insert((place.clone(), rule.clone())) {
            let origin = words::which(decider.rule).cloned();
            out.push(Exit { place, origin, rule, why: why.sentence().to_owned() });
        }
    }
    out
}

/// Whether some flows of an escape match no rule.
pub fn falls_through(escape: &Escape) -> bool {
    escape.parts.iter().any(|part| part.decider.is_none())
}

/// What lets an escape out, a line each.
pub fn by(escape: &Escape) -> Vec<String> {
    let line = |Exit { place, origin, rule, why }: Exit| {
        let which = origin.map_or_else(String::new, |origin| format!("{origin} of "));
        match why.as_str() {
            "" => format!("{which}{place}: {rule}"),
            why => format!("{which}{place}: {rule} ({why})"),
        }
    };
    let mut out: Vec<String> = exits(escape).into_iter().map(line).collect();
    if falls_through(escape) {
        // Which rule some of it meets before makes no difference to what none takes.
        if escape.kind.is_by_protocol() {
            out.clear();
        }
        out.push("no rule takes it".into());
    }
    out
}
