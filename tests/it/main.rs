//! Black-box and property tests. Those that need the kernel make network namespaces of
//! their own and fail, rather than skip, where that is not possible.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by it")]

mod agent;
mod ambient;
mod ambient_audit;
mod ambient_traffic;
mod api;
mod arbitrary;
mod archive;
mod asked;
mod attribution;
mod audit;
mod bad_input;
mod beside;
mod busy;
mod busybox;
mod cli;
mod closed;
mod cluster;
mod cluster_audit;
mod cni_canary;
mod cni_cases;
mod cni_chain;
mod cni_conf;
mod cni_fuzz;
mod cni_log;
mod cni_lookup;
mod cni_namespace;
mod cni_protocol;
mod cni_trust;
mod compare;
mod conformance;
mod containerd;
mod containerd_cni;
mod containers;
mod cri;
mod dns;
mod draw;
mod dumps;
mod envoy;
mod escapes;
mod established;
mod examples;
mod explain;
mod faces;
mod faults;
mod files;
mod fixture;
mod fleet;
mod foreign;
mod guard;
mod image;
mod kernel;
mod kill;
mod large;
mod link_local;
mod lints;
mod lock;
mod long_lists;
mod manifest;
mod maps;
mod node;
mod node_namespace;
mod odd_rules;
mod page;
mod parallel;
mod partition;
mod plugin;
mod pod;
mod pod_files;
mod privilege;
mod project;
mod properties;
mod readings;
mod readme;
mod reasons;
mod relay;
mod replacing;
mod scarce;
mod schemas;
mod semantics;
mod side_by_side;
mod sources;
mod statements;
mod states;
mod tproxy;
mod traffic;
mod typical;
mod validation;
mod verify;
mod walk;
mod words;
mod ztunnel;

/// How many cases a property test runs: `PODWEIR_CASES` times as many as usual.
fn cases(usual: u32) -> u32 {
    let factor = std::env::var("PODWEIR_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual * factor
}
