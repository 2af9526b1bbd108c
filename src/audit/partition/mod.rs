//! Who gets what, completely: the space of flows (direction, protocol, interface, owner,
//! destination, port, source) cut by the rules into sets that share a fate. What `explain`
//! does with one flow, this does with all of them at once, by the same walk, with sets of
//! intervals; nothing is sampled. Packets start unmarked, unless a mark is given.

mod agree;
mod part;

use crate::config::types::Family;

use super::ruleset::{FamilyRules, Order, Ruleset};
use super::space::connection::ConntrackView;
use super::space::cube::NOBODY;
use super::space::known::KnownFields;
use super::space::{Scope, Space};
use super::walk::flows::{Chains, Flows};
use super::walk::journey::Journey;
use super::walk::limits::Limits;
use super::walk::trace::NoTrace;
use super::walk::{Arrived, Uncertain, Walk};
use agree::{PossibleEnd, agreed, certain};
pub use part::Part;

/// The rules cut traffic into more parts than can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rules cut {family} traffic into too many parts, most of them in {place}; ask about single flows with 'explain', or look at the rules without these"
)]
pub struct TooManyParts {
    pub family: Family,
    /// The chain that cuts most, or how many do, in words.
    pub place: String,
}

/// The most sets of flows that a family's traffic is cut into, half a kilobyte each.
const MOST_SETS: usize = 200_000;
/// The most work that is done on the way there: a few seconds'.
const MOST_WORK: usize = 50_000_000;
/// The most parts of a family and scope that come of uncertain conditions.
const MOST_UNCERTAIN: usize = 100_000;

impl Space<'_> {
    /// Cuts all flows of a family by a ruleset. The parts share nothing and leave nothing out.
    ///
    /// # Errors
    ///
    /// The rules cut them into more parts than can be told apart.
    pub fn parts<'a>(&self, ruleset: &'a Ruleset, family: Family) -> Result<Vec<Part<'a>>, TooManyParts> {
        self.parts_within(ruleset, family, MOST_WORK)
    }

    /// Cuts all flows of a family by a ruleset, doing no more than so much work for each scope:
    /// the sum of the rules that sets of flows are held against and of the sets that are made.
    ///
    /// # Errors
    ///
    /// The rules cut them into more parts than can be told apart, or it takes more work.
    pub fn parts_within<'a>(
        &self,
        ruleset: &'a Ruleset,
        family: Family,
        most_work: usize,
    ) -> Result<Vec<Part<'a>>, TooManyParts> {
        let mut out = Vec::new();
        let rules = ruleset.family(family);
        let chains = Chains::new(rules, &self.interfaces);
        for scope in Scope::ALL {
            out.extend(Flowing { space: self, rules, chains: &chains, family, scope, mark: 0, most_work }.parts()?);
        }
        Ok(out)
    }

    /// Cuts one scope's flows of a family by a ruleset, where packets start with a mark. The
    /// parts share nothing and leave nothing out.
    ///
    /// # Errors
    ///
    /// The rules cut them into more parts than can be told apart.
    pub fn parts_of<'a>(
        &self,
        ruleset: &'a Ruleset,
        family: Family,
        scope: Scope,
        mark: u32,
    ) -> Result<Vec<Part<'a>>, TooManyParts> {
        let rules = ruleset.family(family);
        let chains = Chains::new(rules, &self.interfaces);
        Flowing { space: self, rules, chains: &chains, family, scope, mark, most_work: MOST_WORK }.parts()
    }
}

/// The flows of a family and scope, and the rules that they meet.
struct Flowing<'a, 's> {
    space: &'s Space<'s>,
    rules: &'a FamilyRules,
    chains: &'s Chains<'s>,
    family: Family,
    scope: Scope,
    mark: u32,
    most_work: usize,
}

impl<'a> Flowing<'a, '_> {
    /// Cuts the flows into parts. Where it is not known whether a rule applies, or in which order chains
    /// come, flows with the same outcome in all cases are certain, and others are not.
    fn parts(&self) -> Result<Vec<Part<'a>>, TooManyParts> {
        let first = self.parts_in(Order::First)?;
        if self.rules.has_one_order() {
            return Ok(first);
        }
        let second = self.parts_in(Order::Second)?;
        agreed(first, &second, MOST_UNCERTAIN).ok_or_else(|| TooManyParts {
            family: self.family,
            place: "chains of iptables-legacy and nftables in one place".into(),
        })
    }

    /// Cuts the flows for one order of chains. Both possibilities of an uncertain rule are followed; if
    /// these become too many, flows that may meet such a rule get the outcome "unknown".
    fn parts_in(&self, order: Order) -> Result<Vec<Part<'a>>, TooManyParts> {
        let outcomes = self.walk(order, Uncertain::Both);
        match outcomes.ok().and_then(|outcomes| certain(outcomes, MOST_UNCERTAIN)) {
            Some(parts) => Ok(parts),
            None => Ok(self.walk(order, Uncertain::Ends)?.into_iter().map(|outcome| outcome.part).collect()),
        }
    }

    /// Follows all flows to their ends.
    fn walk(&self, order: Order, uncertain: Uncertain) -> Result<Vec<PossibleEnd<'a>>, TooManyParts> {
        let (space, family, scope) = (self.space, self.family, self.scope);
        let set = space.whole(family, scope);
        if set.destination.is_empty() || set.interface(scope).is_empty() {
            return Ok(Vec::new());
        }
        let mut known = KnownFields { mark: Some(self.mark), ..KnownFields::default() };
        if scope.is_outbound() {
            known.in_interface = Some(None);
        } else {
            known.out_interface = Some(None);
            // What comes in has no owner here.
            (known.uid, known.gid) = (Some(NOBODY), Some(NOBODY));
        }
        let flows = Flows { set, chains: self.chains };
        let limits = Limits::new(self.most_work, MOST_SETS);
        let mut walk = Walk::new(self.rules, order, family, &space.pod.addresses, uncertain, limits);
        let mut journey = Journey::new(scope.direction(), flows, known, ConntrackView::NEW, scope.is_local());
        if scope.is_outbound() {
            walk.routed_back = self.rules.ambient_marks().collect();
            walk.route(&mut journey, &mut NoTrace);
        }
        let mut outcomes = Vec::new();
        let mut next = Some(walk.follow(journey, &mut NoTrace));
        while let Some(arrived) = next {
            let arrived = arrived.ok().filter(|_| walk.limits.keep());
            let Some(Arrived { journey, taker }) = arrived.map(Arrived::of_first_packets) else {
                let place = walk.limits.most_cut().unwrap_or_else(|| "conditions that are not understood".into());
                return Err(TooManyParts { family, place });
            };
            if let Some(flows) = journey.traffic.set.occurring() {
                let part = Part { family, scope, flows, taker, decider: journey.decider };
                outcomes.push(PossibleEnd { part, assumed: journey.assumed });
            }
            next = walk.next(&mut NoTrace);
        }
        Ok(outcomes)
    }
}
