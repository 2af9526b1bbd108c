//! Interface names as numbers. Rules tell names apart by whole names and by beginnings:
//! names that no rule tells apart are one kind, and a set of kinds is a set of numbers.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::audit::flow::Surroundings;
use crate::audit::ruleset::Ruleset;
use crate::config::ranges::RangeList;
use crate::config::types::{Family, Interface};
use crate::plan::model::Cond;

/// A set of kinds of interfaces.
pub type Kinds = RangeList<u32>;

/// The kind that stands for "no interface": the output interface of an inbound packet, and the input
/// interface of an outbound one.
pub const NO_INTERFACE: u32 = u32::MAX;

/// The longest name an interface can have (`IFNAMSIZ` without its end).
const LONGEST: usize = 15;

/// All kinds of interfaces that a few rulesets and a pod tell apart.
#[derive(Debug, Clone)]
pub struct Interfaces {
    /// The kinds, sorted by pattern; the one for names that no rule matches is last.
    kinds: Vec<InterfaceKind>,
    lo: Kinds,
}

/// Names that every rule treats alike.
#[derive(Debug, Clone)]
struct InterfaceKind {
    /// The pattern of the kind; `None` for all names that no rule matches.
    pattern: Option<Interface>,
    /// One name of this kind.
    example: Box<str>,
}

impl Interfaces {
    /// The kinds that any of the rulesets tells apart; the loopback and the uplink are
    /// always kinds of their own, and so are those of `more`.
    pub fn of(rulesets: &[&Ruleset], pod: &Surroundings, more: &[Interface]) -> Self {
        let mut patterns = BTreeSet::from([Interface::lo(), Interface::new(&pod.uplink, false)]);
        patterns.extend(more.iter().cloned());
        for ruleset in rulesets {
            for rule in Family::BOTH.iter().flat_map(|&f| &ruleset.family(f).chains).flat_map(|c| &c.rules) {
                let conditions = [&rule.matches.in_interface, &rule.matches.out_interface];
                patterns.extend(conditions.into_iter().flatten().flat_map(|c| c.value.iter().cloned()));
            }
        }
        let names: Vec<Option<Interface>> = patterns.iter().cloned().map(Some).chain([None]).collect();
        let kind = |pattern: Option<Interface>| {
            let example = candidates(pattern.as_ref()).find(|name| closest(&patterns, name) == pattern)?;
            Some(InterfaceKind { pattern, example: example.into() })
        };
        let mut out = Self { kinds: names.into_iter().filter_map(kind).collect(), lo: Kinds::default() };
        out.lo = out.named("lo");
        out
    }

    /// All kinds, "no interface" not among them.
    pub fn all(&self) -> Kinds {
        self.where_kind(|_| true)
    }

    /// All kinds, and "no interface".
    pub fn all_or_none(&self) -> Kinds {
        let mut all = self.all();
        all.push(NO_INTERFACE, NO_INTERFACE);
        all
    }

    /// The loopback interface.
    pub fn lo(&self) -> &Kinds {
        &self.lo
    }

    /// The kind that a name is of.
    pub fn kind_of(&self, name: &str) -> u32 {
        let best = self
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| kind.pattern.as_ref().is_none_or(|p| p.matches(name)))
            .max_by_key(|(_, kind)| kind.pattern.as_ref().map(closeness));
        best.map_or(NO_INTERFACE, |(at, _)| at as u32)
    }

    /// The kind that a name is of, as a set.
    pub fn named(&self, name: &str) -> Kinds {
        RangeList::of([self.kind_of(name)])
    }

    /// The kinds that meet a condition; "no interface" meets only a negated one.
    pub fn meeting(&self, cond: &Cond<Vec<Interface>>) -> Kinds {
        let mut out = Kinds::default();
        cond.value.iter().for_each(|pattern| out.extend(&self.matching(pattern)));
        let out = out.normalised();
        if cond.negated { self.all_or_none().minus(&out) } else { out }
    }

    fn matching(&self, pattern: &Interface) -> Kinds {
        let known = self.kinds.binary_search_by(|kind| match &kind.pattern {
            Some(known) => known.cmp(pattern),
            None => Ordering::Greater,
        });
        match known {
            Ok(at) if !pattern.any_ending => Kinds::of([at as u32]),
            // Names that begin alike stand together. Among the known ones a name is of the
            // kind that says most about it, so a shorter pattern's example is not meant.
            Ok(at) if !pattern.name.is_empty() => {
                let starts =
                    |kind: &InterfaceKind| kind.pattern.as_ref().is_some_and(|p| p.name.starts_with(&*pattern.name));
                let first = self.kinds[..at].iter().rposition(|kind| !starts(kind)).map_or(0, |before| before + 1);
                let count = self.kinds[at..].partition_point(starts);
                Kinds::new([(first as u32, (at + count - 1) as u32)])
            }
            _ if pattern.name.len() > LONGEST => Kinds::default(),
            _ => self.where_kind(|kind| pattern.matches(&kind.example)),
        }
    }

    fn where_kind(&self, test: impl Fn(&InterfaceKind) -> bool) -> Kinds {
        let found = self.kinds.iter().enumerate().filter(|(_, kind)| test(kind));
        RangeList::of(found.map(|(at, _)| at as u32)).normalised()
    }

    /// A name of each kind in a set.
    pub fn examples(&self, kinds: &Kinds) -> Vec<&str> {
        self.of_set(kinds).map(|kind| &*kind.example).collect()
    }

    /// The patterns in a set, and whether names that no rule matches are in it too.
    pub fn patterns(&self, kinds: &Kinds) -> (Vec<&Interface>, bool) {
        let patterns = self.of_set(kinds).filter_map(|kind| kind.pattern.as_ref()).collect();
        (patterns, self.of_set(kinds).any(|kind| kind.pattern.is_none()))
    }

    fn of_set(&self, kinds: &Kinds) -> impl Iterator<Item = &InterfaceKind> {
        self.kinds.iter().enumerate().filter(|(at, _)| kinds.holds(*at as u32)).map(|(_, kind)| kind)
    }
}

/// A whole name says more than a beginning, a long beginning more than a short one.
fn closeness(pattern: &Interface) -> (bool, usize) {
    (!pattern.any_ending, pattern.name.len())
}

/// The pattern that says most about a name.
fn closest(patterns: &BTreeSet<Interface>, name: &str) -> Option<Interface> {
    let whole = Interface::new(name, false);
    let beginnings = (0..=name.len()).rev().filter_map(|length| name.get(..length));
    let mut all = std::iter::once(whole).chain(beginnings.map(|beginning| Interface::new(beginning, true)));
    all.find(|pattern| patterns.contains(pattern))
}

/// Names that may be of a kind, the simplest first.
fn candidates(pattern: Option<&Interface>) -> impl Iterator<Item = String> {
    let (start, whole) = match pattern {
        Some(pattern) => (pattern.name.to_string(), !pattern.any_ending),
        None => (String::new(), false),
    };
    let characters = || ('0'..='9').chain('a'..='z').map(String::from);
    let usual = pattern.is_none().then(|| ["net1".to_owned(), "eth1".to_owned()]).into_iter().flatten();
    let two = characters().flat_map(move |a| characters().map(move |b| format!("{a}{b}")));
    let endings = std::iter::once(String::new()).chain(characters()).chain(two);
    let made = endings.take(if whole { 1 } else { usize::MAX }).map(move |ending| format!("{start}{ending}"));
    usual.chain(made).filter(|name| !name.is_empty() && name.len() <= LONGEST)
}
