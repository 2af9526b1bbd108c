//! Finds in a listing what belongs to an interception, as a plan, and what is strange about it, whoever
//! holds it, in a kernel or in a text.

use crate::config::types::{Families, Family};
use crate::plan::model::{Chain, ChainName, Dataplane, Plan, Routing, Rule, Table, Verdict};
use crate::plan::why::Why;

use super::hook::Base;
use super::iptables::{ours, render};
use super::listing::{Holder, ListedChain, ListedTable};
use super::nftables::names;
use super::{BackendKind, Strange};

/// What one holder has of an interception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub holder: Holder,
    /// The holder's rules; routing belongs to no holder.
    pub plan: Plan,
    pub strange: Vec<Strange>,
}

/// What each holder has of an interception; holders without any are left out.
pub fn holdings(tables: &[ListedTable]) -> Vec<Holding> {
    let mut out = Vec::new();
    for holder in Holder::ALL {
        let of_one: Vec<&ListedTable> = tables.iter().filter(|table| table.holder == holder).collect();
        if holder.is_nftables() {
            for dataplane in [Dataplane::Sidecar, Dataplane::Ambient] {
                let made_for = |table: &&&ListedTable| table.dataplane() == Some(dataplane);
                let tables: Vec<&ListedTable> = of_one.iter().filter(made_for).copied().collect();
                out.extend((!tables.is_empty()).then(|| of_holder(holder, &tables)));
            }
            continue;
        }
        let holding = of_holder(holder, &of_one);
        out.extend((!holding.plan.chains.is_empty()).then_some(holding));
    }
    out
}

/// What a holder has of an interception in its tables.
pub fn of_holder(holder: Holder, tables: &[&ListedTable]) -> Holding {
    let (plan, strange) = match holder {
        Holder::Plan => (planned(tables), Vec::new()),
        Holder::Kernel(BackendKind::Nftables) => native(tables),
        Holder::Kernel(_) | Holder::Iptables => iptables(tables),
    };
    Holding { holder, plan, strange }
}

fn planned(tables: &[&ListedTable]) -> Plan {
    let families = tables.iter().fold(Families::NONE, |all, table| all.union(table.families));
    let chains = tables.iter().flat_map(|table| {
        let kind = table.kind();
        let chain = move |chain: &ListedChain| {
            Some(Chain { table: kind?, name: chain.name.clone(), rules: chain.rules.clone() })
        };
        table.chains.iter().filter_map(chain)
    });
    let chains: Vec<Chain> = chains.collect();
    Plan { dataplane: Dataplane::of(&chains), families, chains, routing: Routing::default() }
}

/// Reads podweir's own tables, in which every rule is its own or should not be there.
fn native(tables: &[&ListedTable]) -> (Plan, Vec<Strange>) {
    let mut strange = Vec::new();
    let mut chains = Vec::new();
    for table in tables.iter().filter(|table| table.families == Families::BOTH) {
        let Some(kind) = table.kind() else { continue };
        if table.dormant {
            strange.push(Strange::new(kind, None, "the table is dormant: none of its rules applies".into()));
        }
        for chain in &table.chains {
            strange.extend(misplaced(kind, &chain.name, chain.base));
            chains.push(Chain { table: kind, name: chain.name.clone(), rules: chain.rules.clone() });
        }
    }
    let dataplane = tables.iter().find_map(|table| table.dataplane()).unwrap_or(Dataplane::Sidecar);
    (Plan { dataplane, ..in_the_families_that_enter(chains) }, strange)
}

/// A finding about a base chain with a wrong hook or priority, or without any: it diverts nothing.
fn misplaced(table: Table, chain: &ChainName, base: Option<Base>) -> Option<Strange> {
    let problem = match (names::base(table, chain), base) {
        (None, None) => return None,
        (None, Some(_)) => "is hooked into the kernel, which no chain of ours by that name is".to_owned(),
        (Some(_), None) => "is not hooked into the kernel: none of its rules applies".to_owned(),
        (Some(want), Some(have)) if have == want => return None,
        (Some(want), Some(have)) if have == (Base { drops: true, ..want }) => "drops by default".to_owned(),
        (Some(want), Some(have)) => {
            let told = |base: Base| {
                let (hook, priority) = base.told();
                format!("{hook} at priority {priority} as {}", base.kind.name())
            };
            format!("sits on hook {}, not on {}", told(have), told(want))
        }
    };
    Some(Strange::new(table, Some(chain.clone()), format!("the chain {problem}")))
}

/// The chains of our tables as a plan, each rule for the families whose packets get to it.
fn in_the_families_that_enter(mut chains: Vec<Chain>) -> Plan {
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
    Plan { families, chains, ..Plan::empty() }
}

/// Reads the tables of iptables, in which an interception stands among foreign rules.
fn iptables(tables: &[&ListedTable]) -> (Plan, Vec<Strange>) {
    let mut chains: Vec<Chain> = Vec::new();
    let mut strange = Vec::new();
    let mut families = Families::NONE;
    for family in Family::BOTH {
        for table in tables.iter().filter(|table| table.families.iter().next() == Some(family)) {
            let Some(kind) = table.kind() else { continue };
            let listed = table.chains.iter().map(|chain| (&chain.name, chain.rules.iter()));
            let part = ours::own_part(kind, listed, |rule| *rule);
            if part.is_empty() {
                continue;
            }
            families = families.union(Families::only(family));
            for (chain, rule) in part.hook_rules.into_iter().chain(part.chain_rules) {
                match chains.iter_mut().find(|c| c.table == kind && c.name == chain) {
                    Some(known) => known.rules.push(rule.clone()),
                    None => chains.push(Chain { table: kind, name: chain, rules: vec![rule.clone()] }),
                }
            }
            strange.extend(part.in_front.into_iter().map(|(chain, rule)| in_front(kind, chain, family, rule)));
        }
    }
    chains.sort_by_key(|c| (c.table, c.name.clone()));
    let names = tables.iter().filter(|table| table.kind().is_some()).flat_map(|table| &table.chains);
    let dataplane = names.filter_map(|chain| chain.name.dataplane()).min().unwrap_or(Dataplane::Sidecar);
    // An ambient pod's rules stand behind those of others.
    strange.retain(|_| dataplane != Dataplane::Ambient);
    (Plan { dataplane, families, chains, routing: Routing::default() }, strange)
}

fn in_front(table: Table, chain: ChainName, family: Family, rule: &Rule) -> Strange {
    let which = rule.origin.as_ref().map_or_else(String::new, |origin| format!(" ({origin})"));
    let commented = matches!(&rule.why, Why::Foreign(comment) if !comment.is_empty());
    let words = render::rule(rule, family, commented);
    let what = format!("a rule of somebody else{which} stands in front of ours: {words}");
    Strange { table, chain: Some(chain), family: Some(family), what }
}
