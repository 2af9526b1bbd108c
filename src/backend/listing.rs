//! Listed rules of anybody, table by table. Whatever lists rules gives them in this form; an audit walks
//! packets through them, and `ours` finds in them what each holder has of an interception.

use std::collections::HashMap;
use std::fmt;

use crate::backend::hook::{Base, ChainKind, Hook};
use crate::backend::iptables::parse::{Saved, SavedTable};
use crate::backend::nftables::names;
use crate::backend::{BackendKind, foreign_text};
use crate::config::types::{Families, Family};
use crate::plan::infer::infer;
use crate::plan::model::{Chain, ChainName, Dataplane, Plan, Rule, Table, Verdict};

/// The holder of a table: nftables, a variant of iptables, or a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// A plan, which no kernel holds yet.
    Plan,
    Kernel(BackendKind),
    /// iptables, in a text that does not tell the variant.
    Iptables,
}

impl Holder {
    pub const ALL: [Holder; 5] = [
        Holder::Plan,
        Holder::Kernel(BackendKind::Nftables),
        Holder::Kernel(BackendKind::IptablesNft),
        Holder::Kernel(BackendKind::IptablesLegacy),
        Holder::Iptables,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Holder::Plan => "plan",
            Holder::Kernel(kind) => kind.name(),
            Holder::Iptables => "iptables",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|holder| holder.name() == name)
    }

    /// Whether the holder is nftables itself, rather than iptables-nft.
    pub fn is_nftables(self) -> bool {
        self == Holder::Kernel(BackendKind::Nftables)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All tables that were listed, with notes for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub tables: Vec<ListedTable>,
    /// The families that the listing covers. Nothing is known of the other one.
    pub told: Families,
    /// Notes for the user.
    pub notes: Vec<String>,
}

impl Listing {
    /// Makes the tables' text safe to show, and infers the reasons of an interception's rules.
    pub fn new(mut tables: Vec<ListedTable>, told: Families) -> Self {
        make_printable(&mut tables);
        name_reasons(&mut tables);
        Self { tables, told, notes: Vec::new() }
    }
}

/// A table as it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTable {
    pub holder: Holder,
    /// The families whose packets pass the table.
    pub families: Families,
    pub name: String,
    /// Whether the table is switched off, so that none of its rules applies.
    pub dormant: bool,
    /// Whether it is a table of iptables-nft that nft listed, which shows less than there is.
    pub as_nft_shows: bool,
    pub chains: Vec<ListedChain>,
}

/// A chain, rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedChain {
    pub name: ChainName,
    /// The chain's hook and priority; `None` if rules only jump to it.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

impl ListedTable {
    /// The table of the model that this is, if an interception uses it.
    pub fn kind(&self) -> Option<Table> {
        match self.holder.is_nftables() {
            true => names::table_by_name(&self.name).map(|(_, table)| table),
            false => Table::by_name(&self.name),
        }
    }

    /// The dataplane of the table, if its name tells.
    pub fn dataplane(&self) -> Option<Dataplane> {
        names::table_by_name(&self.name).filter(|_| self.holder.is_nftables()).map(|(dataplane, _)| dataplane)
    }

    /// Whether the table is podweir's own: native, and one of its tables or the guard.
    pub fn is_only_ours(&self) -> bool {
        let native = self.holder.is_nftables() && self.families == Families::BOTH;
        native && (self.kind().is_some() || self.name == names::GUARD)
    }

    /// Whether the table has chains of an interception.
    pub fn has_ours(&self) -> bool {
        match self.holder {
            Holder::Kernel(BackendKind::Nftables) => self.kind().is_some(),
            _ => self.kind().is_some() && self.chains.iter().any(|chain| chain.name.is_own()),
        }
    }
}

/// Makes all text in tables fit to be shown.
pub fn make_printable(tables: &mut [ListedTable]) {
    for table in tables {
        foreign_text::text(&mut table.name);
        for chain in &mut table.chains {
            foreign_text::name(&mut chain.name);
            chain.rules.iter_mut().for_each(foreign_text::rule);
        }
    }
}

/// The tables of a plan, as if they were there.
pub fn of_plan(plan: &Plan) -> Vec<ListedTable> {
    let chains = |table| {
        plan.chains.iter().filter(move |chain| chain.table == table).map(move |chain| ListedChain {
            name: chain.name.clone(),
            base: names::base(table, &chain.name),
            rules: chain.rules.clone(),
        })
    };
    let table = |table: Table| ListedTable {
        holder: Holder::Plan,
        families: plan.families,
        name: table.name().into(),
        dormant: false,
        as_nft_shows: false,
        chains: chains(table).collect(),
    };
    plan.tables().into_iter().map(table).collect()
}

/// A family's iptables listing as tables.
pub fn of_saved(saved: Saved, family: Family, holder: Holder) -> Vec<ListedTable> {
    saved.tables.into_iter().map(|table| saved_table(table, family, holder)).collect()
}

fn saved_table(table: SavedTable, family: Family, holder: Holder) -> ListedTable {
    let mut rules: HashMap<String, Vec<Rule>> = HashMap::new();
    for rule in table.rules {
        rules.entry(rule.chain).or_default().push(rule.rule);
    }
    let mut names: Vec<(String, String)> = table.chains.into_iter().collect();
    // A chain with rules that was not declared is there all the same.
    let undeclared = rules.keys().filter(|name| names.binary_search_by(|(n, _)| n.cmp(name)).is_err());
    let undeclared: Vec<_> = undeclared.map(|name| (name.clone(), "-".to_owned())).collect();
    names.extend(undeclared);
    // The built-in ones first, in the order in which packets meet them.
    names.sort_by_cached_key(|(name, _)| (Hook::by_chain(name).map_or(9, |hook| hook as usize), name.clone()));
    let chains = names.into_iter().map(|(name, policy)| ListedChain {
        base: builtin(&table.name, &name).map(|base| Base { drops: policy == "DROP", ..base }),
        rules: rules.remove(&name).unwrap_or_default(),
        name: ChainName::by_name(&name),
    });
    ListedTable {
        holder,
        families: Families::only(family),
        chains: chains.collect(),
        name: table.name,
        dormant: false,
        as_nft_shows: false,
    }
}

/// The hook and priority of a built-in chain of iptables (linux/netfilter_ipv4.h).
fn builtin(table: &str, chain: &str) -> Option<Base> {
    let hook = Hook::by_chain(chain)?;
    let source_nat = matches!(hook, Hook::Input | Hook::Postrouting);
    let (kind, priority) = match table {
        "raw" => (ChainKind::Filter, -300),
        "mangle" if hook == Hook::Output => (ChainKind::Route, -150),
        "mangle" => (ChainKind::Filter, -150),
        "nat" if source_nat => (ChainKind::Nat, 100),
        "nat" => (ChainKind::Nat, -100),
        "filter" => (ChainKind::Filter, 0),
        "security" => (ChainKind::Filter, 50),
        _ => return None,
    };
    Some(Base::accepting(kind, hook, priority))
}

/// Infers the reasons of an interception's rules that carry none.
pub fn name_reasons(tables: &mut [ListedTable]) {
    for holder in Holder::ALL {
        for family in Family::BOTH {
            let of_one = |t: &&mut ListedTable| t.holder == holder && t.families.iter().next() == Some(family);
            let mut tables: Vec<&mut ListedTable> = tables.iter_mut().filter(of_one).collect();
            if !tables.iter().any(|table| table.has_ours()) {
                continue;
            }
            let mut chains = Vec::new();
            for table in &mut tables {
                let Some(kind) = table.kind() else { continue };
                for chain in &mut table.chains {
                    let rules = std::mem::take(&mut chain.rules);
                    chains.push(Chain { table: kind, name: chain.name.clone(), rules });
                }
            }
            infer(&mut chains);
            let mut chains = chains.into_iter();
            for table in tables.into_iter().filter(|table| table.kind().is_some()) {
                for (listed, chain) in table.chains.iter_mut().zip(&mut chains) {
                    listed.rules = chain.rules;
                }
            }
        }
    }
}

/// Changes the targets of jumps to iptables' names, for rules of iptables that nftables listed.
pub fn iptables_names(rules: &mut [Rule]) {
    for rule in rules {
        if let Verdict::Jump(to) | Verdict::Goto(to) = &mut rule.verdict {
            *to = ChainName::by_name(to.name());
        }
    }
}
