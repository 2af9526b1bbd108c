//! An ambient pod: ztunnel, which is in no container of the pod, has its listeners in the
//! pod's namespace and marks what it sends. Everything that is decided here is decided by
//! that mark, and not by who owns a socket.
//!
//! ztunnel connects to the app from the peer's own address. The app's answers go to that
//! address, and have to come back to ztunnel: its connections are marked in conntrack, the
//! answers take that mark over, and a routing table delivers what is so marked locally.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::ambient::{
    ANSWER_MARK, AmbientOptions, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, PROBE_SOURCE_V4, PROBE_SOURCE_V6, ROUTE_TABLE,
    TUNNEL_PORT, ZTUNNEL_MARK,
};
use crate::config::types::{Interface, Networks, Port};
use crate::plan::model::{ChainName, Dataplane, MarkRoute, Masked, Matches, Plan, Routing, Table, Verdict};
use crate::plan::why::Why;

use super::{Written, hosts};

const FROM_ZTUNNEL: Masked = Masked { value: ZTUNNEL_MARK, mask: MARK_MASK };
const ANSWER: Masked = Masked { value: ANSWER_MARK, mask: MARK_MASK };

/// The conntrack zone of ztunnel's own queries and the servers' answers to them.
const UPSTREAM: Verdict = Verdict::CtZone(1);

/// The plan for an ambient pod.
pub fn ambient(options: &AmbientOptions) -> Plan {
    let mut draft = Draft { options, written: Written::new(options.families) };
    if options.dns {
        draft.dns_zones();
    }
    draft.connection_marks();
    draft.inbound();
    draft.outbound();
    let mut routing = Routing::default();
    for family in options.families.iter() {
        routing.rules.push(MarkRoute { family, mark: ANSWER, table: ROUTE_TABLE });
        routing.routes.push((family, ROUTE_TABLE));
    }
    draft.written.into_plan(Dataplane::Ambient, routing)
}

/// Where the node's probes come from.
fn probe_source() -> Networks {
    hosts(PROBE_SOURCE_V4, PROBE_SOURCE_V6)
}

/// The addresses at which the pod talks to itself: one for each family, since the app may be reached at
/// all others of 127.0.0.0/8.
fn loopback() -> Networks {
    hosts(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
}

struct Draft<'a> {
    options: &'a AmbientOptions,
    written: Written,
}

impl Draft<'_> {
    fn rule(&mut self, table: Table, chain: ChainName, matches: Matches, verdict: Verdict, why: Why) {
        self.written.rule_for(self.options.families, table, chain, matches, verdict, why);
    }

    fn came_in(&mut self, table: Table, matches: Matches, verdict: Verdict, why: Why) {
        self.enter(table, ChainName::Prerouting, ChainName::AmbientIn);
        self.rule(table, ChainName::AmbientIn, matches, verdict, why);
    }

    fn sent(&mut self, table: Table, matches: Matches, verdict: Verdict, why: Why) {
        self.enter(table, ChainName::Output, ChainName::OutputMain);
        self.rule(table, ChainName::OutputMain, matches, verdict, why);
    }

    /// Adds the jump from a hook to one of the ambient chains, once.
    fn enter(&mut self, table: Table, hook: ChainName, chain: ChainName) {
        if !self.written.chains.iter().any(|c| c.table == table && c.name == hook) {
            self.rule(table, hook, Matches::any(), Verdict::Jump(chain), Why::AmbientEntry);
        }
    }

    /// Puts ztunnel's queries in a conntrack zone of their own (table raw): the app's query to the same
    /// server may have the same 5-tuple, and both would overwrite each other's entry.
    fn dns_zones(&mut self) {
        let query = Matches::udp().marked(FROM_ZTUNNEL).port(Port::DNS);
        self.sent(Table::Raw, query, UPSTREAM, Why::DnsZoneZtunnel);
        let answer = Matches::udp().not_marked(FROM_ZTUNNEL).by_port(Port::DNS);
        self.came_in(Table::Raw, answer, UPSTREAM, Why::DnsZoneZtunnelAnswer);
    }

    fn connection_marks(&mut self) {
        let from_ztunnel = Matches::any().marked(FROM_ZTUNNEL);
        let mark = Verdict::SetConnectionMark(ANSWER);
        self.came_in(Table::Mangle, from_ztunnel, mark, Why::ZtunnelConnection);
        let answers = Matches::any().of_connection_marked(ANSWER);
        self.sent(Table::Mangle, answers, Verdict::RestoreMark, Why::ZtunnelAnswer);
    }

    fn inbound(&mut self) {
        // The chain is there in ingress mode too, without rules.
        self.enter(Table::Nat, ChainName::Prerouting, ChainName::AmbientIn);
        self.written.chain(Table::Nat, ChainName::AmbientIn);
        // A virtual machine's traffic comes in where a peer's does, and is outbound: before
        // anything that is said of inbound traffic.
        for interface in &self.options.virtual_interfaces {
            let from_machine = || Matches::tcp().in_by(vec![interface.clone()]);
            self.came_in(Table::Nat, from_machine(), Verdict::Redirect(OUTBOUND_PORT), Why::VirtualInterface);
            self.came_in(Table::Nat, from_machine(), Verdict::Return, Why::VirtualInterfaceRest);
        }
        if self.options.ingress {
            return;
        }
        let probe = Matches::tcp().from(probe_source());
        self.came_in(Table::Nat, probe, Verdict::Accept, Why::ProbeIn);
        let others = Matches::tcp().not_to(loopback()).not_ports([TUNNEL_PORT]).not_marked(FROM_ZTUNNEL);
        self.came_in(Table::Nat, others, Verdict::Redirect(INBOUND_PORT), Why::ToZtunnelInbound);
    }

    fn outbound(&mut self) {
        let lo = || vec![Interface::lo()];
        let probe = Matches::tcp().to(probe_source());
        self.sent(Table::Nat, probe, Verdict::Accept, Why::ProbeAnswer);
        if self.options.dns {
            // Before the exception for what goes out of lo: a resolver at another address of
            // 127.0.0.0/8 is asked by way of ztunnel too, over TCP.
            let to_ztunnel = Verdict::Redirect(Port::AGENT_DNS);
            let udp = Matches::udp().not_out_by(lo()).not_marked(FROM_ZTUNNEL).port(Port::DNS);
            self.sent(Table::Nat, udp, to_ztunnel.clone(), Why::DnsToZtunnel);
            let tcp = Matches::tcp().not_to(loopback()).not_marked(FROM_ZTUNNEL).port(Port::DNS);
            self.sent(Table::Nat, tcp, to_ztunnel, Why::DnsToZtunnel);
        }
        let answers = Matches::tcp().marked(ANSWER);
        self.sent(Table::Nat, answers, Verdict::Accept, Why::ZtunnelAnswer);
        let itself = Matches::any().not_to(loopback()).out_by(lo());
        self.sent(Table::Nat, itself, Verdict::Accept, Why::LocalTraffic);
        let others = Matches::tcp().not_to(loopback()).not_marked(FROM_ZTUNNEL);
        self.sent(Table::Nat, others, Verdict::Redirect(OUTBOUND_PORT), Why::ToZtunnelOutbound);
    }
}
