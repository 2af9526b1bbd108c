//! The operating system: netlink sockets, namespaces, locks, capabilities. All `unsafe` code of the
//! crate is written here.

pub mod caps;
pub mod conntrack;
pub mod file;
pub mod grace;
pub mod inet_diag;
pub mod link;
pub mod lock;
pub mod memory;
pub mod mutex;
pub mod netlink;
pub mod netns;
pub mod packet;
pub mod privilege;
pub mod proc_net;
pub mod process;
pub mod sandbox;
pub mod seqpacket;
pub mod socket_owner;
pub mod start;
pub mod subscription;
pub mod text;
pub mod trust;
pub mod xattr;
