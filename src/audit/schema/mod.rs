//! podweir's own JSON for rules: everything a source holds, so that it can be looked at
//! elsewhere, without the kernel it comes from. What is written here is read here, and
//! nothing gets lost on the way.
//!
//! `scripts/schemas/rules.schema.json` says what each member means.

mod read;
mod write;

pub use read::read;
pub use write::{FORMAT, VERSION, source};
