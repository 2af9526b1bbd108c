//! The options that a builder must have been given to write the rules that were found, from which
//! reasons for rules without a comment are inferred. Foreign rules among a builder's may be taken for
//! the builder's too: what the plan then holds in another form or place has no counterpart, and no harm
//! is done. Where the rules can be read in two ways, both are given.

use ipnet::{Ipv4Net, Ipv6Net};

use crate::config::ambient::{AmbientOptions, INBOUND_PORT, OUTBOUND_PORT};
use crate::config::interception::{DnsCapture, Interception, OwnerGroups};
use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{
    Families, Family, IdList, Interface, Mark, Mode, Networks, Port, PortList, PortSelection, RangeSelection,
    RouteTable,
};

use super::build;
use super::found::CandidateRules;
use super::model::{ChainName as C, Cond, Matches, Plan, Rule, Table, Verdict, protocol};
use super::why::Why;

/// How many different readings of one option are tried, and how many ids or hosts a range
/// may stand for: more is no interception's.
const MOST_READINGS: usize = 4;
const MOST_ITEMS: usize = 65_536;

/// The plans of sidecars' interceptions by which a family may have these rules.
pub(super) fn sidecar(rules: &CandidateRules, family: Family) -> Vec<Plan> {
    let read = Sidecar { rules, family };
    let mut plans = Vec::new();
    for mode in read.modes() {
        for inbound_ports in read.inbound_ports(mode) {
            for outbound_ranges in read.outbound_ranges() {
                for owner_groups in read.owner_groups() {
                    let interception =
                        read.interception(mode, inbound_ports.clone(), outbound_ranges.clone(), owner_groups);
                    let mut plan = build(&interception);
                    read.spell_as_found(&mut plan);
                    plans.push(plan);
                }
            }
        }
    }
    plans
}

/// The plan of an ambient pod by which a family may have these rules; none if they are no such pod's.
pub(super) fn ambient(rules: &CandidateRules, family: Family) -> Vec<Plan> {
    let redirects =
        |chain, port: Port| rules.of(Table::Nat, chain).filter(move |rule| rule.verdict == Verdict::Redirect(port));
    let mut virtual_interfaces: Vec<Interface> = Vec::new();
    for rule in redirects(C::AmbientIn, OUTBOUND_PORT) {
        virtual_interfaces.extend(is(&rule.matches.in_interface).into_iter().flatten().cloned());
    }
    let options = AmbientOptions {
        families: Families::only(family),
        dns: redirects(C::OutputMain, Port::AGENT_DNS).next().is_some()
            || rules.of(Table::Raw, C::AmbientIn).next().is_some(),
        ingress: redirects(C::AmbientIn, INBOUND_PORT).next().is_none(),
        virtual_interfaces,
    };
    let plan = build::ambient(&options);
    // Its rules are in a chain that a sidecar has none of.
    let is_there = Table::ALL.iter().any(|table| rules.of(*table, C::AmbientIn).next().is_some());
    if is_there { vec![plan] } else { Vec::new() }
}

#[derive(Clone, Copy)]
struct Sidecar<'a> {
    rules: &'a CandidateRules<'a>,
    family: Family,
}

impl<'a> Sidecar<'a> {
    fn nat(self, chain: C) -> impl Iterator<Item = &'a Rule> {
        self.rules.of(Table::Nat, chain)
    }

    fn mangle(self, chain: C) -> impl Iterator<Item = &'a Rule> {
        self.rules.of(Table::Mangle, chain)
    }

    /// The conditions of those rules of ISTIO_OUTPUT that have a verdict.
    fn main(self, verdict: Verdict) -> impl Iterator<Item = &'a Matches> {
        self.nat(C::OutputMain).filter(move |rule| rule.verdict == verdict).map(|rule| &rule.matches)
    }

    fn interception(
        self,
        mode: Mode,
        inbound_ports: PortSelection,
        outbound_ranges: RangeSelection,
        owner_groups: OwnerGroups,
    ) -> Interception {
        let redirect = |rule: &Rule| match rule.verdict {
            Verdict::Redirect(port) if rule.matches == Matches::tcp() => Some(port),
            Verdict::Tproxy { port, .. } => Some(port),
            _ => None,
        };
        let inbound = self.nat(C::InRedirect).chain(self.mangle(C::Tproxy)).find_map(redirect);
        let (virtual_interfaces, exclude_interfaces) = self.interfaces(&outbound_ranges);
        let tunnel_port = self.tunnel_port();
        Interception {
            families: Families::only(self.family),
            outbound_port: self.nat(C::Redirect).find_map(redirect).unwrap_or(Port::literal(15001)),
            inbound_port: inbound.unwrap_or(Port::literal(15006)),
            tunnel_port,
            proxy_uids: self.proxy(|m| &m.uid),
            proxy_gids: self.proxy(|m| &m.gid),
            mode,
            inbound_ports,
            inbound_ports_exclude: self.inbound_ports_exclude(mode, tunnel_port),
            exclude_interfaces,
            virtual_interfaces,
            outbound_ranges,
            outbound_ranges_exclude: self.outbound_ranges_exclude(),
            outbound_ports: joined(self.main(Verdict::Jump(C::Redirect)).filter_map(|m| is(&m.destination_port))),
            outbound_ports_exclude: self.outbound_ports_exclude(),
            owner_groups,
            outbound_uids_exclude: joined(self.left_alone(|m| &m.uid).into_iter()),
            loopback: self.loopback(),
            dns: self.dns(),
            drop_invalid: self.mangle(C::Prerouting).any(|rule| rule.verdict == Verdict::Jump(C::Drop)),
            mark: self.mark(),
            route_table: RouteTable::new(133),
        }
    }

    fn modes(self) -> Vec<Mode> {
        let hands_over = |rule: &Rule| {
            matches!(
                rule.verdict,
                Verdict::Tproxy { .. }
                    | Verdict::SaveMark
                    | Verdict::RestoreMark
                    | Verdict::Jump(C::Inbound | C::Tproxy)
            )
        };
        let hooks = self.mangle(C::Prerouting).chain(self.mangle(C::Output));
        let tproxy = hooks.chain(self.mangle(C::Inbound)).chain(self.mangle(C::Tproxy)).any(hands_over);
        let redirect = !tproxy || self.nat(C::Inbound).any(|rule| rule.verdict == Verdict::Jump(C::InRedirect));
        let modes = [(redirect, Mode::Redirect), (tproxy, Mode::Tproxy)];
        modes.into_iter().filter(|(there, _)| *there).map(|(_, mode)| mode).collect()
    }

    fn inbound_ports(self, mode: Mode) -> Vec<PortSelection> {
        let (table, target) = match mode {
            Mode::Redirect => (Table::Nat, C::InRedirect),
            Mode::Tproxy => (Table::Mangle, C::Tproxy),
        };
        let taken = || self.rules.of(table, C::Inbound).filter(|rule| rule.verdict == Verdict::Jump(target.clone()));
        let ports = joined(taken().filter_map(|rule| is(&rule.matches.destination_port)));
        let enters = || self.rules.of(table, C::Prerouting).any(|rule| rule.verdict == Verdict::Jump(C::Inbound));
        // What leads into a chain in which nothing is taken any more was there for something.
        let all = taken().any(|rule| rule.matches == Matches::tcp()) || (ports.is_empty() && enters());
        either(all, PortSelection::All, !ports.is_empty(), PortSelection::Only(ports))
    }

    fn inbound_ports_exclude(self, mode: Mode, tunnel_port: Port) -> PortList {
        let table = if mode == Mode::Redirect { Table::Nat } else { Table::Mangle };
        let returned = self.rules.of(table, C::Inbound).filter(|rule| rule.verdict == Verdict::Return);
        let mut tunnel = (mode == Mode::Redirect).then_some(tunnel_port.get());
        let excluded = |ports: &&PortList| tunnel.take_if(|port| ports.single() == Some(*port)).is_none();
        joined(returned.filter_map(|rule| is(&rule.matches.destination_port)).filter(excluded))
    }

    /// The HBONE port, which the rule for calls of the pod to itself leaves alone, perhaps along with
    /// DNS.
    fn tunnel_port(self) -> Port {
        let left = || self.main(Verdict::Jump(C::InRedirect)).filter_map(|m| is_not(&m.destination_port));
        let single = left().find_map(RangeList::single);
        let beside_dns = || left().flat_map(items).find(|port| *port != Port::DNS.get());
        let returned = self.nat(C::Inbound).filter(|rule| rule.verdict == Verdict::Return);
        let first = returned.filter_map(|rule| is(&rule.matches.destination_port)?.single()).next();
        single.or_else(beside_dns).or(first).and_then(Port::new).unwrap_or(Port::literal(15008))
    }

    fn outbound_ranges(self) -> Vec<RangeSelection> {
        let taken = || self.main(Verdict::Jump(C::Redirect)).filter(|m| m.destination_port.is_none());
        let ranges = union(taken().filter_map(|m| is(&m.destination)));
        let all = taken().any(|m| *m == Matches::default());
        either(all, RangeSelection::All, !ranges.is_empty(), RangeSelection::Only(ranges))
    }

    fn outbound_ranges_exclude(self) -> Networks {
        let loopback = match self.family {
            Family::V4 => Networks { v4: vec![self.loopback()], v6: Vec::new() },
            Family::V6 => Networks { v4: Vec::new(), v6: vec![Ipv6Net::from(std::net::Ipv6Addr::LOCALHOST)] },
        };
        let mut loopback = Some(loopback.of(self.family));
        let excluded = |ranges: &&Networks| loopback.take_if(|loopback| ranges.of(self.family) == *loopback).is_none();
        union(self.main(Verdict::Return).filter_map(|m| is(&m.destination)).filter(excluded))
    }

    /// The excluded ports: each has a rule for TCP and one for UDP.
    fn outbound_ports_exclude(self) -> PortList {
        let of = |number: u8| {
            let protocol = move |m: &&Matches| is(&m.protocol).is_some_and(|numbers| numbers.contains(number));
            joined(self.main(Verdict::Return).filter(protocol).filter_map(|m| is(&m.destination_port)))
        };
        let mut udp: Vec<_> = of(protocol::UDP).iter().collect();
        of(protocol::TCP).iter().filter(|range| take_one(&mut udp, range)).collect()
    }

    /// The interfaces of virtual machines, and the excluded ones. Both return from PREROUTING; the
    /// excluded ones stand last, and return from OUTPUT as well.
    fn interfaces(self, ranges: &RangeSelection) -> (Vec<Interface>, Vec<Interface>) {
        let names = |table, hook, of: fn(&Matches) -> &Option<Cond<Vec<Interface>>>| -> Vec<Interface> {
            let returned = self.rules.of(table, hook).filter(|rule| rule.verdict == Verdict::Return);
            let returned = returned.filter(|rule| rule.matches.mark.is_none());
            returned.filter_map(|rule| is(of(&rule.matches))).flatten().cloned().collect()
        };
        let in_table = |table| {
            let mut out = names(table, C::Output, |m| &m.out_interface);
            let incoming = names(table, C::Prerouting, |m| &m.in_interface);
            let (mut excluded, others): (Vec<_>, Vec<_>) =
                incoming.into_iter().rev().partition(|interface| take_one(&mut out, interface));
            excluded.reverse();
            (others, excluded)
        };
        let (others, excluded) = in_table(Table::Nat);
        let excluded = if excluded.is_empty() { in_table(Table::Mangle).1 } else { excluded };
        let taken = self.nat(C::Prerouting).filter(|rule| rule.verdict == Verdict::Jump(C::Redirect));
        let mut taken: Vec<Interface> =
            taken.filter_map(|rule| is(&rule.matches.in_interface)).flatten().cloned().collect();
        // Where no range is taken nothing but the return tells of a virtual machine.
        let none_taken = matches!(ranges, RangeSelection::Only(ranges) if ranges.len_of(self.family) == 0);
        let others: Vec<_> = others.into_iter().filter(|name| none_taken || taken.contains(name)).collect();
        taken.dedup();
        taken.reverse();
        (if others.is_empty() { taken } else { others }, excluded)
    }

    /// The proxy's owners, as the rules about each of them name them.
    fn proxy(self, of: fn(&Matches) -> &Option<Cond<IdList>>) -> Vec<u32> {
        let ids = |owners: &mut dyn Iterator<Item = &Option<Cond<IdList>>>, negated| -> Vec<u32> {
            let ids = owners.flatten().filter(|cond| cond.negated == negated);
            ids.filter_map(|cond| cond.value.single()).collect()
        };
        let upstream = self.rules.of(Table::Raw, C::OutputDns).filter(|rule| rule.verdict == Verdict::CtZone(1));
        let marked = self.mangle(C::Output).filter(|rule| matches!(rule.verdict, Verdict::SetMark(_)));
        let local = self.main(Verdict::Return).filter(|m| m.out_interface.is_some());
        let named = [
            ids(&mut self.main(Verdict::Jump(C::InRedirect)).map(of), false),
            ids(&mut local.map(of), true),
            ids(&mut marked.map(|rule| of(&rule.matches)), false),
            ids(&mut upstream.map(|rule| of(&rule.matches)), false),
        ];
        named.into_iter().rev().max_by_key(Vec::len).unwrap_or_default()
    }

    /// The owners that are left alone. The proxy's own stand first, and are left out.
    fn left_alone(self, of: fn(&Matches) -> &Option<Cond<IdList>>) -> Vec<&'a IdList> {
        let mut proxy = self.proxy(of);
        let returned = self.main(Verdict::Return).filter_map(|m| is(of(m)));
        returned.filter(|ids| !ids.single().is_some_and(|id| take_one(&mut proxy, &id))).collect()
    }

    fn owner_groups(self) -> Vec<OwnerGroups> {
        let returned = self.main(Verdict::Return).filter(|m| m.out_interface.is_none());
        let included = returned.filter_map(|m| match is_not(&m.gid) {
            Some(gids) => Some(OwnerGroups::Only(items(gids).collect())),
            None => (*m == Matches::default()).then(|| OwnerGroups::Only(Vec::new())),
        });
        let mut out: Vec<OwnerGroups> = included.take(MOST_READINGS).collect();
        let excluded = self.left_alone(|m| &m.gid);
        if !excluded.is_empty() || out.is_empty() {
            out.push(OwnerGroups::Except(excluded.into_iter().flat_map(items).collect()));
        }
        out
    }

    fn loopback(self) -> Ipv4Net {
        let not_to = self.main(Verdict::Jump(C::InRedirect)).chain(self.mangle(C::Tproxy).map(|rule| &rule.matches));
        let not_to = not_to.filter_map(|m| is_not(&m.destination)?.v4.first());
        let to = self.main(Verdict::Return).filter_map(|m| is(&m.destination)?.v4.first());
        let local = not_to.chain(to).find(|net| net.network().is_loopback());
        local.copied().unwrap_or(Ipv4Net::from(std::net::Ipv4Addr::LOCALHOST))
    }

    fn mark(self) -> Mark {
        let handed = self.mangle(C::Tproxy).find_map(|rule| match rule.verdict {
            Verdict::Tproxy { mark, .. } => Some(mark),
            _ => None,
        });
        let matched = |m: &Matches| is(&m.mark).or(is(&m.connection_mark)).map(|mark| Mark::new(mark.value));
        let saved = || {
            let rules = self.mangle(C::Prerouting).chain(self.mangle(C::Output));
            rules.chain(self.mangle(C::Inbound)).find_map(|rule| matched(&rule.matches))
        };
        handed.or_else(saved).unwrap_or(Mark::new(1337))
    }

    fn dns(self) -> Option<DnsCapture> {
        let query = |m: &&Matches| is(&m.destination_port).and_then(RangeList::single) == Some(Port::DNS.get());
        let nat = self.nat(C::OutputDns).filter(|rule| rule.matches.protocol == Matches::tcp().protocol);
        let raw = self.rules.of(Table::Raw, C::OutputDns);
        let raw = raw.filter(|rule| rule.matches.uid.is_none() && rule.matches.gid.is_none());
        let mut queries: Vec<&Matches> = nat.map(|rule| &rule.matches).filter(query).collect();
        if queries.is_empty() {
            queries = raw.map(|rule| &rule.matches).filter(query).collect();
        }
        let servers = union(queries.iter().filter_map(|m| is(&m.destination)));
        let (v4, v6): (Vec<_>, Vec<_>) = (
            servers.v4.iter().flat_map(|net| net.hosts()).take(MOST_ITEMS).collect(),
            servers.v6.iter().flat_map(|net| net.hosts()).take(MOST_ITEMS).collect(),
        );
        if queries.iter().any(|m| m.destination.is_none()) {
            return Some(DnsCapture::All);
        }
        // In a family without a server only the exceptions for it tell.
        let exempt = |m: &Matches| is_not(&m.destination_port).is_some_and(|ports| ports.single().is_none());
        let tells = self.rules.of(Table::Raw, C::OutputDns).next().is_some()
            || self.main(Verdict::Return).any(|m| m.out_interface.is_some() && m.destination_port.is_some())
            || self.main(Verdict::Jump(C::InRedirect)).any(exempt);
        (!queries.is_empty() || tells).then_some(DnsCapture::Servers { v4, v6 })
    }

    /// Writes two rules as older istio-iptables wrote them, if they were found so: the jump from OUTPUT,
    /// until 1.13 for TCP only; and calls of the pod to itself, without a protocol before the tunnel
    /// port was left alone.
    fn spell_as_found(self, plan: &mut Plan) {
        let out = self.nat(C::Output).find(|rule| rule.verdict == Verdict::Jump(C::OutputMain));
        let is_older = |now: &Matches, found: &Matches| {
            let older = Matches { protocol: None, destination_port: None, ..now.clone() };
            (found.protocol.is_none() && (&found.uid, &found.gid) == (&now.uid, &now.gid)).then_some(older)
        };
        for rule in plan.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            match rule.why {
                Why::OutboundEntry if out.is_some_and(|found| found.matches == Matches::tcp()) => {
                    rule.matches = Matches::tcp();
                }
                Why::AppToItself => {
                    let mut found = self.main(Verdict::Jump(C::InRedirect));
                    if let Some(older) = found.find_map(|found| is_older(&rule.matches, found)) {
                        rule.matches = older;
                    }
                }
                _ => {}
            }
        }
    }
}

/// The readings of an option that are found, or the second one if neither is.
fn either<T>(is_first: bool, first: T, is_second: bool, second: T) -> Vec<T> {
    match (is_first, is_second) {
        (true, true) => vec![first, second],
        (true, false) => vec![first],
        (false, _) => vec![second],
    }
}

fn is<T>(cond: &Option<Cond<T>>) -> Option<&T> {
    cond.as_ref().filter(|cond| !cond.negated).map(|cond| &cond.value)
}

fn is_not<T>(cond: &Option<Cond<T>>) -> Option<&T> {
    cond.as_ref().filter(|cond| cond.negated).map(|cond| &cond.value)
}

/// Several lists joined into one, in order.
fn joined<'a, T: Discrete + 'a>(lists: impl Iterator<Item = &'a RangeList<T>>) -> RangeList<T> {
    lists.flat_map(RangeList::iter).collect()
}

fn union<'a>(lists: impl Iterator<Item = &'a Networks>) -> Networks {
    lists.fold(Networks::default(), |mut all, list| {
        all.v4.extend(&list.v4);
        all.v6.extend(&list.v6);
        all
    })
}

/// The numbers of a list, one by one.
fn items<T: Discrete>(list: &RangeList<T>) -> impl Iterator<Item = T> {
    let all = list.iter().flat_map(|(first, last)| {
        std::iter::successors(Some(first), move |item| item.next().filter(|next| *next <= last))
    });
    all.take(MOST_ITEMS)
}

/// Removes the first item that equals `item`; `false` if there is none.
fn take_one<T: PartialEq>(list: &mut Vec<T>, item: &T) -> bool {
    let at = list.iter().position(|known| known == item);
    at.inspect(|&at| drop(list.remove(at))).is_some()
}
