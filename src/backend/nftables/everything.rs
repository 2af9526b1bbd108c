//! All tables of nf_tables, of anybody, as expressions: what an audit has to know.

use std::collections::HashMap;
use std::io;

use crate::sys::netlink::{Netlink, Received};

use super::decode::Listed;
use super::links::Links;
use super::read::{self, dump};
use super::sets::{self, Element};
use super::table::{AnonymousSets, FullChain, FullTable};
use super::wire::{Attrs, Msg, NfFamily, NfMessage, find};
use super::xt;

/// Lists all of it, if there are no more than so many rules and elements of sets.
///
/// # Errors
///
/// `Interrupted` when it changed meanwhile, `QuotaExceeded` when there is more.
pub fn list(netlink: &mut Netlink, most: usize) -> io::Result<Vec<FullTable>> {
    let before = read::tables(netlink)?.generation;
    let mut tables = Tables::default();
    let every =
        |netlink: &mut Netlink, msg, each: &mut dyn FnMut(Received)| dump(netlink, msg, NfFamily::UNSPEC, |_| (), each);
    every(netlink, Msg::GetTable, &mut |message| {
        let dormant = find(message.attributes(), 2).and_then(|a| a.u32()).unwrap_or(0) & 1 == 1;
        tables.add(FullTable { family: message.family().0, name: text(&message, 1), dormant, ..FullTable::default() });
    })?;
    every(netlink, Msg::GetChain, &mut |message| {
        let chain = FullChain { name: text(&message, 3), hook: read::hook_of(&message), rules: Vec::new() };
        tables.add_chain(&message, chain);
    })?;
    let mut names = Vec::new();
    every(netlink, Msg::GetSet, &mut |message| {
        let flags = find(message.attributes(), 3).and_then(|a| a.u32()).unwrap_or(0);
        names.push((message.family(), text(&message, 1), text(&message, 2), flags));
    })?;
    let mut count = 0;
    for (family, table, name, flags) in names {
        let interval = flags & INTERVAL != 0;
        let elements = elements(netlink, family, &table, &name, flags)?;
        count += elements.as_ref().map_or(0, Vec::len);
        let Some(table) = tables.table(family, &table) else { continue };
        if flags & MAP == 0 {
            table.sets.insert(name, elements.and_then(|list| sets::keys(list, interval)));
        } else if let Some(map) = elements.and_then(|list| sets::verdicts(list, interval)) {
            table.maps.insert(name, map);
        }
    }
    let mut anonymous: HashMap<(u8, String), AnonymousSets> = HashMap::new();
    every(netlink, Msg::GetRule, &mut |message| {
        count += 1;
        if count > most {
            return;
        }
        let mut listed = read::listed(message.attributes());
        let table = (message.family().0, text(&message, 1));
        xt::translate(&mut listed, message.family(), anonymous.entry(table).or_default());
        tables.add_rule(&message, listed);
    })?;
    if count > most {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    for ((family, name), sets) in anonymous {
        if let Some(table) = tables.table(NfFamily(family), &name) {
            sets.into_table(table);
        }
    }
    tables.list.iter_mut().for_each(FullTable::forget_updated);
    let links = Links::for_rules(tables.list.iter().flat_map(|t| &t.chains).flat_map(|chain| &chain.rules))?;
    tables.list.iter_mut().for_each(|table| table.links = links.clone());
    match read::tables(netlink)?.generation == before {
        true => Ok(tables.list),
        false => Err(io::ErrorKind::Interrupted.into()),
    }
}

fn text(message: &Received, kind: u16) -> String {
    find(message.attributes(), kind).map(|a| a.string()).unwrap_or_default()
}

/// `NFT_SET_INTERVAL`, `NFT_SET_MAP` and `NFT_SET_OBJECT`.
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const OBJECTS: u32 = 64;

/// A set's elements; `None` for an object map and keys that are no plain values.
fn elements(
    netlink: &mut Netlink,
    family: NfFamily,
    table: &str,
    name: &str,
    flags: u32,
) -> io::Result<Option<Vec<Element>>> {
    if flags & OBJECTS != 0 {
        return Ok(None);
    }
    let mut elements: Option<Vec<Element>> = Some(Vec::new());
    let filter = |a: &mut Attrs| {
        a.string(1, table);
        a.string(2, name);
    };
    dump(netlink, Msg::GetSetElem, family, filter, |message| {
        match (&mut elements, sets::elements(message.attributes())) {
            (Some(all), Some(more)) => all.extend(more),
            (all, _) => *all = None,
        }
    })?;
    Ok(elements)
}

/// Tables being listed, found by name.
#[derive(Default)]
struct Tables {
    list: Vec<FullTable>,
    places: HashMap<(u8, String), usize>,
    chains: HashMap<(u8, String, String), usize>,
}

impl Tables {
    fn add(&mut self, table: FullTable) {
        self.places.insert((table.family, table.name.clone()), self.list.len());
        self.list.push(table);
    }

    fn table(&mut self, family: NfFamily, name: &str) -> Option<&mut FullTable> {
        let at = *self.places.get(&(family.0, name.to_owned()))?;
        self.list.get_mut(at)
    }

    fn add_chain(&mut self, message: &Received, chain: FullChain) {
        let (family, name) = (message.family(), text(message, 1));
        let key = (family.0, name.clone(), chain.name.clone());
        let Some(table) = self.table(family, &name) else { return };
        let at = table.chains.len();
        table.chains.push(chain);
        self.chains.insert(key, at);
    }

    fn add_rule(&mut self, message: &Received, rule: Listed) {
        let (family, name) = (message.family(), text(message, 1));
        let Some(&at) = self.chains.get(&(family.0, name.clone(), text(message, 2))) else { return };
        if let Some(chain) = self.table(family, &name).and_then(|table| table.chains.get_mut(at)) {
            chain.rules.push(rule);
        }
    }
}
