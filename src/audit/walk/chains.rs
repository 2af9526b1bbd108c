//! How packets pass a base chain and the chains that it jumps to, rule by rule.

use std::rc::Rc;

use crate::audit::ruleset::{ChainRules, Decider};
use crate::audit::space::known::Meets;
use crate::plan::canon::CanonRule;
use crate::plan::model::Verdict;
use crate::plan::why::Why;

use super::journey::{Cause, Journey};
use super::limits::Exceeded;
use super::step::{End, WalkStep, step};
use super::trace::Trace;
use super::{Traffic, Uncertain, Walk, inside_of};

impl<'a, 'n, T: Traffic> Walk<'a, 'n, T> {
    /// Takes packets through the chains that they are in, to the end of the outermost one.
    pub(super) fn through_chains(
        &mut self,
        journey: &mut Journey<'a, 'n, T>,
        trace: &mut dyn Trace<'a>,
    ) -> Result<End, Exceeded<'a>> {
        while let Some(frame) = journey.frames.last() {
            let (chain, at, from) = (frame.chain, frame.rule, frame.from);
            let Some(rule) = chain.rules.get(at) else {
                if journey.go_back() {
                    continue;
                }
                break;
            };
            self.limits.look(Decider { chain, rule })?;
            let Some((part, here, meets)) = self.first_met(journey, chain, rule) else {
                go_on(journey, at + 1);
                continue;
            };
            trace.met(chain, rule);
            let mut step = step(self.rules, chain, at, rule, journey.frames.len() - 1);
            let certain = std::mem::take(&mut journey.assume_next) || meets == Meets::Yes;
            let all = journey.traffic.is_all(&part);
            if !(certain && all) && self.changes_nothing(rule, journey) {
                // Nothing is cut, and nothing left open, where that makes no difference.
                go_on(journey, at + 1);
                continue;
            }
            match self.uncertain {
                Uncertain::Passed if !certain || step.may_pass(rule) => {
                    if step.may_return() && journey.frames.len() > 1 {
                        let mut back = Journey { traffic: part, ..journey.clone() };
                        back.go_back();
                        self.open.push(back);
                        self.limits.hold(self.open.len(), here.0)?;
                    }
                    go_on(journey, at + 1);
                    continue;
                }
                Uncertain::Ends if !certain => step = WalkStep::Ends(End::Unknown),
                _ => {}
            }
            if !all {
                let (sets, size) = self.cut_off(journey, &part);
                self.limits.cut(sets, size, here.0);
                journey.traffic = part;
                self.look_ahead(journey);
            }
            if !certain && self.uncertain == Uncertain::Both {
                self.first_uncertain.get_or_insert(here);
                self.open.push(Journey { assumed: Some(here), assume_next: true, ..journey.clone() });
                self.limits.hold(self.open.len(), here.0)?;
                trace.passed(chain, rule);
                go_on(journey, at + 1);
                continue;
            }
            self.limits.hold(self.open.len(), here.0)?;
            trace.rule(chain, rule);
            go_on(journey, at + 1);
            if let Some(end) = self.take(step, here, from, journey, trace) {
                return Ok(end);
            }
        }
        Ok(End::Back)
    }

    /// Applies a step to packets. Returns how their base chain ends, if the step ends it.
    fn take(
        &mut self,
        step: WalkStep<'a>,
        here: Cause<'a>,
        from: Option<Cause<'a>>,
        journey: &mut Journey<'a, 'n, T>,
        trace: &mut dyn Trace<'a>,
    ) -> Option<End> {
        match step {
            WalkStep::Pass => {}
            WalkStep::Zone(zone) => {
                match journey.zone {
                    None => trace.note(&format!("tracked apart, in conntrack zone {zone}")),
                    Some(before) => trace.note(&format!("stays in conntrack zone {before}")),
                }
                journey.give_zone(zone);
            }
            WalkStep::Mark(mark) => {
                let mark = journey.change_mark(mark);
                mark.into_iter().for_each(|mark| trace.mark("the packet is marked", mark));
            }
            WalkStep::ConnectionMark(mark) => {
                let mark = journey.change_connection_mark(mark);
                mark.into_iter().for_each(|mark| trace.mark("the connection is marked", mark));
            }
            WalkStep::SaveMark => {
                let mark = journey.save_mark();
                mark.into_iter().for_each(|mark| trace.mark("the connection is marked", mark));
            }
            WalkStep::RestoreMark => {
                let mark = journey.restore_mark();
                mark.into_iter().for_each(|mark| trace.mark("the packet is marked like its connection", mark));
            }
            WalkStep::Ends(End::Back) => {
                journey.decider = Some(here);
                return (!journey.go_back()).then_some(End::Back);
            }
            WalkStep::Ends(end) => {
                journey.decider = Some(here);
                journey.frames.clear();
                return Some(end);
            }
            WalkStep::EndsForCaller(end, mark) => {
                if let Some(mark) = mark {
                    journey.known.mark = Some(mark);
                    trace.mark("the packet is marked", mark);
                }
                // The way into an ambient pod's chains tells nothing of its own.
                let from = from.filter(|(_, why)| **why != Why::AmbientEntry);
                journey.decider = Some(from.unwrap_or(here));
                journey.frames.clear();
                return Some(end);
            }
            WalkStep::Call { chain, goes } => {
                journey.call(chain, Some(here), goes);
                self.look_ahead(journey);
            }
        }
        None
    }

    /// The next part of a rule that some of the packets meet: these packets, the reason of the part, and
    /// whether it is certain that they meet it. The parts of a merged rule are tried in order.
    fn first_met(
        &self,
        journey: &mut Journey<'a, 'n, T>,
        chain: &'a ChainRules,
        rule: &'a CanonRule,
    ) -> Option<(T, Cause<'a>, Meets)> {
        let meets = journey.known.meets(&rule.matches);
        let frame = journey.frames.last_mut().filter(|_| meets != Meets::No)?;
        let decider = Decider { chain, rule };
        if let [(why, asked)] = &rule.parts[..] {
            let part = if frame.part == 0 { journey.traffic.inside(&journey.known, asked) } else { None };
            return Some((part?, (decider, why), meets));
        }
        while let Some((why, asked)) = rule.parts.get(frame.part) {
            if let Some(part) = inside_of(&journey.traffic, &journey.known, asked) {
                return Some((part, (decider, why), meets));
            }
            frame.part += 1;
        }
        None
    }

    /// Puts aside the packets outside of a part, to go on at the same place; returns how many pieces
    /// these are, and their size.
    pub(super) fn cut_off(&mut self, journey: &Journey<'a, 'n, T>, part: &T) -> (usize, usize) {
        let pieces = journey.traffic.around(part);
        let made = (pieces.len(), pieces.iter().map(T::size).sum());
        for traffic in pieces.into_iter().rev() {
            let mut rest = Journey { traffic, assume_next: false, ..journey.clone() };
            // None of them meets this part of the rule.
            rest.frames.last_mut().into_iter().for_each(|frame| frame.part += 1);
            self.look_ahead(&mut rest);
            self.open.push(rest);
        }
        made
    }

    /// Finds out which rules of the chain that they are in packets may meet, and goes on to the
    /// first one.
    pub(super) fn look_ahead(&mut self, journey: &mut Journey<'a, 'n, T>) {
        let Some(frame) = journey.frames.last_mut() else { return };
        let left = frame.ahead.as_ref().map_or(frame.chain.rules.len() - frame.rule, |ahead| ahead.len());
        if let Some(ahead) = journey.traffic.ahead(&journey.known, frame.chain, frame.rule, left) {
            self.limits.charge(ahead.len());
            frame.ahead = Some(Rc::from(ahead));
            frame.skip_to(frame.rule);
        }
    }

    /// Whether a rule makes no difference to packets, whether they meet it or not.
    fn changes_nothing(&self, rule: &CanonRule, journey: &Journey<'a, 'n, T>) -> bool {
        match &rule.verdict {
            verdict if self.rules.decides_nothing(verdict) => true,
            Verdict::CtZone(_) if !self.rules.asks_before_conntrack => true,
            verdict => journey.is_unchanged_by(verdict),
        }
    }
}

/// Goes on to a rule of the chain, or to the next one behind it that packets may meet.
fn go_on<T: Traffic>(journey: &mut Journey<T>, rule: usize) {
    journey.frames.last_mut().into_iter().for_each(|frame| frame.skip_to(rule));
}
