//! Native nftables over netlink: no program is needed, and everything changes in one
//! transaction.

pub mod backend;
mod branch;
pub mod cleanup;
mod comment;
mod condition;
mod contents;
pub mod decode;
mod devices;
mod dump;
pub mod encode;
mod errors;
pub mod expr;
mod expr_bytes;
mod field;
pub mod frame;
pub mod json;
pub mod links;
pub mod list;
mod marks;
pub mod names;
mod nfta;
pub mod probes;
pub mod raw;
pub mod script;
pub mod sets;
mod steps;
pub mod survey;
pub mod table;
pub mod tables;
pub mod text;
pub mod transaction;
mod value;
pub mod wire;
mod words;
pub mod written;
pub mod xt;
