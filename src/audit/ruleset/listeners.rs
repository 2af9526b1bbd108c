//! Who listens where packets are redirected to: the proxy's inbound port, its outbound port,
//! or its DNS.

use std::sync::Arc;

use crate::config::ambient::{INBOUND_PORT, OUTBOUND_PORT};
use crate::config::ranges::RangeList;
use crate::config::types::{Family, Port};
use crate::plan::canon::CanonMatches;
use crate::plan::model::{ChainName, Cond, Matches, Verdict, protocol};

use super::{ChainRules, FamilyRules, Ruleset};
use crate::audit::flow::Taker;

/// A port on which the proxy listens.
#[derive(Debug, Clone)]
pub struct ProxyListener {
    pub port: u16,
    pub taker: Taker,
    /// The conditions on packets that are addressed to the port.
    pub asked: CanonMatches,
}

impl ProxyListener {
    fn all_of(ports: &[(u16, Taker)], family: Family) -> Vec<Self> {
        let listener = |&(port, taker): &(u16, Taker)| {
            let ports = Some(Cond::is(RangeList::of([port])));
            let tcp = Some(Cond::is(RangeList::of([protocol::TCP])));
            let to_port = Matches { protocol: tcp, destination_port: ports, ..Matches::default() };
            Some(Self { port, taker, asked: CanonMatches::of(&to_port, family)? })
        };
        ports.iter().filter_map(listener).collect()
    }
}

impl ChainRules {
    /// Who listens on a port that one of the chain's rules redirects to.
    pub fn listener_on(&self, port: Port) -> Taker {
        if let Some(expected) = &self.expected {
            let known = expected.iter().find(|(known, _)| *known == port.get());
            return known.map_or(Taker::Direct, |(_, taker)| *taker);
        }
        match self.name {
            ChainName::InRedirect | ChainName::Redirect | ChainName::OutputDns => self.listener,
            // ztunnel listens where it does, whichever rule leads there.
            ChainName::AmbientIn | ChainName::OutputMain => ztunnel(port).unwrap_or(Taker::Unknown),
            _ => match &self.proxy_ports {
                // On another port listens nobody knows who.
                Some(ports) => {
                    let known = ports.iter().find(|(known, _)| *known == port.get());
                    known.map_or(Taker::Unknown, |(_, taker)| *taker)
                }
                None if port == Port::AGENT_DNS => Taker::DnsProxy,
                None => self.listener,
            },
        }
    }
}

impl ChainRules {
    /// Who listens on a port that a rule of an interception's own chain redirects to.
    fn own_listener(&self, port: Port) -> Taker {
        match self.name {
            ChainName::AmbientIn | ChainName::OutputMain => ztunnel(port).unwrap_or(self.listener),
            _ => self.listener,
        }
    }
}

impl FamilyRules {
    /// The ports that an interception's own chains redirect to, and who listens there.
    fn proxy_ports(&self) -> impl Iterator<Item = (u16, Taker)> {
        let own = self.chains.iter().filter(|chain| chain.name.is_own());
        own.flat_map(|chain| {
            chain.rules.iter().filter_map(|rule| match &rule.verdict {
                Verdict::Redirect(port) => Some((port.get(), chain.own_listener(*port))),
                Verdict::Tproxy { port, .. } => Some((port.get(), Taker::InboundProxy)),
                _ => None,
            })
        })
    }

    /// Ports that any chain redirects connections to, and who listens there.
    fn redirected_to(&mut self, proxy_ports: &Arc<[(u16, Taker)]>, out: &mut Vec<(u16, Taker)>) {
        for chain in &mut self.chains {
            if !proxy_ports.is_empty() && !chain.name.is_own() {
                chain.proxy_ports = Some(proxy_ports.clone());
            }
            for rule in &chain.rules {
                match &rule.verdict {
                    Verdict::Redirect(port) if rule.matches.protocol.holds(protocol::TCP) => {
                        let taker = chain.listener_on(*port);
                        out.extend((taker != Taker::Unknown).then_some((port.get(), taker)));
                    }
                    Verdict::Tproxy { port, .. } => out.push((port.get(), Taker::InboundProxy)),
                    _ => {}
                }
            }
        }
    }
}

impl Ruleset {
    /// Finds the ports on which the proxy listens.
    pub(super) fn find_listeners(&mut self) {
        // A proxy listens in both families, whichever of them is redirected to it.
        let proxy_ports: Arc<[_]> = self.v4.proxy_ports().chain(self.v6.proxy_ports()).collect();
        let mut ports = Vec::new();
        self.v4.redirected_to(&proxy_ports, &mut ports);
        self.v6.redirected_to(&proxy_ports, &mut ports);
        ports.sort_unstable();
        ports.dedup();
        self.set_listeners(&ports);
    }

    fn set_listeners(&mut self, ports: &[(u16, Taker)]) {
        self.v4.listeners = ProxyListener::all_of(ports, Family::V4);
        self.v6.listeners = ProxyListener::all_of(ports, Family::V6);
    }

    /// Prepares two rulesets for a comparison: for both the proxy listens where these rules say, or else
    /// where the other ones do, even if the other ones redirect elsewhere.
    pub fn set_against(&mut self, other: &mut Self) {
        let joined = |mut ours: Vec<(u16, Taker)>, theirs: Vec<(u16, Taker)>| {
            let known: Vec<Taker> = ours.iter().map(|(_, taker)| *taker).collect();
            ours.extend(theirs.into_iter().filter(|(_, taker)| !known.contains(taker)));
            ours.sort_unstable();
            ours.dedup();
            ours
        };
        let ports = |rules: &Self| rules.v4.proxy_ports().chain(rules.v6.proxy_ports()).collect();
        let expected: Arc<[_]> = joined(ports(self), ports(other)).into();
        for chain in other.v4.chains.iter_mut().chain(&mut other.v6.chains).filter(|chain| chain.name.is_own()) {
            chain.expected = Some(expected.clone());
        }
        let ports = |rules: &Self| rules.v4.listeners.iter().map(|known| (known.port, known.taker)).collect();
        let listeners = joined(ports(self), ports(other));
        self.set_listeners(&listeners);
        other.set_listeners(&listeners);
    }
}

/// Which of the proxy's listeners a redirection leads to, by the chain it stands in.
pub fn redirect_taker(chain: &ChainName, port: Port) -> Taker {
    match chain {
        ChainName::InRedirect => Taker::InboundProxy,
        ChainName::OutputDns => Taker::DnsProxy,
        ChainName::AmbientIn | ChainName::OutputMain => ztunnel(port).unwrap_or(Taker::OutboundProxy),
        _ => Taker::OutboundProxy,
    }
}

/// The ztunnel listener on a port of an ambient pod.
fn ztunnel(port: Port) -> Option<Taker> {
    match port {
        INBOUND_PORT => Some(Taker::InboundProxy),
        OUTBOUND_PORT => Some(Taker::OutboundProxy),
        Port::AGENT_DNS => Some(Taker::DnsProxy),
        _ => None,
    }
}

/// Which of the proxy's listeners a redirection leads to: in an interception's chain by its
/// name, in a chain of somebody else's by whether inbound packets get there.
pub(super) fn by_chain(chain: &ChainName, inbound: bool) -> Taker {
    match chain {
        ChainName::InRedirect => Taker::InboundProxy,
        ChainName::OutputDns => Taker::DnsProxy,
        ChainName::Redirect => Taker::OutboundProxy,
        _ if inbound => Taker::InboundProxy,
        _ => Taker::OutboundProxy,
    }
}
