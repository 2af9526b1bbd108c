//! The errors that end a run, and their exit statuses.

use std::io;

use crate::audit::source::SourceError;
use crate::backend::host::HostError;
use crate::backend::install::InstallError;
use crate::config::settings::{LONGEST_QUOTE, SettingsError};
use crate::sys::netns::NetnsError;
use crate::sys::text::shortened;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The input is not valid: exit status 2.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Node(#[from] crate::node::RunError),
    #[error("cannot list the pod's addresses: {0}")]
    Addresses(io::Error),
    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
    #[error("cannot write the log: {0}; the rules are as they were")]
    Log(io::Error),
    #[error("{0}")]
    Failed(String),
    /// The rules do not do what they should: exit status 126.
    #[error("{0}")]
    Validation(String),
}

impl CliError {
    /// The error for an option's wrong value, in the form that all of them have.
    pub fn invalid(option: &str, text: &str, expected: &str) -> Self {
        let text = shortened(text, LONGEST_QUOTE);
        Self::Usage(format!("invalid value '{text}' for {option}: expected {expected}"))
    }

    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Settings(error) if error.is_usage() => 2,
            Self::Source(error) if error.is_usage() => 2,
            Self::Validation(_) => 126,
            _ => 1,
        }
    }
}
