//! DNS capture: queries go to the agent, and two conntrack zones keep the app's
//! query and the agent's own query to the same server apart (they may share one
//! 5-tuple, and would overwrite each other's entry).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::interception::DnsCapture;
use crate::config::types::{Families, Networks, Port};
use crate::plan::model::{ChainName, Matches, Table, Verdict};
use crate::plan::why::Why;

use super::{Draft, Owner};

/// The conntrack zone of the agent's own queries and the servers' answers to them.
const UPSTREAM: Verdict = Verdict::CtZone(1);
/// The conntrack zone of the app's queries and the agent's answers to them.
const CLIENT: Verdict = Verdict::CtZone(2);

/// The captured servers, or `None` for all; with the families in which any is captured.
fn servers(dns: &DnsCapture) -> (Option<Networks>, Families) {
    match dns {
        DnsCapture::All => (None, Families::BOTH),
        DnsCapture::Servers { v4, v6 } => {
            let v4s = v4.iter().map(|&a| IpNet::from(IpAddr::V4(a)));
            let v6s = v6.iter().map(|&a| IpNet::from(IpAddr::V6(a)));
            let families = Families { v4: !v4.is_empty(), v6: !v6.is_empty() };
            (Some(v4s.chain(v6s).collect()), families)
        }
    }
}

/// The nat rules that redirect port 53 to the agent, first for TCP, then for UDP.
pub(super) fn redirect(draft: &mut Draft) {
    let Some(dns) = &draft.interception.dns else { return };
    let (servers, families) = servers(dns);
    let entry = Verdict::Jump(ChainName::OutputDns);
    draft.rule_for(families, Table::Nat, ChainName::OutputMain, Matches::any(), entry, Why::DnsEntry);
    for protocol in [Matches::tcp(), Matches::udp()] {
        let query = protocol.port(Port::DNS);
        let query = match &servers {
            Some(servers) => query.to(servers.clone()),
            None => query,
        };
        let to_agent = Verdict::Redirect(Port::AGENT_DNS);
        draft.rule(Table::Nat, ChainName::OutputDns, query, to_agent, Why::DnsToAgent);
    }
}

/// raw: the zones. The proxy's come first, because the first rule that gives a packet a
/// zone wins: iptables' CT target and nftables' `ct zone set` leave one that is there.
pub(super) fn zones(draft: &mut Draft) {
    let Some(dns) = &draft.interception.dns else { return };
    let (servers, families) = servers(dns);
    let out = ChainName::OutputDns;
    let entry = Verdict::Jump(ChainName::OutputDns);
    draft.rule(Table::Raw, ChainName::Output, Matches::any(), entry, Why::DnsEntry);
    for owner in Owner::of_proxy(draft.interception) {
        let query = Matches::udp().port(Port::DNS).owned_by(owner);
        let answer = Matches::udp().by_port(Port::AGENT_DNS).owned_by(owner);
        draft.rule(Table::Raw, out.clone(), query, UPSTREAM, Why::DnsZoneUpstream);
        draft.rule(Table::Raw, out.clone(), answer, CLIENT, Why::DnsZoneClient);
    }
    let entry = Verdict::Jump(ChainName::Inbound);
    draft.rule_for(families, Table::Raw, ChainName::Prerouting, Matches::any(), entry, Why::DnsEntry);
    let query = Matches::udp().port(Port::DNS);
    let answer = Matches::udp().by_port(Port::DNS);
    let (query, answer) = match servers {
        Some(servers) => (query.to(servers.clone()), answer.from(servers)),
        None => (query, answer),
    };
    draft.rule(Table::Raw, out, query, CLIENT, Why::DnsZoneClient);
    draft.rule(Table::Raw, ChainName::Inbound, answer, UPSTREAM, Why::DnsZoneAnswer);
}
