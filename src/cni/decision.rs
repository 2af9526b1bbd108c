//! What is to be done with a pod, whoever decided it: the plugin, or the node's agent for it.

use crate::config::given::Given;

/// What is to be done with a pod.
#[derive(Debug)]
pub enum Decision {
    /// Its traffic is not diverted, for this reason.
    LeaveAlone(String),
    Intercept {
        options: Given,
        why: &'static str,
        /// What the user should hear.
        warnings: Vec<String>,
    },
}
