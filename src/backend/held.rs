//! What a guard drops while rules change: the packets that a plan takes, and no others.

use crate::config::ranges::RangeList;
use crate::config::types::Families;
use crate::plan::model::{Chain, ChainName, Cond, CtStates, Matches, Plan, Rule, Table, Verdict, protocol};
use crate::plan::why::Why;

/// Which TCP packets a guard drops. No program notices: TCP sends them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Packets that open connections. The nat table decides once for each connection, so that
    /// established ones go on.
    Openings,
    /// Every packet. The mangle table decides for each packet of a connection anew, and one that met two
    /// sets of rules would leave its connection a wrong mark.
    All,
}

/// The rules of a guard, in the chains `Prerouting` and `Output` of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub families: Families,
    pub tcp: Tcp,
    pub chains: Vec<Chain>,
}

impl Held {
    /// The guard for a change to `plan` from rules that hold `others`.
    pub fn of<'a>(plan: &'a Plan, others: impl IntoIterator<Item = &'a Plan>) -> Self {
        let plans: Vec<&Plan> = [plan].into_iter().chain(others).collect();
        let families = plans.iter().fold(Families::NONE, |all, plan| all.union(plan.families));
        let marks = plans.iter().any(|plan| !plan.marks().is_empty());
        let tcp = if marks { Tcp::All } else { Tcp::Openings };
        let tcp_rule = dropped(
            Matches { protocol: only(protocol::TCP), connection_state: new(tcp), ..Matches::default() },
            families,
        );
        let mut inbound = excluded_interfaces(plan, &ChainName::Prerouting);
        let mut outbound = excluded_interfaces(plan, &ChainName::Output);
        for plan in plans {
            outbound.extend(queries(plan, tcp));
        }
        inbound.push(tcp_rule.clone());
        outbound.push(tcp_rule);
        let chain = |name, rules| Chain { table: Table::Raw, name, rules };
        Self { families, tcp, chains: vec![chain(ChainName::Prerouting, inbound), chain(ChainName::Output, outbound)] }
    }

    pub fn rules(&self, chain: &ChainName) -> &[Rule] {
        self.chains.iter().find(|c| c.name == *chain).map_or(&[], |c| &c.rules)
    }
}

fn only(protocol: u8) -> Option<Cond<RangeList<u8>>> {
    Some(Cond::is(RangeList::of([protocol])))
}

/// The condition for new connections, if established ones go on.
fn new(tcp: Tcp) -> Option<Cond<CtStates>> {
    (tcp == Tcp::Openings).then_some(Cond::is(CtStates::NEW))
}

fn dropped(matches: Matches, families: Families) -> Rule {
    let why = Why::Foreign("held back while the rules change".into());
    Rule { families, matches, verdict: Verdict::Drop, why, counters: None, origin: None }
}

/// The rules for interfaces that the plan excludes, which come before all others.
fn excluded_interfaces(plan: &Plan, hook: &ChainName) -> Vec<Rule> {
    let rules = plan.chain(Table::Nat, hook).map(|c| c.rules.as_slice()).unwrap_or_default();
    rules.iter().filter(|rule| rule.why == Why::ExcludedInterface).cloned().collect()
}

/// The rules that drop the DNS queries over UDP that a plan takes.
fn queries(plan: &Plan, tcp: Tcp) -> Vec<Rule> {
    let rules = |name| plan.chain(Table::Nat, name).map(|c| c.rules.as_slice()).unwrap_or_default();
    let udp = |rule: &&Rule| rule.is_understood() && rule.matches.protocol.as_ref().is_none_or(has_udp);
    // A sidecar's are in a chain of their own, an ambient pod's are not.
    let chains = rules(&ChainName::OutputDns).iter().chain(rules(&ChainName::OutputMain));
    let taken = chains.filter(udp).filter(|r| matches!(r.verdict, Verdict::Redirect(_)));
    let taken: Vec<Rule> = taken
        .map(|rule| {
            let matches = Matches { protocol: only(protocol::UDP), connection_state: new(tcp), ..rule.matches.clone() };
            dropped(matches, rule.families)
        })
        .collect();
    if taken.is_empty() {
        return taken;
    }
    let before =
        rules(&ChainName::OutputMain).iter().take_while(|rule| rule.verdict != Verdict::Jump(ChainName::OutputDns));
    let left_alone = before.filter(udp).filter(|rule| rule.verdict == Verdict::Return).map(|rule| {
        let matches = Matches { protocol: only(protocol::UDP), ..rule.matches.clone() };
        Rule { matches, counters: None, origin: None, ..rule.clone() }
    });
    left_alone.chain(taken.clone()).collect()
}

fn has_udp(cond: &Cond<RangeList<u8>>) -> bool {
    cond.value.contains(protocol::UDP) != cond.negated
}
