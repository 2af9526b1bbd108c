//! Picks the face; the one place that sets the exit status.

#![no_main]

use std::ffi::OsString;

use podweir::config::given::process_environment;
use podweir::{cli, cni};

podweir::entry_point!(face);

/// A container runtime says in the environment what it wants, and passes no arguments.
fn face(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    if cni::is_called(&process_environment) { cni::main() } else { cli::main(arguments) }
}
