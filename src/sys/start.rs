//! The process's start, without what Rust's runtime does around `fn main`: that reads
//! /proc/self/maps, polls the standard descriptors and sets up signal stacks, which
//! together take about as long as the kernel takes for half of a pod's rules.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;

/// Which standard descriptors were closed when the process began: bit n is descriptor n.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// When the process began.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// When the process began: what has to be done within a time counts from here.
pub fn began() -> Instant {
    *BEGAN.get_or_init(Instant::now)
}

/// Prepares the process: a closed pipe is an error to report, not a signal to die from,
/// and the place of a closed standard descriptor is taken, lest a file or socket opened
/// later be written to as standard output.
pub fn prepare() {
    began();
    // SAFETY: ignoring a signal installs no code of ours that could run in its place.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    for number in 0..3 {
        // SAFETY: asking for the flags of a descriptor that may not be open does nothing.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl(descriptor, FcntlArg::F_GETFD) == Err(Errno::EBADF) {
            CLOSED.fetch_or(1 << number, Ordering::Relaxed);
            // The lowest free number is this one. It can be neither read nor written.
            let _ = open("/", OFlag::O_PATH, Mode::empty()).map(IntoRawFd::into_raw_fd);
        }
    }
}

/// Whether one of the standard descriptors was closed when the process began.
pub fn was_closed(number: u8) -> bool {
    CLOSED.load(Ordering::Relaxed) & (1 << number) != 0
}

/// The arguments of `main`. `std::env::args_os` has them without Rust's runtime only where the
/// C library hands them to a program's initializers as well: glibc does, musl does not.
///
/// # Safety
///
/// As the C runtime hands them to `main`: `argv` points to `argc` pointers to strings that end
/// with a zero byte (C11, 5.1.2.2.1).
pub unsafe fn arguments(argc: i32, argv: *const *const c_char) -> Vec<OsString> {
    let argument = |at: usize| {
        // SAFETY: the caller promises that there are so many, and that each is a string.
        let text = unsafe { CStr::from_ptr(*argv.add(at)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    (0..usize::try_from(argc).unwrap_or(0)).map(argument).collect()
}

/// Makes a function the process's entry point, in place of `fn main`.
#[macro_export]
macro_rules! entry_point {
    ($main:path) => {
        /// What the C runtime calls.
        // SAFETY: the name is the one the C runtime calls, with this signature, once.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn main(argc: i32, argv: *const *const std::ffi::c_char) -> i32 {
            $crate::sys::start::prepare();
            // SAFETY: they are what the C runtime hands to `main`, as it hands them.
            let arguments = unsafe { $crate::sys::start::arguments(argc, argv) };
            i32::from($main(arguments))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_main() {
        let words = [c"podweir", c"--x=\xff", c""];
        let mut pointers: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        // SAFETY: three strings that end with a zero byte.
        let read = |count| unsafe { arguments(count, pointers.as_ptr()) };
        let wanted: Vec<&OsStr> = words.iter().map(|word| OsStr::from_bytes(word.to_bytes())).collect();
        assert_eq!(read(3), wanted);
        assert_eq!(read(0), Vec::<OsString>::new());
    }
}
