//! What the kernel holds, listed over netlink and decoded.

use std::collections::HashMap;
use std::io;

use crate::backend::{Reading, Strange};
use crate::config::types::{Families, Family, Interface};
use crate::plan::model::{Chain, ChainName, Plan, Routing, Rule, Table, Verdict};
use crate::sys::netlink::{Netlink, Received};

use super::decode::{self, Listed, Surroundings};
use super::expr;
use super::frame::Frame;
use super::links::Links;
use super::names;
use super::sets::{self, Element, Elements, VerdictMap};
use super::transaction::comment_of;
use super::wire::{Attrs, Messages, Msg, NLM_F_DUMP, NfFamily, NfMessage, attributes, find, flagged_attributes};

/// Attributes by kind, with flags.
pub type RawAttributes = Vec<(u16, Vec<u8>)>;

/// Messages that would make a table again, attributes as listed.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    pub messages: Vec<(Msg, RawAttributes)>,
    pub frame: Frame,
}

impl Raw {
    /// Keeps of a listed object what making it takes: not its handle, use count and the like.
    fn keep(&mut self, msg: Msg, message: &Received) {
        let wanted: &[u16] = match msg {
            Msg::NewTable => &[1, 2, 6],
            Msg::NewChain => &[1, 3, 4, 5, 7, 10, 12],
            Msg::NewSet => &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18],
            Msg::NewSetElem => &[1, 2, 3],
            _ => &[1, 2, 4, 7],
        };
        let kept = flagged_attributes(message.attributes()).filter(|a| wanted.contains(&(a.kind & 0x3fff)));
        self.messages.push((msg, kept.map(|a| (a.kind, a.value.to_vec())).collect()));
    }
}

/// The tables in the kernel, of anybody.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Changes with every transaction of anybody.
    pub generation: u32,
    /// Family and name.
    pub tables: Vec<(NfFamilyName, String)>,
}

/// The families whose tables are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NfFamilyName {
    Inet,
    Ip,
    Ip6,
    Other,
}

impl Tables {
    /// The tables of an interception that are there.
    pub fn ours(&self) -> impl Iterator<Item = Table> + '_ {
        let inet = self.tables.iter().filter(|(family, _)| *family == NfFamilyName::Inet);
        inet.filter_map(|(_, name)| names::table_by_name(name))
    }

    /// Whether there are tables of others, but for those that only iptables-nft makes.
    pub fn has_others(&self) -> bool {
        self.tables.iter().any(|(family, name)| match family {
            NfFamilyName::Inet => names::table_by_name(name).is_none() && name != names::GUARD,
            NfFamilyName::Ip | NfFamilyName::Ip6 => !names::is_of_iptables(name),
            NfFamilyName::Other => true,
        })
    }

    /// Whether a killed run left its guard.
    pub fn has_guard(&self) -> bool {
        self.tables.iter().any(|(family, name)| *family == NfFamilyName::Inet && name == names::GUARD)
    }

    /// Whether there are tables such as iptables-nft makes.
    pub fn of_iptables(&self) -> bool {
        Family::BOTH.into_iter().any(|family| self.of_iptables_in(family))
    }

    pub fn of_iptables_in(&self, family: Family) -> bool {
        let want = if family == Family::V4 { NfFamilyName::Ip } else { NfFamilyName::Ip6 };
        self.tables.iter().any(|(family, name)| *family == want && Table::by_name(name).is_some())
    }
}

fn request(msg: Msg, flags: u16, family: NfFamily, attributes: impl FnOnce(&mut Attrs)) -> Messages {
    let mut messages = Messages::default();
    messages.nft(msg, flags, family, attributes);
    messages
}

pub(super) fn dump(
    netlink: &mut Netlink,
    msg: Msg,
    family: NfFamily,
    filter: impl FnOnce(&mut Attrs),
    each: impl FnMut(Received),
) -> io::Result<()> {
    netlink.dump(request(msg, NLM_F_DUMP, family, filter).bytes(), each)
}

/// Lists the tables of all families. Two round trips; enough to know that nothing of
/// ours is there.
pub fn tables(netlink: &mut Netlink) -> io::Result<Tables> {
    let mut out = Tables::default();
    netlink.get(request(Msg::GetGen, 0, NfFamily::UNSPEC, |_| ()).bytes(), |message| {
        if let Some(generation) = find(message.attributes(), 1).and_then(|a| a.u32()) {
            out.generation = generation;
        }
    })?;
    dump(
        netlink,
        Msg::GetTable,
        NfFamily::UNSPEC,
        |_| (),
        |message| {
            let family = match message.family() {
                NfFamily::INET => NfFamilyName::Inet,
                NfFamily::IPV4 => NfFamilyName::Ip,
                NfFamily::IPV6 => NfFamilyName::Ip6,
                _ => NfFamilyName::Other,
            };
            if let Some(name) = find(message.attributes(), 1) {
                out.tables.push((family, name.string()));
            }
        },
    )?;
    Ok(out)
}

/// Whether a chain of ours is in the tables that iptables-nft makes.
pub fn iptables_nft_has_ours(netlink: &mut Netlink) -> io::Result<bool> {
    let mut found = false;
    for family in [NfFamily::IPV4, NfFamily::IPV6] {
        dump(
            netlink,
            Msg::GetChain,
            family,
            |_| (),
            |message| {
                let name = find(message.attributes(), 3).map(|a| a.string()).unwrap_or_default();
                found |= ChainName::by_name(&name).is_own();
            },
        )?;
    }
    Ok(found)
}

/// A set as listed.
#[derive(Default)]
struct SetListing {
    interval: bool,
    elements: Option<Elements>,
}

/// Where a base chain sits, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedHook {
    /// `NF_INET_*`.
    pub number: u32,
    pub priority: i32,
    pub kind: String,
    /// Its policy.
    pub drops: bool,
    /// The devices whose packets meet it, on ingress and egress. `None`: of another hook, or
    /// the listing does not say.
    pub devices: Option<Vec<Interface>>,
}

impl From<names::Hook> for ListedHook {
    /// As a chain of ours is listed, which lets pass what no rule takes.
    fn from(hook: names::Hook) -> Self {
        let names::Hook { kind, number, priority } = hook;
        Self { number, priority, kind: kind.to_owned(), drops: false, devices: None }
    }
}

/// A table as listed, on the way to a plan.
#[derive(Default)]
struct Listing {
    raw: Raw,
    dormant: bool,
    sets: HashMap<String, SetListing>,
    rules: HashMap<String, Vec<Listed>>,
    links: Links,
}

impl Surroundings for Listing {
    fn elements(&self, name: &str) -> Option<&Elements> {
        self.sets.get(name)?.elements.as_ref()
    }

    /// No rule of an interception has a map.
    fn verdicts(&self, _name: &str) -> Option<&VerdictMap> {
        None
    }

    fn interface(&self, index: u32) -> Option<&str> {
        self.links.name(index)
    }
}

/// Reads the named tables of ours. Routing is not part of it.
pub fn read(netlink: &mut Netlink, present: &[Table]) -> io::Result<Reading<HashMap<Table, Raw>>> {
    let mut chains = Vec::new();
    let mut strange = Vec::new();
    let mut raw = HashMap::new();
    for &table in present {
        let listing = list(netlink, names::table(table))?;
        if listing.dormant {
            strange.push(dormant(table));
        }
        for (name, hook) in &listing.raw.frame.chains {
            let chain = names::chain_by_name(name);
            check_hook(table, &chain, hook.as_ref(), &mut strange);
            let rules = listing.rules.get(name).map(Vec::as_slice).unwrap_or_default();
            let rules = decode::chain(rules, Families::BOTH, &listing);
            chains.push(Chain { table, name: chain, rules });
        }
        raw.insert(table, listing.raw);
    }
    Ok(Reading { present: !present.is_empty(), plan: plan(chains), strange, backup: raw })
}

/// What is to be said of a table that is switched off.
pub fn dormant(table: Table) -> Strange {
    Strange::new(table, None, "the table is dormant: none of its rules applies".into())
}

/// The chains of our tables as a plan, without routing.
pub fn plan(mut chains: Vec<Chain>) -> Plan {
    chains.sort_by_key(|c| (c.table, c.name.clone()));
    let of = |which: &dyn Fn(&Rule) -> bool| {
        let hooks = chains.iter().filter(|c| c.name.is_hook());
        let rules = hooks.flat_map(|c| &c.rules).filter(|rule| which(rule));
        rules.fold(Families::NONE, |all, rule| all.union(rule.families))
    };
    let families = of(&|_| true);
    // Rules of an interception's own chains do not say which families get to them; the way
    // in does. Others may have put rules of any family into the hooks.
    let entering = match of(&|rule| matches!(&rule.verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own())) {
        Families::NONE => families,
        entering => entering,
    };
    for rule in chains.iter_mut().filter(|c| c.name.is_own()).flat_map(|c| &mut c.rules) {
        rule.families = rule.families.intersection(entering);
    }
    Plan { families, chains, routing: Routing::default() }
}

/// A base chain that sits elsewhere than it should, or is none, diverts nothing.
pub fn check_hook(table: Table, chain: &ChainName, hook: Option<&ListedHook>, strange: &mut Vec<Strange>) {
    let problem = match (names::hook(table, chain), hook) {
        (None, None) => None,
        (None, Some(_)) => Some("is hooked into the kernel, which no chain of ours by that name is".to_owned()),
        (Some(_), None) => Some("is not hooked into the kernel: none of its rules applies".to_owned()),
        (Some(want), Some(ListedHook { number, priority, kind, drops, .. })) => {
            if (want.number, want.priority, want.kind) != (*number, *priority, kind.as_str()) {
                Some(format!(
                    "sits on hook {number} at priority {priority} as {kind}, not on hook {} at {} as {}",
                    want.number, want.priority, want.kind
                ))
            } else {
                drops.then(|| "drops by default".to_owned())
            }
        }
    };
    if let Some(problem) = problem {
        strange.push(Strange::new(table, Some(chain.clone()), format!("the chain {problem}")));
    }
}

fn list(netlink: &mut Netlink, table: &str) -> io::Result<Listing> {
    let mut out = Listing::default();
    let name_of = |message: &Received, kind| find(message.attributes(), kind).map(|a| a.string()).unwrap_or_default();
    netlink.get(request(Msg::GetTable, 0, NfFamily::INET, |a| a.string(1, table)).bytes(), |message| {
        out.raw.keep(Msg::NewTable, &message);
        out.dormant = find(message.attributes(), 2).and_then(|a| a.u32()).unwrap_or(0) & 1 == 1;
    })?;
    out.raw.frame.odd = out.dormant;
    let raw = &mut out.raw;
    dump(
        netlink,
        Msg::GetChain,
        NfFamily::INET,
        |_| (),
        |message| {
            if name_of(&message, 1) != table {
                return;
            }
            raw.keep(Msg::NewChain, &message);
            raw.frame.chains.push((name_of(&message, 3), hook_of(&message)));
        },
    )?;
    let sets = &mut out.sets;
    dump(
        netlink,
        Msg::GetSet,
        NfFamily::INET,
        |a| a.string(1, table),
        |message| {
            raw.keep(Msg::NewSet, &message);
            let flags = find(message.attributes(), 3).and_then(|a| a.u32()).unwrap_or(0);
            // Only an anonymous one (1) goes with the rule that looks into it.
            raw.frame.odd |= flags & 1 == 0;
            // A map (8) or an object map (64) is no set of ours.
            let interval = flags & 4 != 0;
            let elements = (flags & (8 | 64) == 0).then(Vec::new);
            sets.insert(name_of(&message, 2), SetListing { interval, elements });
        },
    )?;
    let names: Vec<String> = out.sets.keys().cloned().collect();
    for name in names {
        let mut elements: Option<Vec<Element>> = Some(Vec::new());
        let filter = |a: &mut Attrs| {
            a.string(1, table);
            a.string(2, &name);
        };
        dump(netlink, Msg::GetSetElem, NfFamily::INET, filter, |message| {
            raw.keep(Msg::NewSetElem, &message);
            match (&mut elements, sets::elements(message.attributes())) {
                (Some(all), Some(more)) => all.extend(more),
                (all, _) => *all = None,
            }
        })?;
        if let Some(set) = out.sets.get_mut(&name)
            && set.elements.is_some()
        {
            set.elements = elements.and_then(|list| sets::keys(list, set.interval));
        }
    }
    let rules = &mut out.rules;
    dump(
        netlink,
        Msg::GetRule,
        NfFamily::INET,
        |a| a.string(1, table),
        |message| {
            raw.keep(Msg::NewRule, &message);
            let attributes = message.attributes();
            rules.entry(name_of(&message, 2)).or_default().push(listed(attributes));
        },
    )?;
    for name in expr::updated(out.rules.values().flatten().flat_map(|rule| &rule.exprs)) {
        out.sets.entry(name.to_owned()).or_default().elements = None;
    }
    out.links = Links::for_rules(out.rules.values().flatten())?;
    Ok(out)
}

/// A rule of a listing. `NFTA_RULE_HANDLE` is 3.
pub(super) fn listed(attributes: &[u8]) -> Listed {
    Listed {
        exprs: find(attributes, 4).map(|a| expr::read(a.value)).unwrap_or_default(),
        comment: find(attributes, 7).and_then(|a| comment_of(a.value)),
        handle: find(attributes, 3).and_then(|a| a.u64()),
        text: None,
    }
}

pub(super) fn hook_of(message: &Received) -> Option<ListedHook> {
    let attrs = message.attributes();
    let hook = find(attrs, 4)?;
    let (mut number, mut priority, mut devices) = (0, 0, None);
    for attr in attributes(hook.value) {
        match attr.kind {
            1 => number = attr.u32()?,
            2 => priority = attr.u32()? as i32,
            // NFTA_HOOK_DEVS, where NFTA_DEVICE_PREFIX (2) is how names begin. It is there for
            // one device, too, which NFTA_HOOK_DEV (3) names again.
            4 => {
                let listed = attributes(attr.value);
                devices = Some(listed.map(|device| Interface::new(&device.string(), device.kind == 2)).collect());
            }
            3 if devices.is_none() => devices = Some(vec![Interface::new(&attr.string(), false)]),
            _ => {}
        }
    }
    let kind = find(attrs, 7).map(|a| a.string()).unwrap_or_default();
    let drops = find(attrs, 5).and_then(|a| a.u32()) == Some(0);
    Some(ListedHook { number, priority, kind, drops, devices })
}
