//! What a rule does with packets that meet it, and how chains end.

use crate::plan::canon::CanonRule;
use crate::plan::effect::Effect;
use crate::plan::model::{Masked, Verdict};

use crate::audit::flow::Taker;
use crate::audit::ruleset::{Base, ChainRules, FamilyRules};

/// How deep chains may call each other (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// How a chain ends for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// No rule decides, or a rule returns: the calling chain goes on.
    Back,
    Accept,
    Drop,
    /// The destination becomes a port of the pod itself, where somebody listens.
    Redirect(Taker, u16),
    /// TPROXY hands it to the proxy's socket.
    Tproxy,
    /// A rule decides that is not understood.
    Unknown,
}

impl End {
    /// The end of a base chain, with its policy.
    pub(super) fn of_base(self, base: &Base) -> Self {
        match self {
            // Behind routing a destination stays what it is: only the source is rewritten.
            End::Unknown if base.is_nat() && base.hook.is_behind_routing() => End::Accept,
            End::Back if base.drops => End::Drop,
            end => end,
        }
    }

    /// Who gets the packet, if the end of a base chain decides that.
    pub(super) fn taker(self) -> Option<Taker> {
        match self {
            End::Drop => Some(Taker::Dropped),
            End::Unknown => Some(Taker::Unknown),
            End::Back | End::Accept | End::Redirect(..) | End::Tproxy => None,
        }
    }

    /// Whether an earlier base chain's decision still holds, although a rule of this one was met. Where
    /// a connection goes is decided by rewriting it: elsewhere "return" and "accept" only say that
    /// nothing happens here.
    pub(super) fn leaves_decided(self, base: &Base, redirected: bool) -> bool {
        match self {
            End::Back | End::Accept => !base.is_nat(),
            // What TPROXY has handed to a socket stays there, wherever it is addressed to.
            End::Redirect(..) => redirected,
            _ => false,
        }
    }
}

/// The effect of a rule on packets that meet it.
#[derive(Debug, Clone, Copy)]
pub(super) enum WalkStep<'a> {
    /// The packets go on; nothing changes.
    Pass,
    /// The packets are tracked in a conntrack zone.
    Zone(u16),
    /// The packets' mark is changed.
    Mark(Masked),
    /// The connection's mark is changed.
    ConnectionMark(Masked),
    /// The packets' mark is copied to the connection.
    SaveMark,
    /// The connection's mark is copied to the packets.
    RestoreMark,
    /// The chain ends, and this rule is named as the reason.
    Ends(End),
    /// The chain ends; the rule that jumped here is named as the reason, which tells more. With TPROXY
    /// the packet is marked.
    EndsForCaller(End, Option<u32>),
    /// Another chain is entered; with `goes` by "goto", so that this one ends.
    Call { chain: &'a ChainRules, goes: bool },
}

impl WalkStep<'_> {
    /// Whether packets may go on behind a rule that does this: what it does is not known, or
    /// it is TPROXY and nobody need listen.
    pub(super) fn may_pass(self, rule: &CanonRule) -> bool {
        matches!(self, WalkStep::Ends(End::Unknown)) || matches!(rule.verdict, Verdict::Tproxy { closed: false, .. })
    }

    /// Whether packets may go back to the chain that jumped to this one.
    pub(super) fn may_return(self) -> bool {
        matches!(self, WalkStep::Ends(End::Back | End::Unknown) | WalkStep::Call { goes: true, .. })
    }
}

/// What a rule of a chain does, at some depth of jumps.
pub(super) fn step<'a>(
    rules: &'a FamilyRules,
    chain: &ChainRules,
    at: usize,
    rule: &CanonRule,
    depth: usize,
) -> WalkStep<'a> {
    match &rule.verdict {
        Verdict::Continue => WalkStep::Pass,
        Verdict::CtZone(zone) => WalkStep::Zone(*zone),
        Verdict::SetMark(masked) => WalkStep::Mark(*masked),
        Verdict::SetConnectionMark(masked) => WalkStep::ConnectionMark(*masked),
        Verdict::SaveMark => WalkStep::SaveMark,
        Verdict::RestoreMark => WalkStep::RestoreMark,
        Verdict::Return => WalkStep::Ends(End::Back),
        Verdict::Drop => WalkStep::Ends(End::Drop),
        // Where it goes stays as it is.
        Verdict::Snat(_) => WalkStep::Ends(End::Accept),
        Verdict::Accept => WalkStep::EndsForCaller(End::Accept, None),
        Verdict::Redirect(port) => WalkStep::EndsForCaller(End::Redirect(chain.listener_on(*port), port.get()), None),
        Verdict::Tproxy { port, mark, .. } => {
            let end = match chain.listener_on(*port) {
                Taker::Direct => End::Redirect(Taker::Direct, port.get()),
                _ => End::Tproxy,
            };
            WalkStep::EndsForCaller(end, Some(mark.get()))
        }
        Verdict::Unknown(unknown) => match unknown.effect {
            Effect::Unknown => WalkStep::Ends(End::Unknown),
            Effect::Drops => WalkStep::Ends(End::Drop),
            Effect::Accepts => WalkStep::Ends(End::Accept),
            Effect::None => WalkStep::Pass,
        },
        Verdict::Jump(_) | Verdict::Goto(_) => match rules.target(chain, at).filter(|_| depth < DEPTH) {
            Some(target) => WalkStep::Call { chain: target, goes: matches!(rule.verdict, Verdict::Goto(_)) },
            None => WalkStep::Ends(End::Unknown),
        },
    }
}
