//! Reasons for rules that carry none: iptables rules usually have no comment, and those
//! of istio-iptables never do. A reason is given only to a rule that some plan has in just
//! this form and in this place among the others; whatever else stands there is somebody
//! else's, and stays without one:
//!
//! - in a table whose other rules say their reasons, one that does not is of another hand;
//! - a rule asks neither more nor less than the plan's (the lists of [`Ask`]s below);
//! - it stands where the plan's would ([`order`]): an exclusion does not come behind the
//!   rule that takes everything;
//! - what the plan writes twice is there twice: a port left alone for TCP and for UDP, an
//!   interface both ways.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::ranges::RangeList;
use crate::config::types::{Family, Interface, Mark, Networks, Port, PortList};

use super::ask::{Ask, asks};
use super::model::{Chain, ChainName, Cond, Matches, Rule, Table, Verdict};
use super::order;
use super::why::Why;

/// Gives rules without a comment the reason that they must have, if they have one.
pub fn infer(chains: &mut [Chain]) {
    let says = |rule: &Rule| !matches!(rule.why, Why::Foreign(_));
    let commented: HashSet<Table> =
        chains.iter().filter(|chain| chain.rules.iter().any(says)).map(|chain| chain.table).collect();
    if chains.iter().all(|chain| commented.contains(&chain.table)) {
        return;
    }
    let facts = Facts::of(chains);
    let guess = |chain: &Chain, at: usize, rule: &Rule| {
        let nameless = rule.why == Why::Foreign("".into()) && !commented.contains(&chain.table);
        nameless.then(|| why(chain.table, &chain.name, rule, at == 0, &facts))?
    };
    let of_chain = |chain: &Chain| {
        let mut reasons: Vec<_> = chain.rules.iter().enumerate().map(|(at, rule)| guess(chain, at, rule)).collect();
        for family in Family::BOTH {
            order::keep_ordered(chain, family, &mut reasons);
        }
        reasons
    };
    let mut reasons: Vec<Vec<Option<Why>>> = chains.iter().map(of_chain).collect();
    without_twin(chains, &facts, &mut reasons);
    for (chain, reasons) in chains.iter_mut().zip(reasons) {
        for (rule, why) in chain.rules.iter_mut().zip(reasons) {
            rule.why = why.unwrap_or_else(|| rule.why.clone());
        }
    }
}

/// Takes the reason from rules of which the plan would have written a second one.
fn without_twin(chains: &[Chain], facts: &Facts, reasons: &mut [Vec<Option<Why>>]) {
    let mut seen = HashSet::new();
    let halves = |chain: &Chain, rule: &Rule, why: &Why| -> Vec<(Half, Half)> {
        let m = &rule.matches;
        let half = |of: Of, ask: Ask, family| Half { table: chain.table, family, of, ask };
        let pair = |of: Of, one, other| {
            let both = |family| (half(of.clone(), one, family), half(of.clone(), other, family));
            rule.families.iter().map(both).collect::<Vec<_>>()
        };
        match (why, &m.destination_port, &m.in_interface, &m.out_interface, asks(m).first()) {
            (Why::ExcludedOutboundPort, Some(ports), .., Some(Ask::Tcp)) => {
                pair(Of::Ports(ports.value.clone()), Ask::Tcp, Ask::Udp)
            }
            (Why::ExcludedOutboundPort, Some(ports), .., Some(Ask::Udp)) => {
                pair(Of::Ports(ports.value.clone()), Ask::Udp, Ask::Tcp)
            }
            (Why::ExcludedInterface, _, Some(names), ..) => pair(Of::Names(names.value.clone()), Ask::In, Ask::Out),
            (Why::ExcludedInterface, _, _, Some(names), _) => pair(Of::Names(names.value.clone()), Ask::Out, Ask::In),
            // One of the two may be taken for a virtual machine's, if the interface is both.
            (Why::VirtualInterfaceRest, _, Some(names), ..) => pair(Of::Names(names.value.clone()), Ask::In, Ask::In),
            _ => Vec::new(),
        }
    };
    for (chain, reasons) in chains.iter().zip(&*reasons) {
        for (rule, why) in chain.rules.iter().zip(reasons) {
            let own = why.iter().flat_map(|why| halves(chain, rule, why)).map(|(own, _)| own);
            seen.extend(own);
        }
    }
    for (chain, reasons) in chains.iter().zip(reasons) {
        for (rule, reason) in chain.rules.iter().zip(reasons) {
            let lacks = |why: &Why| halves(chain, rule, why).iter().any(|(_, other)| !seen.contains(other));
            if reason.as_ref().is_some_and(lacks) {
                // Of a virtual machine's interface, where no range is taken, only this is left.
                let of_vm = chain.table == Table::Nat && rule.matches.in_interface.is_some() && !facts.takes_ranges;
                *reason = of_vm.then_some(Why::VirtualInterfaceRest);
            }
        }
    }
}

/// One of two rules that a plan writes together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Half {
    table: Table,
    family: Family,
    of: Of,
    ask: Ask,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Of {
    Ports(PortList),
    Names(Vec<Interface>),
}

/// What one rule tells about another.
struct Facts {
    /// Owners of the proxy: those whose calls to themselves go back in.
    uids: Vec<RangeList<u32>>,
    gids: Vec<RangeList<u32>>,
    virtual_interfaces: Vec<Interface>,
    /// Ports, each by itself, that the proxy's calls to the pod's own service leave alone.
    tunnel: Vec<PortList>,
    /// Some destinations are redirected whichever their port.
    takes_ranges: bool,
}

impl Facts {
    fn of(chains: &[Chain]) -> Self {
        let mut facts = Self {
            uids: Vec::new(),
            gids: Vec::new(),
            virtual_interfaces: Vec::new(),
            tunnel: Vec::new(),
            takes_ranges: false,
        };
        let to_proxy =
            |rule: &Rule| rule.verdict == Verdict::Jump(ChainName::Redirect) && rule.matches.destination_port.is_none();
        let main = chains.iter().filter(|c| c.table == Table::Nat && c.name == ChainName::OutputMain);
        facts.takes_ranges = main.flat_map(|c| &c.rules).any(to_proxy);
        for rule in chains.iter().filter(|c| c.table == Table::Nat).flat_map(|c| &c.rules) {
            let m = &rule.matches;
            match &rule.verdict {
                Verdict::Jump(ChainName::InRedirect) => {
                    facts.uids.extend(m.uid.iter().map(|c| c.value.clone()));
                    facts.gids.extend(m.gid.iter().map(|c| c.value.clone()));
                    let left = m.destination_port.iter().filter(|c| c.negated).flat_map(|c| c.value.iter());
                    facts.tunnel.extend(
                        left.flat_map(|(first, last)| first..=last)
                            .filter(|port| *port != Port::DNS.get())
                            .map(|port| PortList::of([port])),
                    );
                }
                Verdict::Jump(ChainName::Redirect) => {
                    facts.virtual_interfaces.extend(m.in_interface.iter().flat_map(|c| c.value.clone()));
                }
                _ => {}
            }
        }
        facts.tunnel.sort();
        facts.tunnel.dedup();
        facts
    }
}

fn is_agent(port: Port) -> bool {
    port == Port::AGENT_DNS
}

/// Whether the conditions are of one of these forms.
fn is(m: &Matches, forms: &[&[Ask]]) -> bool {
    let asks = asks(m);
    forms.contains(&&asks[..])
}

fn ports_are(cond: &Option<Cond<PortList>>, port: Port) -> bool {
    cond.as_ref().is_some_and(|cond| cond.value.normalised() == PortList::of([port.get()]))
}

fn why(table: Table, chain: &ChainName, rule: &Rule, first: bool, facts: &Facts) -> Option<Why> {
    match table {
        Table::Raw => raw(chain, rule),
        Table::Mangle => mangle(chain, rule),
        Table::Nat => nat(chain, rule, first, facts),
    }
}

fn raw(chain: &ChainName, rule: &Rule) -> Option<Why> {
    use Ask::{From, FromPort, Group, To, Udp, User};
    use ChainName as C;
    let m = &rule.matches;
    let (query, answer) = (ports_are(&m.destination_port, Port::DNS), ports_are(&m.source_port, Port::DNS));
    let from_agent = ports_are(&m.source_port, Port::AGENT_DNS);
    let (why, forms): (Why, &[&[Ask]]) = match (chain, &rule.verdict) {
        (C::Prerouting, Verdict::Jump(C::Inbound)) => (Why::DnsEntry, &[&[]]),
        (C::Output, Verdict::Jump(C::OutputDns)) => (Why::DnsEntry, &[&[]]),
        (C::Inbound, Verdict::CtZone(1)) if answer => (Why::DnsZoneAnswer, &[&[Udp, FromPort], &[Udp, From, FromPort]]),
        (C::OutputDns, Verdict::CtZone(1)) if query => {
            (Why::DnsZoneUpstream, &[&[Udp, Ask::Port, User], &[Udp, Ask::Port, Group]])
        }
        (C::OutputDns, Verdict::CtZone(2)) if query => {
            (Why::DnsZoneClient, &[&[Udp, Ask::Port], &[Udp, To, Ask::Port]])
        }
        (C::OutputDns, Verdict::CtZone(2)) if from_agent => {
            (Why::DnsZoneClient, &[&[Udp, FromPort, User], &[Udp, FromPort, Group]])
        }
        _ => return None,
    };
    is(m, forms).then_some(why)
}

fn mangle(chain: &ChainName, rule: &Rule) -> Option<Why> {
    use Ask::*;
    use ChainName as C;
    let m = &rule.matches;
    let (why, forms): (Why, &[&[Ask]]) = match (chain, &rule.verdict) {
        (C::Prerouting, Verdict::Return) => (Why::ExcludedInterface, &[&[In], &[InLo]]),
        (C::Prerouting, Verdict::Jump(C::Drop)) => (Why::InvalidEntry, &[&[State]]),
        (C::Prerouting, Verdict::Jump(C::Inbound)) => (Why::InboundEntry, &[&[Tcp]]),
        (C::Prerouting, Verdict::SaveMark) => (Why::TproxySaveMark, &[&[Tcp, Marked]]),
        (C::Output, Verdict::Return) if m.mark.is_some() => (Why::TproxyProxyMarked, &[&[Tcp, OutLo, Marked]]),
        (C::Output, Verdict::Return) => (Why::ExcludedInterface, &[&[Out], &[OutLo]]),
        (C::Output, Verdict::SetMark(mark)) if *mark == Mark::OUTBOUND.into() => {
            (Why::TproxyProxyOut, &[&[Tcp, NotTo, OutLo, User], &[Tcp, NotTo, OutLo, Group]])
        }
        (C::Output, Verdict::RestoreMark) => (Why::TproxyRestoreMark, &[&[Tcp, ConnectionMarked]]),
        (C::Inbound, Verdict::Return) => match &m.mark {
            Some(mark) if mark.negated => (Why::TproxyLocal, &[&[Tcp, InLo, NotMarked]]),
            Some(_) => (Why::TproxyMarked, &[&[Tcp, Marked]]),
            None if m.source.is_some() => (Why::TproxyProxyToApp, &[&[Tcp, From, InLo]]),
            None => (Why::ExcludedInboundPort, &[&[Tcp, Port]]),
        },
        (C::Inbound, Verdict::Jump(C::Divert)) => (Why::TproxyEstablished, &[&[Tcp, State], &[Tcp, Port, State]]),
        (C::Inbound, Verdict::Jump(C::Tproxy)) => (Why::TproxyNew, &[&[Tcp], &[Tcp, Port]]),
        (C::Divert, Verdict::SetMark(_)) => (Why::TproxyDivertMark, &[&[]]),
        (C::Divert, Verdict::Accept) => (Why::TproxyDivertAccept, &[&[]]),
        (C::Tproxy, Verdict::Tproxy { .. }) => (Why::TproxyHandOver, &[&[Tcp, NotTo]]),
        (C::Drop, Verdict::Drop) => (Why::InvalidDrop, &[&[]]),
        _ => return None,
    };
    is(m, forms).then_some(why)
}

fn nat(chain: &ChainName, rule: &Rule, first: bool, facts: &Facts) -> Option<Why> {
    use Ask::*;
    use ChainName as C;
    let m = &rule.matches;
    let (why, forms): (Why, &[&[Ask]]) = match (chain, &rule.verdict) {
        (C::Prerouting, Verdict::Jump(C::Redirect)) => {
            (Why::VirtualInterface, &[&[In], &[InLo], &[To, In], &[To, InLo]])
        }
        (C::Prerouting, Verdict::Jump(C::Inbound)) => (Why::InboundEntry, &[&[Tcp]]),
        (C::Prerouting, Verdict::Return) => {
            let names = m.in_interface.as_ref()?;
            let of_vm = names.value.iter().all(|i| facts.virtual_interfaces.contains(i));
            (if of_vm { Why::VirtualInterfaceRest } else { Why::ExcludedInterface }, &[&[In], &[InLo]])
        }
        // Until 1.13 istio-iptables looked at TCP only.
        (C::Output, Verdict::Jump(C::OutputMain)) => (Why::OutboundEntry, &[&[], &[Tcp]]),
        (C::Output, Verdict::Return) => (Why::ExcludedInterface, &[&[Out], &[OutLo]]),
        (C::Inbound, Verdict::Return) => {
            let ports = m.destination_port.as_ref()?;
            let tunnel = match &facts.tunnel[..] {
                // Without a loop rule nothing else tells the port.
                [] => first,
                known => known.contains(&ports.value.normalised()),
            };
            (if tunnel { Why::TunnelPort } else { Why::ExcludedInboundPort }, &[&[Tcp, Port]])
        }
        (C::Inbound, Verdict::Jump(C::InRedirect)) if m.destination_port.is_some() => {
            (Why::InboundPort, &[&[Tcp, Port]])
        }
        (C::Inbound, Verdict::Jump(C::InRedirect)) => (Why::AllInbound, &[&[Tcp]]),
        (C::InRedirect, Verdict::Redirect(_)) => (Why::ToInboundProxy, &[&[Tcp]]),
        (C::Redirect, Verdict::Redirect(_)) => (Why::ToOutboundProxy, &[&[Tcp]]),
        (C::OutputDns, Verdict::Redirect(to)) if is_agent(*to) => {
            (Why::DnsToAgent, &[&[Tcp, Port], &[Udp, Port], &[Tcp, To, Port], &[Udp, To, Port]])
        }
        (C::OutputMain, verdict) => return output_main(m, verdict, facts),
        _ => return None,
    };
    is(m, forms).then_some(why)
}

fn output_main(m: &Matches, verdict: &Verdict, facts: &Facts) -> Option<Why> {
    use Ask::*;
    let loopback = m.destination.as_ref().is_some_and(|c| c.value.has_loopback());
    let of_proxy = |of: &[RangeList<u32>], cond: &Option<Cond<RangeList<u32>>>| {
        cond.as_ref().is_some_and(|cond| of.contains(&cond.value))
    };
    let (why, forms): (Why, &[&[Ask]]) = match verdict {
        // Without a protocol: istio-iptables before it left the tunnel port alone.
        Verdict::Jump(ChainName::InRedirect) => (
            Why::AppToItself,
            &[
                &[Tcp, NotTo, NotPort, OutLo, User],
                &[Tcp, NotTo, NotPort, OutLo, Group],
                &[NotTo, OutLo, User],
                &[NotTo, OutLo, Group],
            ],
        ),
        Verdict::Jump(ChainName::OutputDns) => (Why::DnsEntry, &[&[]]),
        Verdict::Jump(ChainName::Redirect) if m.destination_port.is_some() => (Why::IncludedPort, &[&[Tcp, Port]]),
        Verdict::Jump(ChainName::Redirect) if m.destination.is_some() => (Why::IncludedRange, &[&[To]]),
        Verdict::Jump(ChainName::Redirect) => (Why::AllOutbound, &[&[]]),
        Verdict::Return if m.source.is_some() => {
            let ours = m.source.as_ref().is_some_and(|cond| mesh_source(&cond.value));
            (Why::ProxyToApp, if ours { &[&[From, OutLo]] } else { &[] })
        }
        Verdict::Return if m.out_interface.is_some() => (
            Why::LocalTraffic,
            &[&[OutLo, NotUser], &[OutLo, NotGroup], &[Tcp, NotPort, OutLo, NotUser], &[Tcp, NotPort, OutLo, NotGroup]],
        ),
        Verdict::Return if m.destination_port.is_some() => {
            (Why::ExcludedOutboundPort, &[&[Tcp, Port], &[Udp, Port], &[TcpAndUdp, Port]])
        }
        Verdict::Return if m.uid.is_some() => {
            (if of_proxy(&facts.uids, &m.uid) { Why::ProxyOwn } else { Why::ExcludedUser }, &[&[User]])
        }
        Verdict::Return if m.gid.as_ref().is_some_and(|cond| !cond.negated) => {
            (if of_proxy(&facts.gids, &m.gid) { Why::ProxyOwn } else { Why::ExcludedGroup }, &[&[Group]])
        }
        Verdict::Return if m.destination.is_some() && loopback => (Why::Loopback, &[&[To]]),
        Verdict::Return if m.destination.is_some() => (Why::ExcludedRange, &[&[To]]),
        Verdict::Return => (Why::NotIncludedGroup, &[&[NotGroup], &[]]),
        _ => return None,
    };
    is(m, forms).then_some(why)
}

/// 127.0.0.6, ::6 or both.
fn mesh_source(networks: &Networks) -> bool {
    let v4 = networks.v4.iter().all(|net| *net == Ipv4Net::from(Ipv4Addr::new(127, 0, 0, 6)));
    let v6 = networks.v6.iter().all(|net| *net == Ipv6Net::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)));
    v4 && v6
}
