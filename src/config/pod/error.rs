//! Errors in what a pod asks for.

use crate::config::settings::LONGEST_QUOTE;
use crate::sys::text::shortened;

/// Why a pod's annotations make no options. The message names the annotation and the value;
/// [`PodError::advice`] says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// A list has an empty item, which may be all that is left of one that mattered.
    #[error(
        "annotation {annotation}: '{}' has an empty item; expected a comma separated list without",
        shortened(text, LONGEST_QUOTE)
    )]
    EmptyItem { annotation: &'static str, text: String },
    /// The lists of the pod's annotations are longer together than a node's kernel should go
    /// through while the pod starts.
    #[error(
        "annotation {annotation}: with it the pod's annotations list {entries} ports, ranges and interfaces; a pod may list at most {most}"
    )]
    TooManyEntries { annotation: &'static str, entries: usize, most: usize },
}

impl PodError {
    /// What the user can do about the error.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::EmptyItem { .. } => "correct the pod's annotation",
            Self::TooManyEntries { .. } => {
                "the node's kernel goes through each of them while the pod starts, on the node's account: write neighbouring ports as ranges (8000-8100) and neighbouring addresses as one CIDR, list what is to be taken instead of what is not, or have the node's administrator put a long list into the netconf's interception"
            }
        }
    }
}
