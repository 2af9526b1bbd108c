//! The traffic of a walk: packets that a rule's conditions can cut in two.

use crate::audit::ruleset::ChainRules;
use crate::audit::space::known::KnownFields;
use crate::plan::canon::CanonMatches;

/// Packets that are followed together: a single one, or a set that a rule may cut in two.
pub(in crate::audit) trait Traffic: Clone {
    /// The part of this traffic that meets a rule's conditions on unknown fields; `None` if no packet does.
    fn inside(&self, known: &KnownFields, asked: &CanonMatches) -> Option<Self>;

    /// Whether a part is the whole traffic.
    fn is_all(&self, part: &Self) -> bool;

    /// The traffic minus a part, as disjoint pieces.
    fn around(&self, part: &Self) -> Vec<Self>;

    /// The rules of a chain, from number `from` on, that any of it may meet, where these are
    /// much fewer than `left`.
    fn ahead(&self, _known: &KnownFields, _chain: &ChainRules, _from: usize, _left: usize) -> Option<Vec<u32>> {
        None
    }

    /// Changes "no owner" to `nobody`, as the next rules see it, where the owner is not the same for all
    /// packets.
    fn nobody_is(&mut self, _nobody: u64) {}

    /// The cost of making and keeping the traffic.
    fn size(&self) -> usize;
}

/// A single packet, of which everything is known.
#[derive(Debug, Clone, Copy)]
pub(in crate::audit) struct OnePacket;

impl Traffic for OnePacket {
    fn inside(&self, _: &KnownFields, _: &CanonMatches) -> Option<Self> {
        Some(Self)
    }

    fn is_all(&self, _: &Self) -> bool {
        true
    }

    fn around(&self, _: &Self) -> Vec<Self> {
        Vec::new()
    }

    fn size(&self) -> usize {
        0
    }
}
