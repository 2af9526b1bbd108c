//! Picks the face; the one place that sets the exit status.

#![no_main]

use std::ffi::OsString;

use podweir::config::given::process_environment;
use podweir::{cli, cni};

podweir::entry_point!(face);

/// A container runtime says in the environment what it wants and passes no arguments;
/// everybody else passes arguments. Both at once are refused: a variable must not make an
/// init container's arguments count for nothing, nor arguments a runtime's call.
fn face(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match (cni::is_called(&process_environment), arguments.len() > 1) {
        (true, false) => cni::main(),
        (true, true) => cli::refuse_both_faces(&arguments[1..]),
        (false, _) => cli::main(arguments),
    }
}
