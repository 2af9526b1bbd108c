//! Why nothing was installed or removed.

use std::io;

use crate::backend::guard::GuardError;
use crate::backend::iptables::programs::ProgramError;
use crate::backend::nftables::transaction::TransactionError;
use crate::backend::routing::RoutingError;
use crate::backend::{BackendError, BackendKind};
use crate::plan::model::Dataplane;
use crate::sys::lock::LockError;
use crate::sys::netns;

/// Why nothing was installed or removed. The state before the call is back, unless the
/// message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot open a netlink socket: {0}")]
    Socket(io::Error),
    #[error("cannot enter the network namespace: {0}")]
    Enter(io::Error),
    #[error("cannot look at the kernel's rules: {source}{hint}")]
    Survey { source: io::Error, hint: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error("cannot guard the change: {0}")]
    Guard(#[from] GuardError),
    #[error("the kernel has no nf_tables: load the module nf_tables on the node, or use --backend iptables-legacy")]
    NoNftables,
    #[error("{}", drift_message(.backend, .elsewhere, .differences, .removal))]
    Drift { backend: BackendKind, elsewhere: Vec<BackendKind>, differences: Vec<String>, removal: &'static str },
    /// Another dataplane is in the namespace, which can have only one.
    #[error(
        "{} is in {backend} here, and the namespace cannot have {} as well: remove it first, with {}",
        .there.rules(), .wanted.rules(), .there.removal()
    )]
    OtherDataplane { backend: BackendKind, there: Dataplane, wanted: Dataplane },
    #[error(
        "iptables-legacy has tables in this namespace, but there is no iptables-legacy-save to tell what they hold; install the package iptables here, or run where it is"
    )]
    CannotTellLegacy,
    #[error("{problem}; remove them, or leave out --strict")]
    Interference { problem: String },
    #[error("{error}; going back failed too: {undo}; {left}")]
    Stuck { error: Box<InstallError>, undo: String, left: &'static str },
}

impl InstallError {
    /// Whether rules are there that only a program could list or change which is not there.
    pub fn lacks_program(&self) -> bool {
        matches!(self, Self::Backend(BackendError::Iptables(ProgramError::Missing { .. })))
    }
}

/// What state is left when undoing has failed, and what to run, in words.
pub(super) fn left_behind(dataplane: Dataplane, guarded: bool) -> &'static str {
    match (dataplane, guarded) {
        (Dataplane::Sidecar, true) => {
            "what the rules take is dropped (by table inet podweir-guard, or iptables' chains PODWEIR_GUARD) until podweir init or podweir clean succeeds"
        }
        (Dataplane::Sidecar, false) => "the rules may be incomplete: run podweir init or podweir clean",
        (_, true) => {
            "what the rules take is dropped (by table inet podweir-guard, or iptables' chains PODWEIR_GUARD) until podweir ambient, with --remove or without, succeeds"
        }
        (_, false) => "the rules may be incomplete: run podweir ambient, with --remove or without",
    }
}

fn drift_message(backend: &BackendKind, elsewhere: &[BackendKind], differences: &[String], removal: &str) -> String {
    let mut out = String::new();
    for other in elsewhere {
        out += &format!("rules of an interception are in {other} already, and {backend} is to be used; ");
    }
    if !differences.is_empty() {
        out += &format!("the rules in {backend} differ from the plan:\n  {}\n", differences.join("\n  "));
    }
    out + "give --reconcile to replace them, or remove them with " + removal
}

impl InstallError {
    /// Whether somebody else changed the rules meanwhile, so that a repetition may succeed.
    pub(super) fn raced(&self) -> bool {
        match self {
            Self::Backend(error) => error.raced(),
            Self::Survey { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            Self::Routing(RoutingError::List { source, .. }) => source.kind() == io::ErrorKind::Interrupted,
            _ => false,
        }
    }
}

pub(super) fn survey(source: io::Error) -> InstallError {
    let hint = netns::hint_of_refusal(&source).map(|hint| format!("; {hint}")).unwrap_or_default();
    InstallError::Survey { source, hint }
}

impl From<TransactionError> for InstallError {
    fn from(error: TransactionError) -> Self {
        InstallError::Backend(error.into())
    }
}
