//! `nft list ruleset` (nft(8)) as tables of expressions.

mod items;
pub mod rule;
mod ruleset;
pub mod tokens;
mod unknown;

pub use ruleset::parse;
pub use unknown::updated;
