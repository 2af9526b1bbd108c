//! A node's table for probes of ambient pods: rules, and sets of addresses by pod. The sets
//! have names, so that their elements change without the rules.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;

use crate::backend::hook::Base;
use crate::config::types::{Families, Family};
use crate::plan::build::probe_set;
use crate::plan::model::{Chain, Dataplane, Plan, Table};
use crate::sys::netlink::Netlink;

use super::comment::comment_of;
use super::decode::Listed;
use super::dump::{dump, dump_all, text};
use super::encode::{Encoder, NftRule, SetKey};
use super::expr::Expr;
use super::frame::Frame;
use super::nfta::*;
use super::transaction::{Transaction, TransactionError};
use super::value;
use super::wire::{Attrs, Msg, NfFamily, NfMessage, attributes, find};
use super::{list, names, survey};

/// What the kernel holds of a node's table for probes.
#[derive(Debug, Default)]
pub struct HeldProbes {
    /// The generation of nf_tables' rules, which every transaction of anybody changes.
    generation: u32,
    /// Whether the table is there.
    pub exists: bool,
    dormant: bool,
    chains: Vec<(String, Option<Base>)>,
    rules: HashMap<String, Vec<Listed>>,
    /// Podweir's sets by name; `None` for one of another type.
    sets: HashMap<&'static str, Option<BTreeMap<IpAddr, String>>>,
    /// Whether there are sets of other names.
    others: bool,
}

/// What a node's table for probes is to hold.
pub struct WantedProbes<'a> {
    pub plan: &'a Plan,
    /// Whether the rules are to be there, too; otherwise they stay as they are.
    pub rules: bool,
    pub entries: &'a BTreeMap<IpAddr, String>,
}

fn table() -> &'static str {
    names::table(Dataplane::Node, Table::Nat)
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn key(family: Family) -> SetKey {
    if family == Family::V4 { SetKey::Ipv4 } else { SetKey::Ipv6 }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Lists a node's table for probes, if it exists.
///
/// # Errors
///
/// The kernel's; `Interrupted` when the table changed meanwhile.
pub fn read(netlink: &mut Netlink) -> io::Result<HeldProbes> {
    let tables = survey::tables(netlink)?;
    let mut out = HeldProbes { generation: tables.generation, ..HeldProbes::default() };
    out.exists = tables.ours(Dataplane::Node).any(|kind| kind == Table::Nat);
    if !out.exists {
        return Ok(out);
    }
    let named = |a: &mut Attrs| a.string(NFTA_SET_TABLE, table());
    dump_all(netlink, Msg::GetTable, NfFamily::INET, |message| {
        let dormant = find(message.attributes(), 2).and_then(|a| a.u32()).unwrap_or(0) & 1 == 1;
        out.dormant |= dormant && text(&message, 1) == table();
    })?;
    dump_all(netlink, Msg::GetChain, NfFamily::INET, |message| {
        if text(&message, 1) == table() {
            out.chains.push((text(&message, 3), list::base(&message).map(|(base, _)| base)));
        }
    })?;
    dump(netlink, Msg::GetSet, NfFamily::INET, named, |message| {
        let number = |kind| find(message.attributes(), kind).and_then(|a| a.u32()).unwrap_or(0);
        let name = text(&message, NFTA_SET_NAME);
        match Family::BOTH.into_iter().find(|family| probe_set(*family) == name) {
            Some(family) => {
                let plain = number(NFTA_SET_FLAGS) == 0 && number(NFTA_SET_KEY_LEN) == key(family).length();
                out.sets.insert(probe_set(family), plain.then(BTreeMap::new));
            }
            None => out.others = true,
        }
    })?;
    for (name, entries) in out.sets.iter_mut().filter_map(|(name, set)| Some((name, set.as_mut()?))) {
        let filter = |a: &mut Attrs| {
            a.string(NFTA_SET_ELEM_LIST_TABLE, table());
            a.string(NFTA_SET_ELEM_LIST_SET, name);
        };
        dump(netlink, Msg::GetSetElem, NfFamily::INET, filter, |message| {
            for element in
                find(message.attributes(), NFTA_SET_ELEM_LIST_ELEMENTS).iter().flat_map(|list| attributes(list.value))
            {
                let key = find(element.value, NFTA_SET_ELEM_KEY).and_then(|key| find(key.value, NFTA_DATA_VALUE));
                let Some(ip) = key.and_then(|key| value::ip(key.value)) else { continue };
                let uid = find(element.value, NFTA_SET_ELEM_USERDATA)
                    .and_then(|data| comment_of(data.value))
                    .unwrap_or_default();
                entries.insert(ip, uid);
            }
        })?;
    }
    let rules = &mut out.rules;
    dump(netlink, Msg::GetRule, NfFamily::INET, named, |message| {
        rules.entry(text(&message, NFTA_RULE_CHAIN)).or_default().push(list::listed(message.attributes()));
    })?;
    Ok(out)
}

/// Expressions without the values of counters, for comparing.
fn bare(exprs: &[Expr]) -> Vec<Expr> {
    let one = |expr: &Expr| match expr {
        Expr::Counter { .. } => Expr::Counter { packets: 0, bytes: 0 },
        other => other.clone(),
    };
    exprs.iter().map(one).collect()
}

impl HeldProbes {
    /// The addresses of the sets, with the pods that they belong to.
    pub fn entries(&self) -> BTreeMap<IpAddr, String> {
        self.sets.values().flatten().flat_map(|set| set.clone()).collect()
    }

    /// Whether the table has chains, and so rules.
    pub fn has_rules(&self) -> bool {
        !self.chains.is_empty()
    }

    /// Whether exactly a plan's rules are there, in force.
    pub fn holds(&self, plan: &Plan) -> bool {
        let chains = plan.chains_of(Table::Nat);
        let frame = Frame::of(Table::Nat, &chains).chains;
        let placed = frame.len() == self.chains.len() && frame.iter().all(|chain| self.chains.contains(chain));
        placed && !self.dormant && !self.others && chains.iter().all(|chain| self.same_rules(chain, plan.families))
    }

    fn same_rules(&self, chain: &Chain, families: Families) -> bool {
        let mut encoder = Encoder::starting_at(families, 1);
        let want: Vec<NftRule> = chain.rules.iter().flat_map(|rule| encoder.rule(rule, chain.name.is_hook())).collect();
        let have = self.rules.get(&names::chain(&chain.name)).map(Vec::as_slice).unwrap_or_default();
        let same = |(want, have): (&NftRule, &Listed)| bare(&want.exprs) == bare(&have.exprs);
        want.len() == have.len() && want.iter().zip(have).all(same)
    }

    /// Whether the sets of these families exist with the right type, and with `only` no others.
    fn has_sets(&self, families: Families, only: bool) -> bool {
        Family::BOTH.into_iter().all(|family| match self.sets.get(probe_set(family)) {
            Some(set) => set.is_some() && (families.has(family) || !only),
            None => !families.has(family),
        })
    }
}

/// Makes the table hold what is wanted, in one transaction; tells whether anything had to be
/// written.
///
/// # Errors
///
/// The kernel's refusal; it then holds what it held before.
pub fn write(netlink: &mut Netlink, held: &HeldProbes, wanted: &WantedProbes) -> Result<bool, TransactionError> {
    let mut transaction = Transaction::new(Some(held.generation));
    let families = wanted.plan.families;
    let as_it_is = match wanted.rules {
        true => held.holds(wanted.plan) && held.has_sets(families, true),
        false => held.sets.values().all(Option::is_some) && !held.dormant,
    };
    if !held.exists || !as_it_is {
        if held.exists {
            transaction.delete_table(table());
        }
        transaction.add_table(table());
        for family in families.iter() {
            let name = probe_set(family);
            transaction.add_named_set(table(), name, key(family));
            transaction.add_elements(table(), name, &of_family(wanted.entries, family));
        }
        if wanted.rules || held.has_rules() {
            transaction.fill(wanted.plan, Table::Nat);
        }
        transaction.commit(netlink)?;
        return Ok(true);
    }
    for family in families.iter() {
        let name = probe_set(family);
        let nothing = BTreeMap::new();
        let have = match held.sets.get(name) {
            Some(set) => set.as_ref().unwrap_or(&nothing),
            None => {
                transaction.add_named_set(table(), name, key(family));
                &nothing
            }
        };
        let want = |ip: &IpAddr| wanted.entries.get(ip);
        // An element's comment cannot be changed: it goes, and comes again.
        let gone = have.iter().filter(|(ip, uid)| want(ip) != Some(uid)).map(|(ip, _)| bytes(*ip));
        transaction.delete_elements(table(), name, &gone.collect::<Vec<_>>());
        let new = wanted.entries.iter().filter(|(ip, uid)| family_of(**ip) == family && have.get(ip) != Some(uid));
        let new: Vec<_> = new.map(|(ip, uid)| (bytes(*ip), uid.clone())).collect();
        transaction.add_elements(table(), name, &new);
    }
    let writes = !transaction.is_empty();
    transaction.commit(netlink)?;
    Ok(writes)
}

fn of_family(entries: &BTreeMap<IpAddr, String>, family: Family) -> Vec<(Vec<u8>, String)> {
    let of_one = entries.iter().filter(|(ip, _)| family_of(**ip) == family);
    of_one.map(|(ip, uid)| (bytes(*ip), uid.clone())).collect()
}

/// Removes the table; `false` if there was none.
///
/// # Errors
///
/// The kernel's refusal.
pub fn remove(netlink: &mut Netlink, held: &HeldProbes) -> Result<bool, TransactionError> {
    if held.exists {
        let mut transaction = Transaction::new(Some(held.generation));
        transaction.delete_table(table());
        transaction.commit(netlink)?;
    }
    Ok(held.exists)
}
