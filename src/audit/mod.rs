//! Audit: what is intercepted, what escapes, and whether the kernel agrees.

pub mod accept;
pub mod answer;
pub mod digest;
pub mod draw;
pub mod escapes;
pub mod established;
pub mod explain;
pub mod fleet;
pub mod flow;
pub mod lints;
pub mod partition;
pub mod question;
pub mod report;
pub mod routes;
pub mod ruleset;
pub mod schema;
pub mod source;
pub mod space;
pub mod table;
pub mod undo;
pub mod verification;
pub mod verify;
mod walk;
