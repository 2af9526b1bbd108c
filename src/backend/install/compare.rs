//! What was found, held against a plan.

use crate::backend::Reading;
use crate::config::types::Family;
use crate::plan::canon::Canon;
use crate::plan::model::{ChainName, Plan, Table};

/// Whether exactly the plan's rules were found. Comparing with nothing would only take time.
pub(super) fn holds(reading: &Reading, plan: &Plan) -> bool {
    let comparable = reading.present && reading.strange.is_empty();
    comparable && Canon::of(plan).same_rules(&Canon::of(&reading.plan))
}

/// Whether a run was killed before its last step: it is the nat table that redirects, and
/// no interception is without a jump from its output hook.
pub(super) fn is_unfinished(reading: &Reading) -> bool {
    reading.present && reading.plan.chain(Table::Nat, &ChainName::Output).is_none()
}

/// Whether what another backend holds is the plan's as well, table by table, or nothing. A
/// move from there that was killed without a guard leaves both: every connection is
/// redirected once, by the rules that it meets first (`nf_nat_inet_fn`, nf_nat_core.c, goes
/// on to the next chain only while no rule has decided), and taking one set away changes
/// nothing.
pub(super) fn adds_nothing(plan: &Plan, other: &Reading) -> bool {
    let (want, have) = (Canon::of(plan), Canon::of(&other.plan));
    other.strange.is_empty()
        && Family::BOTH.into_iter().all(|family| {
            let is_bare = |table| have.family(family).iter().all(|((of, _), rules)| *of != table || rules.is_empty());
            want.differing_tables(&have, family).into_iter().all(is_bare)
        })
}
