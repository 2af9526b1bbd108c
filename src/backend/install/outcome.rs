//! The request for an installation, and its result.

use std::time::Duration;

use crate::backend::BackendKind;
use crate::config::settings::BackendChoice;
use crate::plan::model::Plan;

use super::error::InstallError;

/// What to install, and how.
pub struct InstallRequest<'a> {
    pub plan: &'a Plan,
    pub choice: BackendChoice,
    pub reconcile: bool,
    pub force: bool,
    /// Whether rules of others that interfere are an error rather than a warning.
    pub strict: bool,
}

/// What an installation or a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Installed,
    Replaced,
    /// The kernel held the plan already: nothing was written.
    Unchanged,
    Removed,
    /// There was nothing to remove.
    Nothing,
}

/// The result of an installation or a removal.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub action: Action,
    pub backend: BackendKind,
    /// Other backends from which rules were removed.
    pub removed_from: Vec<BackendKind>,
    pub warnings: Vec<String>,
    /// How long reading the earlier state took.
    pub read: Duration,
}

/// What an install would do, as far as looking tells.
#[derive(Debug)]
pub struct Prospect {
    pub backend: BackendKind,
    /// What would be done, or what it would fail for.
    pub would: Result<Action, InstallError>,
    pub warnings: Vec<String>,
}
