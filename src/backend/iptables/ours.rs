//! Which rules of an iptables listing belong to an interception: what is in its chains,
//! and what it put into the hooks. Everything else is somebody else's.

use std::collections::HashMap;

use crate::backend::Strange;
use crate::config::types::{Families, Family, Mark};
use crate::plan::model::{Chain, ChainName, Matches, Plan, Routing, Rule, Table, Verdict};

use super::parse::{Saved, SavedRule, SavedTable};

/// A table's part of an interception, as listed.
#[derive(Debug, Default)]
pub struct OwnPart<'a> {
    /// Chains that only an interception makes.
    pub chains: Vec<ChainName>,
    /// Its rules in the hooks, in order.
    pub hook_rules: Vec<(ChainName, &'a SavedRule)>,
    /// The rules in its chains, in order.
    pub chain_rules: Vec<(ChainName, &'a SavedRule)>,
    /// Rules of others that stand in front of one of ours and keep packets from it.
    pub in_front: Vec<(ChainName, &'a SavedRule)>,
}

impl OwnPart<'_> {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hook_rules.is_empty()
    }
}

/// Takes a listed table apart.
pub fn own_part(table: &SavedTable) -> OwnPart<'_> {
    let kind = Table::by_name(&table.name);
    let chains = table.chains.keys().map(|name| ChainName::by_name(name)).filter(ChainName::is_own).collect();
    let mut part = OwnPart { chains, ..OwnPart::default() };
    let jumps = |rule: &SavedRule| matches!(&rule.rule.verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own());
    let ours_is_here = !part.chains.is_empty() || table.rules.iter().any(jumps);
    let certain = |rule: &SavedRule| is_certainly_ours(&rule.rule);
    let mut first_entry: HashMap<&str, usize> = HashMap::new();
    for (at, rule) in table.rules.iter().enumerate().filter(|(_, rule)| is_entry(&rule.rule)) {
        first_entry.entry(&rule.chain).or_insert(at);
    }
    let mut waiting: HashMap<ChainName, Vec<&SavedRule>> = HashMap::new();
    for (at, rule) in table.rules.iter().enumerate() {
        let chain = ChainName::by_name(&rule.chain);
        if chain.is_own() {
            part.chain_rules.push((chain, rule));
        } else if chain.is_hook() {
            // "In by eth1: return" could be anybody's. It is ours in a table with chains of
            // an interception, unless it stands behind the way into them.
            let behind = first_entry.get(rule.chain.as_str()).is_some_and(|entry| at > *entry);
            let shaped = kind.is_some_and(|table| is_hook_rule(table, &chain, &rule.rule));
            if ours_is_here && shaped && (certain(rule) || !behind) {
                let before = waiting.remove(&chain).unwrap_or_default();
                part.in_front.extend(before.into_iter().map(|foreign| (chain.clone(), foreign)));
                part.hook_rules.push((chain, rule));
            } else if keeps_packets(&rule.rule) {
                waiting.entry(chain).or_default().push(rule);
            }
        }
    }
    part
}

/// Whether a rule leads into an interception's chains: what is left alone comes before it.
fn is_entry(rule: &Rule) -> bool {
    is_certainly_ours(rule) && rule.verdict != Verdict::Jump(ChainName::Redirect)
}

/// Whether a rule in a hook is one that nobody else would write.
fn is_certainly_ours(rule: &Rule) -> bool {
    match &rule.verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => chain.is_own(),
        Verdict::SaveMark | Verdict::RestoreMark | Verdict::SetMark(_) => true,
        _ => false,
    }
}

/// Whether a rule can take a packet away from the rules behind it.
fn keeps_packets(rule: &Rule) -> bool {
    !matches!(
        rule.verdict,
        Verdict::Continue | Verdict::SetMark(_) | Verdict::SaveMark | Verdict::RestoreMark | Verdict::CtZone(_)
    )
}

/// Whether a rule in a hook has the shape of one that an interception puts there.
pub fn is_hook_rule(table: Table, chain: &ChainName, rule: &Rule) -> bool {
    if matches!(&rule.verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own()) {
        return true;
    }
    let m = &rule.matches;
    let only = |wanted: Matches| *m == wanted;
    let tcp = m.protocol.clone();
    match (table, chain, &rule.verdict) {
        // Interfaces left alone, and what is left over of a virtual machine's traffic.
        (Table::Nat | Table::Mangle, ChainName::Prerouting, Verdict::Return) => {
            m.in_interface.is_some() && only(Matches { in_interface: m.in_interface.clone(), ..Matches::default() })
        }
        (Table::Nat | Table::Mangle, ChainName::Output, Verdict::Return) => {
            let by_interface = Matches { out_interface: m.out_interface.clone(), ..Matches::default() };
            let marked = Matches { protocol: tcp, mark: m.mark.clone(), ..by_interface.clone() };
            m.out_interface.is_some() && (only(by_interface) || (table == Table::Mangle && only(marked)))
        }
        (Table::Mangle, ChainName::Prerouting, Verdict::SaveMark) => m.mark.is_some(),
        (Table::Mangle, ChainName::Output, Verdict::RestoreMark) => m.connection_mark.is_some(),
        (Table::Mangle, ChainName::Output, Verdict::SetMark(mark)) => {
            *mark == Mark::OUTBOUND.into() && (m.uid.is_some() || m.gid.is_some())
        }
        _ => false,
    }
}

/// What is found of an interception in both families' listings, as a plan.
pub fn plan(saved: &HashMap<Family, Saved>) -> (Plan, Vec<Strange>) {
    let mut chains: Vec<Chain> = Vec::new();
    let mut strange = Vec::new();
    let mut families = Families::NONE;
    for family in Family::BOTH {
        let Some(saved) = saved.get(&family) else { continue };
        for table in &saved.tables {
            let Some(kind) = Table::by_name(&table.name) else { continue };
            let part = own_part(table);
            if part.is_empty() {
                continue;
            }
            families = families.union(Families::only(family));
            for (chain, rule) in part.hook_rules.iter().chain(&part.chain_rules) {
                match chains.iter_mut().find(|c| c.table == kind && c.name == *chain) {
                    Some(known) => known.rules.push(rule.rule.clone()),
                    None => chains.push(Chain { table: kind, name: chain.clone(), rules: vec![rule.rule.clone()] }),
                }
            }
            for (chain, rule) in part.in_front {
                let which = rule.rule.origin.as_ref().map_or_else(String::new, |origin| format!(" ({origin})"));
                strange.push(Strange {
                    table: kind,
                    chain: Some(chain),
                    family: Some(family),
                    what: format!("a rule of somebody else{which} stands in front of ours: {}", rule.words),
                });
            }
        }
    }
    chains.sort_by_key(|c| (c.table, c.name.clone()));
    (Plan { families, chains, routing: Routing::default() }, strange)
}
