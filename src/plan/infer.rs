//! Reasons for rules that carry none: iptables rules usually have no comment, and those
//! of istio-iptables never do. Where a rule stands and what it asks tells which of the
//! plan's rules it is; what fits nothing stays foreign.

use crate::config::ranges::RangeList;
use crate::config::types::{Interface, Mark, Port};

use super::model::{Chain, ChainName, Cond, Matches, Rule, Table, Verdict};
use super::why::Why;

/// Gives every rule without a comment the reason it must have.
pub fn infer(chains: &mut [Chain]) {
    let facts = Facts::of(chains);
    for chain in chains {
        let mut first = true;
        for rule in &mut chain.rules {
            if rule.why == Why::Foreign("".into())
                && let Some(why) = why(chain.table, &chain.name, rule, first, &facts)
            {
                rule.why = why;
            }
            first = false;
        }
    }
}

/// What one rule tells about another.
struct Facts {
    /// Owners of the proxy: those whose calls to themselves go back in.
    uids: Vec<RangeList<u32>>,
    gids: Vec<RangeList<u32>>,
    virtual_interfaces: Vec<Interface>,
}

impl Facts {
    fn of(chains: &[Chain]) -> Self {
        let mut facts = Self { uids: Vec::new(), gids: Vec::new(), virtual_interfaces: Vec::new() };
        for rule in chains.iter().filter(|c| c.table == Table::Nat).flat_map(|c| &c.rules) {
            let m = &rule.matches;
            match &rule.verdict {
                Verdict::Jump(ChainName::InRedirect) => {
                    facts.uids.extend(m.uid.iter().map(|c| c.value.clone()));
                    facts.gids.extend(m.gid.iter().map(|c| c.value.clone()));
                }
                Verdict::Jump(ChainName::Redirect) => {
                    facts.virtual_interfaces.extend(m.in_interface.iter().flat_map(|c| c.value.clone()));
                }
                _ => {}
            }
        }
        facts
    }
}

fn why(table: Table, chain: &ChainName, rule: &Rule, first: bool, facts: &Facts) -> Option<Why> {
    match table {
        Table::Raw => raw(chain, rule),
        Table::Mangle => mangle(chain, rule),
        Table::Nat => nat(chain, rule, first, facts),
    }
}

fn raw(chain: &ChainName, rule: &Rule) -> Option<Why> {
    let m = &rule.matches;
    match (chain, &rule.verdict) {
        (ChainName::Prerouting | ChainName::Output, Verdict::Jump(to)) if to.is_own() => Some(Why::DnsEntry),
        (ChainName::Inbound, Verdict::CtZone(1)) => Some(Why::DnsZoneAnswer),
        (ChainName::OutputDns, Verdict::CtZone(1)) if m.uid.is_some() || m.gid.is_some() => Some(Why::DnsZoneUpstream),
        (ChainName::OutputDns, Verdict::CtZone(2)) => Some(Why::DnsZoneClient),
        _ => None,
    }
}

fn is_lo(cond: &Option<Cond<Vec<Interface>>>) -> bool {
    cond.as_ref().is_some_and(|c| !c.negated && c.value == [Interface::lo()])
}

fn mangle(chain: &ChainName, rule: &Rule) -> Option<Why> {
    let m = &rule.matches;
    Some(match (chain, &rule.verdict) {
        (ChainName::Prerouting, Verdict::Return) if m.in_interface.is_some() => Why::ExcludedInterface,
        (ChainName::Prerouting, Verdict::Jump(ChainName::Drop)) => Why::InvalidEntry,
        (ChainName::Prerouting, Verdict::Jump(ChainName::Inbound)) => Why::InboundEntry,
        (ChainName::Prerouting, Verdict::SaveMark) => Why::TproxySaveMark,
        (ChainName::Output, Verdict::Return) if m.mark.is_some() => Why::TproxyProxyMarked,
        (ChainName::Output, Verdict::Return) if m.out_interface.is_some() => Why::ExcludedInterface,
        (ChainName::Output, Verdict::SetMark(mark)) if *mark == Mark::OUTBOUND.into() => Why::TproxyProxyOut,
        (ChainName::Output, Verdict::RestoreMark) => Why::TproxyRestoreMark,
        (ChainName::Inbound, Verdict::Return) => match &m.mark {
            Some(mark) if mark.negated => Why::TproxyLocal,
            Some(_) => Why::TproxyMarked,
            None if m.source.is_some() => Why::TproxyProxyToApp,
            None if m.destination_port.is_some() => Why::ExcludedInboundPort,
            None => return None,
        },
        (ChainName::Inbound, Verdict::Jump(ChainName::Divert)) => Why::TproxyEstablished,
        (ChainName::Inbound, Verdict::Jump(ChainName::Tproxy)) => Why::TproxyNew,
        (ChainName::Divert, Verdict::SetMark(_)) => Why::TproxyDivertMark,
        (ChainName::Divert, Verdict::Accept) => Why::TproxyDivertAccept,
        (ChainName::Tproxy, Verdict::Tproxy { .. }) => Why::TproxyHandOver,
        (ChainName::Drop, Verdict::Drop) => Why::InvalidDrop,
        _ => return None,
    })
}

fn nat(chain: &ChainName, rule: &Rule, first: bool, facts: &Facts) -> Option<Why> {
    let m = &rule.matches;
    Some(match (chain, &rule.verdict) {
        (ChainName::Prerouting, Verdict::Jump(ChainName::Redirect)) => Why::VirtualInterface,
        (ChainName::Prerouting, Verdict::Jump(ChainName::Inbound)) => Why::InboundEntry,
        (ChainName::Prerouting, Verdict::Return) => {
            let names = m.in_interface.as_ref().filter(|c| !c.negated)?;
            let of_vm = names.value.iter().all(|i| facts.virtual_interfaces.contains(i));
            if of_vm { Why::VirtualInterfaceRest } else { Why::ExcludedInterface }
        }
        (ChainName::Output, Verdict::Jump(ChainName::OutputMain)) => Why::OutboundEntry,
        (ChainName::Output, Verdict::Return) if m.out_interface.is_some() => Why::ExcludedInterface,
        (ChainName::Inbound, Verdict::Return) if first => Why::TunnelPort,
        (ChainName::Inbound, Verdict::Return) => Why::ExcludedInboundPort,
        (ChainName::Inbound, Verdict::Jump(ChainName::InRedirect)) if m.destination_port.is_some() => Why::InboundPort,
        (ChainName::Inbound, Verdict::Jump(ChainName::InRedirect)) => Why::AllInbound,
        (ChainName::InRedirect, Verdict::Redirect(_)) => Why::ToInboundProxy,
        (ChainName::Redirect, Verdict::Redirect(_)) => Why::ToOutboundProxy,
        (ChainName::OutputDns, Verdict::Redirect(Port::AGENT_DNS)) => Why::DnsToAgent,
        (ChainName::OutputMain, verdict) => return output_main(m, verdict, facts),
        _ => return None,
    })
}

fn output_main(m: &Matches, verdict: &Verdict, facts: &Facts) -> Option<Why> {
    let loopback = |m: &Matches| m.destination.as_ref().is_some_and(|c| !c.negated && c.value.has_loopback());
    Some(match verdict {
        Verdict::Jump(ChainName::InRedirect) => Why::AppToItself,
        Verdict::Jump(ChainName::OutputDns) => Why::DnsEntry,
        Verdict::Jump(ChainName::Redirect) if m.destination_port.is_some() => Why::IncludedPort,
        Verdict::Jump(ChainName::Redirect) if m.destination.is_some() => Why::IncludedRange,
        Verdict::Jump(ChainName::Redirect) => Why::AllOutbound,
        Verdict::Return if is_lo(&m.out_interface) && m.source.is_some() => Why::ProxyToApp,
        Verdict::Return if is_lo(&m.out_interface) => Why::LocalTraffic,
        Verdict::Return if m.destination_port.is_some() => Why::ExcludedOutboundPort,
        Verdict::Return => match (&m.uid, &m.gid, &m.destination) {
            (Some(uid), _, _) if facts.uids.contains(&uid.value) => Why::ProxyOwn,
            (Some(_), _, _) => Why::ExcludedUser,
            (_, Some(gid), _) if gid.negated => Why::NotIncludedGroup,
            (_, Some(gid), _) if facts.gids.contains(&gid.value) => Why::ProxyOwn,
            (_, Some(_), _) => Why::ExcludedGroup,
            (_, _, Some(_)) if loopback(m) => Why::Loopback,
            (_, _, Some(_)) => Why::ExcludedRange,
            _ => Why::NotIncludedGroup,
        },
        _ => return None,
    })
}
