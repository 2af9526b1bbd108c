//! nf_tables expressions: the kernel's instructions for one rule (linux/netfilter/nf_tables.h).

use crate::plan::effect::Effect;

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

/// `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Eq,
    Neq,
    /// One of the orderings, by its number.
    Other(u32),
}

impl Op {
    pub(super) fn number(self) -> u32 {
        match self {
            Op::Eq => 0,
            Op::Neq => 1,
            Op::Other(n) => n,
        }
    }

    pub(super) fn from_number(n: u32) -> Self {
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
    /// Source address, from the register; `family` is `NFPROTO_*`.
    Snat {
        family: u32,
    },
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

    pub(super) fn by_number(number: u32) -> Option<Self> {
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
