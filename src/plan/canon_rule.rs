//! A rule in canonical form: its conditions as sets of what meets them, for one family. What the
//! canonical form is for, [`super::canon`] says.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Family, IdList, Interface, Networks, PortList};

use super::model::{Cond, CtStates, Masked, Matches, Rule, RuleOrigin, Verdict, protocol};
use super::why::Why;

/// Address ranges as numbers; an IPv4 address is its 32 bits.
pub type Addresses = RangeList<u128>;

/// A rule's conditions for one family. Total dimensions (addresses, ports, protocol,
/// conntrack state) are sets of what matches; owners, interfaces and marks keep their
/// negation, since a packet may have none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CanonMatches {
    pub source: Addresses,
    pub destination: Addresses,
    pub protocol: RangeList<u8>,
    pub source_port: PortList,
    pub destination_port: PortList,
    pub connection_state: CtStates,
    pub in_interface: Option<Cond<Vec<Interface>>>,
    pub out_interface: Option<Cond<Vec<Interface>>>,
    pub uid: Option<Cond<IdList>>,
    pub gid: Option<Cond<IdList>>,
    pub mark: Option<Cond<Masked>>,
    pub connection_mark: Option<Cond<Masked>>,
    pub unknown: Vec<String>,
}

/// A rule in canonical form.
#[derive(Debug, Clone)]
pub struct CanonRule {
    pub matches: CanonMatches,
    pub verdict: Verdict,
    /// The rules that were merged into this one: one part for each reason, in order. Never empty.
    pub parts: Vec<(Why, CanonMatches)>,
    /// Where the rule was found; `None` if it was merged from several.
    pub origin: Option<Arc<RuleOrigin>>,
}

impl CanonRule {
    /// A rule's canonical form for one family; `None` where no packet of it can meet the rule.
    pub fn of(rule: &Rule, family: Family) -> Option<Self> {
        let matches = CanonMatches::of(&rule.matches, family)?;
        Some(Self {
            parts: vec![(rule.why.clone(), matches.clone())],
            matches,
            verdict: rule.verdict.clone(),
            origin: rule.origin.clone(),
        })
    }

    /// A chain's policy, if that drops, as the rule behind all others.
    pub fn policy(family: Family) -> Option<Self> {
        let matches = CanonMatches::of(&Matches::default(), family)?;
        Some(Self { parts: vec![(Why::Policy, matches.clone())], matches, verdict: Verdict::Drop, origin: None })
    }

    /// Whether the model knows all that the rule says. One that is not understood is never
    /// put together with others.
    pub fn is_understood(&self) -> bool {
        self.matches.unknown.is_empty() && !matches!(self.verdict, Verdict::Unknown(_))
    }

    /// The reason of the first rule that was merged into this one.
    pub fn why(&self) -> &Why {
        &self.parts[0].0
    }

    /// The reason of the first part that some packets of `matches` meet.
    pub fn why_for(&self, matches: &CanonMatches) -> &Why {
        let part = self.parts.iter().find(|(_, part)| !part.disjoint(matches));
        part.map_or(self.why(), |(why, _)| why)
    }
}

impl PartialEq for CanonRule {
    fn eq(&self, other: &Self) -> bool {
        self.matches == other.matches && self.verdict == other.verdict
    }
}

impl Eq for CanonRule {}

impl Hash for CanonRule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.matches.hash(state);
        self.verdict.hash(state);
    }
}

/// A condition on a named set, as an unknown one: the set's elements change without the rules.
fn named_set(m: &Matches) -> Option<String> {
    let Cond { negated, value } = m.destination_set.as_ref()?;
    Some(format!("{}to one of the set {value}", if *negated { "not " } else { "" }))
}

impl CanonMatches {
    /// The canonical form of conditions; `None` where no packet of the family can meet them.
    pub fn of(m: &Matches, family: Family) -> Option<Self> {
        let all_addresses = all_addresses(family);
        let addresses = |cond: &Option<Cond<Networks>>| match cond {
            None => all_addresses.clone(),
            Some(cond) if cond.negated => addresses(&cond.value, family).complement().intersection(&all_addresses),
            Some(cond) => addresses(&cond.value, family),
        };
        let mut protocol = total(&m.protocol);
        let (source_port, destination_port) = (total(&m.source_port), total(&m.destination_port));
        if !(source_port.is_full() && destination_port.is_full()) {
            protocol = protocol.intersection(&HAVE_PORTS);
        }
        let out = Self {
            source: addresses(&m.source),
            destination: addresses(&m.destination),
            protocol,
            source_port,
            destination_port,
            connection_state: match &m.connection_state {
                None => CtStates::ALL,
                Some(c) if c.negated => CtStates(CtStates::ALL.0 & !c.value.0),
                Some(c) => CtStates(CtStates::ALL.0 & c.value.0),
            },
            in_interface: names(&m.in_interface),
            out_interface: names(&m.out_interface),
            uid: ids(&m.uid),
            gid: ids(&m.gid),
            mark: marks(&m.mark)?,
            connection_mark: marks(&m.connection_mark)?,
            unknown: m.unknown.iter().cloned().chain(named_set(m)).collect(),
        };
        (!out.is_empty()).then_some(out)
    }

    /// Whether no packet can meet the conditions.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
            || self.destination.is_empty()
            || self.protocol.is_empty()
            || self.source_port.is_empty()
            || self.destination_port.is_empty()
            || self.connection_state.0 == 0
            || [&self.uid, &self.gid].into_iter().flatten().any(|c| !c.negated && c.value.is_empty())
            || [&self.in_interface, &self.out_interface].into_iter().flatten().any(|c| !c.negated && c.value.is_empty())
    }

    /// The bits of marks, of packets and of their connections, that the conditions look at.
    pub fn marks_asked(&self) -> u32 {
        [&self.mark, &self.connection_mark].into_iter().flatten().fold(0, |bits, cond| bits | cond.value.mask)
    }

    /// Whether conntrack has to know a packet's connection to answer the conditions.
    pub fn asks_conntrack(&self) -> bool {
        self.connection_state != CtStates::ALL || self.connection_mark.is_some()
    }

    /// Whether every packet that meets the other conditions meets these. Errs on the side
    /// of "some could not".
    pub fn covers(&self, other: &Self) -> bool {
        fn cond<T: PartialEq>(a: &Option<Cond<T>>, b: &Option<Cond<T>>, within: impl Fn(&T, &T) -> bool) -> bool {
            match (a, b) {
                (None, _) => true,
                (Some(a), Some(b)) if !a.negated && !b.negated => within(&a.value, &b.value),
                (a, b) => a == b,
            }
        }
        fn holds<T: Discrete>(a: &RangeList<T>, b: &RangeList<T>) -> bool {
            a.intersection(b) == *b
        }
        let names = |a: &Vec<Interface>, b: &Vec<Interface>| b.iter().all(|name| a.contains(name));
        holds(&self.source, &other.source)
            && holds(&self.destination, &other.destination)
            && holds(&self.protocol, &other.protocol)
            && holds(&self.source_port, &other.source_port)
            && holds(&self.destination_port, &other.destination_port)
            && self.connection_state.has(other.connection_state)
            && cond(&self.in_interface, &other.in_interface, names)
            && cond(&self.out_interface, &other.out_interface, names)
            && cond(&self.uid, &other.uid, holds)
            && cond(&self.gid, &other.gid, holds)
            && cond(&self.mark, &other.mark, |a, b| a == b)
            && cond(&self.connection_mark, &other.connection_mark, |a, b| a == b)
            && self.unknown == other.unknown
    }

    /// Whether no packet can meet both conditions. Gives `false` where that is not certain.
    pub fn disjoint(&self, other: &Self) -> bool {
        !self.destination_port.overlaps(&other.destination_port)
            || !self.protocol.overlaps(&other.protocol)
            || !self.destination.overlaps(&other.destination)
            || !self.source.overlaps(&other.source)
            || !self.source_port.overlaps(&other.source_port)
            || self.connection_state.0 & other.connection_state.0 == 0
            || ids_disjoint(&self.uid, &other.uid)
            || ids_disjoint(&self.gid, &other.gid)
            || names_disjoint(&self.in_interface, &other.in_interface)
            || names_disjoint(&self.out_interface, &other.out_interface)
    }
}

/// Protocols whose packets have ports.
static HAVE_PORTS: LazyLock<RangeList<u8>> = LazyLock::new(|| RangeList::of(protocol::WITH_PORTS).normalised());

/// Every address of a family.
pub fn all_addresses(family: Family) -> Addresses {
    static V4: LazyLock<Addresses> = LazyLock::new(|| RangeList::new([(0, u32::MAX.into())]));
    if family == Family::V4 { V4.clone() } else { RangeList::full() }
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// The address that a number stands for.
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The ranges in CIDR form that together hold `first` to `last`.
pub fn cover(family: Family, first: u128, last: u128, into: &mut Networks) {
    let bits = u32::from(family.bits());
    let mut from = first;
    loop {
        // The largest block that starts here and does not go beyond the end.
        let aligned = if from == 0 { bits } else { from.trailing_zeros().min(bits) };
        let room = (last - from).checked_add(1).map_or(128, |n| n.ilog2()).min(bits);
        let size = aligned.min(room);
        if let Ok(net) = IpNet::new(address(family, from), (bits - size) as u8) {
            into.push(net);
        }
        let next = 1u128.checked_shl(size).and_then(|step| from.checked_add(step));
        match next {
            Some(next) if next <= last => from = next,
            _ => return,
        }
    }
}

/// The addresses of one family that a list of ranges holds, as sorted numbers.
pub fn addresses(networks: &Networks, family: Family) -> Addresses {
    distinct_addresses(networks, family).normalised()
}

/// The addresses of one family that a list of ranges holds, as sorted numbers; single hosts stay
/// single if there is nothing but hosts.
pub fn distinct_addresses(networks: &Networks, family: Family) -> Addresses {
    let ranges = networks.of(family).into_iter().map(|net| (number(net.network()), number(net.broadcast())));
    Addresses::new(ranges).distinct()
}

/// The values that meet a condition on something every packet has.
fn total<T: Discrete>(cond: &Option<Cond<RangeList<T>>>) -> RangeList<T> {
    match cond {
        None => RangeList::full(),
        Some(cond) if cond.negated => cond.value.complement(),
        Some(cond) => cond.value.normalised(),
    }
}

fn ids(cond: &Option<Cond<IdList>>) -> Option<Cond<IdList>> {
    let cond = cond.as_ref()?;
    let value = cond.value.normalised();
    // "None of nobody" is everyone, packets without an owner included.
    (!(cond.negated && value.is_empty())).then_some(Cond { negated: cond.negated, value })
}

fn names(cond: &Option<Cond<Vec<Interface>>>) -> Option<Cond<Vec<Interface>>> {
    let mut cond = cond.clone()?;
    cond.value.sort();
    cond.value.dedup();
    (!(cond.negated && cond.value.is_empty())).then_some(cond)
}

/// The canonical form of a condition on marks; `None` where no mark meets it. The kernel compares the
/// masked mark with the whole value: a value with bits outside of the mask is never met.
fn marks(cond: &Option<Cond<Masked>>) -> Option<Option<Cond<Masked>>> {
    let Some(cond) = cond else { return Some(None) };
    let Masked { value, mask } = cond.value;
    let met = match (value & !mask, mask) {
        (0, 0) => true,
        (0, _) => return Some(Some(cond.clone())),
        _ => false,
    };
    (met != cond.negated).then_some(None)
}

fn ids_disjoint(a: &Option<Cond<IdList>>, b: &Option<Cond<IdList>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    match (a.negated, b.negated) {
        (false, false) => !a.value.overlaps(&b.value),
        (true, false) => b.value.intersection(&a.value) == b.value,
        (false, true) => a.value.intersection(&b.value) == a.value,
        (true, true) => false,
    }
}

fn names_disjoint(a: &Option<Cond<Vec<Interface>>>, b: &Option<Cond<Vec<Interface>>>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let exact = |c: &Cond<Vec<Interface>>| c.value.iter().all(|i| !i.any_ending);
    let meets = |i: &Interface, c: &Cond<Vec<Interface>>| c.value.iter().any(|o| o.matches(&i.name));
    match (a.negated, b.negated) {
        (false, false) if exact(a) => a.value.iter().all(|i| !meets(i, b)),
        (false, false) if exact(b) => b.value.iter().all(|i| !meets(i, a)),
        (true, false) if exact(b) => b.value.iter().all(|i| meets(i, a)),
        (false, true) if exact(a) => a.value.iter().all(|i| meets(i, b)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_covered_exactly() {
        let mut nets = Networks::default();
        cover(Family::V4, 0x0a000001, 0x0a000006, &mut nets);
        let text: Vec<String> = nets.v4.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
        let mut all = Networks::default();
        cover(Family::V4, 0, u32::MAX.into(), &mut all);
        cover(Family::V6, 0, u128::MAX, &mut all);
        assert_eq!((all.v4[0].prefix_len(), all.v6[0].prefix_len(), all.v4.len() + all.v6.len()), (0, 0, 2));
    }
}
