//! iptables, both variants, through their `-save` and `-restore --noflush` programs.

pub mod backend;
pub mod folders;
pub mod ipset;
pub mod ours;
pub mod parse;
pub mod programs;
pub mod render;
pub mod rule;
pub mod script;
pub mod text;
