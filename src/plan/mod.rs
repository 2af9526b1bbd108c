//! The plan: what a kernel must hold for an interception. [`model`] is the vocabulary,
//! [`build`] the decision tree, [`lower`] the form iptables needs, [`canon`] the form
//! in which plans are compared and hashed whichever backend holds them.

mod ask;
pub mod build;
pub mod canon;
mod fold;
pub mod infer;
pub mod lower;
pub mod model;
mod order;
pub mod why;

pub use build::build;
