//! Splits a rule of nf_tables into steps that are rules of the model. A rule of nf_tables may have
//! several verdicts, with conditions in between; a rule of the model has one, and asks all its
//! conditions at once. Both mean the same as long as no step changes what a later one compares again.

use crate::config::types::{Families, Mark};
use crate::plan::effect::{Effect, Unmodelled};
use crate::plan::model::{Cond, Masked, Matches, Verdict};

use super::expr::{Expr, Role};
use super::words;

/// A verdict of a rule, with all conditions before it.
#[derive(Debug, Clone)]
pub(super) struct RuleStep {
    /// The families of all conditions before the verdict.
    pub(super) families: Families,
    pub(super) matches: Matches,
    pub(super) verdict: Verdict,
    /// Whether the listing left out a part of the step.
    pub(super) incomplete: bool,
    /// The step's first and last expression, by index.
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Whether a verdict ends its rule: no expression behind it is evaluated.
pub(super) fn ends(verdict: &Verdict) -> bool {
    use Verdict as V;
    matches!(verdict, V::Return | V::Accept | V::Drop | V::Jump(_) | V::Goto(_) | V::Redirect(_) | V::Snat(_))
}

/// The steps of a rule in a form in which each can be a rule of its own. `exprs`: the rule's.
pub(super) fn apart(steps: Vec<RuleStep>, exprs: &[Expr]) -> Vec<RuleStep> {
    let mut steps = without_effect_on_the_dropped(join_tproxy(steps, exprs), exprs);
    let asked_again = |at: usize, step: &RuleStep| changes_asked(&step.verdict, &step.matches) && at + 1 < steps.len();
    let Some(at) = steps.iter().enumerate().position(|(at, step)| asked_again(at, step)) else { return steps };
    let verdict = Verdict::Unknown(Unmodelled::new(told(&steps[at..], exprs), Effect::Unknown));
    steps.truncate(at + 1);
    if let Some(step) = steps.last_mut() {
        step.verdict = verdict;
    }
    steps
}

/// "tproxy, set mark, accept" in one rule is one verdict of the model.
fn join_tproxy(mut steps: Vec<RuleStep>, exprs: &[Expr]) -> Vec<RuleStep> {
    let tproxy =
        steps.iter().find_map(|s| if let Verdict::Tproxy { port, .. } = s.verdict { Some(port) } else { None });
    let Some(port) = tproxy else { return steps };
    let mark = steps.iter().find_map(|s| if let Verdict::SetMark(mark) = s.verdict { Some(mark) } else { None });
    let together = steps.windows(2).all(|two| is_next(&two[0], &two[1], exprs));
    match (mark, steps.len(), steps.last().map(|step| &step.verdict)) {
        (Some(mark), 3, Some(Verdict::Accept)) if mark.mask == u32::MAX && together => {
            steps.truncate(1);
            steps[0].verdict = Verdict::Tproxy { port, mark: Mark::new(mark.value), closed: false };
        }
        _ => steps.iter_mut().filter(|s| matches!(s.verdict, Verdict::Tproxy { .. })).for_each(|step| {
            step.verdict = Verdict::Unknown(Unmodelled::new("tproxy", Effect::Unknown));
        }),
    }
    steps
}

/// Whether there is no condition between two steps.
fn is_next(step: &RuleStep, next: &RuleStep, exprs: &[Expr]) -> bool {
    let same = step.families == next.families && step.matches == next.matches;
    let asks_nothing = |expr: &Expr| matches!(expr, Expr::Counter { .. } | Expr::Unknown { role: Role::Nothing, .. });
    same && exprs.get(step.to + 1..next.from).is_some_and(|between| between.iter().all(asks_nothing))
}

/// Removes changes of marks right before a drop, which have no effect.
fn without_effect_on_the_dropped(mut steps: Vec<RuleStep>, exprs: &[Expr]) -> Vec<RuleStep> {
    let is_mark = |step: &RuleStep| {
        use Verdict as V;
        matches!(step.verdict, V::SetMark(_) | V::RestoreMark | V::SaveMark | V::SetConnectionMark(_))
    };
    while let [.., vain, last] = &steps[..]
        && last.verdict == Verdict::Drop
        && is_mark(vain)
        && is_next(vain, last, exprs)
    {
        let from = vain.from;
        steps.remove(steps.len() - 2);
        steps.iter_mut().last().into_iter().for_each(|last| last.from = from);
    }
    steps
}

/// Whether a verdict changes what its own conditions compare: a later step, which has the same ones,
/// would compare the changed value, and the kernel does not.
fn changes_asked(verdict: &Verdict, m: &Matches) -> bool {
    match verdict {
        Verdict::SetMark(set) => touches(*set, &m.mark),
        Verdict::SetConnectionMark(set) => touches(*set, &m.connection_mark),
        Verdict::RestoreMark => m.mark.is_some(),
        Verdict::SaveMark => m.connection_mark.is_some(),
        // It makes the packet one of another connection, or of none yet.
        Verdict::CtZone(_) => m.connection_state.is_some() || m.connection_mark.is_some(),
        _ => false,
    }
}

/// Whether changing a mark so changes bits that a condition asks for.
fn touches(set: Masked, asked: &Option<Cond<Masked>>) -> bool {
    asked.as_ref().is_some_and(|cond| cond.value.mask & (set.mask | set.value) != 0)
}

/// Steps in words, with the conditions between them.
fn told(steps: &[RuleStep], exprs: &[Expr]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut told = steps.first().map_or(0, |step| step.from);
    // All branches of a map stand in one place.
    for step in steps.chunk_by(|a, b| a.to == b.to).filter_map(|one| one.first()) {
        out.extend(exprs.get(told..step.from).map(words::phrase).filter(|words| !words.is_empty()));
        out.push(words::statement(exprs, step.from, step.to));
        told = step.to + 1;
    }
    out.join(" ")
}
