//! What a rule does with packets that meet it, and how chains end: the same for one packet
//! (`explain`) and for sets of them (`partition`).

use crate::plan::canon::CanonRule;
use crate::plan::model::{Masked, Verdict};

use super::flow::Taker;
use super::ruleset::{Base, ChainRules, FamilyRules};
use crate::backend::effect::{Effect, effect};

/// How deep chains may call each other (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// How a chain ended for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// No rule decided; or one said RETURN.
    Back,
    Accept,
    Drop,
    /// The destination became a port of the pod itself.
    Redirect(Taker, u16),
    Tproxy,
    Unknown,
}

impl End {
    /// What the end of a base chain comes to.
    pub fn of_base(self, base: &Base) -> Self {
        match self {
            // Behind routing a destination stays what it is: only the source is rewritten.
            End::Unknown if base.nat && base.hook.is_behind_routing() => End::Accept,
            End::Back if base.drops => End::Drop,
            end => end,
        }
    }

    /// Who gets the packet, if that is settled where a base chain ends.
    pub fn fate(self) -> Option<Taker> {
        match self {
            End::Drop => Some(Taker::Dropped),
            End::Unknown => Some(Taker::Unknown),
            End::Back | End::Accept | End::Redirect(..) | End::Tproxy => None,
        }
    }

    /// Whether what decided before this base chain still does, although a rule of it was met.
    /// A connection's fate is decided where it is rewritten: elsewhere "return" and "accept"
    /// only say that nothing happens here.
    pub fn leaves_decided(self, base: &Base, redirected: bool) -> bool {
        match self {
            End::Back | End::Accept => !base.nat,
            // What TPROXY has handed to a socket stays there, wherever it is addressed to.
            End::Redirect(..) => redirected,
            _ => false,
        }
    }
}

/// What happens to packets that meet a rule.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    /// Nothing that decides.
    Pass,
    /// Tracked in a conntrack zone.
    Zone(u16),
    Mark(Masked),
    SaveMark,
    RestoreMark,
    /// The chain ends, because of this rule.
    Ends(End),
    /// The chain ends; the rule that jumped here says more about why than this one. With
    /// TPROXY the packet is marked.
    EndsForCaller(End, Option<u32>),
    /// Another chain is asked; `goes`: and not come back from.
    Call {
        chain: &'a ChainRules,
        goes: bool,
    },
}

/// What a rule of a chain does, at some depth of jumps.
pub(super) fn step<'a>(
    rules: &'a FamilyRules,
    chain: &ChainRules,
    at: usize,
    rule: &CanonRule,
    depth: usize,
) -> Step<'a> {
    match &rule.verdict {
        Verdict::Continue => Step::Pass,
        Verdict::CtZone(zone) => Step::Zone(*zone),
        Verdict::SetMark(masked) => Step::Mark(*masked),
        Verdict::SaveMark => Step::SaveMark,
        Verdict::RestoreMark => Step::RestoreMark,
        Verdict::Return => Step::Ends(End::Back),
        Verdict::Drop => Step::Ends(End::Drop),
        Verdict::Accept => Step::EndsForCaller(End::Accept, None),
        Verdict::Redirect(port) => Step::EndsForCaller(End::Redirect(chain.listener_on(*port), port.get()), None),
        Verdict::Tproxy { port, mark, .. } => {
            let end = match chain.listener_on(*port) {
                Taker::Direct => End::Redirect(Taker::Direct, port.get()),
                _ => End::Tproxy,
            };
            Step::EndsForCaller(end, Some(mark.get()))
        }
        Verdict::Unknown(words) => match effect(words) {
            Effect::Unknown => Step::Ends(End::Unknown),
            Effect::Drops => Step::Ends(End::Drop),
            Effect::Accepts => Step::Ends(End::Accept),
            Effect::None => Step::Pass,
        },
        Verdict::Jump(_) | Verdict::Goto(_) => match rules.target(chain, at).filter(|_| depth < DEPTH) {
            Some(target) => Step::Call { chain: target, goes: matches!(rule.verdict, Verdict::Goto(_)) },
            None => Step::Ends(End::Unknown),
        },
    }
}
