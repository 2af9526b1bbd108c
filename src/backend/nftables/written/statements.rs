//! Statements as nft writes them, as the expressions that the kernel would have for them.

use crate::backend::nftables::expr::{Expr, ct, meta};

/// `meta mark set VALUE`.
pub fn set_mark(value: u32) -> Vec<Expr> {
    vec![Expr::Immediate(value.to_ne_bytes().to_vec()), Expr::MetaSet(meta::MARK)]
}

/// `meta mark set meta mark & KEEP ^ FLIP`.
pub fn change_mark(keep: u32, flip: u32) -> Vec<Expr> {
    let bitwise = Expr::Bitwise { mask: keep.to_ne_bytes().to_vec(), xor: flip.to_ne_bytes().to_vec() };
    vec![Expr::Meta(meta::MARK), bitwise, Expr::MetaSet(meta::MARK)]
}

/// `ct mark set meta mark`.
pub fn save_mark() -> Vec<Expr> {
    vec![Expr::Meta(meta::MARK), Expr::CtSet(ct::MARK)]
}

/// `meta mark set ct mark`.
pub fn restore_mark() -> Vec<Expr> {
    vec![Expr::Ct(ct::MARK), Expr::MetaSet(meta::MARK)]
}

/// `ct zone set ZONE`.
pub fn set_zone(zone: u16) -> Vec<Expr> {
    vec![Expr::Immediate(zone.to_ne_bytes().to_vec()), Expr::CtSet(ct::ZONE)]
}

/// `redirect to :PORT`.
pub fn redirect(port: u16) -> Vec<Expr> {
    vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Redir]
}

/// `tproxy to :PORT`.
pub fn tproxy(port: u16) -> Vec<Expr> {
    vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Tproxy { family: 0 }]
}
