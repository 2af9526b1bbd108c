//! Lists nf_tables: all tables of anybody, or podweir's own tables only, which is all that an
//! installation pays for.

use std::collections::HashMap;
use std::io;

use nix::libc;

use crate::backend::hook::{Base, ChainKind};
use crate::backend::limit::{Most, TooMany};
use crate::config::types::Interface;
use crate::plan::model::{Dataplane, Table};
use crate::sys::netlink::{Netlink, Received};

use super::comment::comment_of;
use super::decode::Listed;
use super::dump::{dump, dump_all, request, text};
use super::links::Links;
use super::nfta::*;
use super::raw::RawTable;
use super::sets::{self, Element};
use super::table::{self, AnonymousSets, Devices, NftChain, NftTable};
use super::wire::{Attrs, Msg, NfFamily, NfMessage, attributes, find};
use super::{expr_bytes, names, survey, xt};

/// Lists all tables, up to a limit. Beyond it rules and elements are counted, and neither decoded nor
/// kept.
///
/// # Errors
///
/// `Interrupted` when the rules changed meanwhile; `QuotaExceeded` beyond the limit, with [`TooMany`]
/// inside.
pub fn everything(netlink: &mut Netlink, most: Most) -> io::Result<Vec<NftTable>> {
    let before = survey::tables(netlink)?.generation;
    let mut lister = Lister { most, ..Lister::default() };
    dump_all(netlink, Msg::GetTable, NfFamily::UNSPEC, |message| lister.table(&message))?;
    lister.rest(netlink, NfFamily::UNSPEC, None).map_err(gone)?;
    let tables = lister.finish()?;
    match survey::tables(netlink)?.generation == before {
        true => Ok(tables),
        false => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Lists some of our own tables, and what it takes to make them again.
///
/// # Errors
///
/// The kernel's, when it does not answer; `Interrupted` when one of them went away meanwhile.
pub fn ours(
    netlink: &mut Netlink,
    dataplane: Dataplane,
    present: &[Table],
) -> io::Result<(Vec<NftTable>, HashMap<Table, RawTable>)> {
    let mut lister = Lister { most: Most::ALL, ..Lister::default() };
    let mut raw = HashMap::new();
    for &table in present {
        lister.raw = Some(RawTable::default());
        let name = names::table(dataplane, table);
        let question = request(Msg::GetTable, 0, NfFamily::INET, |a| a.string(NFTA_TABLE_NAME, name));
        netlink.get(question.bytes(), |message| lister.table(&message)).map_err(gone)?;
        lister.rest(netlink, NfFamily::INET, Some(name)).map_err(gone)?;
        raw.extend(lister.raw.take().map(|kept| (table, kept)));
    }
    Ok((lister.finish()?, raw))
}

/// Turns "no such object" into `Interrupted`: an object that was listed a moment ago was removed since.
fn gone(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => io::ErrorKind::Interrupted.into(),
        _ => error,
    }
}

/// Tables being listed, found by name.
#[derive(Default)]
struct Lister {
    tables: Vec<NftTable>,
    places: HashMap<(u8, String), usize>,
    chains: HashMap<(u8, String, String), usize>,
    anonymous: HashMap<(u8, String), AnonymousSets>,
    /// How many rules and elements there are so far, and how many there may be.
    rules: usize,
    elements: usize,
    most: Most,
    /// The messages that would make the current table again, if they are wanted.
    raw: Option<RawTable>,
}

impl Lister {
    fn keep(&mut self, msg: Msg, message: &Received) {
        if let Some(raw) = &mut self.raw {
            raw.keep(msg, message);
        }
    }

    fn table(&mut self, message: &Received) {
        self.keep(Msg::NewTable, message);
        let flags = find(message.attributes(), NFTA_TABLE_FLAGS).and_then(|a| a.u32()).unwrap_or(0);
        let (family, name) = (message.family().0, text(message, NFTA_TABLE_NAME));
        let dormant = flags & NFT_TABLE_F_DORMANT != 0;
        if let Some(raw) = &mut self.raw {
            raw.frame.odd = dormant;
        }
        self.places.insert((family, name.clone()), self.tables.len());
        self.tables.push(NftTable { family, name, dormant, ..NftTable::default() });
    }

    /// Everything in the tables of a family, or in one of them.
    fn rest(&mut self, netlink: &mut Netlink, family: NfFamily, only: Option<&str>) -> io::Result<()> {
        // The attribute is the same one for sets (NFTA_SET_TABLE) and rules.
        let filter = |a: &mut Attrs| only.into_iter().for_each(|table| a.string(NFTA_RULE_TABLE, table));
        // The kernel lists the chains of all tables, whichever is asked for.
        dump_all(netlink, Msg::GetChain, family, |message| {
            if only.is_none_or(|table| text(&message, NFTA_CHAIN_TABLE) == table) {
                self.chain(&message);
            }
        })?;
        let mut sets = Vec::new();
        dump(netlink, Msg::GetSet, family, filter, |message| sets.push(self.set(&message)))?;
        for set in sets {
            self.elements(netlink, set)?;
        }
        dump(netlink, Msg::GetRule, family, filter, |message| self.rule(&message))
    }

    fn chain(&mut self, message: &Received) {
        self.keep(Msg::NewChain, message);
        let (base, devices) = base(message).unzip();
        let name = text(message, NFTA_CHAIN_NAME);
        if let Some(raw) = &mut self.raw {
            raw.frame.chains.push((name.clone(), base));
        }
        let (family, table) = (message.family().0, text(message, NFTA_CHAIN_TABLE));
        let Some(at) = self.places.get(&(family, table.clone())) else { return };
        let Some(listed) = self.tables.get_mut(*at) else { return };
        self.chains.insert((family, table, name.clone()), listed.chains.len());
        listed.chains.push(NftChain { name, base, devices: devices.flatten(), rules: Vec::new() });
    }

    fn set(&mut self, message: &Received) -> ListedSet {
        self.keep(Msg::NewSet, message);
        let flags = find(message.attributes(), NFTA_SET_FLAGS).and_then(|a| a.u32()).unwrap_or(0);
        if let Some(raw) = &mut self.raw {
            // Only an anonymous one goes with the rule that looks into it.
            raw.frame.odd |= flags & NFT_SET_ANONYMOUS == 0;
        }
        ListedSet {
            family: message.family(),
            table: text(message, NFTA_SET_TABLE),
            name: text(message, NFTA_SET_NAME),
            flags,
        }
    }

    fn elements(&mut self, netlink: &mut Netlink, set: ListedSet) -> io::Result<()> {
        let ListedSet { family, table, name, flags } = set;
        // Objects are no verdicts, but it takes them to make the map again.
        if flags & NFT_SET_OBJECT != 0 && self.raw.is_none() {
            self.keep_set(family, &table, name, flags, None);
            return Ok(());
        }
        let mut elements: Option<Vec<Element>> = Some(Vec::new());
        let filter = |a: &mut Attrs| {
            a.string(NFTA_SET_ELEM_LIST_TABLE, &table);
            a.string(NFTA_SET_ELEM_LIST_SET, &name);
        };
        dump(netlink, Msg::GetSetElem, family, filter, |message| {
            self.keep(Msg::NewSetElem, &message);
            if self.elements > self.most.elements {
                return;
            }
            let more = sets::elements(message.attributes());
            self.elements += more.as_ref().map_or(0, Vec::len);
            match (&mut elements, more) {
                (Some(all), Some(more)) => all.extend(more),
                (all, _) => *all = None,
            }
        })?;
        self.keep_set(family, &table, name, flags, elements.filter(|_| flags & NFT_SET_OBJECT == 0));
        Ok(())
    }

    /// Keeps a set or map. `elements`: `None` if its keys are no plain values.
    fn keep_set(&mut self, family: NfFamily, table: &str, name: String, flags: u32, elements: Option<Vec<Element>>) {
        let place = self.places.get(&(family.0, table.to_owned()));
        let Some(table) = place.and_then(|at| self.tables.get_mut(*at)) else { return };
        let interval = flags & NFT_SET_INTERVAL != 0;
        if flags & (NFT_SET_MAP | NFT_SET_OBJECT) == 0 {
            table.sets.insert(name, elements.and_then(|list| sets::keys(list, interval)));
        } else if let Some(map) = elements.and_then(|list| sets::verdicts(list, interval)) {
            table.maps.insert(name, map);
        }
    }

    fn rule(&mut self, message: &Received) {
        self.keep(Msg::NewRule, message);
        self.rules += 1;
        if self.rules > self.most.rules {
            return;
        }
        let mut listed = listed(message.attributes());
        let (family, table) = (message.family(), text(message, NFTA_RULE_TABLE));
        let sets = self.anonymous.entry((family.0, table.clone())).or_default();
        xt::translate(&mut listed, family, sets);
        let place = self.places.get(&(family.0, table.clone()));
        let chain = self.chains.get(&(family.0, table, text(message, NFTA_RULE_CHAIN)));
        let table = place.and_then(|at| self.tables.get_mut(*at));
        if let Some(chain) = chain.and_then(|at| table?.chains.get_mut(*at)) {
            chain.rules.push(listed);
        }
    }

    fn finish(mut self) -> io::Result<Vec<NftTable>> {
        let Self { rules, elements, most, .. } = self;
        let too_many = |what: TooMany| Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
        if rules > most.rules {
            return too_many(TooMany::Rules { found: rules, most: most.rules });
        }
        if elements > most.elements {
            return too_many(TooMany::Elements { most: most.elements });
        }
        for (place, sets) in self.anonymous {
            if let Some(table) = self.places.get(&place).and_then(|at| self.tables.get_mut(*at)) {
                sets.into_table(table);
            }
        }
        self.tables.iter_mut().for_each(NftTable::forget_updated);
        let links = Links::for_rules(self.tables.iter().flat_map(|t| &t.chains).flat_map(|chain| &chain.rules))?;
        self.tables.iter_mut().for_each(|table| table.links = links.clone());
        Ok(self.tables)
    }
}

/// A set whose elements are to be listed.
struct ListedSet {
    family: NfFamily,
    table: String,
    name: String,
    flags: u32,
}

/// Reads a rule from its message.
pub(super) fn listed(attributes: &[u8]) -> Listed {
    Listed {
        exprs: find(attributes, NFTA_RULE_EXPRESSIONS).map(|a| expr_bytes::read(a.value)).unwrap_or_default(),
        comment: find(attributes, NFTA_RULE_USERDATA).and_then(|a| comment_of(a.value)),
        handle: find(attributes, NFTA_RULE_HANDLE).and_then(|a| a.u64()),
        text: None,
    }
}

/// Reads a chain's hook and priority, and the devices that it is bound to; `None` if it is no base
/// chain.
pub(super) fn base(message: &Received) -> Option<(Base, Option<Devices>)> {
    let attrs = message.attributes();
    let hook = find(attrs, NFTA_CHAIN_HOOK)?;
    let (mut number, mut priority, mut devices) = (0, 0, None);
    for attr in attributes(hook.value) {
        match attr.kind {
            NFTA_HOOK_HOOKNUM => number = attr.u32()?,
            NFTA_HOOK_PRIORITY => priority = attr.u32()? as i32,
            // It is there for one device, too, which NFTA_HOOK_DEV names again.
            NFTA_HOOK_DEVS => {
                let listed = attributes(attr.value);
                devices = Some(
                    listed.map(|device| Interface::new(&device.string(), device.kind == NFTA_DEVICE_PREFIX)).collect(),
                );
            }
            NFTA_HOOK_DEV if devices.is_none() => devices = Some(vec![Interface::new(&attr.string(), false)]),
            _ => {}
        }
    }
    let kind = ChainKind::by_name(&text(message, NFTA_CHAIN_TYPE));
    let drops = find(attrs, NFTA_CHAIN_POLICY).and_then(|a| a.u32()) == Some(NF_DROP);
    let (base, is_of_devices) = table::base(message.family(), number, kind, priority)?;
    Some((Base { drops, ..base }, is_of_devices.then(|| devices.map_or(Devices::Unnamed, Devices::Named))))
}
