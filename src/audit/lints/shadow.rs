//! Rules that can never match: every packet that could meet one has met an earlier rule of its chain,
//! and does not return from it. The packets are of any state and mark, not only of new connections as
//! for escapes; a rule that may match in some case is not reported.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::audit::escapes::kind::Severity;
use crate::audit::ruleset::{ChainRules, FamilyRules, Order, Ruleset};
use crate::audit::space::cube::{Cube, Owners, everyone};
use crate::audit::space::dimensions::{NO_ANSWER, processes, states};
use crate::audit::space::interfaces::Interfaces;
use crate::audit::space::known::KnownFields;
use crate::audit::walk::flows::{Chains, Flows};
use crate::audit::walk::journey::Journey;
use crate::audit::walk::limits::Limits;
use crate::audit::walk::trace::Trace;
use crate::audit::walk::{Uncertain, Walk};
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family};
use crate::plan::canon::CanonRule;
use crate::plan::model::{CtStates, Verdict};
use crate::plan::why::Why;
use crate::plan::words;

use super::Lint;

/// The most work for a family's chains; beyond it no lint is given.
const MOST_WORK: usize = 50_000_000;
/// How many sets of packets may be on their way through a chain at once.
const MOST_SETS: usize = 20_000;

/// Notes which rules packets meet.
#[derive(Default)]
struct Met(HashSet<*const CanonRule>);

impl<'a> Trace<'a> for Met {
    fn met(&mut self, _: &'a ChainRules, rule: &'a CanonRule) {
        self.0.insert(rule);
    }
}

/// The rules that no packet gets to: in which chain, and which of its rules. All packets
/// are sent into each chain that is entered at all; where it is not known whether a rule
/// applies, they go on behind it.
pub fn never<'a>(ruleset: &'a Ruleset, interfaces: &Interfaces, family: Family) -> Vec<(&'a ChainRules, usize)> {
    let rules = ruleset.family(family);
    let chains = Chains::new(rules, interfaces);
    let mut limits = Limits::new(MOST_WORK, MOST_SETS);
    let mut out = Vec::new();
    for (chain, _) in rules.chains.iter().zip(rules.entered()).filter(|(_, entered)| *entered) {
        let mut walk = Walk::new(rules, Order::First, family, &[], Uncertain::Passed, limits);
        let mut met = Met::default();
        let of_all = match chain.is_native() {
            true => vec![RangeList::of([NO_ANSWER]), processes()],
            false => vec![everyone()],
        };
        for owners in of_all {
            let set = all_packets(owners, interfaces, family);
            let mut next = Some(
                walk.follow(Journey::within(chain, Flows { set, chains: &chains }, KnownFields::default()), &mut met),
            );
            while let Some(arrived) = next {
                if arrived.is_err() {
                    return out;
                }
                next = walk.next(&mut met);
            }
        }
        let never = chain.rules.iter().enumerate().filter(|(_, rule)| !met.0.contains(&std::ptr::from_ref(*rule)));
        out.extend(never.map(|(at, _)| (chain, at)));
        limits = walk.limits;
    }
    out
}

/// Packets of any connection, by any interfaces, of some owners.
fn all_packets(owners: Owners, interfaces: &Interfaces, family: Family) -> Cube {
    Cube {
        in_interface: interfaces.all_or_none(),
        out_interface: interfaces.all_or_none(),
        uid: owners.clone(),
        gid: owners,
        state: states(CtStates::ALL),
        ..Cube::whole(family)
    }
}

/// A rule and where it stands, for people.
pub fn place(chain: &ChainRules, rule: &CanonRule, family: Family) -> String {
    format!("{}: {}", chain.full_name(), words::rule(rule, family))
}

/// A rule's number and handle, for a message. They are not part of its [`place`], so that two messages
/// about one rule have the same place.
pub fn which(rule: &CanonRule) -> String {
    words::which(rule).map_or_else(String::new, |origin| format!(" ({origin} of its chain)"))
}

/// Lints about what rules do to each other.
pub fn lints(ruleset: &Ruleset, interfaces: &Interfaces) -> Vec<Lint> {
    // What is so at the same place in both families is said once.
    let mut found: Vec<(Families, Lint)> = Vec::new();
    let mut places: HashMap<(String, Option<usize>, &str), usize> = HashMap::new();
    for family in Family::BOTH {
        let rules = ruleset.family(family);
        let never = never(ruleset, interfaces, family);
        let never = never.into_iter().map(|(chain, at)| (chain, Some(at), never_matches(chain, at, family)));
        let nowhere = rules.chains.iter().flat_map(|chain| {
            let lost = jumps_to_nowhere(rules, chain);
            lost.into_iter().map(move |at| (chain, Some(at), jump_to_nowhere(chain, at, family)))
        });
        let lost = never_entered(ruleset, family).into_iter().map(|chain| (chain, None, chain_never_entered(chain)));
        for (chain, at, lint) in never.chain(nowhere).chain(lost) {
            match places.entry((chain.full_name(), at, lint.id)) {
                Entry::Occupied(known) => {
                    let families = &mut found[*known.get()].0;
                    *families = families.union(Families::only(family));
                }
                Entry::Vacant(place) => {
                    place.insert(found.len());
                    found.push((Families::only(family), lint));
                }
            }
        }
    }
    let with_families = |(families, mut lint): (Families, Lint)| {
        lint.subject = format!("{} ({families})", lint.subject);
        lint
    };
    found.into_iter().map(with_families).collect()
}

fn never_matches(chain: &ChainRules, at: usize, family: Family) -> Lint {
    let rule = &chain.rules[at];
    let (severity, id, advice) = if *rule.why() == Why::AppToItself && is_second_owner(chain, at) {
        let advice = "name one proxy user, or expect its calls to the pod's own service to stay past the proxy";
        (Severity::Low, "rule-loop-shadowed", advice)
    } else {
        (Severity::Info, "rule-never-matches", "nothing, unless it was meant to match")
    };
    Lint {
        severity,
        id,
        subject: place(chain, rule, family),
        message: format!(
            "the rule{} never matches: earlier rules of the chain take every packet it is for",
            which(rule)
        ),
        advice: advice.into(),
    }
}

/// Whether an earlier loop rule is about another user, so that this one's is lost. (That a
/// group's rules do nothing more than its user's is how it is meant.)
fn is_second_owner(chain: &ChainRules, at: usize) -> bool {
    let uid = &chain.rules[at].matches.uid;
    let loops = chain.rules[..at].iter().filter(|rule| *rule.why() == Why::AppToItself);
    uid.is_some() && loops.clone().any(|rule| rule.matches.uid.is_some() && rule.matches.uid != *uid)
}

fn jumps_to_nowhere(rules: &FamilyRules, chain: &ChainRules) -> Vec<usize> {
    let is_jump = |at: &usize| matches!(chain.rules[*at].verdict, Verdict::Jump(_) | Verdict::Goto(_));
    (0..chain.rules.len()).filter(is_jump).filter(|&at| rules.target(chain, at).is_none()).collect()
}

fn jump_to_nowhere(chain: &ChainRules, at: usize, family: Family) -> Lint {
    Lint {
        severity: Severity::High,
        id: "jump-to-nowhere",
        subject: place(chain, &chain.rules[at], family),
        message: "the rule leads to a chain that is not there".into(),
        advice: "the rules are not whole: install them again, or dump all tables".into(),
    }
}

/// Chains that packets of neither family get to. (A table of both families may be meant for
/// one of them.)
fn never_entered(ruleset: &Ruleset, family: Family) -> Vec<&ChainRules> {
    let entered_by = |family: Family| {
        let rules = ruleset.family(family);
        rules.chains.iter().zip(rules.entered()).filter(|(_, entered)| *entered).map(|(chain, _)| chain)
    };
    let place = |chain: &'_ ChainRules| (chain.table.clone(), chain.name.clone());
    let entered: HashSet<_> = Family::BOTH.into_iter().flat_map(entered_by).map(place).collect();
    let is_entered = |chain: &ChainRules| entered.contains(&place(chain));
    let chains = ruleset.family(family).chains.iter();
    chains.filter(|chain| !chain.rules.is_empty() && !is_entered(chain)).collect()
}

fn chain_never_entered(chain: &ChainRules) -> Lint {
    Lint {
        severity: Severity::Info,
        id: "chain-never-entered",
        subject: chain.full_name(),
        message: "no rule jumps to the chain, so none of its rules ever matches".into(),
        advice: "nothing, unless it was meant to be entered".into(),
    }
}
