//! All flows at once through hooks and chains. It follows `explain`, statement by
//! statement, with a set of flows where that has one packet; a rule that some of them
//! meet cuts the set.

use crate::audit::explain::{DEPTH, Decider};
use crate::audit::flow::{Direction, Taker};
use crate::audit::ruleset::{ChainRules, FamilyRules, Hook, Ruleset};
use crate::audit::target::{Effect, effect};
use crate::config::ranges::RangeList;
use crate::config::types::Family;
use crate::plan::canon::{CanonRule, number};
use crate::plan::model::{Masked, Verdict, protocol};
use crate::plan::why::Why;

use super::cube::Cube;
use super::state::{By, State};
use super::{LIMIT, MOST_CUTS, Part, Scope, Space, TooManyParts, loopback};

/// Cuts the flows of a family and scope. Flows that a rule may meet go both ways, as far
/// as that can be followed; where it cannot, what becomes of them is not known.
pub fn walk<'a>(
    space: &Space,
    ruleset: &'a Ruleset,
    family: Family,
    scope: Scope,
    out: &mut Vec<Part<'a>>,
) -> Result<(), TooManyParts> {
    let mut ways = Vec::new();
    let both = walk_ways(space, ruleset, family, scope, true, &mut ways);
    let others = ways.iter().filter(|way| way.perhaps.is_some()).count();
    if both.is_err() || others.saturating_mul(ways.len() - others) > MOST_PAIRS {
        ways.clear();
        walk_ways(space, ruleset, family, scope, false, &mut ways)?;
    }
    settle(ways, out);
    Ok(())
}

/// The most pairs of a certain and another way that are put against each other.
const MOST_PAIRS: usize = 20_000_000;

/// A part, and which rules that its flows may meet were taken to apply on the way there.
struct Way<'a> {
    part: Part<'a>,
    guesses: Vec<bool>,
    /// The last one that was.
    perhaps: Option<(Decider<'a>, &'a Why)>,
}

/// Flows that end alike whichever way they go are certain, others are not; the rule that
/// `explain` would name is the reason.
fn settle<'a>(ways: Vec<Way<'a>>, out: &mut Vec<Part<'a>>) {
    let (certain, mut others): (Vec<_>, Vec<_>) = ways.into_iter().partition(|way| way.perhaps.is_none());
    others.sort_by(|a, b| a.guesses.cmp(&b.guesses));
    for Way { part, .. } in certain {
        let mut left = vec![part.flows.clone()];
        for other in others.iter().filter(|other| other.part.taker != part.taker) {
            let mut rest = Vec::new();
            for flows in left {
                let Some(inside) = flows.intersection(&other.part.flows) else {
                    rest.push(flows);
                    continue;
                };
                rest.extend(flows.around(&inside));
                out.push(Part { flows: inside, taker: Taker::Unknown, decider: other.perhaps, ..part.clone() });
            }
            left = rest;
        }
        out.extend(left.into_iter().map(|flows| Part { flows, ..part.clone() }));
    }
}

fn walk_ways<'a>(
    space: &Space,
    ruleset: &'a Ruleset,
    family: Family,
    scope: Scope,
    both_ways: bool,
    out: &mut Vec<Way<'a>>,
) -> Result<(), TooManyParts> {
    let flows = space.whole(family, scope);
    if flows.destination.is_empty() || flows.interface.is_empty() {
        return Ok(());
    }
    let outbound = scope.direction() == Direction::Outbound;
    let start = State {
        flows,
        destination: None,
        port: None,
        in_by: if outbound { By::None } else { By::Flow },
        out_by: if outbound { By::Flow } else { By::None },
        ownerless: false,
        local: scope.is_local(),
        mark: 0,
        connection_mark: 0,
        redirected: None,
        nat_done: false,
        decider: None,
        guesses: Vec::new(),
        perhaps: None,
    };
    let rules = ruleset.family(family);
    let mut walk = Walk { space, rules, family, scope, out, made: 0, both_ways };
    if outbound { walk.outbound(start) } else { walk.arrive(vec![start]) }
}

/// How a chain ended for a set of flows.
#[derive(Debug, Clone, Copy)]
enum End {
    Back,
    Accept,
    Drop,
    Redirect(Taker, u16),
    Tproxy,
    Unknown,
}

struct Walk<'a, 'w, 'p> {
    space: &'w Space<'p>,
    rules: &'a FamilyRules,
    family: Family,
    scope: Scope,
    out: &'w mut Vec<Way<'a>>,
    made: usize,
    both_ways: bool,
}

/// What became of flows; `None`: they go on to the next rule.
type Applied<'a> = Vec<(State<'a>, Option<End>)>;

impl<'a> Walk<'a, '_, '_> {
    fn outbound(&mut self, start: State<'a>) -> Result<(), TooManyParts> {
        let left = self.hook(Hook::Output, vec![start])?;
        let left = self.hook(Hook::Postrouting, left)?;
        let mut again = Vec::new();
        for mut state in left {
            if !state.local {
                self.end(state, Taker::Direct)?;
                continue;
            }
            (state.in_by, state.out_by) = (By::Lo, By::None);
            state.nat_done = true;
            state.ownerless = true;
            again.push(state);
        }
        self.arrive(again)
    }

    fn arrive(&mut self, states: Vec<State<'a>>) -> Result<(), TooManyParts> {
        let (here, through): (Vec<_>, Vec<_>) =
            self.hook(Hook::Prerouting, states)?.into_iter().partition(|s| s.local || s.redirected.is_some());
        let mut left = self.hook(Hook::Input, here)?;
        left.extend(self.hook(Hook::Forward, through)?);
        for state in left {
            match state.redirected {
                Some(taker) => self.end(state, taker)?,
                None if state.local => self.listeners(state)?,
                None => self.end(state, Taker::Direct)?,
            }
        }
        Ok(())
    }

    /// Flows to the proxy's own ports are the proxy's.
    fn listeners(&mut self, state: State<'a>) -> Result<(), TooManyParts> {
        let mut left = vec![state];
        for &(port, taker) in &self.rules.listeners {
            let mut rest = Vec::new();
            for state in left {
                let here = Cube {
                    protocol: RangeList::of([protocol::TCP]),
                    port: RangeList::of([port]),
                    ..state.flows.clone()
                };
                match state.flows.intersection(&here) {
                    Some(inside) => {
                        rest.extend(state.flows.around(&inside).into_iter().map(|flows| state.with(flows)));
                        self.end(state.with(inside), taker)?;
                    }
                    None => rest.push(state),
                }
            }
            left = rest;
        }
        left.into_iter().try_for_each(|state| self.end(state, Taker::Direct))
    }

    fn end(&mut self, state: State<'a>, taker: Taker) -> Result<(), TooManyParts> {
        self.count(1)?;
        let State { flows, decider, guesses, perhaps, .. } = state;
        let part = Part { family: self.family, scope: self.scope, flows, taker, decider };
        self.out.push(Way { part, guesses, perhaps });
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), TooManyParts> {
        self.made += more;
        if self.made > MOST_CUTS { Err(TooManyParts(self.family)) } else { Ok(()) }
    }

    /// Passes the base chains of a hook; what goes on is given back.
    fn hook(&mut self, hook: Hook, mut states: Vec<State<'a>>) -> Result<Vec<State<'a>>, TooManyParts> {
        let rules = self.rules;
        for chain in rules.on(hook) {
            let Some(base) = chain.base else { continue };
            let mut next = Vec::new();
            for mut state in states {
                if base.nat && state.nat_done {
                    next.push(state);
                    continue;
                }
                let before = state.decider.take();
                for (mut state, end) in self.chain(chain, None, 0, state)? {
                    let end = match end {
                        End::Unknown if base.nat && hook.is_behind_routing() => End::Accept,
                        end => end,
                    };
                    let passes = matches!(end, End::Back | End::Accept);
                    // What TPROXY has handed to a socket stays there.
                    let handed_over = matches!(end, End::Redirect(..)) && state.redirected.is_some();
                    if handed_over || state.decider.is_none() || (!base.nat && passes && before.is_some()) {
                        state.decider = before;
                    }
                    match end {
                        End::Back if base.drops => self.end(state, Taker::Dropped)?,
                        End::Back | End::Accept => next.push(state),
                        End::Drop => self.end(state, Taker::Dropped)?,
                        End::Unknown => self.end(state, Taker::Unknown)?,
                        End::Tproxy => {
                            state.redirected = Some(Taker::InboundProxy);
                            next.push(state);
                        }
                        End::Redirect(taker, port) => {
                            state.redirected.get_or_insert(taker);
                            state.nat_done = true;
                            self.redirect(hook, port, &mut state);
                            next.push(state);
                        }
                    }
                }
            }
            states = next;
        }
        Ok(states)
    }

    fn redirect(&self, hook: Hook, port: u16, state: &mut State) {
        let v4 = self.family == Family::V4;
        let lo = loopback(self.family).iter().next().map(|(first, _)| if v4 { first + 1 } else { first });
        let own = self.space.pod.addresses.iter().find(|a| a.is_ipv4() == v4).map(|&a| number(a));
        state.destination = if hook == Hook::Output { lo } else { own.or(lo) };
        state.port = Some(port);
        state.local = true;
        if hook == Hook::Output {
            state.out_by = By::Lo;
        }
    }

    fn chain(
        &mut self,
        chain: &'a ChainRules,
        from: Option<(Decider<'a>, &'a Why)>,
        depth: usize,
        state: State<'a>,
    ) -> Result<Vec<(State<'a>, End)>, TooManyParts> {
        let mut ended = Vec::new();
        let mut states = vec![state];
        for (at, rule) in chain.rules.iter().enumerate() {
            if states.is_empty() {
                break;
            }
            let mut passed = Vec::new();
            // A rule put together from several has the reasons of all of them, in order.
            for (why, matches) in &rule.parts {
                let mut next = Vec::new();
                for state in states {
                    if self.does_nothing(rule, &state) {
                        next.push(state);
                        continue;
                    }
                    let (hit, rest) = state.cut(matches, &self.space.interfaces);
                    self.count(rest.len())?;
                    next.extend(rest);
                    if let Some(hit) = hit {
                        let here = (Decider { chain, rule }, why);
                        for (state, end) in self.apply(chain, at, here, from, depth, hit)? {
                            match end {
                                None => passed.push(state),
                                Some(end) => ended.push((state, end)),
                            }
                        }
                    }
                }
                states = next;
                if states.len() > LIMIT {
                    return Err(TooManyParts(self.family));
                }
            }
            states.extend(passed);
        }
        ended.extend(states.into_iter().map(|state| (state, End::Back)));
        Ok(ended)
    }

    /// Whether a rule changes nothing about flows, whether they meet it or not.
    fn does_nothing(&self, rule: &CanonRule, state: &State) -> bool {
        match &rule.verdict {
            Verdict::Continue => true,
            // What is not known of the conditions is not known of the effect.
            _ if !rule.matches.unknown.is_empty() => false,
            Verdict::CtZone(_) => true,
            Verdict::SetMark(Masked { value, mask }) => (state.mark & !mask) ^ value == state.mark,
            Verdict::SaveMark | Verdict::RestoreMark => state.mark == state.connection_mark,
            _ => false,
        }
    }

    /// What becomes of flows that meet a rule, or may meet it.
    fn apply(
        &mut self,
        chain: &'a ChainRules,
        at: usize,
        here: (Decider<'a>, &'a Why),
        from: Option<(Decider<'a>, &'a Why)>,
        depth: usize,
        mut state: State<'a>,
    ) -> Result<Applied<'a>, TooManyParts> {
        if here.0.rule.matches.unknown.is_empty() {
            return self.apply_known(chain, at, here, from, depth, state);
        }
        if !self.both_ways {
            state.decider = Some(here);
            return Ok(vec![(state, Some(End::Unknown))]);
        }
        self.count(1)?;
        let mut passed = state.clone();
        passed.guesses.push(false);
        state.guesses.push(true);
        state.perhaps = Some(here);
        let mut out = self.apply_known(chain, at, here, from, depth, state)?;
        out.push((passed, None));
        Ok(out)
    }

    /// What a rule does with flows that meet it.
    fn apply_known(
        &mut self,
        chain: &'a ChainRules,
        at: usize,
        here: (Decider<'a>, &'a Why),
        from: Option<(Decider<'a>, &'a Why)>,
        depth: usize,
        mut state: State<'a>,
    ) -> Result<Applied<'a>, TooManyParts> {
        let rule = here.0.rule;
        let ends = |mut state: State<'a>, decider, end| {
            state.decider = Some(decider);
            Ok(vec![(state, Some(end))])
        };
        match &rule.verdict {
            Verdict::Continue | Verdict::CtZone(_) => {}
            Verdict::Return => return ends(state, here, End::Back),
            Verdict::Accept => return ends(state, from.unwrap_or(here), End::Accept),
            Verdict::Drop => return ends(state, here, End::Drop),
            Verdict::SetMark(Masked { value, mask }) => state.mark = (state.mark & !mask) ^ value,
            Verdict::SaveMark => state.connection_mark = state.mark,
            Verdict::RestoreMark => state.mark = state.connection_mark,
            Verdict::Redirect(port) => {
                let end = End::Redirect(chain.listener_on(*port), port.get());
                return ends(state, from.unwrap_or(here), end);
            }
            Verdict::Tproxy { port, mark, .. } => {
                state.mark = mark.get();
                if chain.listener_on(*port) == Taker::Direct {
                    return ends(state, from.unwrap_or(here), End::Redirect(Taker::Direct, port.get()));
                }
                return ends(state, from.unwrap_or(here), End::Tproxy);
            }
            Verdict::Unknown(words) => match effect(words) {
                Effect::Unknown => return ends(state, here, End::Unknown),
                Effect::Drops => return ends(state, here, End::Drop),
                Effect::Accepts => return ends(state, here, End::Accept),
                Effect::None => {}
            },
            Verdict::Jump(_) | Verdict::Goto(_) => {
                let Some(target) = self.rules.target(chain, at).filter(|_| depth < DEPTH) else {
                    return ends(state, here, End::Unknown);
                };
                let goes = matches!(rule.verdict, Verdict::Goto(_));
                let ended = self.chain(target, Some(here), depth + 1, state)?;
                return Ok(ended
                    .into_iter()
                    .map(|(state, end)| match end {
                        End::Back if !goes => (state, None),
                        end => (state, Some(end)),
                    })
                    .collect());
            }
        }
        Ok(vec![(state, None)])
    }
}
