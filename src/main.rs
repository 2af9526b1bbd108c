//! Picks the face; the one place that sets the exit status.

#![no_main]

podweir::entry_point!(podweir::cli::main);
