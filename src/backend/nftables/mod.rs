//! Native nftables over netlink: no program is needed, and everything changes in one
//! transaction.

pub mod backend;
mod branch;
pub mod cleanup;
mod condition;
pub mod decode;
pub(super) mod devices;
pub mod encode;
mod errors;
pub mod everything;
pub mod expr;
mod field;
pub mod frame;
pub mod json;
pub mod links;
mod marks;
pub mod names;
pub mod read;
pub mod script;
pub mod sets;
mod steps;
pub mod table;
pub mod tables;
pub mod text;
pub mod transaction;
mod value;
pub mod wire;
mod words;
pub mod written;
pub mod xt;
