//! What the user configured: option texts from flags, variables, a netconf or a pod, their precedence,
//! and the typed [`interception::Interception`] that they give. The only place that reads the
//! environment.

pub mod ambient;
pub mod facts;
mod families;
pub mod given;
pub mod interception;
pub mod log_levels;
pub mod options;
mod owners;
pub mod pod;
pub mod ranges;
mod reader;
pub mod settings;
pub mod types;
pub mod value;
