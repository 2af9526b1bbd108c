//! Rules that ask for one of several marks. The model compares a mark with one value, so
//! that such a rule becomes one for each mark.

use super::contents::TableContents;
use super::expr::{Expr, Op, ct, meta};
use super::steps::RuleStep;
use super::value::{in_host_order, native};
use crate::plan::model::Verdict;

/// The most values that a set of marks may have.
const MOST: usize = 64;

/// A rule's expressions, once for each mark of the set that it looks one up in. `None`: it
/// asks for no set of marks, or for one that is not known or too large.
pub(super) fn each(exprs: &[Expr], around: &dyn TableContents) -> Option<Vec<Vec<Expr>>> {
    let is_mark = |expr: &Expr| matches!(expr, Expr::Meta(meta::MARK) | Expr::Ct(ct::MARK));
    let load = exprs.iter().position(is_mark)?;
    let (set, network, behind) = match exprs.get(load + 1..)? {
        [Expr::Lookup { set, negated: false, .. }, behind @ ..] => (set, false, behind),
        [Expr::Hton { .. }, Expr::Lookup { set, negated: false, .. }, behind @ ..] => (set, true, behind),
        _ => return None,
    };
    let mut marks: Vec<u32> = Vec::new();
    for (first, last) in around.elements(set)? {
        let mark = |bytes: &[u8]| native(&in_host_order(bytes, network));
        let (first, last) = (mark(first)?, mark(last)?);
        let fits = last.checked_sub(first).is_some_and(|more| marks.len() + (more as usize) < MOST);
        marks.extend(fits.then_some(first..=last)?);
    }
    let with = |mark: &u32| {
        let compare = Expr::Cmp { op: Op::Eq, data: mark.to_ne_bytes().to_vec() };
        let front = exprs.get(..=load).unwrap_or_default().iter().cloned();
        front.chain([compare]).chain(behind.iter().cloned()).collect()
    };
    Some(marks.iter().map(with).collect())
}

/// Whether a packet that meets the step for one mark cannot meet the one for another mark after it.
pub(super) fn is_apart(step: &RuleStep) -> bool {
    use Verdict as V;
    !matches!(
        step.verdict,
        V::SetMark(_) | V::SetConnectionMark(_) | V::SaveMark | V::RestoreMark | V::CtZone(_) | V::Jump(_)
    )
}
