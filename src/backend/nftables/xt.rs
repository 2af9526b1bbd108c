//! Matches and targets of iptables-nft, which keeps many of them as the structures that
//! iptables-legacy hands to the kernel (linux/netfilter/xt_*.h), put into the expressions
//! that nft would have used. What is not known stays as it is.

use super::decode::Listed;
use super::expr::{Expr, Op, code, ct, meta, payload};
use super::table::AnonymousSets;
use super::wire::NfFamily;

/// Translates the known matches and targets of a rule.
pub fn translate(listed: &mut Listed, family: NfFamily, sets: &mut AnonymousSets) {
    if !listed.exprs.iter().any(|expr| matches!(expr, Expr::Xt { .. })) {
        return;
    }
    let mut out = Vec::with_capacity(listed.exprs.len() + 4);
    for expr in std::mem::take(&mut listed.exprs) {
        let Expr::Xt { target, name, revision, info } = &expr else {
            out.push(expr);
            continue;
        };
        let info = Info(info);
        if !target && name == "comment" {
            listed.comment = Some(info.text());
            continue;
        }
        let known = match target {
            true => self::target(name, *revision, info, family),
            false => condition(name, *revision, info, sets),
        };
        match known {
            Some(exprs) => out.extend(exprs),
            None => out.push(expr),
        }
    }
    listed.exprs = out;
}

/// A structure's bytes. Reading past the end gives nothing.
#[derive(Clone, Copy)]
struct Info<'a>(&'a [u8]);

impl<'a> Info<'a> {
    fn bytes(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }

    fn is_zero(self, at: usize, len: usize) -> Option<bool> {
        Some(self.bytes(at, len)?.iter().all(|&b| b == 0))
    }

    fn text(self) -> String {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).into_owned()
    }
}

fn op(negated: bool) -> Op {
    if negated { Op::Neq } else { Op::Eq }
}

fn condition(name: &str, revision: u32, info: Info, sets: &mut AnonymousSets) -> Option<Vec<Expr>> {
    match (name, revision) {
        ("owner", 1) => owner(info),
        ("tcp", 0) => {
            let plain = info.u8(8)? == 0 && info.u8(9)? == 0 && info.u8(11)? & !3 == 0;
            plain.then(|| ports(info, info.u8(11)?))?
        }
        ("udp", 0) => ports(info, info.u8(8)?),
        ("multiport", 1) => multiport(info, sets),
        ("mark", 1) => mark(Expr::Meta(meta::MARK), info),
        ("connmark", 1) => mark(Expr::Ct(ct::MARK), info),
        ("conntrack", 1..=3) => conntrack(info, revision),
        _ => None,
    }
}

/// `struct xt_owner_match_info`: a range of uids, one of gids, which count, which are negated.
fn owner(info: Info) -> Option<Vec<Expr>> {
    let (wanted, negated) = (info.u8(16)?, info.u8(17)?);
    if wanted & !3 != 0 || wanted == 0 {
        return None;
    }
    let mut out = Vec::new();
    for (bit, key, at) in [(1, meta::SKUID, 0), (2, meta::SKGID, 8)] {
        if wanted & bit != 0 {
            let (from, to) = (info.u32(at)?.to_be_bytes().to_vec(), info.u32(at + 4)?.to_be_bytes().to_vec());
            out.push(Expr::Meta(key));
            out.push(Expr::Hton { len: 4 });
            out.push(Expr::Range { op: op(negated & bit != 0), from, to });
        }
    }
    Some(out)
}

fn load_port(source: bool) -> Expr {
    Expr::Payload { base: payload::TRANSPORT, offset: if source { 0 } else { 2 }, len: 2 }
}

/// The beginning of `struct xt_tcp` and `struct xt_udp`: two ranges of ports.
fn ports(info: Info, inverted: u8) -> Option<Vec<Expr>> {
    let mut out = Vec::new();
    for (at, bit) in [(0, 1), (4, 2)] {
        let (first, last, negated) = (info.u16(at)?, info.u16(at + 2)?, inverted & bit != 0);
        if (first, last) != (0, u16::MAX) || negated {
            let (from, to) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
            out.push(load_port(bit == 1));
            out.push(Expr::Range { op: op(negated), from, to });
        }
    }
    Some(out)
}

/// `struct xt_multiport_v1`: a port with its flag set starts a range that the next one ends.
fn multiport(info: Info, sets: &mut AnonymousSets) -> Option<Vec<Expr>> {
    let source = match info.u8(0)? {
        0 => true,
        1 => false,
        _ => return None,
    };
    let mut elements = Vec::new();
    let count = usize::from(info.u8(1)?).min(15);
    let mut at = 0;
    while at < count {
        let first = info.u16(2 + 2 * at)?;
        let is_range = info.u8(32 + at)? != 0;
        at += usize::from(is_range);
        let last = info.u16(2 + 2 * at)?;
        elements.push((first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec()));
        at += 1;
    }
    let set = sets.add(elements);
    Some(vec![load_port(source), Expr::Lookup { set, id: None, negated: info.u8(47)? != 0 }])
}

/// `struct xt_mark_mtinfo1`, `struct xt_connmark_mtinfo1`.
fn mark(load: Expr, info: Info) -> Option<Vec<Expr>> {
    let (mask, negated) = (info.u32(4)?, info.u8(8)? != 0);
    let mut out = vec![load];
    if mask != u32::MAX {
        out.push(Expr::Bitwise { mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] });
    }
    out.push(Expr::Cmp { op: op(negated), data: info.u32(0)?.to_ne_bytes().to_vec() });
    Some(out)
}

/// `struct xt_conntrack_mtinfo1` to `3`: only the state.
fn conntrack(info: Info, revision: u32) -> Option<Vec<Expr>> {
    const STATE: u16 = 1;
    const STATE_ALIAS: u16 = 1 << 13;
    let (wanted, negated) = (info.u16(146)?, info.u16(148)? & STATE != 0);
    if wanted & !STATE_ALIAS != STATE {
        return None;
    }
    let states = if revision == 1 { u16::from(info.u8(150)?) } else { info.u16(150)? };
    // The bit for "untracked" is another one in nf_tables.
    let untracked = u32::from(states >> 8 & 1) << 6;
    if states & !0x10f != 0 {
        return None;
    }
    let states = u32::from(states & 0xf) | untracked;
    Some(vec![
        Expr::Ct(ct::STATE),
        Expr::Bitwise { mask: states.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { op: op(!negated), data: vec![0; 4] },
    ])
}

fn target(name: &str, revision: u32, info: Info, family: NfFamily) -> Option<Vec<Expr>> {
    match (name, revision) {
        ("REDIRECT", 0) => redirect(info, family),
        ("MARK", 2) => {
            let (value, mask) = (info.u32(0)?, info.u32(4)?);
            let value_bytes = value.to_ne_bytes().to_vec();
            Some(match mask {
                u32::MAX => vec![Expr::Immediate(value_bytes), Expr::MetaSet(meta::MARK)],
                mask => vec![
                    Expr::Meta(meta::MARK),
                    Expr::Bitwise { mask: (!mask).to_ne_bytes().to_vec(), xor: value_bytes },
                    Expr::MetaSet(meta::MARK),
                ],
            })
        }
        ("CONNMARK", 1 | 2) => connmark(info, revision),
        ("TPROXY", 1) => tproxy(info),
        ("CT", 0..=2) => zone(info, revision),
        // These look at a packet and let it go on.
        ("LOG" | "NFLOG" | "TRACE", _) => Some(Vec::new()),
        _ => None,
    }
}

/// `struct nf_nat_ipv4_multi_range_compat`, or `struct nf_nat_range` for IPv6: only a
/// redirection to one port.
fn redirect(info: Info, family: NfFamily) -> Option<Vec<Expr>> {
    const PORT_GIVEN: u32 = 2;
    let (flags, first) = match family {
        NfFamily::IPV4 => (info.u32(4)?, 16),
        _ => (info.u32(0)?, 36),
    };
    let (first, last) = (info.bytes(first, 2)?, info.bytes(first + 2, 2)?);
    (flags == PORT_GIVEN && first == last).then(|| vec![Expr::Immediate(first.to_vec()), Expr::Redir])
}

/// `struct xt_connmark_tginfo1` and `2`: the mark changed, or the whole of it saved or restored.
fn connmark(info: Info, revision: u32) -> Option<Vec<Expr>> {
    let whole = info.u32(4)? == u32::MAX && info.u32(8)? == u32::MAX;
    let (mode, shifted) = match revision {
        1 => (info.u8(12)?, false),
        _ => (info.u8(14)?, info.u8(13)? != 0),
    };
    match mode {
        0 if !shifted => {
            let (value, mask) = (info.u32(0)?.to_ne_bytes().to_vec(), info.u32(4)?);
            Some(match mask {
                u32::MAX => vec![Expr::Immediate(value), Expr::CtSet(ct::MARK)],
                mask => vec![
                    Expr::Ct(ct::MARK),
                    Expr::Bitwise { mask: (!mask).to_ne_bytes().to_vec(), xor: value },
                    Expr::CtSet(ct::MARK),
                ],
            })
        }
        1 if whole && !shifted => Some(vec![Expr::Meta(meta::MARK), Expr::CtSet(ct::MARK)]),
        2 if whole && !shifted => Some(vec![Expr::Ct(ct::MARK), Expr::MetaSet(meta::MARK)]),
        _ => None,
    }
}

/// `struct xt_tproxy_target_info_v1`, to no particular address, with a whole mark.
fn tproxy(info: Info) -> Option<Vec<Expr>> {
    let usual = info.u32(0)? == u32::MAX && info.is_zero(8, 16)?;
    usual.then(|| {
        Some(vec![
            Expr::Immediate(info.bytes(24, 2)?.to_vec()),
            Expr::Tproxy { family: 0 },
            Expr::Immediate(info.bytes(4, 4)?.to_vec()),
            Expr::MetaSet(meta::MARK),
            Expr::Verdict { code: code::ACCEPT, chain: None },
        ])
    })?
}

/// `struct xt_ct_target_info` and `_v1`: a zone and nothing else, or no tracking.
fn zone(info: Info, revision: u32) -> Option<Vec<Expr>> {
    let named = if revision == 0 { 16 } else { 48 };
    let plain = info.is_zero(4, 8 + named)?;
    match info.u16(0)? {
        0 if plain => Some(vec![Expr::Immediate(info.bytes(2, 2)?.to_vec()), Expr::CtSet(ct::ZONE)]),
        _ => None,
    }
}
