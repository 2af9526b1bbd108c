//! Compares what was found with what is wanted: the differences rule by rule, and their effects. Effects
//! are found by outcomes, not by text: all flows are cut by both rulesets, and sets of flows for which
//! the outcomes differ are the effects.

use crate::config::types::{Families, Family};
use crate::plan::canon::{Canon, CanonRule};
use crate::plan::model::{ChainName, Plan, Table, Verdict};

use super::answer;
use super::escapes::{example, words};
use super::explain::{MOST_RULES_AGAIN, Trace, explain};
use super::flow::Taker;
use super::partition::Part;
use super::ruleset::{ChainRules, Decider, Hook, Ruleset};
use super::source::Source;
use super::space::cube::{self, Cube};
use super::space::{Scope, Space};
use super::undo::Undoing;
use super::verification::{Finding, TrafficChange, Verification, What};
use crate::backend::listing::Holder;
use crate::backend::ours::Holding;
use crate::plan::diff::{self, BesideRules, Difference, Side};
use crate::plan::effect;

/// The most pairs of sets of flows that are compared.
const MOST_PAIRS: usize = 20_000_000;
/// The most effects that are told apart.
const MOST_EFFECTS: usize = 1000;
/// How many rules may be evaluated to find the effects.
const MOST_LOOKS: usize = 150_000_000;

/// What the routing of marked packets is for. A connection to the pod's own address needs
/// none of it: TPROXY gives its first packet to the proxy's socket, and later ones find it.
const WITHOUT_MARK_ROUTING: &str = "connections to the pod reach the proxy all the same; where it connects to the app with the client's address the app's answers leave the pod, so that it gets none; connections to addresses that are not the pod's own are dropped";

/// Compares. Both sources are of the same pod.
pub fn verify(wanted: &Source, found: &Source) -> Verification {
    let want = wanted.canon();
    let mut report =
        Verification { holders: Vec::new(), findings: Vec::new(), effects: Vec::new(), blind: None, notes: Vec::new() };
    report.holders = found.held.iter().map(|held| held.holder).collect();
    let differences = findings(&want, found, &mut report);
    if let Err(problem) = effects(wanted, found, &differences, &mut report) {
        report.blind = Some(problem);
    }
    report
}

/// Adds the findings to a report; returns all differences from what is wanted.
fn findings(want: &Canon, found: &Source, report: &mut Verification) -> Vec<Difference> {
    let finding = |holder, what| Finding { holder, what, effects: Vec::new(), consequence: None };
    let routing = found.routing.clone().unwrap_or_else(|| {
        if want.routing != Default::default() {
            report.notes.push("the dump does not tell routing and addresses: they are not compared".into());
        }
        want.routing.clone()
    });
    // The holder that comes nearest is meant; what others have is too much.
    let differences =
        |held: &Holding| diff::differences(want, &Canon { routing: routing.clone(), ..Canon::of(&held.plan) });
    let mut all: Vec<_> = found.held.iter().map(|held| (held, differences(held))).collect();
    all.sort_by_key(|(held, differences)| differences.len() + held.strange.len());
    let mut all = all.into_iter();
    let differences = match all.next() {
        None => {
            let nothing = Canon { routing, ..Canon::of(&Plan::empty()) };
            let all = diff::differences(want, &nothing);
            if !all.is_empty() {
                report.findings.push(finding(None, What::Nothing));
            }
            // Every single rule is missing, which needs no list.
            let routing = all.iter().filter(|d| d.place.is_none());
            report.findings.extend(routing.map(|d| finding(None, What::Difference(Box::new(d.clone())))));
            all
        }
        Some((held, differences)) => {
            let holder = Some(held.holder);
            let each = differences.iter().map(|d| finding(holder, What::Difference(Box::new(d.clone()))));
            report.findings.extend(each);
            report.findings.extend(held.strange.iter().map(|s| finding(holder, What::Strange(s.clone()))));
            differences
        }
    };
    report.findings.extend(all.map(|(held, _)| finding(Some(held.holder), What::Second(held.holder))));
    for finding in &mut report.findings {
        let What::Difference(difference) = &finding.what else { continue };
        if let Difference { side: Side::Missing, beside: Some(beside), .. } = &**difference {
            finding.consequence = Some(match beside {
                BesideRules::MeshAddress => "the proxy has no address from which it can connect to the app over IPv6",
                BesideRules::MarkRouting => WITHOUT_MARK_ROUTING,
            });
        }
    }
    differences
}

/// Sets of flows about which two rulesets do not agree.
struct Disagreement<'w, 'f> {
    family: Family,
    scope: Scope,
    wanted: (Taker, Option<Decider<'w>>),
    found: (Taker, Option<Decider<'f>>),
    flows: Vec<Cube>,
}

fn same_rule(a: Option<Decider>, b: Option<Decider>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => std::ptr::eq(a.rule, b.rule),
        _ => false,
    }
}

/// Cuts all flows by both rulesets and merges those with different outcomes.
fn disagreements<'w, 'f>(
    want: &'w Ruleset,
    have: &'f Ruleset,
    found: &Source,
    space: &Space,
) -> Result<Vec<Disagreement<'w, 'f>>, String> {
    let mut out: Vec<Disagreement> = Vec::new();
    for family in found.told.iter() {
        let rules: usize = have.family(family).chains.iter().map(|chain| chain.rules.len()).sum();
        let most = (MOST_LOOKS / (MOST_RULES_AGAIN.min(rules * 256) + rules + 1)).min(MOST_EFFECTS);
        let wanted = space.parts(want, family).map_err(|e| e.to_string())?;
        let had = space.parts(have, family).map_err(|e| e.to_string())?;
        if wanted.len().saturating_mul(had.len()) > MOST_PAIRS {
            return Err(format!("the rules cut {family} traffic into too many parts to compare them all"));
        }
        for a in &wanted {
            for b in had.iter().filter(|b| b.scope == a.scope && b.taker != a.taker) {
                let Some(flows) = a.flows.intersection(&b.flows) else { continue };
                add(&mut out, most, a, b, flows)?;
            }
        }
    }
    Ok(out)
}

fn add<'w, 'f>(
    out: &mut Vec<Disagreement<'w, 'f>>,
    most: usize,
    a: &Part<'w>,
    b: &Part<'f>,
    flows: Cube,
) -> Result<(), String> {
    let decider = |part: &Part<'w>| part.decider.map(|(decider, _)| decider);
    let (wanted, found) = ((a.taker, decider(a)), (b.taker, b.decider.map(|(decider, _)| decider)));
    let many = out.len() >= most;
    let known = out.iter_mut().find(|d| {
        (d.family, d.scope, d.wanted.0, d.found.0) == (a.family, a.scope, wanted.0, found.0)
            && same_rule(d.wanted.1, wanted.1)
            && same_rule(d.found.1, found.1)
    });
    match known {
        Some(known) => known.flows.push(flows),
        None if many => return Err("more kinds of traffic are affected than could be told".into()),
        None => out.push(Disagreement { family: a.family, scope: a.scope, wanted, found, flows: vec![flows] }),
    }
    Ok(())
}

/// Adds the effects to a report, and attributes them to its findings.
fn effects(
    wanted: &Source,
    found: &Source,
    differences: &[Difference],
    report: &mut Verification,
) -> Result<(), String> {
    let pod = found.pod.with_stand_ins(Families::BOTH);
    let (mut want_rules, mut have_rules) = (wanted.ruleset.clone(), found.ruleset.clone());
    want_rules.set_against(&mut have_rules);
    // The same plan takes packets without an owner for another thing in another's words.
    if let Some(held) = found.held.first().filter(|_| wanted.held.iter().all(|held| held.holder == Holder::Plan)) {
        want_rules.ask(held.holder.is_nftables());
    }
    let space = Space::of(&[&want_rules, &have_rules], &pod);
    for d in disagreements(&want_rules, &have_rules, found, &space)? {
        let Some(first) = d.flows.first() else { continue };
        let example = example::of(d.family, d.scope, first, &space);
        let (mut in_wanted, mut in_found) = (Visited::default(), Visited::default());
        let want = explain(&want_rules, &pod, &example, &mut in_wanted);
        let have = explain(&have_rules, &pod, &example, &mut in_found);
        // A rule that is not understood need not change anything.
        if want.taker == have.taker {
            continue;
        }
        let rule = |decider: &Option<Decider>| decider.as_ref().map(|d| answer::rule(d, example.family()));
        let at = report.effects.len();
        let flows = cube::merged(d.flows).iter().map(|flows| words::set(d.family, d.scope, flows, &space)).collect();
        // A chain's policy drops what no rule has dropped.
        let policy = in_found.last.filter(|_| have.taker == Taker::Dropped && !in_found.was_dropped());
        let ours = match (policy, have.decider) {
            (Some(chain), _) => chain.is_ours(),
            (None, Some(decider)) => is_ours(&decider),
            (None, None) => true,
        };
        let by_policy = policy.map(|chain| format!("the policy of {} {}: drop", chain.table.name, chain.name));
        let (wanted_rule, found_rule) = (rule(&want.decider), by_policy.or_else(|| rule(&have.decider)));
        // What happens to inbound traffic happens to traffic through the pod as well.
        let said = |e: &TrafficChange| {
            e.scope == Scope::Inbound
                && (e.family, e.wanted, e.found) == (d.family, want.taker, have.taker)
                && (&e.wanted_rule, &e.found_rule) == (&wanted_rule, &found_rule)
        };
        if d.scope == Scope::Transit && report.effects.iter().any(said) {
            continue;
        }
        let others_drop = !ours && have.taker == Taker::Dropped;
        for finding in &mut report.findings {
            let taken_back = !matches!(finding.what, What::Strange(_));
            if (taken_back || !others_drop) && concerns(&finding.what, &in_wanted, &in_found, d.family, ours) {
                finding.effects.push(at);
            }
        }
        report.effects.push(TrafficChange {
            family: d.family,
            scope: d.scope,
            wanted: want.taker,
            found: have.taker,
            flows,
            wanted_rule,
            found_rule,
            ours,
            example,
        });
    }
    // The first holder's differences are told, the others' rules are one too many.
    let nobody = Holder::Plan.name();
    let holder = report.findings.iter().find_map(|finding| match finding.what {
        What::Second(_) => None,
        _ => finding.holder,
    });
    let holder = holder.map_or(nobody, Holder::name);
    Undoing::new(&want_rules, &have_rules, &pod, holder, differences)
        .attribute(&mut report.findings, &mut report.effects)
}

/// Whether a rule is an interception's, by its chain and by where it jumps.
fn is_ours(decider: &Decider) -> bool {
    let to_ours = matches!(&decider.rule.verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own());
    to_ours || decider.chain.is_ours()
}

/// The rules that a packet met, and the base chain it met last.
#[derive(Default)]
struct Visited<'a> {
    rules: Vec<(&'a ChainRules, &'a CanonRule)>,
    last: Option<&'a ChainRules>,
}

impl<'a> Trace<'a> for Visited<'a> {
    fn hook(&mut self, _hook: Hook, chain: &'a ChainRules) {
        self.last = Some(chain);
    }

    fn rule(&mut self, chain: &'a ChainRules, rule: &'a CanonRule) {
        self.rules.push((chain, rule));
    }
}

impl Visited<'_> {
    /// Whether the last rule met is one that drops.
    fn was_dropped(&self) -> bool {
        self.rules.last().is_some_and(|(_, rule)| match &rule.verdict {
            Verdict::Drop => true,
            Verdict::Unknown(unknown) => unknown.effect == effect::Effect::Drops,
            _ => false,
        })
    }

    fn has(&self, (table, chain): (Table, &ChainName), rule: &CanonRule) -> bool {
        self.rules.iter().any(|(at, met)| {
            at.name == *chain && at.table.is(table) && met.verdict == rule.verdict && met.matches.covers(&rule.matches)
        })
    }
}

/// Whether a flow with different outcomes met the rules of a finding.
fn concerns(what: &What, in_wanted: &Visited, in_found: &Visited, family: Family, ours: bool) -> bool {
    match what {
        What::Nothing | What::Second(_) => true,
        What::Strange(strange) => {
            let table = strange.family.is_none_or(|f| f == family);
            table && (!ours || strange.chain.is_none())
        }
        What::Difference(difference) => {
            let Difference { side, place: Some((f, table, chain)), rule: Some(rule), .. } = &**difference else {
                return false;
            };
            let place = (*table, chain);
            let met = match side {
                Side::Missing => in_wanted.has(place, rule),
                Side::Unexpected => in_found.has(place, rule),
            };
            *f == family && met
        }
    }
}
