//! The bytes of nf_tables expressions (linux/netfilter/nf_tables.h: `NFTA_EXPR_*` and each
//! expression's attributes).

use super::expr::{Expr, Op, UpdateVerb};
use super::nfta::*;
use super::wire::{Attr, Attrs, attributes, find};
use super::words;

/// The first of the 16 byte registers (`NFT_REG_1`); all that a rule of ours needs.
const REGISTER: u32 = 1;
/// The register for verdicts (`NFT_REG_VERDICT`).
const VERDICT: u32 = 0;

/// Writes expressions as the elements of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn write(exprs: &[Expr], out: &mut Attrs) {
    for expr in exprs {
        out.nested(NFTA_LIST_ELEM, |out| {
            out.string(NFTA_EXPR_NAME, name(expr));
            out.nested(NFTA_EXPR_DATA, |out| write_one(expr, out));
        });
    }
}

/// The kernel's name for an expression.
fn name(expr: &Expr) -> &str {
    match expr {
        Expr::Meta(_) | Expr::MetaSet(_) => "meta",
        Expr::Ct(_) | Expr::CtSet(_) => "ct",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Range { .. } => "range",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Hton { .. } => "byteorder",
        Expr::Lookup { .. } | Expr::Vmap { .. } => "lookup",
        Expr::Immediate(_) | Expr::Verdict { .. } => "immediate",
        Expr::Counter { .. } => "counter",
        Expr::Redir => "redir",
        Expr::Snat { .. } => "nat",
        Expr::Tproxy { .. } => "tproxy",
        Expr::Xt { target: true, .. } => "target",
        Expr::Xt { .. } => "match",
        // Only for reading: a rule of ours has none of these.
        Expr::Update { .. } => "dynset",
        Expr::Unknown { words, .. } => words,
    }
}

/// Writes the attributes of one expression.
fn write_one(expr: &Expr, out: &mut Attrs) {
    let data = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |out: &mut Attrs| out.bytes(NFTA_DATA_VALUE, &bytes)
    };
    match expr {
        Expr::Meta(key) => registers(out, &[(NFTA_META_KEY, *key), (NFTA_META_DREG, REGISTER)]),
        Expr::MetaSet(key) => registers(out, &[(NFTA_META_KEY, *key), (NFTA_META_SREG, REGISTER)]),
        Expr::Ct(key) => registers(out, &[(NFTA_CT_KEY, *key), (NFTA_CT_DREG, REGISTER)]),
        Expr::CtSet(key) => registers(out, &[(NFTA_CT_KEY, *key), (NFTA_CT_SREG, REGISTER)]),
        Expr::Payload { base, offset, len } => {
            registers(
                out,
                &[
                    (NFTA_PAYLOAD_DREG, REGISTER),
                    (NFTA_PAYLOAD_BASE, *base),
                    (NFTA_PAYLOAD_OFFSET, *offset),
                    (NFTA_PAYLOAD_LEN, *len),
                ],
            );
        }
        Expr::Cmp { op, data: bytes } => {
            registers(out, &[(NFTA_CMP_SREG, REGISTER), (NFTA_CMP_OP, op.number())]);
            out.nested(NFTA_CMP_DATA, data(bytes));
        }
        Expr::Range { op, from, to } => {
            registers(out, &[(NFTA_RANGE_SREG, REGISTER), (NFTA_RANGE_OP, op.number())]);
            out.nested(NFTA_RANGE_FROM_DATA, data(from));
            out.nested(NFTA_RANGE_TO_DATA, data(to));
        }
        Expr::Bitwise { mask, xor } => {
            registers(
                out,
                &[(NFTA_BITWISE_SREG, REGISTER), (NFTA_BITWISE_DREG, REGISTER), (NFTA_BITWISE_LEN, mask.len() as u32)],
            );
            out.nested(NFTA_BITWISE_MASK, data(mask));
            out.nested(NFTA_BITWISE_XOR, data(xor));
        }
        Expr::Hton { len } => {
            registers(
                out,
                &[
                    (NFTA_BYTEORDER_SREG, REGISTER),
                    (NFTA_BYTEORDER_DREG, REGISTER),
                    (NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON),
                    (NFTA_BYTEORDER_LEN, *len),
                    (NFTA_BYTEORDER_SIZE, *len),
                ],
            );
        }
        Expr::Lookup { set, id, negated } => {
            out.string(NFTA_LOOKUP_SET, set);
            out.u32(NFTA_LOOKUP_SREG, REGISTER);
            if let Some(id) = id {
                out.u32(NFTA_LOOKUP_SET_ID, *id);
            }
            if *negated {
                out.u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
            }
        }
        Expr::Vmap { set } => {
            out.string(NFTA_LOOKUP_SET, set);
            registers(out, &[(NFTA_LOOKUP_SREG, REGISTER), (NFTA_LOOKUP_DREG, VERDICT)]);
        }
        Expr::Immediate(bytes) => {
            out.u32(NFTA_IMMEDIATE_DREG, REGISTER);
            out.nested(NFTA_IMMEDIATE_DATA, data(bytes));
        }
        Expr::Verdict { code, chain } => {
            out.u32(NFTA_IMMEDIATE_DREG, VERDICT);
            out.nested(NFTA_IMMEDIATE_DATA, |out| {
                out.nested(NFTA_DATA_VERDICT, |out| {
                    out.u32(NFTA_VERDICT_CODE, *code as u32);
                    if let Some(chain) = chain {
                        out.string(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        }
        Expr::Counter { packets, bytes } => {
            out.u64(NFTA_COUNTER_BYTES, *bytes);
            out.u64(NFTA_COUNTER_PACKETS, *packets);
        }
        Expr::Redir => out.u32(NFTA_REDIR_REG_PROTO_MIN, REGISTER),
        Expr::Snat { family } => registers(
            out,
            &[(NFTA_NAT_TYPE, NFT_NAT_SNAT), (NFTA_NAT_FAMILY, *family), (NFTA_NAT_REG_ADDR_MIN, REGISTER)],
        ),
        Expr::Tproxy { family } => registers(out, &[(NFTA_TPROXY_FAMILY, *family), (NFTA_TPROXY_REG_PORT, REGISTER)]),
        Expr::Xt { name, revision, info, .. } => {
            // NFTA_TARGET_* have the same numbers.
            out.string(NFTA_MATCH_NAME, name);
            out.u32(NFTA_MATCH_REV, *revision);
            out.bytes(NFTA_MATCH_INFO, info);
        }
        Expr::Update { .. } | Expr::Unknown { .. } => {}
    }
}

/// Reads one element of `NFTA_RULE_EXPRESSIONS`. What does not look as expected is unknown.
fn read_one(element: Attr) -> Expr {
    let name = find(element.value, NFTA_EXPR_NAME).map(|a| a.string()).unwrap_or_default();
    let data = find(element.value, NFTA_EXPR_DATA).map(|a| a.value).unwrap_or_default();
    parse(&name, data).unwrap_or_else(|| words::unknown(&name, data))
}

fn parse(name: &str, data: &[u8]) -> Option<Expr> {
    let number = |kind| find(data, kind).and_then(|a| a.u32());
    let text = |kind| find(data, kind).map(|a| a.string());
    let has = |kind| find(data, kind).is_some();
    let bytes = |kind| {
        let value = find(find(data, kind)?.value, NFTA_DATA_VALUE)?;
        Some(value.value.to_vec())
    };
    // Registers other than the one we use mean something else is going on.
    let is_ours = |kind| number(kind) == Some(REGISTER);
    Some(match name {
        "meta" if is_ours(NFTA_META_DREG) => Expr::Meta(number(NFTA_META_KEY)?),
        "meta" if is_ours(NFTA_META_SREG) => Expr::MetaSet(number(NFTA_META_KEY)?),
        // A direction makes it another key.
        "ct" if is_ours(NFTA_CT_DREG) && !has(NFTA_CT_DIRECTION) => Expr::Ct(number(NFTA_CT_KEY)?),
        "ct" if is_ours(NFTA_CT_SREG) && !has(NFTA_CT_DIRECTION) => Expr::CtSet(number(NFTA_CT_KEY)?),
        "payload" if is_ours(NFTA_PAYLOAD_DREG) => Expr::Payload {
            base: number(NFTA_PAYLOAD_BASE)?,
            offset: number(NFTA_PAYLOAD_OFFSET)?,
            len: number(NFTA_PAYLOAD_LEN)?,
        },
        "cmp" if is_ours(NFTA_CMP_SREG) => {
            Expr::Cmp { op: Op::from_number(number(NFTA_CMP_OP)?), data: bytes(NFTA_CMP_DATA)? }
        }
        "range" if is_ours(NFTA_RANGE_SREG) => Expr::Range {
            op: Op::from_number(number(NFTA_RANGE_OP)?),
            from: bytes(NFTA_RANGE_FROM_DATA)?,
            to: bytes(NFTA_RANGE_TO_DATA)?,
        },
        "bitwise"
            if is_ours(NFTA_BITWISE_SREG)
                && is_ours(NFTA_BITWISE_DREG)
                && number(NFTA_BITWISE_OP).unwrap_or(0) == NFT_BITWISE_MASK_XOR =>
        {
            Expr::Bitwise { mask: bytes(NFTA_BITWISE_MASK)?, xor: bytes(NFTA_BITWISE_XOR)? }
        }
        "byteorder"
            if is_ours(NFTA_BYTEORDER_SREG)
                && is_ours(NFTA_BYTEORDER_DREG)
                && number(NFTA_BYTEORDER_OP) == Some(NFT_BYTEORDER_HTON) =>
        {
            Expr::Hton { len: number(NFTA_BYTEORDER_LEN)? }
        }
        // A destination register makes it a map.
        "lookup" if is_ours(NFTA_LOOKUP_SREG) && !has(NFTA_LOOKUP_DREG) => Expr::Lookup {
            set: text(NFTA_LOOKUP_SET)?,
            id: None,
            negated: number(NFTA_LOOKUP_FLAGS).unwrap_or(0) & NFT_LOOKUP_F_INV != 0,
        },
        "lookup" if is_ours(NFTA_LOOKUP_SREG) && number(NFTA_LOOKUP_DREG) == Some(VERDICT) => {
            Expr::Vmap { set: text(NFTA_LOOKUP_SET)? }
        }
        "immediate" if number(NFTA_IMMEDIATE_DREG) == Some(VERDICT) => {
            let (code, chain) = verdict(find(data, NFTA_IMMEDIATE_DATA)?.value)?;
            Expr::Verdict { code, chain }
        }
        "immediate" if is_ours(NFTA_IMMEDIATE_DREG) => Expr::Immediate(bytes(NFTA_IMMEDIATE_DATA)?),
        "counter" => Expr::Counter {
            bytes: find(data, NFTA_COUNTER_BYTES)?.u64()?,
            packets: find(data, NFTA_COUNTER_PACKETS)?.u64()?,
        },
        // A range of ports is none of ours; the kernel repeats the one register in both.
        "redir"
            if is_ours(NFTA_REDIR_REG_PROTO_MIN)
                && number(NFTA_REDIR_REG_PROTO_MAX).is_none_or(|max| max == REGISTER) =>
        {
            Expr::Redir
        }
        // NFTA_TARGET_* have the same numbers.
        "match" | "target" => Expr::Xt {
            target: name == "target",
            name: text(NFTA_MATCH_NAME)?,
            revision: number(NFTA_MATCH_REV)?,
            info: find(data, NFTA_MATCH_INFO)?.value.to_vec(),
        },
        // Its registers say which element.
        "dynset" => {
            Expr::Update { verb: UpdateVerb::by_number(number(NFTA_DYNSET_OP)?)?, set: text(NFTA_DYNSET_SET_NAME)? }
        }
        // To one address, and no port of its own. The kernel repeats the register.
        "nat"
            if number(NFTA_NAT_TYPE) == Some(NFT_NAT_SNAT)
                && is_ours(NFTA_NAT_REG_ADDR_MIN)
                && number(NFTA_NAT_REG_ADDR_MAX).is_none_or(|max| max == REGISTER)
                && !has(NFTA_NAT_REG_PROTO_MIN)
                && !has(NFTA_NAT_REG_PROTO_MAX)
                && number(NFTA_NAT_FLAGS).is_none_or(|flags| flags & !NF_NAT_RANGE_MAP_IPS == 0) =>
        {
            Expr::Snat { family: number(NFTA_NAT_FAMILY)? }
        }
        "tproxy" if is_ours(NFTA_TPROXY_REG_PORT) && !has(NFTA_TPROXY_REG_ADDR) => {
            Expr::Tproxy { family: number(NFTA_TPROXY_FAMILY)? }
        }
        _ => return None,
    })
}

fn registers(out: &mut Attrs, values: &[(u16, u32)]) {
    for (kind, value) in values {
        out.u32(*kind, *value);
    }
}

/// Reads the verdict in a piece of data: its code, and the chain of a jump.
pub(super) fn verdict(data: &[u8]) -> Option<(i32, Option<String>)> {
    let verdict = find(data, NFTA_DATA_VERDICT)?;
    let code = find(verdict.value, NFTA_VERDICT_CODE)?.u32()? as i32;
    Some((code, find(verdict.value, NFTA_VERDICT_CHAIN).map(|a| a.string())))
}

/// Reads `NFTA_RULE_EXPRESSIONS`.
pub(super) fn read(list: &[u8]) -> Vec<Expr> {
    attributes(list).map(read_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::expr::{Role, code, ct, meta, payload};
    use crate::backend::nftables::wire::{Messages, Msg, NfFamily, NfMessage};
    use crate::plan::effect::Effect;
    use crate::sys::netlink::messages;

    #[test]
    fn every_expression_reads_back() {
        let exprs = vec![
            Expr::Meta(meta::L4PROTO),
            Expr::MetaSet(meta::MARK),
            Expr::Ct(ct::STATE),
            Expr::CtSet(ct::ZONE),
            Expr::Payload { base: payload::NETWORK, offset: 16, len: 4 },
            Expr::Cmp { op: Op::Eq, data: vec![6] },
            Expr::Cmp { op: Op::Other(3), data: vec![6, 7] },
            Expr::Range { op: Op::Neq, from: vec![0, 1], to: vec![0, 9] },
            Expr::Bitwise { mask: vec![255, 0], xor: vec![0, 0] },
            Expr::Hton { len: 4 },
            Expr::Lookup { set: "__set%d".into(), id: None, negated: true },
            Expr::Vmap { set: "__map%d".into() },
            Expr::Immediate(vec![0x3a, 0x99]),
            Expr::Verdict { code: code::JUMP, chain: Some("istio-output".into()) },
            Expr::Verdict { code: code::RETURN, chain: None },
            Expr::Counter { packets: 1, bytes: 1 << 40 },
            Expr::Redir,
            Expr::Tproxy { family: 0 },
            Expr::Snat { family: 2 },
            Expr::Xt { target: true, name: "REDIRECT".into(), revision: 0, info: vec![1, 2, 3, 4] },
            Expr::Unknown { role: Role::Decision(Effect::Unknown), words: "nothing-known".into() },
        ];
        let mut out = Messages::default();
        out.nft(Msg::NewRule, 0, NfFamily::INET, |a| a.nested(NFTA_RULE_EXPRESSIONS, |a| write(&exprs, a)));
        let message = messages(out.bytes()).next().unwrap();
        assert_eq!(read(find(message.attributes(), NFTA_RULE_EXPRESSIONS).unwrap().value), exprs);
    }
}
