//! Black-box and property tests. Those that need the kernel make network namespaces of
//! their own and fail, rather than skip, where that is not possible.

mod arbitrary;
mod bad_input;
mod cli;
mod closed;
mod compare;
mod conformance;
mod draw;
mod escapes;
mod explain;
mod faults;
mod fixture;
mod foreign;
mod kernel;
mod kill;
mod lints;
mod parallel;
mod partition;
mod pod;
mod properties;
mod readme;
mod sources;
mod states;
mod traffic;
mod validation;

/// How many cases a property test runs: `PODWEIR_CASES` times as many as usual.
fn cases(usual: u32) -> u32 {
    let factor = std::env::var("PODWEIR_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual * factor
}
