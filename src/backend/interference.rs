//! Foreign rules that can keep an interception from working: in base chains that packets pass before the
//! interception's, if they decide where a packet goes, and in those behind it, if they change what it
//! has decided. Rules that drop or accept are harmless: what is dropped does not escape, and accepting
//! in one chain keeps no packet from the next one.
//!
//! This is no walk of traffic, as `audit` has: an installation looks for rules that could interfere with
//! any packet, in microseconds and without the pod's addresses.

use std::fmt;

use crate::config::types::{Family, Mark};
use crate::plan::canon::CanonMatches;
use crate::plan::effect::Effect;
use crate::plan::model::{ChainName, Plan, Rule, Table, Verdict, protocol};
use crate::plan::words;

use super::BackendKind;
use super::hook::{Base, Hook};
use super::listing::{Holder, ListedChain, ListedTable};

/// The priority of an interception's nat chains, which rewrite destinations.
const NAT: i32 = -100;

/// A rule of somebody else's, and the base chain by which packets come to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interference {
    pub holder: Holder,
    pub table: String,
    /// The base chain's name; hook and priority say where the kernel enters it.
    pub base: String,
    pub hook: String,
    pub priority: i32,
    /// The chain with the rule, if it is not the base chain.
    pub chain: Option<String>,
    pub rule: String,
}

impl fmt::Display for Interference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { holder, table, base, hook, priority, chain, rule } = self;
        write!(f, "{holder} table {table}, chain {base} (hook {hook}, priority {priority}), ")?;
        if let Some(chain) = chain {
            write!(f, "chain {chain}, ")?;
        }
        f.write_str(rule)
    }
}

/// Finds foreign rules that interfere, in the order of the tables. `kind`: the backend that holds the
/// plan's rules, or will.
pub fn find(tables: &[ListedTable], plan: &Plan, kind: BackendKind) -> Vec<Interference> {
    let search = Search { tables, plan, kind, ours: tables.iter().position(|table| is_our_nat(table, kind)) };
    let mut out = Vec::new();
    for (at, table) in tables.iter().enumerate().filter(|(_, table)| !table.dormant && !table.is_only_ours()) {
        for base in &table.chains {
            let Some(hook) = base.base.as_ref().filter(|hook| search.counts(at, hook)) else { continue };
            search.chain(&HookEntry { table, base, hook }, base, &mut Vec::new(), &mut out);
        }
    }
    out
}

/// Whether a table is the one in which the interception redirects.
fn is_our_nat(table: &ListedTable, kind: BackendKind) -> bool {
    let native = kind != BackendKind::Nftables || table.is_only_ours();
    table.holder == Holder::Kernel(kind) && table.kind() == Some(Table::Nat) && native
}

/// A base chain, by which packets get to other chains of its table.
struct HookEntry<'a> {
    table: &'a ListedTable,
    base: &'a ListedChain,
    hook: &'a Base,
}

struct Search<'a> {
    tables: &'a [ListedTable],
    plan: &'a Plan,
    kind: BackendKind,
    /// The index of the interception's nat table; `None` if it is not made yet.
    ours: Option<usize>,
}

impl Search<'_> {
    /// Whether a rule in a base chain can change where the plan's traffic goes. Destinations are
    /// rewritten once, so of the nat chains only those before the interception's count.
    fn counts(&self, table: usize, hook: &Base) -> bool {
        match (hook.hook, hook.is_nat()) {
            (Hook::Forward, _) => false,
            (_, false) => true,
            // TPROXY has no connection rewritten, so that somebody else may do it.
            (Hook::Prerouting, true) => hook.priority < NAT || self.tproxies() || self.is_made_later(table, hook),
            (Hook::Output, true) => hook.priority < NAT || self.is_made_later(table, hook),
            (_, true) => false,
        }
    }

    fn tproxies(&self) -> bool {
        !self.plan.routing.routes.is_empty()
    }

    /// Whether a nat chain in the same place as the interception's may come before it: the one
    /// made last does (`nf_hook_entries_grow`). nf_tables lists them in that order; when
    /// iptables-legacy made its own, nothing tells.
    fn is_made_later(&self, table: usize, hook: &Base) -> bool {
        let Some(ours) = self.ours.filter(|ours| hook.priority == NAT && *ours != table) else { return false };
        let legacy = |kind| kind == Holder::Kernel(BackendKind::IptablesLegacy);
        let other = self.tables.get(table).map(|table| table.holder);
        other.is_some_and(|other| legacy(other) != legacy(Holder::Kernel(self.kind))) || ours < table
    }

    /// Looks at a chain and those that it jumps to, each once.
    fn chain<'t>(
        &self,
        entry: &HookEntry<'t>,
        chain: &'t ListedChain,
        met: &mut Vec<&'t str>,
        out: &mut Vec<Interference>,
    ) {
        let HookEntry { table, base, hook } = entry;
        // iptables' own tables may hold chains of an interception among others.
        let shared = !table.holder.is_nftables();
        if met.contains(&chain.name.name()) || (shared && chain.name.is_own()) {
            return;
        }
        met.push(chain.name.name());
        for rule in &chain.rules {
            let Some((family, conditions)) = self.concerned(table, rule) else { continue };
            match &rule.verdict {
                Verdict::Jump(to) | Verdict::Goto(to) => {
                    if let Some(target) = table.chains.iter().find(|chain| chain.name == *to) {
                        self.chain(entry, target, met, out);
                    }
                }
                // The mark of what an interception sends to itself is set in a hook.
                Verdict::SetMark(_) if shared && table.has_ours() && chain.base.is_some() => {}
                verdict if self.decides(verdict, hook) => {
                    let (hook_name, priority) = hook.told();
                    let which = rule.origin.as_ref().map(|origin| format!("{origin}: ")).unwrap_or_default();
                    let words = [words::matches(&conditions, family), words::verdict(verdict)];
                    out.push(Interference {
                        holder: table.holder,
                        table: format!("{}{}", families(table), table.name),
                        base: base.name.to_string(),
                        hook: hook_name.into(),
                        priority,
                        chain: (chain.name != base.name).then(|| chain.name.to_string()),
                        rule: which + words.join(": ").trim_start_matches(": "),
                    });
                }
                _ => {}
            }
        }
    }

    /// A family in which packets that the plan takes can meet a rule, and the rule's conditions in it.
    fn concerned(&self, table: &ListedTable, rule: &Rule) -> Option<(Family, CanonMatches)> {
        let families = rule.families.intersection(table.families).intersection(self.plan.families);
        let dns = self.plan.chains.iter().any(|chain| chain.name == ChainName::OutputDns);
        families.iter().find_map(|family| {
            let m = CanonMatches::of(&rule.matches, family)?;
            let taken = m.protocol.holds(protocol::TCP) || (dns && m.protocol.holds(protocol::UDP));
            taken.then_some((family, m))
        })
    }

    /// Whether a verdict decides where a packet goes, or sets a mark that the plan's rules pass over.
    fn decides(&self, verdict: &Verdict, hook: &Base) -> bool {
        match verdict {
            Verdict::Redirect(_) | Verdict::Tproxy { .. } => true,
            Verdict::Unknown(unknown) => unknown.effect == Effect::Unknown,
            Verdict::SetMark(set) => {
                let ours = |mark: &Mark| mark.get() == set.value;
                !hook.hook.is_behind_routing() && self.plan.marks().iter().any(ours)
            }
            _ => false,
        }
    }
}

/// The family of a table of nftables, as nft writes it in front of the name.
fn families(table: &ListedTable) -> &'static str {
    match table.families.iter().collect::<Vec<_>>()[..] {
        // Of devices the name says it.
        _ if table.name.contains(' ') => "",
        [Family::V4] => "ip ",
        [Family::V6] => "ip6 ",
        _ => "inet ",
    }
}

/// How many interfering rules a message names.
const SHOWN: usize = 5;

/// All interfering rules in one line, for a warning or an error.
pub fn told(found: &[Interference]) -> String {
    let shown: Vec<String> = found.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = match found.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "rules of others come before the interception's or undo what they do, so that traffic may escape: {}{more}",
        shown.join("; ")
    )
}
