//! What a guard holds back while rules change: what a plan takes, and nothing else.

use crate::config::ranges::RangeList;
use crate::config::types::Families;
use crate::plan::model::{Chain, ChainName, Cond, CtStates, Matches, Plan, Rule, Table, Verdict, protocol};
use crate::plan::why::Why;

/// How much of TCP is held back. Nobody's program hears of it: TCP sends again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Connections that begin. Where the nat table decides, it does so once for each
    /// connection: those that are there go on, and need not wait.
    Openings,
    /// Every packet. Where the mangle table marks, each packet of a connection is decided
    /// about anew, and one that met two sets of rules would leave its connection a wrong mark.
    All,
}

/// What a guard drops, as chains of the model: `Prerouting` and `Output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub families: Families,
    pub tcp: Tcp,
    pub chains: Vec<Chain>,
}

impl Held {
    /// For a change to `plan` from rules that hold `others`.
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

/// What begins, where what goes on is left alone.
fn new(tcp: Tcp) -> Option<Cond<CtStates>> {
    (tcp == Tcp::Openings).then_some(Cond::is(CtStates::NEW))
}

fn dropped(matches: Matches, families: Families) -> Rule {
    let why = Why::Foreign("held back while the rules change".into());
    Rule { families, matches, verdict: Verdict::Drop, why, counters: None, origin: None }
}

/// What the plan leaves alone whatever it is, before all else.
fn excluded_interfaces(plan: &Plan, hook: &ChainName) -> Vec<Rule> {
    let rules = plan.chain(Table::Nat, hook).map(|c| c.rules.as_slice()).unwrap_or_default();
    rules.iter().filter(|rule| rule.why == Why::ExcludedInterface).cloned().collect()
}

/// The DNS queries by UDP that a plan takes: those that get to its rules about DNS.
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
