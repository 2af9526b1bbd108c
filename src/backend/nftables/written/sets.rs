//! The sets and maps of a table as written, and as rules look into them.

use std::collections::HashMap;

use crate::backend::nftables::expr::Expr;
use crate::backend::nftables::sets::{Elements, MapVerdict, VerdictMap};
use crate::backend::nftables::table::AnonymousSets;

use super::fields::{Class, Field, Item, exact};
use super::values::{range_bytes, value_bytes};

/// A key of a map, `None` for all that no other entry has, and its verdict.
pub type SetEntry = (Option<Item>, MapVerdict);

/// The map in which a rule looks a verdict up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdicts {
    /// A list within the rule.
    Among(Vec<SetEntry>),
    /// A map of the table, by name.
    Named(String),
}

/// The name of a set in the text, and the encoding of its values.
type MadeKey = (String, Class);

#[derive(Debug, Default)]
pub struct WrittenSets {
    /// The named sets; `None` for keys of several parts.
    pub named: HashMap<String, Option<Vec<Item>>>,
    /// The named maps; `None` for keys of several parts, or if they are no maps of verdicts.
    pub named_maps: HashMap<String, Option<Vec<SetEntry>>>,
    made: HashMap<MadeKey, Option<(String, usize)>>,
    made_maps: HashMap<MadeKey, Option<(String, usize)>>,
    pub anonymous: AnonymousSets,
    /// How many elements rules may still refer to: a short text could name a long set in
    /// every line.
    pub budget: usize,
}

impl WrittenSets {
    /// Marks a set or map as unknown, since rules change it.
    pub fn forget(&mut self, name: &str) {
        self.named.insert(name.to_owned(), None);
        self.named_maps.insert(name.to_owned(), None);
    }

    fn spend(&mut self, elements: usize) -> Option<()> {
        self.budget = self.budget.checked_sub(elements)?;
        Some(())
    }

    /// A list within a rule.
    pub fn among(&mut self, class: Class, items: &[Item]) -> Option<String> {
        let elements = elements(class, items)?;
        self.spend(elements.len())?;
        Some(self.anonymous.add(elements))
    }

    /// Encodes a named set for a class of fields, once; returns its name.
    pub fn encoded(&mut self, name: &str, class: Class) -> Option<String> {
        let key = (name.to_owned(), class);
        if !self.made.contains_key(&key) {
            let items = self.named.get(name).and_then(Option::as_ref);
            let made = items.and_then(|items| elements(class, items)).map(|elements| {
                let length = elements.len();
                (self.anonymous.add(elements), length)
            });
            self.made.insert(key.clone(), made);
        }
        let (set, length) = self.made.get(&key).cloned().flatten()?;
        self.spend(length)?;
        Some(set)
    }

    /// Encodes a named map for a class of fields, once; returns its name.
    fn encoded_map(&mut self, name: &str, class: Class) -> Option<String> {
        let key = (name.to_owned(), class);
        if !self.made_maps.contains_key(&key) {
            let entries = self.named_maps.get(name).and_then(Option::as_ref);
            let made = entries.and_then(|entries| Some((verdicts(class, entries)?, entries.len())));
            let made = made.map(|(map, length)| (self.anonymous.add_map(map), length));
            self.made_maps.insert(key.clone(), made);
        }
        let (map, length) = self.made_maps.get(&key).cloned().flatten()?;
        self.spend(length)?;
        Some(map)
    }
}

/// Translates the lookup of a field's verdict in a map; `None` if a key is not understood.
pub fn vmap(field: Field, map: &Verdicts, sets: &mut WrittenSets) -> Option<Vec<Expr>> {
    let class = field.class();
    let set = match map {
        Verdicts::Named(name) => sets.encoded_map(name, class)?,
        Verdicts::Among(entries) => {
            sets.spend(entries.len())?;
            let map = verdicts(class, entries)?;
            sets.anonymous.add_map(map)
        }
    };
    let mut out = field.load();
    out.push(Expr::Vmap { set });
    Some(out)
}

fn elements(class: Class, items: &[Item]) -> Option<Elements> {
    items.iter().map(|item| element(class, item)).collect()
}

fn element(class: Class, item: &Item) -> Option<(Vec<u8>, Vec<u8>)> {
    if class.is_name() {
        return value_bytes(class, exact(item)?).map(|name| (name.clone(), name));
    }
    range_bytes(class, item)
}

fn verdicts(class: Class, entries: &[SetEntry]) -> Option<VerdictMap> {
    let mut rest = None;
    let mut keys = Vec::with_capacity(entries.len());
    for (key, verdict) in entries {
        match key {
            None => rest = Some(verdict.clone()),
            Some(item) => {
                let (first, last) = element(class, item)?;
                keys.push((first, last, verdict.clone()));
            }
        }
    }
    Some(VerdictMap::new(keys, rest))
}
