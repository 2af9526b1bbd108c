//! The node's rules for kubelet probes, held by iptables and ipset. Each changes separately: a set is
//! there before a rule refers to it, and stays until none does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::backend::BackendKind;
use crate::backend::iptables::parse::{self, Saved};
use crate::backend::iptables::programs::{ProgramError, Programs, Variant};
use crate::backend::iptables::{ipset, script};
use crate::backend::listing::{self, Holder, ListedTable};
use crate::backend::nftables::cleanup;
use crate::backend::ours::{self, Holding};
use crate::backend::survey::{self, Survey};
use crate::config::types::{Families, Family};
use crate::plan::build::probe_set;
use crate::plan::canon::Canon;
use crate::plan::lower::lower;
use crate::plan::model::{Dataplane, Plan, Table};

use super::{Entries, HostError, HostProbes, Stay};

/// How long the kernel may take to free rules that refer to a set: it frees iptables-nft's
/// asynchronously (`nf_tables_trans_destroy_work`).
const FORGETTING: Duration = Duration::from_secs(2);

type Lists = HashMap<Family, Saved>;

fn list(programs: &Programs, families: Families) -> Result<Lists, HostError> {
    let mut out = Lists::new();
    for family in families.iter() {
        let text = programs.save(family)?;
        let program = format!("iptables-{}-save", programs.variant.name());
        let saved = parse::parse(&text, family).map_err(|source| ProgramError::Parse { program, source })?;
        out.insert(family, saved);
    }
    Ok(out)
}

/// Whether a variant has a node's chains.
pub(super) fn holds(programs: &Programs, families: Families) -> Result<bool, HostError> {
    Ok(whose(&list(programs, families)?).contains(&Dataplane::Node))
}

fn whose(lists: &Lists) -> BTreeSet<Dataplane> {
    lists.values().flat_map(Saved::whose).collect()
}

/// Whether exactly a plan's rules are held, with nothing that keeps packets from them.
fn same(plan: &Plan, lists: &Lists, kind: BackendKind) -> bool {
    let holder = Holder::Kernel(kind);
    let tables = lists.iter().flat_map(|(family, saved)| listing::of_saved(saved.clone(), *family, holder));
    let tables: Vec<ListedTable> = tables.collect();
    let Holding { plan: found, strange, .. } = ours::of_holder(holder, &tables.iter().collect::<Vec<_>>());
    strange.is_empty() && Canon::of(plan).same_rules(&Canon::of(&found))
}

/// Replaces one family's rules by a plan's; `false` if nothing had to be written.
fn write(programs: &Programs, plan: &Plan, lists: &Lists, family: Family) -> Result<bool, HostError> {
    let wanted = script::wanted(&lower(plan, family), Table::Nat, family, false);
    let text = script::table(Table::Nat, lists.get(&family), &wanted);
    if text.is_empty() {
        return Ok(false);
    }
    programs.restore(family, || text)?;
    Ok(true)
}

impl HostProbes {
    fn tables(&mut self) -> Result<Families, HostError> {
        let list = |source| HostError::List { what: "the tables", source };
        let there = survey::survey(Some(&mut self.netfilter)).map_err(list)?;
        Ok(match self.programs.variant {
            Variant::Nft => there.iptables_nft_tables(),
            Variant::Legacy => there.iptables_legacy,
        })
    }

    pub(super) fn make_iptables(
        &mut self,
        rules: bool,
        entries: &Entries,
        elsewhere: &BTreeMap<IpAddr, String>,
    ) -> Result<bool, HostError> {
        let lists = match rules {
            true => {
                let tables = self.tables()?;
                list(&self.programs, tables)?
            }
            false => Lists::new(),
        };
        if let Some(&there) = whose(&lists).iter().find(|there| **there != Dataplane::Node) {
            return Err(HostError::OtherDataplane { backend: self.kind, there });
        }
        if rules {
            self.plan.families.iter().try_for_each(|family| self.programs.check(family))?;
        }
        let mut written = false;
        for family in self.plan.families.iter() {
            written |= self.make_set(family, entries, elsewhere)?;
        }
        if !rules {
            return Ok(written);
        }
        if !same(&self.plan, &lists, self.kind) {
            for family in Family::BOTH {
                written |= write(&self.programs, &self.plan, &lists, family)?;
            }
        }
        let on = self.plan.families;
        for family in Family::BOTH.into_iter().filter(|family| !on.has(*family)) {
            written |= self.destroy(family)?;
        }
        Ok(written)
    }

    fn set(&mut self, family: Family) -> Result<Option<ipset::IpSet>, HostError> {
        let set = probe_set(family);
        ipset::list(&mut self.netfilter, family, set).map_err(|source| HostError::Set { verb: "list", set, source })
    }

    fn make_set(
        &mut self,
        family: Family,
        entries: &Entries,
        elsewhere: &BTreeMap<IpAddr, String>,
    ) -> Result<bool, HostError> {
        let name = probe_set(family);
        let failed = |verb: &'static str| move |source| HostError::Set { verb, set: name, source };
        let found = self.set(family)?;
        let (have, is_there) = match found {
            Some(set) if set.usual => (set.entries, true),
            // One that cannot hold what is wanted, which goes unless a rule refers to it.
            Some(_) => {
                self.destroy(family)?;
                (BTreeMap::new(), false)
            }
            None => (BTreeMap::new(), false),
        };
        if !is_there {
            ipset::create(&mut self.netfilter, family, name).map_err(failed("make"))?;
        }
        let of_family = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
        let all = elsewhere.iter().chain(&have).map(|(ip, uid)| (*ip, uid.clone())).collect();
        let want: BTreeMap<IpAddr, String> =
            entries.of(&self.plan, all).into_iter().filter(|(ip, _)| of_family(ip)).collect();
        let gone: Vec<IpAddr> = have.keys().filter(|ip| !want.contains_key(ip)).copied().collect();
        let new = want.iter().filter(|(ip, uid)| have.get(ip) != Some(uid));
        let new: Vec<(IpAddr, &str)> = new.map(|(ip, uid)| (*ip, uid.as_str())).collect();
        ipset::change(&mut self.netfilter, family, name, &gone, &new).map_err(failed("change"))?;
        Ok(!is_there || !gone.is_empty() || !new.is_empty())
    }

    /// Removes a family's set; `false` if there was none.
    fn destroy(&mut self, family: Family) -> Result<bool, HostError> {
        let set = probe_set(family);
        match self.set(family) {
            Ok(None) => return Ok(false),
            // Without ipset there is none.
            Err(HostError::Set { source, .. }) if survey::is_unsupported(&source) => return Ok(false),
            found => found?,
        };
        let started = Instant::now();
        loop {
            match ipset::destroy(&mut self.netfilter, family, set) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < FORGETTING => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => {
                    return result.map(|()| true).map_err(|source| HostError::Set { verb: "remove", set, source });
                }
            }
        }
    }

    pub(super) fn ipset_entries(&mut self, families: Families) -> Result<BTreeMap<IpAddr, String>, HostError> {
        let mut out = BTreeMap::new();
        for family in families.iter() {
            match self.set(family) {
                // Without ipset there is none.
                Err(HostError::Set { source, .. }) if survey::is_unsupported(&source) => {}
                found => out.extend(found?.map(|set| set.entries).unwrap_or_default()),
            }
        }
        Ok(out)
    }

    /// Removes the elements of a set to which a rule refers that cannot be removed.
    fn empty(&mut self, family: Family) -> Result<bool, HostError> {
        let set = probe_set(family);
        let Some(found) = self.set(family)? else { return Ok(false) };
        let gone: Vec<IpAddr> = found.entries.into_keys().collect();
        ipset::change(&mut self.netfilter, family, set, &gone, &[]).map_err(|source| HostError::Set {
            verb: "empty",
            set,
            source,
        })?;
        Ok(!gone.is_empty())
    }

    /// Takes the rules of both variants away, and the sets, but for what is to stay.
    pub(super) fn remove_iptables(&mut self, there: &Survey, stay: Stay) -> Result<bool, HostError> {
        let mut removed = false;
        let nothing = Plan::nothing_of(Dataplane::Node);
        let nft = if there.iptables_nft { there.iptables_nft_tables() } else { Families::NONE };
        for (variant, families) in [(Variant::Nft, nft), (Variant::Legacy, there.iptables_legacy)] {
            if stay == Stay::Variant(variant) {
                continue;
            }
            let programs = self.programs.of(variant);
            // What is in iptables-legacy without its programs was not made by us.
            if !families.iter().all(|family| programs.exist(family)) {
                continue;
            }
            let lists = list(&programs, families)?;
            let whose = whose(&lists);
            if !whose.contains(&Dataplane::Node) {
                continue;
            }
            if let Some(&other) = whose.iter().find(|there| **there != Dataplane::Node) {
                let backend =
                    if variant == Variant::Nft { BackendKind::IptablesNft } else { BackendKind::IptablesLegacy };
                return Err(HostError::OtherDataplane { backend, there: other });
            }
            for family in families.iter() {
                removed |= write(&programs, &nothing, &lists, family)?;
            }
            if variant == Variant::Nft {
                // They have no effect: it is no failure if they stay.
                let _ = cleanup::remove_empty_iptables_tables(&mut self.netfilter);
            }
        }
        if matches!(stay, Stay::Variant(_)) {
            return Ok(removed);
        }
        for family in Family::BOTH {
            removed |= match self.destroy(family) {
                Err(HostError::Set { source, set, .. })
                    if stay == Stay::WhatMust && source.kind() == io::ErrorKind::ResourceBusy =>
                {
                    warn!(
                        "rules of iptables refer to the set {set}, and there are no programs of iptables here to take them away: the set is emptied, so that they decide nothing; they go with the node's next start, or with iptables -t nat -F ISTIO_POSTRT"
                    );
                    self.empty(family)?
                }
                destroyed => destroyed?,
            };
        }
        Ok(removed)
    }
}
