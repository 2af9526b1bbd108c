//! Ambient mode: pods without a proxy of their own, whose traffic the node's ztunnel takes.
//! The agent programs their namespaces, hands these to ztunnel, lets the kubelet's probes
//! by, and keeps all of it true.
//!
//! | module | what it owns |
//! |---|---|
//! | `zds` | telling ztunnels |
//! | `figures` | what is counted |

pub mod figures;
pub mod zds;
