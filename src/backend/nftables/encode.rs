//! Rules of the model to nf_tables expressions and sets.
//!
//! A list becomes one lookup: in a hash (single values) or in an interval set (ranges).
//! A rule of the model is one nftables rule, except that each family's addresses need a
//! rule of their own (a packet's addresses lie at different offsets), and that TPROXY
//! takes a second rule: nftables' `tproxy`, unlike iptables', lets a packet go on when
//! nobody listens, so a `drop` stands behind it.

use std::net::IpAddr;

use crate::config::types::{Families, Family, IdList, Interface, Networks};
use crate::plan::canon;
use crate::plan::model::{Chain, Cond, Masked, Matches, Rule, Verdict};

use super::expr::{Expr, Op, code, ct, meta, payload};
use super::names;

/// What a set's keys are; `number` is nft's own, by which it prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKey {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Uid,
    Gid,
    InterfaceName,
}

impl NewSet {
    /// Whether the keys are in the host's byte order; those of intervals are in network order.
    pub fn in_host_order(&self) -> bool {
        matches!(self.key, SetKey::Uid | SetKey::Gid | SetKey::InterfaceName) && !self.interval
    }
}

/// Types of set keys as nft numbers them (`enum datatypes`).
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_UID: u32 = 24;
const TYPE_GID: u32 = 25;
const TYPE_IFNAME: u32 = 41;

impl SetKey {
    /// The key's type in `NFTA_SET_KEY_TYPE` (informational, `enum datatypes` of nft).
    pub fn number(self) -> u32 {
        match self {
            SetKey::Ipv4 => TYPE_IPADDR,
            SetKey::Ipv6 => TYPE_IP6ADDR,
            SetKey::Protocol => TYPE_INET_PROTOCOL,
            SetKey::Port => TYPE_INET_SERVICE,
            SetKey::Uid => TYPE_UID,
            SetKey::Gid => TYPE_GID,
            SetKey::InterfaceName => TYPE_IFNAME,
        }
    }

    /// The key's length in bytes.
    pub fn length(self) -> u32 {
        match self {
            SetKey::Protocol => 1,
            SetKey::Port => 2,
            SetKey::Ipv4 | SetKey::Uid | SetKey::Gid => 4,
            SetKey::Ipv6 | SetKey::InterfaceName => 16,
        }
    }
}

/// Splits a rule's conditions as nftables needs it: each family's addresses apart, names with any ending
/// apart from exact ones. If a family is given, the rule has to compare it.
pub fn split(rule: &Rule, families: Families, in_hook: bool) -> Vec<(Matches, Option<Family>)> {
    let m = &rule.matches;
    let by_address = m.source.is_some() || m.destination.is_some() || m.destination_set.is_some();
    // Packets of other families never get past the hooks, so only there, and where a rule
    // is for one of two families, does a rule have to ask.
    let here = if in_hook { Families::BOTH } else { families };
    let asked: Vec<Option<Family>> =
        if !by_address && rule.families == here { vec![None] } else { rule.families.iter().map(Some).collect() };
    let variants = interface_variants(m);
    asked.iter().flat_map(|family| variants.iter().map(|m| (m.clone(), *family))).collect()
}

/// An anonymous set, to be made in the transaction that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSet {
    /// The set's number, unique within the transaction.
    pub id: u32,
    pub key: SetKey,
    /// Sorted, disjoint `(first, last)`; in a set without intervals both are the same.
    pub elements: Vec<(Vec<u8>, Vec<u8>)>,
    pub interval: bool,
}

/// A rule as the kernel takes it: expressions and a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftRule {
    pub exprs: Vec<Expr>,
    pub comment: String,
}

/// From so many ports on a set holds intervals, be they single ports. Sets without
/// intervals and with keys of at most two bytes are bitmaps in the kernel, which go through
/// a list of all elements for each one that is added (`nft_bitmap_insert`,
/// net/netfilter/nft_set_bitmap.c): 1,000 single ports take 5.1 ms that way and 2.2 ms as
/// intervals, 32,767 take 5.6 s and 0.2 s; 300 take 0.6 ms either way, and fewer less as
/// single ports.
const MANY: usize = 300;

/// Turns rules into expressions, collecting the sets they look into.
#[derive(Debug)]
pub struct Encoder {
    /// The families whose packets get to the rules.
    families: Families,
    sets: Vec<NewSet>,
    next_id: u32,
}

/// The name under which the kernel is asked to name an anonymous set.
pub const ANONYMOUS: &str = "__set%d";

/// Whether rules of these chains ask sets of ranges.
pub fn asks_ranges(chains: &[&Chain], families: Families) -> bool {
    let mut encoder = Encoder::starting_at(families, 1);
    chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (rule, chain.name.is_hook()))).any(
        |(rule, hook)| {
            encoder.rule(rule, hook);
            encoder.take_sets().iter().any(|set| set.interval)
        },
    )
}

impl Encoder {
    /// An encoder for rules that only `families` get to; sets are numbered from `id` on.
    pub fn starting_at(families: Families, id: u32) -> Self {
        Self { families, sets: Vec::new(), next_id: id }
    }

    /// The sets that the rules encoded since the last call look into.
    pub fn take_sets(&mut self) -> Vec<NewSet> {
        std::mem::take(&mut self.sets)
    }

    /// The number the next set would get.
    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Translates a rule to nftables rules; `in_hook`: the rule stands in a base chain.
    pub fn rule(&mut self, rule: &Rule, in_hook: bool) -> Vec<NftRule> {
        let mut out = Vec::new();
        for (matches, family) in split(rule, self.families, in_hook) {
            let Some(conditions) = self.conditions(&matches, family) else { continue };
            for statement in statements(&rule.verdict, family) {
                let mut exprs = conditions.clone();
                exprs.push(Expr::Counter { packets: 0, bytes: 0 });
                exprs.extend(statement);
                out.push(NftRule { exprs, comment: rule.why.comment() });
            }
        }
        out
    }

    /// Translates conditions; `None` if no packet can meet them.
    fn conditions(&mut self, m: &Matches, family: Option<Family>) -> Option<Vec<Expr>> {
        let mut out = Vec::new();
        if let Some(family) = family {
            out.extend([Expr::Meta(meta::NFPROTO), equals(vec![nfproto(family)])]);
        }
        for (key, cond) in [(meta::IIFNAME, &m.in_interface), (meta::OIFNAME, &m.out_interface)] {
            if let Some(cond) = cond {
                self.interfaces(key, cond, &mut out);
            }
        }
        if let Some(family) = family {
            let (source, destination) = if family == Family::V4 { (12, 16) } else { (8, 24) };
            for (offset, cond) in [(source, &m.source), (destination, &m.destination)] {
                if let Some(cond) = cond {
                    self.networks(family, offset, cond, &mut out)?;
                }
            }
            if let Some(Cond { negated, value }) = &m.destination_set {
                let len = u32::from(family.bits()) / 8;
                out.push(Expr::Payload { base: payload::NETWORK, offset: destination, len });
                out.push(Expr::Lookup { set: value.to_string(), id: None, negated: *negated });
            }
        }
        if let Some(cond) = &m.protocol {
            let load = vec![Expr::Meta(meta::L4PROTO)];
            let ranges = cond.value.distinct().iter().map(|(a, b)| (vec![a], vec![b])).collect();
            self.ranges(load, SetKey::Protocol, ranges, cond.negated, None, &mut out);
        }
        for (offset, cond) in [(0, &m.source_port), (2, &m.destination_port)] {
            if let Some(cond) = cond {
                let load = vec![Expr::Payload { base: payload::TRANSPORT, offset, len: 2 }];
                let bytes = |port: u16| port.to_be_bytes().to_vec();
                let distinct = cond.value.distinct();
                let list = if distinct.len() > MANY { distinct.normalised() } else { distinct };
                let ranges = list.iter().map(|(a, b)| (bytes(a), bytes(b))).collect();
                self.ranges(load, SetKey::Port, ranges, cond.negated, None, &mut out);
            }
        }
        marks(m, &mut out);
        for (key, set_key, cond) in [(meta::SKUID, SetKey::Uid, &m.uid), (meta::SKGID, SetKey::Gid, &m.gid)] {
            if let Some(cond) = cond {
                self.owners(key, set_key, cond, &mut out);
            }
        }
        Some(out)
    }

    /// Translates a condition on users or groups. An interval is compared by bytes, so its host-order
    /// numbers are turned to network order; a single value is compared as it is.
    fn owners(&mut self, key: u32, set_key: SetKey, cond: &Cond<IdList>, out: &mut Vec<Expr>) {
        let list = cond.value.distinct();
        let singles = list.iter().all(|(a, b)| a == b);
        let bytes = |id: u32| if singles { id.to_ne_bytes().to_vec() } else { id.to_be_bytes().to_vec() };
        let ranges = list.iter().map(|(a, b)| (bytes(a), bytes(b))).collect();
        let hton = (!singles).then_some(Expr::Hton { len: 4 });
        self.ranges(vec![Expr::Meta(key)], set_key, ranges, cond.negated, hton, out);
    }

    /// Translates a condition on addresses; `None` if no address meets it.
    fn networks(&mut self, family: Family, offset: u32, cond: &Cond<Networks>, out: &mut Vec<Expr>) -> Option<()> {
        let len = u32::from(family.bits()) / 8;
        let load = Expr::Payload { base: payload::NETWORK, offset, len };
        let list = cond.value.of(family);
        match list[..] {
            [] if cond.negated => return Some(()),
            [] => return None,
            [net] if net.prefix_len() == 0 => return (!cond.negated).then_some(()),
            [net] if net.prefix_len() < family.bits() => {
                let (mask, value) = (bytes(net.netmask()), bytes(net.network()));
                let xor = vec![0; mask.len()];
                out.extend([load, Expr::Bitwise { mask, xor }, compare(cond.negated, value)]);
                return Some(());
            }
            _ => {}
        }
        let wide = |n: u128| n.to_be_bytes()[16 - len as usize..].to_vec();
        let ranges = canon::distinct_addresses(&cond.value, family);
        if ranges.iter().any(|range| range == (0, u128::MAX >> (128 - len * 8))) {
            return (!cond.negated).then_some(());
        }
        let ranges = ranges.iter().map(|(a, b)| (wide(a), wide(b))).collect();
        let key = if family == Family::V4 { SetKey::Ipv4 } else { SetKey::Ipv6 };
        self.ranges(vec![load], key, ranges, cond.negated, None, out);
        Some(())
    }

    /// Compares what `load` loads with one value, one range or a set.
    fn ranges(
        &mut self,
        load: Vec<Expr>,
        key: SetKey,
        elements: Vec<(Vec<u8>, Vec<u8>)>,
        negated: bool,
        convert: Option<Expr>,
        out: &mut Vec<Expr>,
    ) {
        out.extend(load);
        out.extend(convert);
        match &elements[..] {
            [(first, last)] if first == last => out.push(compare(negated, first.clone())),
            [(first, last)] => {
                let op = if negated { Op::Neq } else { Op::Eq };
                out.push(Expr::Range { op, from: first.clone(), to: last.clone() });
            }
            _ => {
                let id = self.next_id;
                self.next_id += 1;
                let many = key.length() <= 2 && elements.len() > MANY;
                let interval = many || elements.iter().any(|(first, last)| first != last);
                self.sets.push(NewSet { id, key, elements, interval });
                out.push(Expr::Lookup { set: ANONYMOUS.into(), id: Some(id), negated });
            }
        }
    }

    fn interfaces(&mut self, key: u32, cond: &Cond<Vec<Interface>>, out: &mut Vec<Expr>) {
        if !cond.negated && cond.value.len() > 1 {
            // Only exact names here: see `interface_variants`.
            let mut names: Vec<Vec<u8>> = cond.value.iter().map(interface_bytes).collect();
            names.sort();
            names.dedup();
            let elements = names.into_iter().map(|name| (name.clone(), name)).collect();
            self.ranges(vec![Expr::Meta(key)], SetKey::InterfaceName, elements, false, None, out);
            return;
        }
        for interface in &cond.value {
            out.extend([Expr::Meta(key), compare(cond.negated, interface_bytes(interface))]);
        }
    }
}

/// An interface name as the kernel compares it: padded to IFNAMSIZ, or only its beginning.
fn interface_bytes(interface: &Interface) -> Vec<u8> {
    let mut bytes = interface.name.as_bytes().to_vec();
    if !interface.any_ending {
        bytes.resize(16, 0);
    }
    bytes
}

/// Positive lists of interfaces, split so that each has either exact names only or one
/// name with any ending.
fn interface_variants(m: &Matches) -> Vec<Matches> {
    let parts = |cond: &Option<Cond<Vec<Interface>>>| match cond {
        Some(cond) if !cond.negated => {
            let (any, exact): (Vec<_>, Vec<_>) = cond.value.iter().cloned().partition(|i| i.any_ending);
            let mut parts: Vec<_> = any.into_iter().map(|i| Some(Cond::is(vec![i]))).collect();
            if !exact.is_empty() {
                parts.insert(0, Some(Cond::is(exact)));
            }
            parts
        }
        other => vec![other.clone()],
    };
    let mut out = Vec::new();
    for in_interface in parts(&m.in_interface) {
        for out_interface in parts(&m.out_interface) {
            out.push(Matches { in_interface: in_interface.clone(), out_interface, ..m.clone() });
        }
    }
    out
}

/// The kernel's number for a family (`NFPROTO_*`).
fn nfproto(family: Family) -> u8 {
    if family == Family::V4 { 2 } else { 10 }
}

fn equals(data: Vec<u8>) -> Expr {
    compare(false, data)
}

fn compare(negated: bool, data: Vec<u8>) -> Expr {
    Expr::Cmp { op: if negated { Op::Neq } else { Op::Eq }, data }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn marks(m: &Matches, out: &mut Vec<Expr>) {
    for (load, cond) in [(Expr::Meta(meta::MARK), &m.mark), (Expr::Ct(ct::MARK), &m.connection_mark)] {
        let Some(cond) = cond else { continue };
        let Masked { value, mask } = cond.value;
        out.push(load);
        if mask != u32::MAX {
            out.push(Expr::Bitwise { mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] });
        }
        out.push(compare(cond.negated, value.to_ne_bytes().to_vec()));
    }
    if let Some(cond) = &m.connection_state {
        let mask = u32::from(cond.value.0).to_ne_bytes().to_vec();
        out.extend([Expr::Ct(ct::STATE), Expr::Bitwise { mask, xor: vec![0; 4] }]);
        // "One of these bits is set" is "the masked value is not zero".
        out.push(compare(!cond.negated, vec![0; 4]));
    }
}

fn verdict(code: i32, chain: Option<String>) -> Vec<Expr> {
    vec![Expr::Verdict { code, chain }]
}

fn set_mark(mark: u32) -> [Expr; 2] {
    [Expr::Immediate(mark.to_ne_bytes().to_vec()), Expr::MetaSet(meta::MARK)]
}

/// Clears the bits of a mark that are in the mask, and sets the value.
fn changed(mark: Masked) -> Expr {
    Expr::Bitwise { mask: (!mark.mask).to_ne_bytes().to_vec(), xor: mark.value.to_ne_bytes().to_vec() }
}

/// The expressions of a verdict, for one rule or more.
fn statements(v: &Verdict, family: Option<Family>) -> Vec<Vec<Expr>> {
    let mut out = vec![statement(v, family)];
    if matches!(v, Verdict::Tproxy { closed: true, .. }) {
        out.push(verdict(code::DROP, None));
    }
    out
}

fn statement(v: &Verdict, family: Option<Family>) -> Vec<Expr> {
    match v {
        // A plan holds no unknown verdict; in a rule of others there is nothing to write.
        Verdict::Continue | Verdict::Unknown(_) => Vec::new(),
        Verdict::Return => verdict(code::RETURN, None),
        Verdict::Accept => verdict(code::ACCEPT, None),
        Verdict::Drop => verdict(code::DROP, None),
        Verdict::Jump(chain) => verdict(code::JUMP, Some(names::chain(chain))),
        Verdict::Goto(chain) => verdict(code::GOTO, Some(names::chain(chain))),
        Verdict::Redirect(port) => vec![Expr::Immediate(port.get().to_be_bytes().to_vec()), Expr::Redir],
        Verdict::Snat(to) => {
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            vec![Expr::Immediate(bytes(*to)), Expr::Snat { family: nfproto(family).into() }]
        }
        Verdict::Tproxy { port, mark, .. } => {
            let mut out = vec![
                Expr::Immediate(port.get().to_be_bytes().to_vec()),
                Expr::Tproxy { family: family.map_or(0, nfproto).into() },
            ];
            out.extend(set_mark(mark.get()));
            out.extend(verdict(code::ACCEPT, None));
            out
        }
        Verdict::SetMark(m) if m.mask == u32::MAX => set_mark(m.value).to_vec(),
        Verdict::SetMark(m) => vec![Expr::Meta(meta::MARK), changed(*m), Expr::MetaSet(meta::MARK)],
        Verdict::SaveMark => vec![Expr::Meta(meta::MARK), Expr::CtSet(ct::MARK)],
        Verdict::RestoreMark => vec![Expr::Ct(ct::MARK), Expr::MetaSet(meta::MARK)],
        Verdict::SetConnectionMark(m) if m.mask == u32::MAX => {
            vec![Expr::Immediate(m.value.to_ne_bytes().to_vec()), Expr::CtSet(ct::MARK)]
        }
        Verdict::SetConnectionMark(m) => vec![Expr::Ct(ct::MARK), changed(*m), Expr::CtSet(ct::MARK)],
        Verdict::CtZone(zone) => vec![Expr::Immediate(zone.to_ne_bytes().to_vec()), Expr::CtSet(ct::ZONE)],
    }
}
