//! Measures podweir, and prints tables for the README. Run by `scripts/bench`.
//!
//! - `bench processes PODWEIR`: whole processes in fresh network namespaces
//! - `bench connections PODWEIR PLOT`: what a connection costs as lists grow, drawn as SVG

mod connections;
mod namespace;
mod plot;
mod processes;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["processes", podweir] => processes::measure(podweir),
        ["connections", podweir, plot] => connections::measure(podweir, plot),
        _ => panic!("usage: bench processes PODWEIR | bench connections PODWEIR PLOT"),
    }
}

/// The middle one of many measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
