//! Measures podweir, and prints tables for the README. Run by `scripts/bench`.
//!
//! - `bench processes PODWEIR`: whole processes in fresh network namespaces
//! - `bench connections PODWEIR PLOT`: what a connection costs as lists grow, drawn as SVG
//! - `bench cni PODWEIR`: the plugin as a container runtime calls it
//! - `bench node PODWEIR`: the agent of a node that is full of pods
//! - `bench ambient PODWEIR`: ambient mode, and the agent of a node that is full of such pods
//! - `bench cluster PODWEIR`: an audit of a simulated cluster of 1,000 nodes

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement ends by it")]

mod ambient;
#[path = "../../tests/it/api.rs"]
#[expect(dead_code, reason = "the tests ask more of it")]
mod api;
mod cluster;
mod cni;
mod connections;
mod namespace;
mod node;
mod plot;
mod processes;
#[path = "../../tests/it/agent/server.rs"]
#[expect(dead_code, reason = "the tests ask more of it")]
mod server;
#[path = "../../tests/it/typical.rs"]
mod typical;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["processes", podweir] => processes::measure(podweir),
        ["connections", podweir, plot] => connections::measure(podweir, plot),
        ["cni", podweir] => cni::measure(podweir),
        ["node", podweir] => node::measure(podweir),
        ["ambient", podweir] => ambient::measure(podweir),
        ["cluster", podweir] => cluster::measure(podweir),
        [cluster::KUBECTL, folder, ref words @ ..] => cluster::kubectl(folder, words),
        [cni::SERVER, run_dir] => cni::serve(run_dir),
        _ => panic!(
            "usage: bench processes PODWEIR | bench connections PODWEIR PLOT | bench cni PODWEIR | bench node PODWEIR | bench ambient PODWEIR | bench cluster PODWEIR"
        ),
    }
}

/// The middle one of many measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
