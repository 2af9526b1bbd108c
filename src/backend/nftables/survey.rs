//! Names of nf_tables' tables: enough to know that none is podweir's, and what else to list.

use std::io;

use crate::config::types::Family;
use crate::plan::model::{ChainName, Dataplane, Table};
use crate::sys::netlink::Netlink;

use super::dump::{dump_all, request, text};
use super::names;
use super::nfta::*;
use super::wire::{Msg, NfFamily, NfMessage, find};

/// The names of all tables in the kernel, whoever made them.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// The generation of nf_tables' rules, which every transaction of anybody changes.
    pub generation: u32,
    /// The tables, by family and name.
    pub tables: Vec<(NfFamilyName, String)>,
}

/// The family of a table, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NfFamilyName {
    Inet,
    Ip,
    Ip6,
    Other,
}

impl Tables {
    /// The tables for a dataplane that are there.
    pub fn ours(&self, dataplane: Dataplane) -> impl Iterator<Item = Table> + '_ {
        let inet = self.tables.iter().filter(|(family, _)| *family == NfFamilyName::Inet);
        inet.filter_map(move |(_, name)| names::table_of(dataplane, name))
    }

    /// Whether there are foreign tables, without those named as iptables-nft's.
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

/// Lists the names of the tables of all families, in two round trips.
///
/// # Errors
///
/// The kernel's; `EPROTONOSUPPORT` where it has no nf_tables.
pub fn tables(netlink: &mut Netlink) -> io::Result<Tables> {
    let mut out = Tables::default();
    netlink.get(request(Msg::GetGen, 0, NfFamily::UNSPEC, |_| ()).bytes(), |message| {
        if let Some(generation) = find(message.attributes(), NFTA_GEN_ID).and_then(|a| a.u32()) {
            out.generation = generation;
        }
    })?;
    dump_all(netlink, Msg::GetTable, NfFamily::UNSPEC, |message| {
        let family = match message.family() {
            NfFamily::INET => NfFamilyName::Inet,
            NfFamily::IPV4 => NfFamilyName::Ip,
            NfFamily::IPV6 => NfFamilyName::Ip6,
            _ => NfFamilyName::Other,
        };
        if let Some(name) = find(message.attributes(), NFTA_TABLE_NAME) {
            out.tables.push((family, name.string()));
        }
    })?;
    Ok(out)
}

/// Whether tables with names of iptables-nft's have chains of an interception.
///
/// # Errors
///
/// The kernel's; `EPROTONOSUPPORT` where it has no nf_tables.
pub fn iptables_nft_has_ours(netlink: &mut Netlink) -> io::Result<bool> {
    let mut found = false;
    for family in [NfFamily::IPV4, NfFamily::IPV6] {
        dump_all(netlink, Msg::GetChain, family, |message| {
            found |= ChainName::by_name(&text(&message, NFTA_CHAIN_NAME)).is_own();
        })?;
    }
    Ok(found)
}
