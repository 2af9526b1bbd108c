//! Standard output: whole, or an error.

use std::io::{self, Write};

use nix::errno::Errno;

use crate::sys::start::was_closed;
use crate::sys::text::printable_lines;

use super::error::CliError;

/// Writes a text, or fails. The texts of arguments and manifests are in it; what a terminal would take
/// for commands is escaped.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    check()?;
    let mut out = io::stdout().lock();
    out.write_all(printable_lines(text).as_bytes()).and_then(|()| out.flush()).map_err(CliError::Stdout)
}

/// Checks, before anything is changed, that standard output and error are open: the standard library
/// takes writing to a closed one for success.
pub(super) fn check() -> Result<(), CliError> {
    let closed = || io::Error::from(Errno::EBADF);
    match () {
        () if was_closed(1) => Err(CliError::Stdout(closed())),
        () if was_closed(2) => Err(CliError::Log(closed())),
        () => Ok(()),
    }
}
