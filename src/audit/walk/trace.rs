//! The steps of a walk, for callers that show them.

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

    /// A rule was passed over, since it is not known whether it applies.
    fn passed(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}

    /// The packet was changed or decided about, in words.
    fn note(&mut self, _note: &str) {}

    /// A mark was set: the packet's or the connection's, in words, and its value.
    fn mark(&mut self, _what: &str, _mark: u32) {}

    /// Whether the later packets of the connection are to be followed too.
    fn wants_following(&self) -> bool {
        false
    }

    /// The next steps are about other packets of the connection.
    fn section(&mut self, _which: &str) {}

    /// Where the way of these packets ended, if not at the connection's other end.
    fn ended(&mut self, _how: &str) {}

    /// The steps about other packets are over.
    fn end_section(&mut self) {}
}

/// Keeps nothing, for those who want only the answer.
pub struct NoTrace;

impl Trace<'_> for NoTrace {}
