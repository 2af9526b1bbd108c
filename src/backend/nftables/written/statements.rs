//! Translates statements in nft's words to the kernel's expressions.

use std::net::IpAddr;

use crate::backend::nftables::expr::{Expr, ct, meta};

/// The mark of a packet, or of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkOf {
    Packet,
    Connection,
}

impl MarkOf {
    /// The other of the two marks, which can be copied.
    pub fn other(self) -> Self {
        if self == MarkOf::Packet { MarkOf::Connection } else { MarkOf::Packet }
    }

    /// nft's word in front of `mark`.
    pub fn word(self) -> &'static str {
        if self == MarkOf::Packet { "meta" } else { "ct" }
    }

    fn load(self) -> Expr {
        if self == MarkOf::Packet { Expr::Meta(meta::MARK) } else { Expr::Ct(ct::MARK) }
    }

    fn store(self) -> Expr {
        if self == MarkOf::Packet { Expr::MetaSet(meta::MARK) } else { Expr::CtSet(ct::MARK) }
    }
}

/// `meta mark set VALUE`, `ct mark set VALUE`.
pub fn set_mark(of: MarkOf, value: u32) -> Vec<Expr> {
    vec![Expr::Immediate(value.to_ne_bytes().to_vec()), of.store()]
}

/// `meta mark set meta mark & KEEP ^ FLIP`, and the same with `ct mark`.
pub fn change_mark(of: MarkOf, keep: u32, flip: u32) -> Vec<Expr> {
    let bitwise = Expr::Bitwise { mask: keep.to_ne_bytes().to_vec(), xor: flip.to_ne_bytes().to_vec() };
    vec![of.load(), bitwise, of.store()]
}

/// `ct mark set meta mark`, `meta mark set ct mark`.
pub fn copy_mark(to: MarkOf) -> Vec<Expr> {
    vec![to.other().load(), to.store()]
}

/// `ct zone set ZONE`.
pub fn set_zone(zone: u16) -> Vec<Expr> {
    vec![Expr::Immediate(zone.to_ne_bytes().to_vec()), Expr::CtSet(ct::ZONE)]
}

/// `redirect to :PORT`.
pub fn redirect(port: u16) -> Vec<Expr> {
    vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Redir]
}

/// `snat ip to ADDRESS`.
pub fn snat(to: IpAddr) -> Vec<Expr> {
    // NFPROTO_IPV4, NFPROTO_IPV6.
    let (bytes, family) = match to {
        IpAddr::V4(to) => (to.octets().to_vec(), 2),
        IpAddr::V6(to) => (to.octets().to_vec(), 10),
    };
    vec![Expr::Immediate(bytes), Expr::Snat { family }]
}

/// `tproxy to :PORT`.
pub fn tproxy(port: u16) -> Vec<Expr> {
    vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Tproxy { family: 0 }]
}
