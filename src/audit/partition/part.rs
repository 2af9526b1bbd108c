//! A part of the space of flows: those that share a fate.

use crate::audit::flow::Taker;
use crate::audit::ruleset::Decider;
use crate::audit::space::Scope;
use crate::audit::space::cube::Cube;
use crate::config::types::Family;
use crate::plan::why::Why;

/// Flows with one fate.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    pub family: Family,
    pub scope: Scope,
    pub flows: Cube,
    pub taker: Taker,
    /// The rule that decides, and the reason for it; `None`: no rule says anything.
    pub decider: Option<(Decider<'a>, &'a Why)>,
}

impl Part<'_> {
    /// Whether the same rule decides about both parts, for the same reason.
    pub fn same_decider(&self, other: &Self) -> bool {
        match (&self.decider, &other.decider) {
            (None, None) => true,
            (Some((a, why)), Some((b, other))) => std::ptr::eq(a.rule, b.rule) && why == other,
            _ => false,
        }
    }
}
