//! The plan: what a kernel must hold for an interception. [`model`] is the vocabulary, [`mod@build`] the
//! decision tree, [`lower`] the form iptables needs, [`canon`] the form in which plans are compared and
//! hashed whichever backend holds them, [`diff`] compares two of them, [`infer`] finds the reasons of
//! rules that were found, [`words`] puts rules into words for people.

pub mod align;
pub mod build;
pub mod canon;
mod canon_rule;
pub mod diff;
pub mod effect;
mod fold;
mod found;
pub mod infer;
pub mod lower;
pub mod model;
pub mod place;
mod recover;
pub mod why;
pub mod words;

pub use build::build;
