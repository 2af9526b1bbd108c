//! Changes to a ruleset that was found, to see what it would do without a difference.

use crate::backend::BackendKind;
use crate::config::types::Family;
use crate::plan::canon::CanonRule;
use crate::plan::model::{ChainName, Table, Verdict};

use super::{ChainRules, FamilyRules, Ruleset, TableId};

impl Ruleset {
    /// The index of an interception's chain that a holder has, by the table's name in that holder or the
    /// interception's.
    pub fn place_of(&self, holder: &str, (family, table, chain): (Family, Table, &ChainName)) -> Option<usize> {
        let is_it = |c: &ChainRules| *c.table.source == *holder && c.name == *chain && c.table.is(table);
        self.family(family).chains.iter().position(is_it)
    }

    /// Adds an empty copy of another ruleset's chain for a holder, if the holder has no such chain.
    pub fn add_empty(&mut self, other: &Self, holder: &str, place: (Family, Table, &ChainName)) {
        let (family, table, name) = place;
        if self.place_of(holder, place).is_some() {
            return;
        }
        let theirs = other.family(family).chains.iter().find(|c| c.name == *name && c.table.is(table));
        let Some(theirs) = theirs else { return };
        let known = |c: &&ChainRules| *c.table.source == *holder && c.table.is(table);
        let known = self.family(family).chains.iter().find(known).map(|c| c.table.clone());
        let table = known.unwrap_or_else(|| TableId { source: holder.into(), name: theirs.table.name.clone() });
        let native = holder == BackendKind::Nftables.name();
        let chain = ChainRules { table, rules: Vec::new(), targets: Vec::new(), native, ..theirs.clone() };
        let rules = self.family_mut(family);
        rules.chains.push(chain);
        rules.sum_up();
    }

    /// Gives all conditions the semantics of native nftables, or else those of iptables.
    pub(crate) fn ask(&mut self, natively: bool) {
        for family in Family::BOTH {
            self.family_mut(family).chains.iter_mut().for_each(|chain| chain.native = natively);
        }
    }

    /// Changes the rules of one chain.
    pub fn edit(&mut self, family: Family, chain: usize, edit: impl FnOnce(&mut Vec<CanonRule>)) {
        self.family_mut(family).edit(chain, edit);
    }

    /// Takes out what a holder has of an interception; rules of others stay.
    pub fn without_holder(&mut self, holder: &str) {
        for family in Family::BOTH {
            let rules = self.family_mut(family);
            for at in 0..rules.chains.len() {
                let Some(chain) = rules.chains.get(at).filter(|chain| *chain.table.source == *holder) else { continue };
                let all = chain.is_ours();
                let leads_to_ours =
                    |rule: &CanonRule| matches!(&rule.verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own());
                rules.edit(at, |rules| rules.retain(|rule| !all && !leads_to_ours(rule)));
            }
        }
    }

    fn family_mut(&mut self, family: Family) -> &mut FamilyRules {
        if family == Family::V4 { &mut self.v4 } else { &mut self.v6 }
    }
}

impl FamilyRules {
    fn edit(&mut self, at: usize, edit: impl FnOnce(&mut Vec<CanonRule>)) {
        let Some(chain) = self.chains.get_mut(at) else { return };
        edit(&mut chain.rules);
        let Some(chain) = self.chains.get(at) else { return };
        let to = |name: &ChainName| self.chains.iter().position(|c| c.table == chain.table && c.name == *name);
        let target = |rule: &CanonRule| match &rule.verdict {
            Verdict::Jump(name) | Verdict::Goto(name) => to(name),
            _ => None,
        };
        let targets = chain.rules.iter().map(target).collect();
        if let Some(chain) = self.chains.get_mut(at) {
            chain.targets = targets;
        }
        self.sum_up();
    }
}
