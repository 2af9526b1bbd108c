//! Packets on their way: what is known of them, what has happened to them, and where they
//! are. One packet, or a set of them that have been treated alike so far.

use std::rc::Rc;

use crate::audit::flow::{Direction, Taker};
use crate::audit::ruleset::{Base, ChainRules, Decider, Hook};
use crate::audit::space::connection::{ConntrackView, Tracking};
use crate::audit::space::dimensions::{NO_ANSWER, NOBODY, Name, known_as};
use crate::audit::space::known::KnownFields;
use crate::plan::model::{Masked, Verdict};
use crate::plan::why::Why;

use super::traffic::Traffic;

/// A rule that decides, and the reason for that part of it that is met.
pub(crate) type Cause<'a> = (Decider<'a>, &'a Why);

/// A chain that packets are in.
#[derive(Debug, Clone)]
pub(crate) struct CallFrame<'a> {
    pub chain: &'a ChainRules,
    /// The index of the next rule.
    pub rule: usize,
    /// The first of the next rule's parts that the packets may meet.
    pub part: usize,
    /// The rules of the chain that the packets may meet, if these are few of many.
    pub ahead: Option<Rc<[u32]>>,
    /// The rule that jumped to the chain.
    pub from: Option<Cause<'a>>,
    /// Whether the rule was a "goto", so that the chain before ends with this one.
    pub goes: bool,
}

impl<'a> CallFrame<'a> {
    fn new(chain: &'a ChainRules, from: Option<Cause<'a>>, goes: bool) -> Self {
        Self { chain, rule: 0, part: 0, ahead: None, from, goes }
    }

    /// Goes on to a rule, or to the next one behind it that the packets may meet.
    pub(crate) fn skip_to(&mut self, rule: usize) {
        let next = match &self.ahead {
            None => rule,
            Some(ahead) => {
                let next = ahead.get(ahead.partition_point(|&at| (at as usize) < rule));
                next.map_or(self.chain.rules.len(), |&at| at as usize)
            }
        };
        if next != self.rule {
            (self.rule, self.part) = (next, 0);
        }
    }
}

/// Packets on their way through hooks and chains.
#[derive(Debug, Clone)]
pub(crate) struct Journey<'a, 'n, T> {
    /// The set of the packets; nothing for a single packet.
    pub traffic: T,
    pub known: KnownFields<'n>,
    /// What conntrack knows of their connection; `None`: they may be of any connection.
    pub connection: Option<ConntrackView>,
    /// Whether they go to the pod itself.
    pub local: bool,
    /// By which interface they would leave, where their mark routes them to the pod itself
    /// although they are addressed to another host.
    pub(super) way_out: Option<Option<Name<'n>>>,
    /// The interface by which the packets leave from the next hook on, if they were routed anew on this
    /// hook, whose chains still see the old one (`nf_hook_state`).
    pub(super) rerouted: Option<Option<Name<'n>>>,
    /// Whose socket gets them: they have been redirected, or handed over by TPROXY.
    pub redirected: Option<Taker>,
    /// Whether the destination can no more be rewritten: that happens once, on a connection's first
    /// hook.
    pub nat_done: bool,
    /// The hook on which the destination was rewritten, and the new port: conntrack does the same with
    /// the packets that follow.
    pub rewritten: Option<(Hook, u16)>,
    /// The conntrack zone that a rule has given them.
    pub zone: Option<u16>,
    /// The source address and port with which answers of a rewritten connection leave the pod: the
    /// destination that its first packet had.
    pub answers_as: Option<(u128, u16)>,
    /// The rule that has decided so far.
    pub decider: Option<Cause<'a>>,
    /// The rule that had decided before the current base chain.
    pub(super) decided_before: Option<Cause<'a>>,
    /// The last uncertain rule that was assumed to apply; `None` if all were assumed not to.
    pub assumed: Option<Cause<'a>>,
    /// Whether the next rule is assumed to apply.
    pub(super) assume_next: bool,
    /// The hook that the packets are on; `None` for packets that walk through a single chain.
    pub(super) hook: Option<Hook>,
    /// How many of the hook's base chains have been entered.
    pub(super) entered: usize,
    /// The current base chain.
    pub(super) base: Option<(&'a ChainRules, Base)>,
    /// The chains that they are in, from the base chain on.
    pub(super) frames: Vec<CallFrame<'a>>,
}

impl<'a, 'n, T: Traffic> Journey<'a, 'n, T> {
    /// Starts with packets that the pod sends or receives.
    pub(crate) fn new(
        direction: Direction,
        traffic: T,
        known: KnownFields<'n>,
        connection: ConntrackView,
        local: bool,
    ) -> Self {
        let hook = if direction == Direction::Outbound { Hook::Output } else { Hook::Prerouting };
        Self { local, ..Self::anywhere(traffic, known, Some(connection), Some(hook)) }
    }

    /// Starts with packets of any connection that are in a chain, whichever way they came.
    pub(crate) fn within(chain: &'a ChainRules, traffic: T, known: KnownFields<'n>) -> Self {
        let frames = vec![CallFrame::new(chain, None, false)];
        Self { frames, ..Self::anywhere(traffic, known, None, None) }
    }

    fn anywhere(traffic: T, known: KnownFields<'n>, connection: Option<ConntrackView>, hook: Option<Hook>) -> Self {
        Self {
            traffic,
            known,
            connection,
            local: false,
            way_out: None,
            rerouted: None,
            redirected: None,
            nat_done: false,
            rewritten: None,
            zone: None,
            answers_as: None,
            decider: None,
            decided_before: None,
            assumed: None,
            assume_next: false,
            hook,
            entered: 0,
            base: None,
            frames: Vec::new(),
        }
    }

    /// Enters a base chain.
    pub(super) fn enter(&mut self, chain: &'a ChainRules, base: Base) {
        // A packet that is looped back stays known.
        if let Some(connection) = self.connection.as_mut().filter(|_| !base.is_before_conntrack()) {
            connection.tracking = Tracking::Known;
        }
        self.tell();
        self.nobody_is(if chain.is_native() { NO_ANSWER } else { NOBODY });
        self.entered += 1;
        self.decided_before = self.decider.take();
        self.base = Some((chain, base));
        self.call(chain, None, false);
    }

    /// Changes "no owner" to `nobody`, as the next rules see it.
    pub(super) fn nobody_is(&mut self, nobody: u64) {
        for owner in [&mut self.known.uid, &mut self.known.gid] {
            *owner = owner.map(|id| known_as(id, nobody));
        }
        self.traffic.nobody_is(nobody);
    }

    /// Whether their mark routes them to the pod itself although they are addressed to another host.
    pub(crate) fn is_routed_back(&self) -> bool {
        self.way_out.is_some()
    }

    /// Enters a chain by a jump.
    pub(super) fn call(&mut self, chain: &'a ChainRules, from: Option<Cause<'a>>, goes: bool) {
        self.frames.push(CallFrame::new(chain, from, goes));
    }

    /// Goes back to the chain that jumped to this one; `false` if none did.
    pub(super) fn go_back(&mut self) -> bool {
        while let Some(frame) = self.frames.pop() {
            if !frame.goes {
                break;
            }
        }
        !self.frames.is_empty()
    }

    /// Goes on to another hook.
    pub(super) fn come_to(&mut self, hook: Hook) {
        (self.hook, self.entered) = (Some(hook), 0);
    }

    /// Marks the packets as seen by conntrack.
    pub(super) fn be_tracked(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.tracking = Tracking::Known;
        }
        self.tell();
    }

    /// Gives the packets a conntrack zone, if they have none yet.
    pub(super) fn give_zone(&mut self, zone: u16) {
        if let Some(connection) = self.connection.as_mut().filter(|known| known.tracking == Tracking::NotYet) {
            connection.tracking = Tracking::InZone;
        }
        self.zone.get_or_insert(zone);
        self.tell();
    }

    /// Changes the packets' mark; returns the new one, if it is known.
    pub(super) fn change_mark(&mut self, Masked { value, mask }: Masked) -> Option<u32> {
        self.known.mark = self.known.mark.map(|mark| (mark & !mask) ^ value);
        self.known.mark
    }

    /// Changes the connection's mark; returns the new one, if there is a connection.
    pub(super) fn change_connection_mark(&mut self, Masked { value, mask }: Masked) -> Option<u32> {
        let connection = self.connection.as_mut().filter(|known| known.tracking == Tracking::Known)?;
        connection.mark = (connection.mark & !mask) ^ value;
        let mark = connection.mark;
        self.tell();
        Some(mark)
    }

    /// Saves the packets' mark in the connection; returns it, if there is a connection.
    pub(super) fn save_mark(&mut self) -> Option<u32> {
        let connection = self.connection.as_mut().filter(|known| known.tracking == Tracking::Known)?;
        connection.mark = self.known.mark?;
        self.tell();
        self.known.mark
    }

    /// Restores the packets' mark from the connection; returns it, if there is a connection.
    pub(super) fn restore_mark(&mut self) -> Option<u32> {
        let connection = self.connection.filter(|known| known.tracking == Tracking::Known)?;
        self.known.mark = Some(connection.mark);
        self.known.mark
    }

    /// Whether a verdict makes no difference to the packets, whether they meet its rule or not.
    pub(super) fn is_unchanged_by(&self, verdict: &Verdict) -> bool {
        let (Some(mark), Some(connection)) = (self.known.mark, self.connection) else { return false };
        match verdict {
            Verdict::CtZone(_) => connection.tracking != Tracking::NotYet,
            Verdict::SetMark(Masked { value, mask }) => (mark & !mask) ^ value == mark,
            Verdict::SetConnectionMark(Masked { value, mask }) => {
                connection.tracking != Tracking::Known || (connection.mark & !mask) ^ value == connection.mark
            }
            Verdict::SaveMark | Verdict::RestoreMark => {
                connection.tracking != Tracking::Known || mark == connection.mark
            }
            _ => false,
        }
    }

    /// Updates what rules see of the connection.
    fn tell(&mut self) {
        if let Some(connection) = self.connection {
            connection.tell(&mut self.known);
        }
    }
}
