//! How the kernel's rules are changed in a network namespace: the same for every backend.

use std::time::Duration;

use super::iptables::programs::ProgramEnvironment;

/// The settings with which rules are changed in a network namespace.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// Whether rules of iptables get their reasons as comments.
    pub rule_comments: bool,
    /// How long to wait for a lock that somebody else has.
    pub lock_timeout: Duration,
    pub programs: ProgramEnvironment,
}
