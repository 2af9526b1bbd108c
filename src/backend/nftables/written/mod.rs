//! What nft writes, in either of its notations, as what the kernel would hold for it: text and
//! JSON differ in how they are put together, not in their words.

pub mod conditions;
pub mod fields;
pub mod names;
pub mod sets;
pub mod statements;
pub mod values;
