//! All rules that a packet can meet in a pod's network namespace, of anybody, ready to
//! be walked: every condition is a set that answers in logarithmic time, so that a long
//! list costs no more than a short one.

mod edit;
mod listeners;
mod tables;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::backend::BackendKind;
use crate::backend::nftables::names;
use crate::config::types::{Families, Family, Interface};
use crate::plan::canon::{CanonRule, canon_rules};
use crate::plan::model::{ChainName, Masked, Plan, Rule, Table, Verdict};
use crate::plan::why::Why;

use super::flow::Taker;
pub use crate::backend::hook::{Base, Hook, Order};
use crate::plan::effect::Effect;
pub use listeners::{ProxyListener, redirect_taker};

/// A rule that decides, with its chain.
#[derive(Debug, Clone, Copy)]
pub struct Decider<'a> {
    pub chain: &'a ChainRules,
    pub rule: &'a CanonRule,
}

/// Which table a chain is in, and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// `nftables`, `iptables-nft`, `iptables-legacy`, or where else the rules come from.
    pub source: Box<str>,
    pub name: Box<str>,
}

impl TableId {
    /// Whether the table is one of iptables or of an interception for a kind of rules.
    pub fn is(&self, table: Table) -> bool {
        let bare = self.name.rsplit(' ').next().unwrap_or(&self.name);
        Table::by_name(bare).or(names::table_by_name(bare).map(|(_, table)| table)) == Some(table)
    }
}

/// A chain of one family, with rules in canonical form.
#[derive(Debug, Clone)]
pub struct ChainRules {
    pub table: TableId,
    pub name: ChainName,
    pub base: Option<Base>,
    pub rules: Vec<CanonRule>,
    /// Who listens on the ports that the chain's rules redirect to.
    pub listener: Taker,
    /// For a foreign chain: the ports on which the proxy listens, if an interception's own chains tell.
    proxy_ports: Option<Arc<[(u16, Taker)]>>,
    /// The ports on which the proxy listens by the rules that these are compared with.
    expected: Option<Arc<[(u16, Taker)]>>,
    /// For each rule the chain it jumps to, if that is there.
    targets: Vec<Option<usize>>,
    /// The chain's policy as a rule, if it drops.
    policy: Option<CanonRule>,
    /// Whether conditions have the semantics of native nftables rather than of iptables. A plan has
    /// those of iptables, unless it is compared with what a holder has.
    native: bool,
}

impl ChainRules {
    /// The rule that stands for a dropping policy.
    pub fn policy(&self) -> Option<Decider<'_>> {
        self.policy.as_ref().map(|rule| Decider { chain: self, rule })
    }

    /// The chain's name for people, with its table's and its holder's in front.
    pub fn full_name(&self) -> String {
        match self.table.source.as_ref() {
            "plan" => format!("{} {}", self.table.name, self.name),
            source => format!("{source} {} {}", self.table.name, self.name),
        }
    }

    /// Whether conditions have the semantics of native nftables rather than of iptables.
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// Whether the chain is an interception's, by its name or its table's.
    pub fn is_ours(&self) -> bool {
        self.name.is_own() || names::table_by_name(self.table.name.trim_start_matches("inet ")).is_some()
    }
}

/// The rules of both families.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    v4: FamilyRules,
    v6: FamilyRules,
}

/// Base chains by hook.
type Hooks = [Vec<usize>; 5];

/// The rules of one family.
#[derive(Debug, Clone, Default)]
pub struct FamilyRules {
    pub chains: Vec<ChainRules>,
    /// Base chains by hook, in the order in which packets meet them.
    hooks: Hooks,
    /// Base chains by hook in the other order in which packets may meet them, where it is not known
    /// which of the two is the case.
    other_hooks: Option<Hooks>,
    /// The bits of marks that some rule looks at.
    marks_asked: u32,
    /// Whether others' rules may drop packets.
    pub may_drop: bool,
    /// Whether a rule asks for a connection before conntrack knows it.
    pub asks_before_conntrack: bool,
    /// Ports that connections are redirected to, and who listens there.
    pub listeners: Vec<ProxyListener>,
}

impl FamilyRules {
    /// The base chains on a hook, in order.
    pub fn on(&self, hook: Hook, order: Order) -> impl Iterator<Item = &ChainRules> {
        let hooks = self.other_hooks.as_ref().filter(|_| order == Order::Second).unwrap_or(&self.hooks);
        hooks[hook as usize].iter().map(|&at| &self.chains[at])
    }

    /// Whether it is known in which order packets meet the base chains.
    pub fn has_one_order(&self) -> bool {
        self.other_hooks.is_none()
    }

    /// Marks other than 0 that rules distinguish: for each condition its value, and the lowest bit of
    /// its mask.
    pub fn marks(&self) -> BTreeSet<u32> {
        let asked = self.chains.iter().flat_map(|chain| &chain.rules).filter_map(|rule| rule.matches.mark.as_ref());
        let others = |mask: u32| mask & mask.wrapping_neg();
        asked.flat_map(|cond| [cond.value.value, others(cond.value.mask)]).filter(|mark| *mark != 0).collect()
    }

    /// The marks with which packets are routed to the pod itself in ambient mode: the app's answers to
    /// connections that ztunnel has made in the name of others, and whoever else bears that mark.
    pub fn ambient_marks(&self) -> impl Iterator<Item = Masked> {
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| match rule.verdict {
            Verdict::SetConnectionMark(mark) if !matches!(rule.why(), Why::Foreign(_)) => Some(mark),
            _ => None,
        })
    }

    /// Whether a rule with this verdict makes no difference to later rules: none of them compares what
    /// it changes.
    pub fn decides_nothing(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Continue => true,
            Verdict::SetMark(Masked { value, mask }) => (value | mask) & self.marks_asked == 0,
            Verdict::SetConnectionMark(Masked { value, mask }) => (value | mask) & self.marks_asked == 0,
            Verdict::SaveMark | Verdict::RestoreMark => self.marks_asked == 0,
            _ => false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether packets can get to each chain: from a hook, by jumps.
    pub fn entered(&self) -> Vec<bool> {
        self.entered_from(|_| true)
    }

    /// Whether packets can get to each chain from any of some base chains, by jumps.
    fn entered_from(&self, from: impl Fn(&Base) -> bool) -> Vec<bool> {
        let is_from = |&at: &usize| self.chains[at].base.as_ref().is_some_and(&from);
        self.reached((0..self.chains.len()).filter(is_from).collect())
    }

    /// The chain that a rule jumps to; `None` where there is none.
    pub fn target(&self, chain: &ChainRules, rule: usize) -> Option<&ChainRules> {
        chain.targets.get(rule).copied().flatten().and_then(|at| self.chains.get(at))
    }

    /// Puts base chains on their hooks, in the order in which the kernel was told of them.
    fn hooks(&self, order: impl Iterator<Item = usize>) -> Hooks {
        let mut hooks = Hooks::default();
        let of = |at: usize| self.chains.get(at).and_then(|chain| chain.base);
        for at in order {
            let Some(base) = of(at) else { continue };
            let on_hook = &mut hooks[base.hook as usize];
            let is_nat = |&other: &usize| of(other).is_some_and(|other| other.is_nat());
            // The one told of last comes first (`nf_hook_entries_grow`).
            let nat = on_hook.iter().position(is_nat).filter(|_| base.is_nat());
            let place = match nat {
                Some(first) => {
                    let earlier =
                        |&&other: &&usize| of(other).is_some_and(|o| o.is_nat() && o.priority < base.priority);
                    first + on_hook[first..].iter().take_while(earlier).count()
                }
                None => on_hook.partition_point(|&other| of(other).is_some_and(|o| o.place() < base.place())),
            };
            on_hook.insert(place, at);
        }
        hooks
    }

    /// Computes what depends on all rules of the family.
    fn sum_up(&mut self) {
        self.hooks = self.hooks(0..self.chains.len());
        let is_legacy = |&at: &usize| &*self.chains[at].table.source == BackendKind::IptablesLegacy.name();
        let (legacy, others): (Vec<usize>, Vec<usize>) = (0..self.chains.len()).partition(is_legacy);
        let (before, after) = (legacy.iter().chain(&others), others.iter().chain(&legacy));
        let possible = [self.hooks(before.copied()), self.hooks(after.copied())];
        self.other_hooks = possible.into_iter().find(|hooks| *hooks != self.hooks);
        let rules = self.chains.iter().flat_map(|chain| &chain.rules);
        self.marks_asked = rules.fold(0, |bits, rule| bits | rule.matches.marks_asked());
        self.may_drop = self.chains.iter().any(|chain| {
            let drops = |rule: &CanonRule| match &rule.verdict {
                Verdict::Drop => true,
                Verdict::Unknown(unknown) => unknown.effect == Effect::Drops,
                _ => false,
            };
            chain.policy.is_some() || (!chain.name.is_own() && chain.rules.iter().any(drops))
        });
        let early = self.entered_from(Base::is_before_conntrack);
        let mut asked = self.chains.iter().zip(early).filter(|(_, early)| *early).flat_map(|(chain, _)| &chain.rules);
        self.asks_before_conntrack = asked.any(|rule| rule.matches.asks_conntrack());
    }

    fn resolve(&mut self) {
        let places: HashMap<(TableId, ChainName), usize> =
            self.chains.iter().enumerate().map(|(at, c)| ((c.table.clone(), c.name.clone()), at)).collect();
        for chain in &mut self.chains {
            let target = |rule: &CanonRule| match &rule.verdict {
                Verdict::Jump(to) | Verdict::Goto(to) => places.get(&(chain.table.clone(), to.clone())).copied(),
                _ => None,
            };
            chain.targets = chain.rules.iter().map(target).collect();
        }
        self.sum_up();
        let inbound = self.reached(self.hooks[Hook::Prerouting as usize].clone());
        for (chain, inbound) in self.chains.iter_mut().zip(inbound) {
            chain.listener = listeners::by_chain(&chain.name, inbound);
        }
    }

    /// The chains that packets can get to from some chains, these included.
    fn reached(&self, mut open: Vec<usize>) -> Vec<bool> {
        let mut reached = vec![false; self.chains.len()];
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut reached[at], true) {
                open.extend(self.chains[at].targets.iter().flatten());
            }
        }
        reached
    }
}

/// A chain as it was found, both families in it.
#[derive(Debug, Clone)]
pub struct FoundChain {
    pub table: TableId,
    pub name: ChainName,
    pub base: Option<Base>,
    /// The families whose packets pass the chain.
    pub families: Families,
    pub rules: Vec<Rule>,
}

impl Ruleset {
    pub fn new(chains: impl IntoIterator<Item = FoundChain>) -> Self {
        let mut out = Self::default();
        for chain in chains {
            for family in chain.families.iter() {
                let into = if family == Family::V4 { &mut out.v4 } else { &mut out.v6 };
                into.chains.push(ChainRules {
                    table: chain.table.clone(),
                    name: chain.name.clone(),
                    base: chain.base,
                    rules: canon_rules(&chain.rules, family),
                    listener: Taker::OutboundProxy,
                    proxy_ports: None,
                    expected: None,
                    targets: Vec::new(),
                    policy: chain.base.filter(|base| base.drops).and_then(|_| CanonRule::policy(family)),
                    native: &*chain.table.source == BackendKind::Nftables.name(),
                });
            }
        }
        out.v4.resolve();
        out.v6.resolve();
        out.find_listeners();
        out
    }

    /// Whether some rule distinguishes interfaces, apart from lo.
    pub fn tells_interfaces_apart(&self) -> bool {
        let chains = Family::BOTH.into_iter().flat_map(|family| &self.family(family).chains);
        let mut conditions = chains.flat_map(|c| &c.rules).flat_map(|rule| {
            let m = &rule.matches;
            m.in_interface.iter().chain(&m.out_interface)
        });
        conditions.any(|cond| cond.value.iter().any(|interface| *interface != Interface::lo()))
    }

    pub fn family(&self, family: Family) -> &FamilyRules {
        if family == Family::V4 { &self.v4 } else { &self.v6 }
    }

    /// The rules of a kernel that holds nothing but a plan.
    pub fn of_plan(plan: &Plan) -> Self {
        Self::new(plan.chains.iter().map(|chain| FoundChain {
            table: TableId { source: "plan".into(), name: chain.table.name().into() },
            name: chain.name.clone(),
            base: names::base(chain.table, &chain.name),
            families: plan.families,
            rules: chain.rules.clone(),
        }))
    }
}
