//! Which rules of an iptables listing belong to an interception: what is in its chains,
//! and what it put into the hooks. Everything else is somebody else's.

use crate::config::types::Mark;
use crate::plan::model::{ChainName, Matches, Rule, Table, Verdict};

/// The part of a table that belongs to an interception; `R` is the caller's type for a rule.
#[derive(Debug)]
pub struct OwnPart<R> {
    /// Chains that only an interception makes.
    pub chains: Vec<ChainName>,
    /// The interception's rules in the hooks, in order.
    pub hook_rules: Vec<(ChainName, R)>,
    /// The rules in the interception's own chains, in order.
    pub chain_rules: Vec<(ChainName, R)>,
    /// Foreign rules that stand before one of the interception's and keep packets from it.
    pub in_front: Vec<(ChainName, R)>,
}

impl<R> Default for OwnPart<R> {
    fn default() -> Self {
        Self { chains: Vec::new(), hook_rules: Vec::new(), chain_rules: Vec::new(), in_front: Vec::new() }
    }
}

impl<R> OwnPart<R> {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hook_rules.is_empty()
    }
}

/// Finds the interception's part of a table, chain by chain. `rule_of` gives the rule of an `R`.
pub fn own_part<'n, 'r, R>(
    table: Table,
    chains: impl Iterator<Item = (&'n ChainName, impl Iterator<Item = R>)>,
    rule_of: impl Fn(&R) -> &'r Rule,
) -> OwnPart<R> {
    let chains: Vec<(&ChainName, Vec<R>)> = chains.map(|(name, rules)| (name, rules.collect())).collect();
    let own = chains.iter().map(|(name, _)| *name).filter(|name| name.is_own()).cloned().collect();
    let mut part = OwnPart { chains: own, ..OwnPart::default() };
    let jumps = |rule: &R| matches!(&rule_of(rule).verdict, Verdict::Jump(c) | Verdict::Goto(c) if c.is_own());
    let ours_is_here = !part.chains.is_empty() || chains.iter().any(|(_, rules)| rules.iter().any(jumps));
    for (name, rules) in chains {
        if name.is_own() {
            part.chain_rules.extend(rules.into_iter().map(|rule| (name.clone(), rule)));
            continue;
        }
        if !name.is_hook() {
            continue;
        }
        let first_entry = rules.iter().position(|rule| is_entry(rule_of(rule)));
        let mut waiting = Vec::new();
        for (at, kept) in rules.into_iter().enumerate() {
            let rule = rule_of(&kept);
            // "In by eth1: return" could be anybody's. It is ours in a table with chains of
            // an interception, unless it stands behind the way into them.
            let behind = first_entry.is_some_and(|entry| at > entry);
            let shaped = is_hook_rule(table, name, rule);
            if ours_is_here && shaped && (is_certainly_ours(rule) || !behind) {
                part.in_front.append(&mut waiting);
                part.hook_rules.push((name.clone(), kept));
            } else if keeps_packets(rule) {
                waiting.push((name.clone(), kept));
            }
        }
    }
    part
}

/// Whether a rule leads into an interception's chains: rules for excluded traffic stand before it.
fn is_entry(rule: &Rule) -> bool {
    is_certainly_ours(rule) && rule.verdict != Verdict::Jump(ChainName::Redirect)
}

/// Whether a rule in a hook is certainly an interception's.
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
        Verdict::Continue
            | Verdict::SetMark(_)
            | Verdict::SaveMark
            | Verdict::RestoreMark
            | Verdict::SetConnectionMark(_)
            | Verdict::CtZone(_)
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
