//! A table of nf_tables as expressions, whether the kernel or a text lists it.

use std::collections::HashMap;

use crate::config::types::Families;
use crate::plan::model::Rule;

use super::decode::{self, Listed, Surroundings};
use super::expr;
use super::links::Links;
use super::read::ListedHook;
use super::sets::{Elements, VerdictMap};
use super::wire::NfFamily;

/// A table with everything in it.
#[derive(Debug, Default)]
pub struct FullTable {
    /// `NFPROTO_*`.
    pub family: u8,
    pub name: String,
    pub dormant: bool,
    /// `None`: keys that are not plain values.
    pub sets: HashMap<String, Option<Elements>>,
    /// Maps of verdicts with plain keys.
    pub maps: HashMap<String, VerdictMap>,
    pub chains: Vec<FullChain>,
    /// What the kernel calls the interfaces that rules mean by number; text names them itself.
    pub links: Links,
}

/// A chain with its rules.
#[derive(Debug, Default)]
pub struct FullChain {
    pub name: String,
    pub hook: Option<ListedHook>,
    pub rules: Vec<Listed>,
}

impl Surroundings for FullTable {
    fn elements(&self, name: &str) -> Option<&Elements> {
        self.sets.get(name)?.as_ref()
    }

    fn verdicts(&self, name: &str) -> Option<&VerdictMap> {
        self.maps.get(name)
    }

    fn interface(&self, index: u32) -> Option<&str> {
        self.links.name(index)
    }
}

/// Sets without a name in the kernel, such as a list within a rule.
#[derive(Debug, Default)]
pub struct AnonymousSets {
    sets: HashMap<String, Option<Elements>>,
    maps: HashMap<String, VerdictMap>,
}

impl AnonymousSets {
    /// Keeps a set and gives it a name that nobody else has.
    pub fn add(&mut self, elements: Elements) -> String {
        let name = format!("\0{}", self.sets.len());
        self.sets.insert(name.clone(), Some(elements));
        name
    }

    /// The same with a map.
    pub fn add_map(&mut self, map: VerdictMap) -> String {
        let name = format!("\0{}", self.maps.len());
        self.maps.insert(name.clone(), map);
        name
    }

    /// Moves them to where the rules of a table look.
    pub fn into_table(self, table: &mut FullTable) {
        table.sets.extend(self.sets);
        table.maps.extend(self.maps);
    }
}

impl FullTable {
    /// The families whose packets meet it; none for tables of bridges and the like.
    pub fn families(&self) -> Families {
        match NfFamily(self.family) {
            NfFamily::IPV4 => Families::V4,
            NfFamily::IPV6 => Families::V6,
            NfFamily::INET | NfFamily::NETDEV => Families::BOTH,
            _ => Families::NONE,
        }
    }

    /// Whether its chains are hooked to single devices.
    pub fn is_of_devices(&self) -> bool {
        NfFamily(self.family) == NfFamily::NETDEV
    }

    /// Where a base chain of it meets the packets of single devices: `Some(true)` on their way
    /// in, `Some(false)` on their way out. `None`: it is on another hook.
    pub fn device_hook(&self, hook: &ListedHook) -> Option<bool> {
        match hook.number {
            // NF_NETDEV_INGRESS; NF_NETDEV_EGRESS is 1.
            number if self.is_of_devices() => Some(number == 0),
            // NF_INET_INGRESS.
            5 => Some(true),
            _ => None,
        }
    }

    /// Takes what sets and maps hold that rules of the table change for not known: a packet
    /// may have changed it before the next one is asked about.
    pub fn forget_updated(&mut self) {
        let exprs = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs);
        for name in expr::updated(exprs) {
            self.sets.insert(name.to_owned(), None);
            self.maps.remove(name);
        }
    }

    /// A chain's rules in the words of the model.
    pub fn decode(&self, chain: &FullChain) -> Vec<Rule> {
        decode::chain(&chain.rules, self.families(), self)
    }
}
