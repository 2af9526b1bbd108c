//! All flows at once through hooks and chains. It follows `explain`, statement by
//! statement, with a set of flows where that has one packet; a rule that some of them
//! meet cuts the set.

use std::rc::Rc;

use crate::audit::explain::Decider;
use crate::audit::flow::{Direction, Taker};
use crate::audit::packet::Tracking;
use crate::audit::ruleset::{ChainRules, FamilyRules, Hook, Order};
use crate::audit::step::{End, Step, step};
use crate::config::ranges::RangeList;
use crate::config::types::Family;
use crate::plan::canon::{CanonRule, number};
use crate::plan::model::{Masked, Verdict, protocol};
use crate::plan::why::Why;

use super::cube::Cube;
use super::guesses::Guesses;
use super::limits::{Limits, TooManyParts};
use super::near::Chains;
use super::settle::{Way, agree, settle};
use super::state::{By, State};
use super::{Part, Scope, Space, loopback};

/// The most parts of a family and scope that come of uncertain conditions.
const MOST_SETTLED: usize = 100_000;

/// Cuts the flows of a family and scope. Flows that a rule may meet go both ways, as far
/// as that can be followed; where it cannot, what becomes of them is not known.
pub fn walk<'a>(
    space: &Space,
    chains: &Chains<'a>,
    family: Family,
    scope: Scope,
    mark: u32,
    out: &mut Vec<Part<'a>>,
) -> Result<(), TooManyParts> {
    let first = walk_in(Order::First, space, chains, family, scope, mark)?;
    if chains.rules.has_one_order() {
        out.extend(first);
        return Ok(());
    }
    let second = walk_in(Order::Second, space, chains, family, scope, mark)?;
    let agreed = agree(first, &second, MOST_SETTLED).ok_or_else(|| TooManyParts::in_two_orders(family))?;
    out.extend(agreed);
    Ok(())
}

fn walk_in<'a>(
    order: Order,
    space: &Space,
    chains: &Chains<'a>,
    family: Family,
    scope: Scope,
    mark: u32,
) -> Result<Vec<Part<'a>>, TooManyParts> {
    let ways = |both_ways| walk_ways(order, space, chains, (family, scope, mark), both_ways);
    let settled = ways(true).ok().and_then(|(ways, guesses)| settle(ways, &guesses, MOST_SETTLED));
    match settled {
        Some(parts) => Ok(parts),
        None => Ok(ways(false)?.0.into_iter().map(|way| way.part).collect()),
    }
}

fn walk_ways<'a>(
    order: Order,
    space: &Space,
    chains: &Chains<'a>,
    (family, scope, mark): (Family, Scope, u32),
    both_ways: bool,
) -> Result<(Vec<Way<'a>>, Guesses), TooManyParts> {
    let (out, guesses, limits) = (Vec::new(), Guesses::default(), Limits::new(family));
    let mut walk = Walk { order, space, chains, rules: chains.rules, family, scope, both_ways, out, guesses, limits };
    let flows = space.whole(family, scope);
    if flows.destination.is_empty() || flows.interface.is_empty() {
        return Ok((walk.out, walk.guesses));
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
        mark,
        connection_mark: 0,
        tracking: Tracking::NotYet,
        asked_by_nft: false,
        redirected: None,
        nat_done: false,
        decider: None,
        guesses: Guesses::NONE,
        perhaps: None,
    };
    if outbound {
        walk.outbound(start)?
    } else {
        walk.arrive(vec![start])?
    }
    Ok((walk.out, walk.guesses))
}

struct Walk<'a, 'w, 'p> {
    order: Order,
    space: &'w Space<'p>,
    chains: &'w Chains<'a>,
    rules: &'a FamilyRules,
    family: Family,
    scope: Scope,
    both_ways: bool,
    out: Vec<Way<'a>>,
    guesses: Guesses,
    limits: Limits<'a>,
}

/// Flows before a part of a rule of a chain, with the rules from there on that they may
/// meet; `None`: all.
struct Before<'a> {
    state: State<'a>,
    rule: usize,
    part: usize,
    near: Option<Rc<[u32]>>,
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
                        rest.extend(state.flows.clone().around(&inside).into_iter().map(|flows| state.with(flows)));
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
        self.limits.keep()?;
        let State { flows, decider, guesses, perhaps, .. } = state;
        let part = Part { family: self.family, scope: self.scope, flows, taker, decider };
        self.out.push(Way { part, guesses, perhaps });
        Ok(())
    }

    /// Passes the base chains of a hook; what goes on is given back.
    fn hook(&mut self, hook: Hook, mut states: Vec<State<'a>>) -> Result<Vec<State<'a>>, TooManyParts> {
        let rules = self.rules;
        for chain in rules.on(hook, self.order) {
            let Some(base) = chain.base else { continue };
            let mut next = Vec::new();
            for mut state in states {
                if base.nat && state.nat_done {
                    next.push(state);
                    continue;
                }
                state.enter(chain, &base);
                let before = state.decider.take();
                for (mut state, ended) in self.chain(chain, None, 0, state)? {
                    let end = ended.of_base(&base);
                    if end == End::Drop && ended == End::Back {
                        state.decider = chain.policy().map(|policy| (policy, policy.rule.why()));
                    } else if state.decider.is_none()
                        || (before.is_some() && end.leaves_decided(&base, state.redirected.is_some()))
                    {
                        state.decider = before;
                    }
                    if let Some(fate) = end.fate() {
                        self.end(state, fate)?;
                        continue;
                    }
                    match end {
                        End::Tproxy => state.redirected = Some(Taker::InboundProxy),
                        End::Redirect(taker, port) => {
                            state.redirected.get_or_insert(taker);
                            state.nat_done = true;
                            self.redirect(hook, port, &mut state);
                        }
                        _ => {}
                    }
                    next.push(state);
                }
            }
            states = next;
        }
        states.iter_mut().for_each(|state| state.tracking = Tracking::Known);
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
        // By the rule that ends them, the order in which flows are told.
        let mut ended: Vec<(usize, State<'a>, End)> = Vec::new();
        let mut open = vec![self.ahead(chain, state, 0, 0, None)?];
        while let Some(Before { state, rule: at, part, near }) = open.pop() {
            let Some(rule) = chain.rules.get(at) else {
                ended.push((at, state, End::Back));
                continue;
            };
            self.limits.look()?;
            let does_nothing = self.does_nothing(rule, &state);
            // A rule put together from several has the reasons of all of them, in order.
            let met = rule.parts.iter().enumerate().skip(part).filter(|_| !does_nothing);
            let met = met.map(|(part, (why, m))| (part, why, state.inside(m, &self.space.interfaces)));
            let Some((part, why, inside)) = met.filter_map(|(part, why, inside)| Some((part, why, inside?))).next()
            else {
                open.push(self.ahead(chain, state, at + 1, 0, near)?);
                continue;
            };
            let rest = state.flows.clone().around(&inside);
            self.limits.cut(chain, &rest)?;
            let mut next = Vec::new();
            for flows in rest {
                next.push(self.ahead(chain, state.with(flows), at, part + 1, near.clone())?);
            }
            let here = (Decider { chain, rule }, why);
            for (state, end) in self.apply(chain, at, here, from, depth, state.with(inside))? {
                match end {
                    None => next.push(self.ahead(chain, state, at + 1, 0, near.clone())?),
                    Some(end) => ended.push((at, state, end)),
                }
            }
            open.extend(next.into_iter().rev());
            self.limits.hold(open.len() + ended.len())?;
        }
        ended.sort_by_key(|(at, ..)| *at);
        Ok(ended.into_iter().map(|(_, state, end)| (state, end)).collect())
    }

    /// Flows before the next rule of a chain that they may meet.
    fn ahead(
        &mut self,
        chain: &'a ChainRules,
        state: State<'a>,
        rule: usize,
        part: usize,
        near: Option<Rc<[u32]>>,
    ) -> Result<Before<'a>, TooManyParts> {
        let left = near.as_ref().map_or(chain.rules.len() - rule, |near| near.len());
        let index = self.chains.near(chain);
        let closer = index.and_then(|index| index.of_state(&state, rule, left));
        self.limits.list(closer.as_ref().map_or(0, Vec::len))?;
        let near = closer.map(Rc::from).or(near);
        let next = match &near {
            None => rule,
            Some(near) => {
                let next = near.get(near.partition_point(|&at| (at as usize) < rule));
                next.map_or(chain.rules.len(), |&at| at as usize)
            }
        };
        Ok(Before { state, rule: next, part: if next == rule { part } else { 0 }, near })
    }

    /// Whether a rule changes nothing about flows, whether they meet it or not.
    fn does_nothing(&self, rule: &CanonRule, state: &State) -> bool {
        match &rule.verdict {
            verdict if self.rules.decides_nothing(verdict) => true,
            Verdict::CtZone(_) if !self.rules.asks_before_conntrack => true,
            verdict => state.tracking.changes_nothing(verdict, state.mark, state.connection_mark),
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
        let mut passed = state.clone();
        passed.guesses = self.guesses.and(state.guesses, false);
        state.guesses = self.guesses.and(state.guesses, true);
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
        let ends = |mut state: State<'a>, decider, end| {
            state.decider = Some(decider);
            Ok(vec![(state, Some(end))])
        };
        match step(self.rules, chain, at, here.0.rule, depth) {
            Step::Pass => {}
            Step::Zone(_) => state.tracking = state.tracking.with_zone(),
            Step::Mark(Masked { value, mask }) => state.mark = (state.mark & !mask) ^ value,
            Step::SaveMark if state.tracking == Tracking::Known => state.connection_mark = state.mark,
            Step::RestoreMark if state.tracking == Tracking::Known => state.mark = state.connection_mark,
            Step::SaveMark | Step::RestoreMark => {}
            Step::Ends(end) => return ends(state, here, end),
            Step::EndsForCaller(end, mark) => {
                state.mark = mark.unwrap_or(state.mark);
                return ends(state, from.unwrap_or(here), end);
            }
            Step::Call { chain, goes } => {
                let ended = self.chain(chain, Some(here), depth + 1, state)?;
                let back = |(state, end)| if end == End::Back && !goes { (state, None) } else { (state, Some(end)) };
                return Ok(ended.into_iter().map(back).collect());
            }
        }
        Ok(vec![(state, None)])
    }
}
