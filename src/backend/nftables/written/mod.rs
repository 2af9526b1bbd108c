//! Translates what nft writes to what the kernel would hold. Text and JSON have the same words, and
//! differ only in structure.

pub mod conditions;
pub mod fields;
pub mod names;
pub mod sets;
pub mod statements;
pub mod values;
