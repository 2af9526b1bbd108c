//! `build`: the one place where it is decided what happens to a pod's traffic: for a pod
//! with a sidecar by [`build`], for an ambient pod by [`ambient()`], and for the probes of one
//! on its node by [`host()`].
//!
//! Pure: what is asked for in, a plan out. Each rule is written once for both IP
//! families; a family-specific part of it (loopback, DNS servers, ranges) carries
//! both families' values. The order inside a chain decides, so comments here say
//! why a rule stands where it stands.

mod ambient;
mod dns;
mod host;
mod nat;
mod tproxy;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::interception::Interception;
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, Interface, Mode, Networks, Port, PortList};

use super::model::{
    Chain, ChainName, Cond, CtStates, Dataplane, MarkRoute, Masked, Matches, Plan, Routing, Rule, Table, Verdict,
    protocol,
};
use super::why::Why;

pub use ambient::ambient;
pub use host::{host, probe_set};

/// The plan for an interception.
pub fn build(interception: &Interception) -> Plan {
    let mut draft = Draft { interception, written: Written::new(interception.families) };
    dns::zones(&mut draft);
    if interception.mode == Mode::Tproxy {
        tproxy::before_invalid(&mut draft);
    }
    if interception.drop_invalid {
        drop_invalid(&mut draft);
    }
    if interception.mode == Mode::Tproxy {
        tproxy::mangle(&mut draft);
    }
    nat::build(&mut draft);
    draft.into_plan()
}

/// A plan's chains while they are built.
struct Written {
    /// The families that the plan is for.
    families: Families,
    chains: Vec<Chain>,
}

impl Written {
    fn new(families: Families) -> Self {
        Self { families, chains: Vec::new() }
    }

    /// Appends a rule for every one of some families in which it can match.
    fn rule_for(
        &mut self,
        families: Families,
        table: Table,
        chain: ChainName,
        matches: Matches,
        verdict: Verdict,
        why: Why,
    ) {
        let families = matches.families().intersection(families).intersection(self.families);
        if families.is_empty() {
            return;
        }
        let rule = Rule { families, matches, verdict, why, counters: None, origin: None };
        self.chain(table, chain).rules.push(rule);
    }

    /// The chain of this name, which is added without rules where it is missing.
    fn chain(&mut self, table: Table, name: ChainName) -> &mut Chain {
        let known = self.chains.iter().position(|c| c.table == table && c.name == name);
        let at = known.unwrap_or_else(|| {
            self.chains.push(Chain { table, name, rules: Vec::new() });
            self.chains.len() - 1
        });
        &mut self.chains[at]
    }

    fn into_plan(self, dataplane: Dataplane, routing: Routing) -> Plan {
        let mut chains = self.chains;
        chains.sort_by_key(|c| (c.table, c.name.clone()));
        Plan { dataplane, families: self.families, chains, routing }
    }
}

/// A sidecar's plan being written.
struct Draft<'a> {
    interception: &'a Interception,
    written: Written,
}

impl Draft<'_> {
    /// Appends a rule for every family of the interception in which it can match.
    fn rule(&mut self, table: Table, chain: ChainName, matches: Matches, verdict: Verdict, why: Why) {
        self.rule_for(self.interception.families, table, chain, matches, verdict, why);
    }

    fn rule_for(
        &mut self,
        families: Families,
        table: Table,
        chain: ChainName,
        matches: Matches,
        verdict: Verdict,
        why: Why,
    ) {
        self.written.rule_for(families, table, chain, matches, verdict, why);
    }

    fn into_plan(self) -> Plan {
        let i = self.interception;
        let mut routing = Routing { mesh_address: i.families.v6, ..Routing::default() };
        if i.mode == Mode::Tproxy && i.takes_inbound() {
            for family in i.families.iter() {
                routing.rules.push(MarkRoute { family, mark: i.mark.into(), table: i.route_table });
                routing.routes.push((family, i.route_table));
            }
        }
        self.written.into_plan(Dataplane::Sidecar, routing)
    }
}

fn drop_invalid(draft: &mut Draft) {
    let invalid = Matches { connection_state: Some(Cond::is(CtStates::INVALID)), ..Matches::default() };
    draft.rule(Table::Mangle, ChainName::Prerouting, invalid, Verdict::Jump(ChainName::Drop), Why::InvalidEntry);
    draft.rule(Table::Mangle, ChainName::Drop, Matches::default(), Verdict::Drop, Why::InvalidDrop);
}

/// A host of each family, as ranges.
fn hosts(v4: Ipv4Addr, v6: Ipv6Addr) -> Networks {
    Networks { v4: vec![Ipv4Net::from(v4)], v6: vec![Ipv6Net::from(v6)] }
}

/// 127.0.0.6 and ::6: where the proxy's connections to the app come from.
fn mesh_source() -> Networks {
    hosts(Ipv4Addr::new(127, 0, 0, 6), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))
}

/// The addresses at which the pod talks to itself.
fn loopback(interception: &Interception) -> Networks {
    Networks { v4: vec![interception.loopback], v6: vec![Ipv6Net::from(Ipv6Addr::LOCALHOST)] }
}

/// An owner of a socket, by user or by group.
#[derive(Clone, Copy)]
enum Owner {
    User(u32),
    Group(u32),
}

impl Owner {
    /// The proxy's users, then its groups.
    fn of_proxy(interception: &Interception) -> impl Iterator<Item = Owner> + use<> {
        let uids = interception.proxy_uids.clone().into_iter().map(Owner::User);
        uids.chain(interception.proxy_gids.clone().into_iter().map(Owner::Group))
    }
}

impl Matches {
    /// The families in which the conditions can hold: a range of one family never holds in the other.
    pub fn families(&self) -> Families {
        [&self.source, &self.destination].into_iter().flatten().fold(Families::BOTH, |families, cond| {
            if cond.negated {
                return families;
            }
            let has = |family| cond.value.len_of(family) > 0;
            families.intersection(Families { v4: has(Family::V4), v6: has(Family::V6) })
        })
    }

    fn any() -> Self {
        Self::default()
    }

    pub(super) fn tcp() -> Self {
        Self { protocol: Some(Cond::is(RangeList::of([protocol::TCP]))), ..Self::default() }
    }

    fn udp() -> Self {
        Self { protocol: Some(Cond::is(RangeList::of([protocol::UDP]))), ..Self::default() }
    }

    fn tcp_and_udp() -> Self {
        Self { protocol: Some(Cond::is(RangeList::of([protocol::TCP, protocol::UDP]))), ..Self::default() }
    }

    fn from(self, source: Networks) -> Self {
        Self { source: Some(Cond::is(source)), ..self }
    }

    fn to(self, destination: Networks) -> Self {
        Self { destination: Some(Cond::is(destination)), ..self }
    }

    fn not_to(self, destination: Networks) -> Self {
        Self { destination: Some(Cond::is_not(destination)), ..self }
    }

    fn in_by(self, interfaces: Vec<Interface>) -> Self {
        Self { in_interface: Some(Cond::is(interfaces)), ..self }
    }

    fn out_by(self, interfaces: Vec<Interface>) -> Self {
        Self { out_interface: Some(Cond::is(interfaces)), ..self }
    }

    fn not_out_by(self, interfaces: Vec<Interface>) -> Self {
        Self { out_interface: Some(Cond::is_not(interfaces)), ..self }
    }

    fn port(self, port: Port) -> Self {
        self.ports(PortList::of([port.get()]))
    }

    fn ports(self, ports: PortList) -> Self {
        Self { destination_port: Some(Cond::is(ports)), ..self }
    }

    fn not_ports(self, ports: impl IntoIterator<Item = Port>) -> Self {
        let ports = PortList::of(ports.into_iter().map(Port::get));
        Self { destination_port: Some(Cond::is_not(ports)), ..self }
    }

    fn by_port(self, port: Port) -> Self {
        Self { source_port: Some(Cond::is(PortList::of([port.get()]))), ..self }
    }

    fn marked(self, mark: impl Into<Masked>) -> Self {
        Self { mark: Some(Cond::is(mark.into())), ..self }
    }

    fn not_marked(self, mark: impl Into<Masked>) -> Self {
        Self { mark: Some(Cond::is_not(mark.into())), ..self }
    }

    fn of_connection_marked(self, mark: Masked) -> Self {
        Self { connection_mark: Some(Cond::is(mark)), ..self }
    }

    fn owned_by(self, owner: Owner) -> Self {
        self.owner(owner, false)
    }

    fn not_owned_by(self, owner: Owner) -> Self {
        self.owner(owner, true)
    }

    fn owner(mut self, owner: Owner, negated: bool) -> Self {
        let (Owner::User(id) | Owner::Group(id)) = owner;
        let cond = Some(Cond { negated, value: RangeList::of([id]) });
        match owner {
            Owner::User(_) => self.uid = cond,
            Owner::Group(_) => self.gid = cond,
        }
        self
    }
}

/// The ranges of a network list, last one first.
fn reversed(networks: &Networks) -> Networks {
    let all = networks.v4.iter().copied().map(IpNet::V4).chain(networks.v6.iter().copied().map(IpNet::V6));
    all.collect::<Vec<_>>().into_iter().rev().collect()
}
