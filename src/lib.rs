//! podweir puts a weir across a pod's traffic: inside the pod's network namespace it
//! diverts connections to a sidecar proxy, and it can say exactly what it diverts, what
//! escapes, and whether the kernel still agrees.
//!
//! ```text
//! flags, variables, annotations ─► config ─► Interception ─► plan::build ─► Plan ─► backend ─► kernel
//!                                                                            │  ▲
//!                                                      cli, audit, cni ◄─────┘  └── backend reads ◄── kernel
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`config`] | what the user asked for, typed and checked; the only place that reads the environment |
//! | [`plan`] | the model of what a kernel must hold, and the one place that decides it |
//! | [`backend`] | translation of plans to and from nftables and iptables; installing and removing |
//! | [`audit`] | comparing, explaining, drawing |
//! | [`probe`] | a token sent through the rules, to prove them |
//! | [`cni`] | the plugin that a container runtime executes |
//! | [`cli`] | what is typed: one file per subcommand |
//! | [`sys`] | the operating system: sockets, namespaces, locks |

#![deny(unsafe_code)]

pub mod audit;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod node;
pub mod plan;
pub mod probe;
pub mod sys;
