//! nf_tables expressions, the kernel's instructions for one rule, and their bytes
//! (linux/netfilter/nf_tables.h: `NFTA_EXPR_*` and each expression's attributes).

use crate::plan::effect::Effect;

use super::wire::{Attr, Attrs, attributes, find};
use super::words;

/// `enum nft_meta_keys`.
pub mod meta {
    pub const PROTOCOL: u32 = 1;
    pub const PRIORITY: u32 = 2;
    pub const MARK: u32 = 3;
    pub const IIF: u32 = 4;
    pub const OIF: u32 = 5;
    pub const IIFNAME: u32 = 6;
    pub const OIFNAME: u32 = 7;
    pub const SKUID: u32 = 10;
    pub const SKGID: u32 = 11;
    pub const NFTRACE: u32 = 12;
    pub const NFPROTO: u32 = 15;
    pub const L4PROTO: u32 = 16;
}

/// `enum nft_ct_keys`.
pub mod ct {
    pub const STATE: u32 = 0;
    pub const MARK: u32 = 3;
    pub const ZONE: u32 = 17;
}

/// `enum nft_payload_bases`.
pub mod payload {
    pub const NETWORK: u32 = 1;
    pub const TRANSPORT: u32 = 2;
}

/// The first of the 16 byte registers (`NFT_REG_1`); all that a rule of ours needs.
const REGISTER: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;

/// `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Eq,
    Neq,
    /// One of the orderings, by its number.
    Other(u32),
}

impl Op {
    fn number(self) -> u32 {
        match self {
            Op::Eq => 0,
            Op::Neq => 1,
            Op::Other(n) => n,
        }
    }

    fn from_number(n: u32) -> Self {
        match n {
            0 => Op::Eq,
            1 => Op::Neq,
            n => Op::Other(n),
        }
    }
}

/// `NFT_*` verdict codes, as the kernel's signed numbers.
pub mod code {
    pub const CONTINUE: i32 = -1;
    pub const DROP: i32 = 0;
    pub const ACCEPT: i32 = 1;
    pub const JUMP: i32 = -3;
    pub const GOTO: i32 = -4;
    pub const RETURN: i32 = -5;

    /// The code of a verdict without a chain, by nft's name for it.
    pub fn by_name(name: &str) -> Option<i32> {
        Some(match name {
            "continue" => CONTINUE,
            "drop" => DROP,
            "accept" => ACCEPT,
            "return" => RETURN,
            _ => return None,
        })
    }
}

/// One expression. Those with a source or destination register use register 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Meta(u32),
    MetaSet(u32),
    Ct(u32),
    CtSet(u32),
    Payload {
        base: u32,
        offset: u32,
        len: u32,
    },
    Cmp {
        op: Op,
        data: Vec<u8>,
    },
    Range {
        op: Op,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Bitwise {
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Host to network order of `len` bytes.
    Hton {
        len: u32,
    },
    /// `id` names the set within a transaction, `set` afterwards.
    Lookup {
        set: String,
        id: Option<u32>,
        negated: bool,
    },
    /// The verdict that a map has for what the register holds; without one the rule ends.
    Vmap {
        set: String,
    },
    Immediate(Vec<u8>),
    Verdict {
        code: i32,
        chain: Option<String>,
    },
    Counter {
        packets: u64,
        bytes: u64,
    },
    /// Destination port of the pod itself, from the register.
    Redir,
    /// To the socket on the port in the register; `family` is `NFPROTO_*`, 0 for both.
    Tproxy {
        family: u32,
    },
    /// A match or target of iptables-nft, as the kernel's structure.
    Xt {
        target: bool,
        name: String,
        revision: u32,
        info: Vec<u8>,
    },
    /// Puts something into a set or map, or takes it out; where that fails the rule ends. What
    /// the set holds when it is listed says nothing about the next packet.
    Update {
        verb: UpdateVerb,
        set: String,
    },
    /// Anything else, in words.
    Unknown {
        role: Role,
        words: String,
    },
}

/// `enum nft_dynset_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateVerb {
    Add,
    Update,
    Delete,
}

impl UpdateVerb {
    const ALL: [UpdateVerb; 3] = [UpdateVerb::Add, UpdateVerb::Update, UpdateVerb::Delete];

    /// nft's word for it.
    pub fn name(self) -> &'static str {
        match self {
            UpdateVerb::Add => "add",
            UpdateVerb::Update => "update",
            UpdateVerb::Delete => "delete",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }

    fn by_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| *verb as u32 == number)
    }
}

/// The sets and maps that rules change.
pub fn updated<'a>(exprs: impl IntoIterator<Item = &'a Expr>) -> impl Iterator<Item = &'a str> {
    exprs.into_iter().filter_map(|expr| if let Expr::Update { set, .. } = expr { Some(set.as_str()) } else { None })
}

/// What an expression that is not understood may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Asks something, so that the rule may apply or not.
    Condition,
    /// Loads something, for an expression behind it to compare.
    Load,
    /// Loads a value that the rule itself says.
    Value,
    /// Decides about the packet, or changes it.
    Decision(Effect),
    /// Does something that the listing does not tell.
    Hidden,
    /// Writes somewhere, and the packet goes on.
    Nothing,
}

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// Writes expressions as the elements of `NFTA_RULE_EXPRESSIONS`.
pub fn write(exprs: &[Expr], out: &mut Attrs) {
    for expr in exprs {
        out.nested(NFTA_LIST_ELEM, |out| {
            out.string(NFTA_EXPR_NAME, expr.name());
            out.nested(NFTA_EXPR_DATA, |out| expr.write(out));
        });
    }
}

impl Expr {
    fn name(&self) -> &str {
        match self {
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
            Expr::Tproxy { .. } => "tproxy",
            Expr::Xt { target: true, .. } => "target",
            Expr::Xt { .. } => "match",
            // Only for reading: a rule of ours has none of these.
            Expr::Update { .. } => "dynset",
            Expr::Unknown { words, .. } => words,
        }
    }

    fn write(&self, out: &mut Attrs) {
        let data = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            move |out: &mut Attrs| out.bytes(NFTA_DATA_VALUE, &bytes)
        };
        match self {
            // NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG; NFTA_CT_* are alike but for order.
            Expr::Meta(key) => registers(out, &[(2, *key), (1, REGISTER)]),
            Expr::MetaSet(key) => registers(out, &[(2, *key), (3, REGISTER)]),
            Expr::Ct(key) => registers(out, &[(2, *key), (1, REGISTER)]),
            Expr::CtSet(key) => registers(out, &[(2, *key), (4, REGISTER)]),
            Expr::Payload { base, offset, len } => {
                registers(out, &[(1, REGISTER), (2, *base), (3, *offset), (4, *len)]);
            }
            Expr::Cmp { op, data: bytes } => {
                registers(out, &[(1, REGISTER), (2, op.number())]);
                out.nested(3, data(bytes));
            }
            Expr::Range { op, from, to } => {
                registers(out, &[(1, REGISTER), (2, op.number())]);
                out.nested(3, data(from));
                out.nested(4, data(to));
            }
            Expr::Bitwise { mask, xor } => {
                registers(out, &[(1, REGISTER), (2, REGISTER), (3, mask.len() as u32)]);
                out.nested(4, data(mask));
                out.nested(5, data(xor));
            }
            // NFTA_BYTEORDER_SREG, DREG, OP (NFT_BYTEORDER_HTON is 1), LEN, SIZE.
            Expr::Hton { len } => {
                registers(out, &[(1, REGISTER), (2, REGISTER), (3, 1), (4, *len), (5, *len)]);
            }
            Expr::Lookup { set, id, negated } => {
                out.string(1, set);
                out.u32(2, REGISTER);
                if let Some(id) = id {
                    out.u32(4, *id);
                }
                if *negated {
                    out.u32(5, 1); // NFT_LOOKUP_F_INV
                }
            }
            Expr::Vmap { set } => {
                out.string(1, set);
                registers(out, &[(2, REGISTER), (3, VERDICT)]);
            }
            Expr::Immediate(bytes) => {
                out.u32(1, REGISTER);
                out.nested(2, data(bytes));
            }
            Expr::Verdict { code, chain } => {
                out.u32(1, VERDICT);
                out.nested(2, |out| {
                    out.nested(NFTA_DATA_VERDICT, |out| {
                        out.u32(1, *code as u32);
                        if let Some(chain) = chain {
                            out.string(2, chain);
                        }
                    });
                });
            }
            Expr::Counter { packets, bytes } => {
                out.u64(1, *bytes);
                out.u64(2, *packets);
            }
            Expr::Redir => out.u32(1, REGISTER),
            Expr::Tproxy { family } => registers(out, &[(1, *family), (3, REGISTER)]),
            Expr::Xt { name, revision, info, .. } => {
                out.string(1, name);
                out.u32(2, *revision);
                out.bytes(3, info);
            }
            Expr::Update { .. } | Expr::Unknown { .. } => {}
        }
    }

    /// Reads one element of `NFTA_RULE_EXPRESSIONS`. What does not look as expected is unknown.
    pub fn read(element: Attr) -> Self {
        let name = find(element.value, NFTA_EXPR_NAME).map(|a| a.string()).unwrap_or_default();
        let data = find(element.value, NFTA_EXPR_DATA).map(|a| a.value).unwrap_or_default();
        Self::parse(&name, data).unwrap_or_else(|| words::unknown(&name, data))
    }

    fn parse(name: &str, data: &[u8]) -> Option<Self> {
        let number = |kind| find(data, kind).and_then(|a| a.u32());
        let bytes = |kind| {
            let value = find(find(data, kind)?.value, NFTA_DATA_VALUE)?;
            Some(value.value.to_vec())
        };
        // Registers other than the one we use mean something else is going on.
        let is_ours = |kind| number(kind) == Some(REGISTER);
        match name {
            "meta" if is_ours(1) => Some(Expr::Meta(number(2)?)),
            "meta" if is_ours(3) => Some(Expr::MetaSet(number(2)?)),
            // A direction (NFTA_CT_DIRECTION, 3) makes it another key.
            "ct" if is_ours(1) && number(3).is_none() && find(data, 3).is_none() => Some(Expr::Ct(number(2)?)),
            "ct" if is_ours(4) && find(data, 3).is_none() => Some(Expr::CtSet(number(2)?)),
            "payload" if is_ours(1) => Some(Expr::Payload { base: number(2)?, offset: number(3)?, len: number(4)? }),
            "cmp" if is_ours(1) => Some(Expr::Cmp { op: Op::from_number(number(2)?), data: bytes(3)? }),
            "range" if is_ours(1) => {
                Some(Expr::Range { op: Op::from_number(number(2)?), from: bytes(3)?, to: bytes(4)? })
            }
            // NFTA_BITWISE_OP (6) 0 is mask-and-xor.
            "bitwise" if is_ours(1) && is_ours(2) && number(6).unwrap_or(0) == 0 => {
                Some(Expr::Bitwise { mask: bytes(4)?, xor: bytes(5)? })
            }
            "byteorder" if is_ours(1) && is_ours(2) && number(3) == Some(1) => Some(Expr::Hton { len: number(4)? }),
            // A destination register (3) makes it a map.
            "lookup" if is_ours(2) && find(data, 3).is_none() => {
                Some(Expr::Lookup { set: find(data, 1)?.string(), id: None, negated: number(5).unwrap_or(0) & 1 == 1 })
            }
            "lookup" if is_ours(2) && number(3) == Some(VERDICT) => Some(Expr::Vmap { set: find(data, 1)?.string() }),
            "immediate" if number(1) == Some(VERDICT) => {
                let (code, chain) = verdict(find(data, 2)?.value)?;
                Some(Expr::Verdict { code, chain })
            }
            "immediate" if is_ours(1) => Some(Expr::Immediate(bytes(2)?)),
            "counter" => Some(Expr::Counter { bytes: find(data, 1)?.u64()?, packets: find(data, 2)?.u64()? }),
            // A range of ports (NFTA_REDIR_REG_PROTO_MAX, 2) of its own is none of ours; the
            // kernel repeats the one register in both.
            "redir" if is_ours(1) && number(2).is_none_or(|max| max == REGISTER) => Some(Expr::Redir),
            "match" | "target" => Some(Expr::Xt {
                target: name == "target",
                name: find(data, 1)?.string(),
                revision: number(2)?,
                info: find(data, 3)?.value.to_vec(),
            }),
            // NFTA_DYNSET_SET_NAME, NFTA_DYNSET_OP; its registers say which element.
            "dynset" => Some(Expr::Update { verb: UpdateVerb::by_number(number(3)?)?, set: find(data, 1)?.string() }),
            "tproxy" if is_ours(3) && find(data, 2).is_none() => Some(Expr::Tproxy { family: number(1)? }),
            _ => None,
        }
    }
}

fn registers(out: &mut Attrs, values: &[(u16, u32)]) {
    for (kind, value) in values {
        out.u32(*kind, *value);
    }
}

/// Reads the verdict in a piece of data: its code, and the chain of a jump.
pub fn verdict(data: &[u8]) -> Option<(i32, Option<String>)> {
    let verdict = find(data, NFTA_DATA_VERDICT)?;
    Some((find(verdict.value, 1)?.u32()? as i32, find(verdict.value, 2).map(|a| a.string())))
}

/// Reads `NFTA_RULE_EXPRESSIONS`.
pub fn read(list: &[u8]) -> Vec<Expr> {
    attributes(list).map(Expr::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::wire::{Messages, Msg, NfFamily, NfMessage};
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
            Expr::Xt { target: true, name: "REDIRECT".into(), revision: 0, info: vec![1, 2, 3, 4] },
            Expr::Unknown { role: Role::Decision(Effect::Unknown), words: "nothing-known".into() },
        ];
        let mut out = Messages::default();
        out.nft(Msg::NewRule, 0, NfFamily::INET, |a| a.nested(4, |a| write(&exprs, a)));
        let message = messages(out.bytes()).next().unwrap();
        assert_eq!(read(find(message.attributes(), 4).unwrap().value), exprs);
    }
}
