//! The process's start, without what Rust's runtime does around `fn main`: that reads
//! /proc/self/maps, polls the standard descriptors and sets up signal stacks, which
//! together take about as long as the kernel takes for half of a pod's rules.

#![allow(unsafe_code)]

use nix::sys::signal::{SigHandler, Signal, signal};

/// Prepares the process: a closed pipe is an error to report, not a signal to die from.
pub fn prepare() {
    // SAFETY: ignoring a signal installs no code of ours that could run in its place.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
}

/// Makes a function the process's entry point, in place of `fn main`.
#[macro_export]
macro_rules! entry_point {
    ($main:path) => {
        /// What the C runtime calls. The arguments are had from `std::env` all the same.
        // SAFETY: the name is the one the C runtime calls, with this signature, once.
        #[unsafe(no_mangle)]
        pub extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
            $crate::sys::start::prepare();
            i32::from($main(std::env::args_os()))
        }
    };
}
