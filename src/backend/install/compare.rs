//! Comparing what a backend holds with a plan.

use crate::backend::Reading;
use crate::config::types::Family;
use crate::plan::canon::Canon;
use crate::plan::model::{ChainName, Plan, Table};

/// Whether the backend holds exactly the plan's rules. One that holds nothing is not compared, to save
/// time.
pub(super) fn holds(reading: &Reading, plan: &Plan) -> bool {
    let comparable = reading.present && reading.strange.is_empty();
    comparable && Canon::of(plan).same_rules(&Canon::of(&reading.plan))
}

/// Whether a run was killed before its last step: the nat table, which redirects, comes last, and every
/// interception has a jump from its output hook.
pub(super) fn is_unfinished(reading: &Reading) -> bool {
    reading.present && reading.plan.chain(Table::Nat, &ChainName::Output).is_none()
}

/// Whether each table that another backend holds is the same as the plan's, or empty. A move from there
/// that was killed without a guard leaves both: every connection is redirected once, by the rules that
/// it meets first (`nf_nat_inet_fn`, nf_nat_core.c, goes on to the next chain only while no rule has
/// decided), and removing one set of rules changes nothing.
pub(super) fn adds_nothing(plan: &Plan, other: &Reading) -> bool {
    let (want, have) = (Canon::of(plan), Canon::of(&other.plan));
    other.strange.is_empty()
        && Family::BOTH.into_iter().all(|family| {
            let is_bare = |table| have.family(family).iter().all(|((of, _), rules)| *of != table || rules.is_empty());
            want.differing_tables(&have, family).into_iter().all(is_bare)
        })
}
