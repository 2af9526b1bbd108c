//! Rules as they are listed, of anybody: table by table as their holder keeps them. Every
//! way to get at rules ends here; from here they go two ways, into the rules that an audit
//! walks packets through and into what each holder has of an interception.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::backend::hook::Hook;
use crate::backend::iptables::parse::{Saved, SavedRule, SavedTable};
use crate::backend::iptables::{ours, render};
use crate::backend::nftables::{names, read};
use crate::backend::{Kind, Strange, foreign_text};
use crate::config::types::{Families, Family};
use crate::plan::infer::infer;
use crate::plan::model::{Chain, ChainName, Plan, Routing, Rule, Table, Verdict};
use crate::plan::why::Why;

/// Who holds a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// Nobody yet: options say that it shall be there.
    Plan,
    Kernel(Kind),
    /// iptables, in text that does not say which.
    Iptables,
}

impl Holder {
    pub const ALL: [Holder; 5] = [
        Holder::Plan,
        Holder::Kernel(Kind::Nftables),
        Holder::Kernel(Kind::IptablesNft),
        Holder::Kernel(Kind::IptablesLegacy),
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

    /// Whether nftables itself is asked, and not iptables by way of it.
    pub fn is_nftables(self) -> bool {
        self == Holder::Kernel(Kind::Nftables)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that was listed, by whomever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub tables: Vec<ListedTable>,
    /// The families that are told of. Of another one nothing is known.
    pub told: Families,
    /// What the user should hear.
    pub notes: Vec<String>,
}

impl Listing {
    /// Makes what was listed fit to be shown, and gives an interception's rules their reasons.
    pub fn new(mut tables: Vec<ListedTable>, told: Families) -> Self {
        foreign_text::make_printable(&mut tables);
        name_reasons(&mut tables);
        Self { tables, told, notes: Vec::new() }
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTable {
    pub holder: Holder,
    /// The families whose packets meet it.
    pub families: Families,
    pub name: String,
    /// Switched off: none of its rules applies.
    pub dormant: bool,
    /// iptables-nft's, as nft shows it: with less than there is.
    pub as_nft_shows: bool,
    pub chains: Vec<ListedChain>,
}

/// A chain, rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedChain {
    pub name: ChainName,
    /// `None`: only jumped to.
    pub hook: Option<ListedHook>,
    pub rules: Vec<Rule>,
}

/// Where the kernel enters a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedHook {
    pub hook: Hook,
    pub priority: i32,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// What happens to packets that no rule decides about.
    pub drops: bool,
}

/// What one holder has of an interception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub holder: Holder,
    /// Its rules; routing is nobody's alone.
    pub plan: Plan,
    pub strange: Vec<Strange>,
}

impl ListedTable {
    /// Which of an interception's tables this is, if it is made for one.
    pub fn kind(&self) -> Option<Table> {
        if self.holder.is_nftables() { names::table_by_name(&self.name) } else { Table::by_name(&self.name) }
    }

    /// Whether nobody but podweir has anything in it: native, and one of ours or the guard.
    pub fn is_only_ours(&self) -> bool {
        let native = self.holder.is_nftables() && self.families == Families::BOTH;
        native && (self.kind().is_some() || self.name == names::GUARD)
    }

    /// Whether a chain is in it that only an interception makes.
    pub fn has_ours(&self) -> bool {
        match self.holder {
            Holder::Kernel(Kind::Nftables) => self.kind().is_some(),
            _ => self.kind().is_some() && self.chains.iter().any(|chain| chain.name.is_own()),
        }
    }
}

/// The tables of a plan, as if they were there.
pub fn of_plan(plan: &Plan) -> Vec<ListedTable> {
    let chains = |table| {
        plan.chains.iter().filter(move |chain| chain.table == table).map(move |chain| ListedChain {
            name: chain.name.clone(),
            hook: names::hook(table, &chain.name).and_then(|hook| listed_hook(&hook)),
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

fn listed_hook(hook: &names::Hook) -> Option<ListedHook> {
    let hook_name = Hook::by_number(hook.number)?;
    Some(ListedHook { hook: hook_name, priority: hook.priority, kind: hook.kind.into(), drops: false })
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
        hook: builtin(&table.name, &name).map(|hook| ListedHook { drops: policy == "DROP", ..hook }),
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

/// Where iptables hooks a built-in chain (linux/netfilter_ipv4.h).
fn builtin(table: &str, chain: &str) -> Option<ListedHook> {
    let hook = Hook::by_chain(chain)?;
    let source_nat = matches!(hook, Hook::Input | Hook::Postrouting);
    let (kind, priority) = match table {
        "raw" => ("filter", -300),
        "mangle" if hook == Hook::Output => ("route", -150),
        "mangle" => ("filter", -150),
        "nat" if source_nat => ("nat", 100),
        "nat" => ("nat", -100),
        "filter" => ("filter", 0),
        "security" => ("filter", 50),
        _ => return None,
    };
    Some(ListedHook { hook, priority, kind: kind.into(), drops: false })
}

/// Gives an interception's rules the reasons that they do not carry.
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

/// What each holder has of an interception; only those that have something.
pub fn held(tables: &[ListedTable]) -> Vec<Held> {
    let mut out = Vec::new();
    for holder in Holder::ALL {
        let of_one: Vec<&ListedTable> = tables.iter().filter(|table| table.holder == holder).collect();
        let (plan, strange) = match holder {
            Holder::Plan => (planned(&of_one), Vec::new()),
            Holder::Kernel(Kind::Nftables) => native(&of_one),
            _ => ours::plan(&saved(&of_one)),
        };
        let has_tables = of_one.iter().any(|table| table.has_ours());
        if !plan.chains.is_empty() || (holder.is_nftables() && has_tables) {
            out.push(Held { holder, plan, strange });
        }
    }
    out
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
    Plan { families, chains: chains.collect(), routing: Routing::default() }
}

fn native(tables: &[&ListedTable]) -> (Plan, Vec<Strange>) {
    let mut strange = Vec::new();
    let mut chains = Vec::new();
    for table in tables.iter().filter(|table| table.families == Families::BOTH) {
        let Some(kind) = table.kind() else { continue };
        if table.dormant {
            strange.push(read::dormant(kind));
        }
        for chain in &table.chains {
            let hook = chain.hook.as_ref().map(|hook| read::ListedHook {
                number: hook.hook as u32,
                priority: hook.priority,
                kind: hook.kind.clone(),
                drops: hook.drops,
                devices: None,
            });
            read::check_hook(kind, &chain.name, hook.as_ref(), &mut strange);
            chains.push(Chain { table: kind, name: chain.name.clone(), rules: chain.rules.clone() });
        }
    }
    (read::plan(chains), strange)
}

/// As iptables would have listed them.
fn saved(tables: &[&ListedTable]) -> HashMap<Family, Saved> {
    let mut out: HashMap<Family, Saved> = HashMap::new();
    for table in tables {
        let Some(family) = table.families.iter().next() else { continue };
        let chains: BTreeMap<String, String> = table
            .chains
            .iter()
            .map(|chain| {
                let policy = chain.hook.as_ref().map_or("-", |hook| if hook.drops { "DROP" } else { "ACCEPT" });
                (chain.name.name().to_owned(), policy.to_owned())
            })
            .collect();
        let rules = table.chains.iter().flat_map(|chain| {
            chain.rules.iter().map(|rule| SavedRule {
                chain: chain.name.name().to_owned(),
                words: words(rule, family),
                rule: rule.clone(),
            })
        });
        let saved = SavedTable { name: table.name.clone(), rules: rules.collect(), chains };
        out.entry(family).or_default().tables.push(saved);
    }
    out
}

/// A rule in iptables' words, with the comment only of somebody else's.
fn words(rule: &Rule, family: Family) -> String {
    let commented = matches!(&rule.why, Why::Foreign(comment) if !comment.is_empty());
    render::rule(rule, family, commented)
}

/// iptables' name for the chain that a rule read by way of nftables goes to.
pub fn iptables_names(rules: &mut [Rule]) {
    for rule in rules {
        if let Verdict::Jump(to) | Verdict::Goto(to) = &mut rule.verdict {
            *to = ChainName::by_name(to.name());
        }
    }
}
