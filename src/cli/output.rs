//! Standard output: whole, or an error.

use std::io::{self, Write};

use nix::sys::stat::fstat;

use super::error::CliError;

/// Writes everything, or says that it could not.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Stdout)
}

/// Whether standard output and error are open at all, before anything is changed: with
/// one of them closed, the next file opened would take its place and be written to.
pub fn check() -> Result<(), CliError> {
    fstat(io::stdout()).map_err(|errno| CliError::Stdout(errno.into()))?;
    fstat(io::stderr()).map_err(|errno| CliError::Log(errno.into()))?;
    Ok(())
}
