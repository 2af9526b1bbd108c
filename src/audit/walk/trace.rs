//! What happens to a packet on its way, for those who want to see all of it.

use crate::audit::ruleset::{ChainRules, Hook};
use crate::plan::canon::CanonRule;

/// Told what happens on a walk, in order.
pub trait Trace<'a> {
    /// A base chain is entered.
    fn hook(&mut self, _hook: Hook, _chain: &'a ChainRules) {}

    /// The conditions of a rule are met, or not known not to be.
    fn met(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}

    /// A rule applies.
    fn rule(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}

    /// Whether a rule applies is not known; it is taken not to.
    fn passed(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}

    /// Something has happened to the packet, in words.
    fn note(&mut self, _note: &str) {}

    /// A mark has been set: which, in words, and to what.
    fn mark(&mut self, _what: &str, _mark: u32) {}

    /// Whether the packets after a connection's first are of interest too.
    fn wants_following(&self) -> bool {
        false
    }

    /// From here on it is about other packets of the connection.
    fn section(&mut self, _which: &str) {}

    /// How the way of these ended, where it is not with the connection's other end.
    fn ended(&mut self, _how: &str) {}

    /// All packets have been followed.
    fn end_section(&mut self) {}
}

/// Keeps nothing, for those who want only the answer.
pub struct NoTrace;

impl Trace<'_> for NoTrace {}
