//! Rules that can never match: every packet that one is for has met an earlier rule of
//! its chain that it does not come back from. Sets of packets of any state and mark, not
//! just of new connections as for escapes; where in doubt a rule may match.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use crate::audit::escapes::kind::Severity;
use crate::audit::partition::cube::{Cube, owners};
use crate::audit::partition::interfaces::{Interfaces, Kinds};
use crate::audit::ruleset::{ChainRules, FamilyRules, Ruleset};
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, Interface};
use crate::plan::canon::{CanonMatches, CanonRule};
use crate::plan::model::{Cond, CtStates, Verdict};
use crate::plan::why::Why;
use crate::plan::words;

use super::Lint;

/// Stands for "no interface" among the kinds.
const NONE: u32 = u32::MAX;
/// How deep jumps are followed.
const DEPTH: usize = 16;
/// Beyond so many sets it is not worth knowing.
const ENOUGH: usize = 5_000;
/// How many times sets of a family's packets are held against others.
const MOST: usize = 30_000_000;

/// Packets: a set of flows by the outgoing interface, and what flows do not have.
#[derive(Debug, Clone)]
struct Packets {
    flows: Cube,
    in_by: Kinds,
    states: RangeList<u8>,
}

impl Packets {
    fn of(m: &CanonMatches, family: Family, interfaces: &Interfaces) -> Self {
        let by = |cond: &Option<Cond<Vec<Interface>>>| match cond {
            None => every(interfaces),
            Some(cond) if cond.negated => every(interfaces).minus(&interfaces.meeting(&Cond::is(cond.value.clone()))),
            Some(cond) => interfaces.meeting(cond),
        };
        let whole = Cube::whole(family);
        let flows = Cube {
            protocol: m.protocol.clone(),
            interface: by(&m.out_interface),
            uid: m.uid.as_ref().map_or(whole.uid, owners),
            gid: m.gid.as_ref().map_or(whole.gid, owners),
            destination: m.destination.clone(),
            port: m.destination_port.clone(),
            source: m.source.clone(),
            source_port: m.source_port.clone(),
        };
        let states = CtStates::NAMED.iter().enumerate().filter(|(_, (state, _))| m.connection_state.has(*state));
        let states = RangeList::of(states.map(|(at, _)| at as u8)).normalised();
        Self { flows, in_by: by(&m.in_interface), states }
    }

    fn all(family: Family, interfaces: &Interfaces) -> Self {
        let flows = Cube { interface: every(interfaces), ..Cube::whole(family) };
        Self { flows, in_by: every(interfaces), states: RangeList::new([(0, CtStates::NAMED.len() as u8 - 1)]) }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.flows.overlaps(&other.flows) && self.in_by.overlaps(&other.in_by) && self.states.overlaps(&other.states)
    }

    fn intersection(&self, other: &Self) -> Option<Self> {
        if !self.overlaps(other) {
            return None;
        }
        let in_by = self.in_by.intersection(&other.in_by);
        let states = self.states.intersection(&other.states);
        let flows = self.flows.intersection(&other.flows)?;
        (!in_by.is_empty() && !states.is_empty()).then_some(Self { flows, in_by, states })
    }

    fn minus(&self, other: &Self) -> Vec<Self> {
        let Some(inside) = self.intersection(other) else { return vec![self.clone()] };
        let mut left = self.clone();
        let mut out = Vec::new();
        let in_by = left.in_by.minus(&inside.in_by);
        if !in_by.is_empty() {
            out.push(Self { in_by, ..left.clone() });
            left.in_by = inside.in_by;
        }
        let states = left.states.minus(&inside.states);
        if !states.is_empty() {
            out.push(Self { states, ..left.clone() });
            left.states = inside.states;
        }
        out.extend(left.flows.clone().around(&inside.flows).into_iter().map(|flows| Self { flows, ..left.clone() }));
        out
    }
}

fn every(interfaces: &Interfaces) -> Kinds {
    let mut all = interfaces.all();
    all.push(NONE, NONE);
    all
}

/// Whether a rule applies to just the packets that its set says: it asks nothing else.
fn is_exact(m: &CanonMatches) -> bool {
    m.mark.is_none() && m.connection_mark.is_none() && m.unknown.is_empty()
}

/// Packets by the chain that they stay in, and how deep it is called.
type Known = HashMap<(*const ChainRules, usize), Rc<[Packets]>>;

struct Chains<'a> {
    rules: &'a FamilyRules,
    family: Family,
    interfaces: &'a Interfaces,
    /// How many more sets may be held against others.
    left: Cell<usize>,
    /// What is known to stay in chains that are jumped to, by depth.
    known: RefCell<Known>,
}

impl Chains<'_> {
    /// What of some packets is left; all that it cannot tell, once too much has been asked.
    fn without(&self, mut left: Vec<Packets>, taken: &[Packets]) -> Vec<Packets> {
        for taken in taken {
            self.left.set(self.left.get().saturating_sub(left.len()));
            if self.is_worn_out() || left.is_empty() {
                break;
            }
            let met: Vec<Packets> = left.extract_if(.., |packets| packets.overlaps(taken)).collect();
            left.extend(met.iter().flat_map(|packets| packets.minus(taken)));
        }
        left
    }

    fn is_worn_out(&self) -> bool {
        self.left.get() == 0
    }

    fn packets(&self, m: &CanonMatches) -> Packets {
        Packets::of(m, self.family, self.interfaces)
    }

    /// Those packets that do not go on after a rule, for sure.
    fn stopped(&self, chain: &ChainRules, at: usize, depth: usize) -> Vec<Packets> {
        let rule = &chain.rules[at];
        if !is_exact(&rule.matches) {
            return Vec::new();
        }
        let here = self.packets(&rule.matches);
        match &rule.verdict {
            Verdict::Return | Verdict::Accept | Verdict::Drop | Verdict::Redirect(_) | Verdict::Goto(_) => vec![here],
            Verdict::Tproxy { closed: true, .. } => vec![here],
            Verdict::Jump(_) => {
                let inner = self.rules.target(chain, at).map(|target| self.stay_in(target, depth + 1));
                inner.iter().flat_map(|inner| inner.iter()).filter_map(|packets| packets.intersection(&here)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Those that do not come back from a chain, for sure.
    fn stay_in(&self, chain: &ChainRules, depth: usize) -> Rc<[Packets]> {
        let key = (std::ptr::from_ref(chain), depth);
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        let packets: Rc<[Packets]> = self.swallowed(chain, depth).into();
        self.known.borrow_mut().insert(key, packets.clone());
        packets
    }

    fn swallowed(&self, chain: &ChainRules, depth: usize) -> Vec<Packets> {
        let (mut left, mut out) = (vec![Packets::all(self.family, self.interfaces)], Vec::new());
        for (at, rule) in chain.rules.iter().enumerate() {
            if depth > DEPTH || left.len() + out.len() > ENOUGH || self.is_worn_out() {
                return Vec::new();
            }
            let here = self.packets(&rule.matches);
            if matches!(rule.verdict, Verdict::Return | Verdict::Goto(_) | Verdict::Unknown(_)) {
                // They come back, or may.
                left = self.without(left, &[here]);
                continue;
            }
            let stopped = self.stopped(chain, at, depth);
            out.extend(stopped.iter().flat_map(|taken| left.iter().filter_map(|packets| packets.intersection(taken))));
            left = self.without(left, &stopped);
        }
        if self.is_worn_out() { Vec::new() } else { out }
    }

    /// The rules of a chain that no packet gets to.
    fn never(&self, chain: &ChainRules) -> Vec<usize> {
        let mut taken: Vec<Packets> = Vec::new();
        let mut out = Vec::new();
        for (at, rule) in chain.rules.iter().enumerate() {
            if taken.len() > ENOUGH || self.is_worn_out() {
                break;
            }
            if self.without(vec![self.packets(&rule.matches)], &taken).is_empty() {
                out.push(at);
            } else {
                taken.extend(self.stopped(chain, at, 0));
            }
        }
        out
    }
}

/// A rule and where it stands, for people.
pub fn place(chain: &ChainRules, rule: &CanonRule, family: Family) -> String {
    format!("{}: {}", chain_name(chain), words::rule(rule, family))
}

/// The same rule's number and handle, for a message: what is told twice of one rule should
/// be known for the same, so they are no part of its place.
pub fn which(rule: &CanonRule) -> String {
    words::which(rule).map_or_else(String::new, |origin| format!(" ({origin} of its chain)"))
}

pub fn chain_name(chain: &ChainRules) -> String {
    match chain.table.source.as_ref() {
        "plan" => format!("{} {}", chain.table.name, chain.name),
        source => format!("{source} {} {}", chain.table.name, chain.name),
    }
}

/// The rules that no packet gets to: in which chain, and which of its rules.
pub fn never<'a>(ruleset: &'a Ruleset, interfaces: &Interfaces, family: Family) -> Vec<(&'a ChainRules, usize)> {
    let rules = ruleset.family(family);
    let chains = Chains { rules, family, interfaces, left: Cell::new(MOST), known: RefCell::default() };
    let entered = rules.chains.iter().zip(rules.entered()).filter(|(_, entered)| *entered);
    entered.flat_map(|(chain, _)| chains.never(chain).into_iter().map(move |at| (chain, at))).collect()
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
            match places.entry((chain_name(chain), at, lint.id)) {
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
        subject: chain_name(chain),
        message: "no rule jumps to the chain, so none of its rules ever matches".into(),
        advice: "nothing, unless it was meant to be entered".into(),
    }
}
