//! The decision about a pod, made by the plugin or by the node's agent for it.

use crate::config::given::Given;

/// What is to be done with a pod.
#[derive(Debug)]
pub enum Decision {
    /// The pod's traffic is not diverted, for this reason.
    LeaveAlone(String),
    Intercept {
        options: Given,
        why: &'static str,
        /// Warnings for the user.
        warnings: Vec<String>,
    },
}
