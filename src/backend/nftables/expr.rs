//! nf_tables expressions: the kernel's instructions for one rule (linux/netfilter/nf_tables.h).

use crate::plan::effect::Effect;

/// Keys of meta expressions (`enum nft_meta_keys`).
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

/// Keys of ct expressions (`enum nft_ct_keys`).
pub mod ct {
    pub const STATE: u32 = 0;
    pub const MARK: u32 = 3;
    pub const ZONE: u32 = 17;
}

/// Headers that payload offsets count from (`enum nft_payload_bases`).
pub mod payload {
    pub const NETWORK: u32 = 1;
    pub const TRANSPORT: u32 = 2;
}

/// Comparison operators (`enum nft_cmp_ops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Eq,
    Neq,
    /// Less, greater and the like, by the kernel's number.
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

/// An nf_tables expression. Source and destination register are always register 1.
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
    /// Turns `len` bytes from host to network order.
    Hton {
        len: u32,
    },
    /// Looks up the register in a set; `id` names it within a transaction, `set` afterwards.
    Lookup {
        set: String,
        id: Option<u32>,
        negated: bool,
    },
    /// Takes the verdict that a map has for the register; if it has none the rule ends.
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
    /// Redirects to the pod itself, to the port in the register.
    Redir,
    /// Rewrites the source to the address in the register; `family` is `NFPROTO_*`.
    Snat {
        family: u32,
    },
    /// Hands the packet to the socket on the port in the register; `family` is `NFPROTO_*`, 0 for both.
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
    /// Adds an element to a set or map, or removes one; if that fails the rule ends. The listed elements
    /// say nothing about the next packet.
    Update {
        verb: UpdateVerb,
        set: String,
    },
    /// Any other expression, in words.
    Unknown {
        role: Role,
        words: String,
    },
}

/// How a rule changes a set (`enum nft_dynset_ops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateVerb {
    Add,
    Update,
    Delete,
}

impl UpdateVerb {
    const ALL: [UpdateVerb; 3] = [UpdateVerb::Add, UpdateVerb::Update, UpdateVerb::Delete];

    /// The word that nft has for it.
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
    /// Is a condition: the rule may end here.
    Condition,
    /// Loads a value, which a later expression compares.
    Load,
    /// Loads a constant.
    Value,
    /// Decides about the packet, or changes it.
    Decision(Effect),
    /// Has an effect that the listing does not show.
    Hidden,
    /// Logs or counts, and has no effect on the packet.
    Nothing,
}
