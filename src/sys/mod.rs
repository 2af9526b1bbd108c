//! The operating system: netlink sockets, namespaces, locks, capabilities. Every
//! `unsafe`, if any, is here.

pub mod caps;
pub mod file;
pub mod link;
pub mod lock;
pub mod netlink;
pub mod netns;
pub mod packet;
pub mod process;
pub mod start;
pub mod text;
