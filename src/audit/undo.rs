//! Attributes effects to differences: the differences are undone in a copy of what was found, one at a
//! time and all together, and the effect's example is walked again. A rule that a packet meets on the
//! way to an effect need not be its cause: a network policy drops packets whatever an interception
//! lacks.

use crate::config::types::Family;
use crate::plan::model::{ChainName, Table};

use super::explain::{NoTrace, explain};
use super::flow::{Surroundings, Taker};
use super::ruleset::Ruleset;
use super::verification::{Finding, TrafficChange, What};
use crate::backend::listing::Holder;
use crate::plan::diff::{Difference, Undo};

/// How many rules are copied to take differences back.
const MOST_COPIED: usize = 20_000_000;

/// The rules that were found, with the differences that can be undone in them.
pub struct Undoing<'a> {
    want: &'a Ruleset,
    have: &'a Ruleset,
    pod: &'a Surroundings,
    /// The holder whose rules were compared with the wanted ones.
    holder: &'a str,
    /// All differences between both.
    differences: &'a [Difference],
}

type ChainPlace<'a> = (Family, Table, &'a ChainName);

fn place(difference: &Difference) -> Option<ChainPlace<'_>> {
    difference.place.as_ref().map(|(family, table, chain)| (*family, *table, chain))
}

impl<'a> Undoing<'a> {
    /// `have` must have been prepared for a comparison with `want` ([`Ruleset::set_against`]).
    pub fn new(
        want: &'a Ruleset,
        have: &'a Ruleset,
        pod: &'a Surroundings,
        holder: &'a str,
        differences: &'a [Difference],
    ) -> Self {
        Self { want, have, pod, holder, differences }
    }

    /// Keeps for each effect only the differences that cause it by themselves; before, findings have all
    /// effects that they may cause. Effects that do not go away with all differences together are caused
    /// by foreign rules.
    ///
    /// # Errors
    ///
    /// That the walk met more parts than an audit takes.
    pub fn attribute(&self, findings: &mut [Finding], effects: &mut [TrafficChange]) -> Result<(), String> {
        let mut base = self.have.clone();
        for place in self.differences.iter().filter_map(place) {
            base.add_empty(self.want, self.holder, place);
        }
        let mut copied = 0;
        for finding in findings.iter_mut().filter(|finding| !finding.effects.is_empty()) {
            match &finding.what {
                What::Difference(difference) => {
                    let (Some(place), Some(undo)) = (place(difference), &difference.undo) else { continue };
                    let Some(at) = base.place_of(self.holder, place) else { continue };
                    let before = base.family(place.0).chains.get(at).map_or_else(Vec::new, |c| c.rules.clone());
                    copied += before.len();
                    if copied > MOST_COPIED {
                        return Err("the rules differ in too much to tell which difference has which effect".into());
                    }
                    let mut applied = false;
                    base.edit(place.0, at, |rules| applied = undo.apply(rules));
                    if applied {
                        finding.effects.retain(|&effect| self.changes(&base, effects.get(effect)));
                    }
                    base.edit(place.0, at, |rules| *rules = before);
                }
                What::Second(holder) => {
                    let mut without = self.have.clone();
                    without.without_holder(holder.name());
                    finding.effects.retain(|&effect| self.changes(&without, effects.get(effect)));
                }
                What::Strange(_) | What::Nothing => {}
            }
        }
        let seconds = findings.iter().filter_map(|finding| match finding.what {
            What::Second(holder) => Some(holder),
            _ => None,
        });
        let all = self.all_undone(base, seconds);
        for (at, effect) in effects.iter_mut().enumerate() {
            effect.ours = self.changes(&all, Some(effect));
            // Nothing there is one finding for all that is missing.
            for finding in findings.iter_mut().filter(|finding| matches!(finding.what, What::Nothing)) {
                finding.effects.retain(|&known| known != at || effect.ours);
            }
            effect.ours |= findings.iter().any(|finding| finding.effects.contains(&at));
        }
        Ok(())
    }

    /// The rules without any difference.
    fn all_undone(&self, mut rules: Ruleset, seconds: impl Iterator<Item = Holder>) -> Ruleset {
        seconds.for_each(|holder| rules.without_holder(holder.name()));
        // Rules come in before one that may go out.
        for inserts in [true, false] {
            for difference in self.differences {
                let Some((place, undo)) = place(difference).zip(difference.undo.as_ref()) else { continue };
                if matches!(undo, Undo::Insert { .. }) != inserts {
                    continue;
                }
                if let Some(at) = rules.place_of(self.holder, place) {
                    rules.edit(place.0, at, |rules| {
                        undo.apply(rules);
                    });
                }
            }
        }
        rules
    }

    /// Whether an effect's example meets another fate by other rules.
    fn changes(&self, rules: &Ruleset, effect: Option<&TrafficChange>) -> bool {
        let taker = |effect: &TrafficChange| explain(rules, self.pod, &effect.example, &mut NoTrace).taker;
        effect.is_some_and(|effect| taker(effect) != effect.found)
    }
}

/// Whether an effect is a drop by foreign rules, such as a network policy's.
pub fn is_policy(effect: &TrafficChange) -> bool {
    !effect.ours && effect.found == Taker::Dropped
}
