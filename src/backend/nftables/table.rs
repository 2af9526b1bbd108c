//! A table of nf_tables as expressions, whether the kernel or a text lists it.

use std::collections::HashMap;

use crate::backend::hook::{Base, ChainKind, Hook};
use crate::config::types::{Families, Interface};
use crate::plan::model::Rule;

use super::contents::TableContents;
use super::decode::{self, Listed};
use super::expr;
use super::links::Links;
use super::sets::{Elements, VerdictMap};
use super::wire::{NF_INET_INGRESS, NF_NETDEV_EGRESS, NF_NETDEV_INGRESS, NfFamily};

/// A table with its chains, rules, sets and maps.
#[derive(Debug, Default)]
pub struct NftTable {
    /// The kernel's number for the table's family (`NFPROTO_*`).
    pub family: u8,
    pub name: String,
    pub dormant: bool,
    /// The elements of sets by name; `None` if the keys are no plain values.
    pub sets: HashMap<String, Option<Elements>>,
    /// Maps of verdicts with plain keys.
    pub maps: HashMap<String, VerdictMap>,
    pub chains: Vec<NftChain>,
    /// Names for the interfaces that rules refer to by index; a text names them itself.
    pub links: Links,
}

/// A chain with its rules.
#[derive(Debug, Default)]
pub struct NftChain {
    pub name: String,
    /// The chain's hook and priority; `None` if rules only jump to it.
    pub base: Option<Base>,
    /// The devices that the chain is bound to; `None`: packets of all devices pass it.
    pub devices: Option<Devices>,
    pub rules: Vec<Listed>,
}

/// The devices that a chain on ingress or egress is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// The listing does not say which.
    Unnamed,
    Named(Vec<Interface>),
}

impl TableContents for NftTable {
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
    /// Keeps a set under a new name, which is returned.
    pub fn add(&mut self, elements: Elements) -> String {
        let name = format!("\0{}", self.sets.len());
        self.sets.insert(name.clone(), Some(elements));
        name
    }

    /// Keeps a map of verdicts under a new name, which is returned.
    pub fn add_map(&mut self, map: VerdictMap) -> String {
        let name = format!("\0{}", self.maps.len());
        self.maps.insert(name.clone(), map);
        name
    }

    /// Moves the sets to a table, whose rules look into them.
    pub fn into_table(self, table: &mut NftTable) {
        table.sets.extend(self.sets);
        table.maps.extend(self.maps);
    }
}

impl NftTable {
    /// The families whose packets pass the table; none for tables of bridges and the like.
    pub fn families(&self) -> Families {
        match NfFamily(self.family) {
            NfFamily::IPV4 => Families::V4,
            NfFamily::IPV6 => Families::V6,
            NfFamily::INET | NfFamily::NETDEV => Families::BOTH,
            _ => Families::NONE,
        }
    }

    /// Whether the table's chains are bound to single devices.
    pub fn is_of_devices(&self) -> bool {
        NfFamily(self.family) == NfFamily::NETDEV
    }

    /// Marks sets and maps as unknown that rules of the table change: a packet may have changed them
    /// before the next one is looked up.
    pub fn forget_updated(&mut self) {
        let exprs = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs);
        for name in expr::updated(exprs) {
            self.sets.insert(name.to_owned(), None);
            self.maps.remove(name);
        }
    }

    /// A chain's rules in the words of the model.
    pub fn decode(&self, chain: &NftChain) -> Vec<Rule> {
        decode::chain(&chain.rules, self.families(), self)
    }
}

/// The base chain for a hook's number: `NF_INET_*`, or `NF_NETDEV_*` in a table of devices; and whether
/// only packets of devices pass it. `None`: there is no such hook.
pub fn base(family: NfFamily, hook: u32, kind: ChainKind, priority: i32) -> Option<(Base, bool)> {
    match (family == NfFamily::NETDEV, hook) {
        (true, NF_NETDEV_INGRESS) | (false, NF_INET_INGRESS) => Some((Base::ingress(kind, priority), true)),
        (true, NF_NETDEV_EGRESS) => Some((Base::egress(kind, priority), true)),
        (true, _) => None,
        (false, number) => Some((Base::accepting(kind, Hook::by_number(number)?, priority), false)),
    }
}
