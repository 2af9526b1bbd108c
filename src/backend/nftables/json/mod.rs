//! `nft -j list ruleset` (libnftables-json(5)) as tables of expressions.

mod items;
mod ruleset;
mod statement;

pub use ruleset::parse;
