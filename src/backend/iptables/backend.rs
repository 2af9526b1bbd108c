//! The iptables backends. A family's tables change one after the other, each at once;
//! whoever calls `apply` with more than one step to go puts a guard around it.

use std::collections::HashMap;

use crate::backend::listing::{self, Holder, ListedTable};
use crate::backend::ours::{self, Holding};
use crate::backend::{Backend, BackendError, BackendKind, Backup, Reading};
use crate::config::types::{Families, Family};
use crate::plan::canon::Canon;
use crate::plan::lower::lower;
use crate::plan::model::{Plan, Table};

use super::parse::{self, Saved};
use super::programs::{ProgramError, Programs, Variant};
use super::script;

/// The backend of one iptables variant.
pub struct Iptables<'a> {
    programs: &'a Programs,
    comments: bool,
    /// Families in which the kernel has tables of this variant: only these are listed.
    tables: Families,
}

impl<'a> Iptables<'a> {
    pub fn new(programs: &'a Programs, comments: bool, tables: Families) -> Self {
        Self { programs, comments, tables }
    }

    fn list(&self, family: Family) -> Result<Saved, BackendError> {
        let text = self.programs.save(family)?;
        let program = format!("{}-save", self.kind().name());
        parse::parse(&text, family).map_err(|source| ProgramError::Parse { program, source }.into())
    }

    fn lists(found: &Reading) -> HashMap<Family, Saved> {
        match &found.backup {
            Backup::Iptables(saved) => saved.clone(),
            _ => HashMap::new(),
        }
    }

    /// The scripts for one family, one for each table that changes, from what is held to the plan.
    fn commits(&self, plan: &Plan, found: &Reading, family: Family) -> Vec<String> {
        let lists = Self::lists(found);
        let now = lists.get(&family);
        let lowered = lower(plan, family);
        let changed = changed(plan, found, family);
        let scripts = Table::ALL
            .into_iter()
            .filter(|t| changed.contains(t))
            .map(|table| script::table(table, now, &script::wanted(&lowered, table, family, self.comments)));
        scripts.filter(|s| !s.is_empty()).collect()
    }
}

/// The tables of a family in which a plan differs from what was found; all of them where
/// nothing differs and the rules are to be written again.
fn changed(plan: &Plan, found: &Reading, family: Family) -> Vec<Table> {
    if !found.present {
        return Table::ALL.to_vec();
    }
    let (want, have) = (Canon::of(plan), Canon::of(&found.plan));
    if want.same_rules(&have) && found.strange.is_empty() {
        return Table::ALL.to_vec();
    }
    let mut tables = want.differing_tables(&have, family);
    let strange = found.strange.iter().filter(|s| s.family.is_none_or(|f| f == family));
    tables.extend(strange.map(|s| s.table));
    tables
}

impl Backend for Iptables<'_> {
    fn kind(&self) -> BackendKind {
        match self.programs.variant {
            Variant::Nft => BackendKind::IptablesNft,
            Variant::Legacy => BackendKind::IptablesLegacy,
        }
    }

    fn read(&mut self) -> Result<Reading, BackendError> {
        let mut saved = HashMap::new();
        for family in self.tables.iter() {
            saved.insert(family, self.list(family)?);
        }
        let holder = Holder::Kernel(self.kind());
        let tables: Vec<ListedTable> =
            saved.iter().flat_map(|(family, saved)| listing::of_saved(saved.clone(), *family, holder)).collect();
        let Holding { plan, strange, .. } = ours::of_holder(holder, &tables.iter().collect::<Vec<_>>());
        Ok(Reading { present: !plan.families.is_empty(), plan, strange, backup: Backup::Iptables(saved) })
    }

    fn apply(&mut self, plan: &Plan, found: &Reading) -> Result<(), BackendError> {
        for family in Family::BOTH {
            // On a first installation there is something to write for each of the plan's families.
            let known = !found.present && plan.families.has(family);
            if known || !self.commits(plan, found, family).is_empty() {
                self.tables = self.tables.union(Families::only(family));
                self.programs.restore(family, || self.commits(plan, found, family).concat())?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, found: &Reading) -> Result<(), BackendError> {
        self.apply(&Plan::nothing_of(found.plan.dataplane), found)
    }

    fn restore(&mut self, found: &Reading) -> Result<(), BackendError> {
        let lists = Self::lists(found);
        for family in self.tables.iter() {
            let now = self.list(family)?;
            let wanted = |table| lists.get(&family).map(|saved| script::as_found(saved, table)).unwrap_or_default();
            let changed = Table::ALL.into_iter().filter(|&table| script::as_found(&now, table) != wanted(table));
            let commits: String = changed.map(|table| script::table(table, Some(&now), &wanted(table))).collect();
            if !commits.is_empty() {
                self.programs.restore(family, || commits)?;
            }
        }
        Ok(())
    }

    fn steps(&self, plan: &Plan, found: &Reading) -> usize {
        Family::BOTH.into_iter().map(|family| self.commits(plan, found, family).len()).sum()
    }
}
