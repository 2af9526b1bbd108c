//! Maps of verdicts: one rule that goes different ways, as a rule of the model for each.

use crate::plan::effect::{Effect, Unmodelled};
use crate::plan::model::Verdict;

use super::decode::{Decoder, Register, verdict};
use super::expr::{Expr, code};
use super::field::PacketField;
use super::sets::{Elements, MapVerdict};
use super::words::statement;

impl Decoder<'_> {
    /// Reads "vmap": adds a step for each verdict of the map. No packet has two of the keys, so the
    /// order of the steps does not matter.
    pub(super) fn branch(&mut self, set: &str, exprs: &[Expr], at: usize) {
        let from = self.open.map_or(at, |open| open.from);
        let before = (self.families, self.matches.clone(), self.steps.len());
        if self.branches(set, from, at).is_none() {
            (self.families, self.matches) = (before.0, before.1);
            self.steps.truncate(before.2);
            self.does(Verdict::Unknown(Unmodelled::new(statement(exprs, from, at), Effect::Unknown)), from, at);
        }
    }

    fn branches(&mut self, set: &str, from: usize, at: usize) -> Option<()> {
        let Register::Field { field, mask: None, hton, .. } = self.register.clone() else { return None };
        let around = self.around;
        let map = around.verdicts(set)?;
        let mut branches: Vec<(Elements, bool, &MapVerdict)> = Vec::new();
        for (keys, to) in &map.groups {
            branches.extend(alternatives(field, keys).into_iter().map(|keys| (keys, false, to)));
        }
        let all = || map.groups.iter().flat_map(|(keys, _)| keys).cloned().collect();
        // A packet without an owner is in no map of owners, not in the rest of one either.
        if map.rest.is_some() && matches!(field, PacketField::Uid | PacketField::Gid) {
            return None;
        }
        branches.extend(map.rest.as_ref().map(|to| (all(), true, to)));
        // A chain may change a mark to one that another branch asks for: it comes last.
        let returns = |verdict: &MapVerdict| verdict.0 == code::JUMP;
        if matches!(field, PacketField::Mark | PacketField::ConnectionMark) {
            branches.sort_by_key(|(.., to)| returns(to));
            let jumps = branches.iter().filter(|(.., to)| returns(to)).count();
            if jumps > 1 || (jumps > 0 && branches.iter().any(|(.., to)| to.0 == code::CONTINUE)) {
                return None;
            }
        }
        let (families, matches) = (self.families, self.matches.clone());
        let mut goes_on = None;
        for (keys, negated, (code, chain)) in branches {
            let to = verdict(*code, chain.as_deref())?;
            (self.families, self.matches) = (families, matches.clone());
            if !(negated && keys.is_empty()) {
                self.among(field, negated, &keys, hton)?;
            }
            match to {
                Verdict::Continue if goes_on.is_some() => return None,
                Verdict::Continue => goes_on = Some((self.families, self.matches.clone())),
                to => self.does(to, from, at),
            }
        }
        // What stands behind is for those that go on: one without a verdict does not.
        self.ended = goes_on.is_none();
        (self.families, self.matches) = goes_on.unwrap_or((families, matches));
        Some(())
    }
}

/// Splits keys into lists that each fit one condition: a mark is compared with one value only.
fn alternatives(field: PacketField, keys: &Elements) -> Vec<Elements> {
    match field {
        PacketField::Mark | PacketField::ConnectionMark => keys.iter().map(|key| vec![key.clone()]).collect(),
        _ => vec![keys.clone()],
    }
}
