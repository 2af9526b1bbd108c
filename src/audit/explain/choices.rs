//! Both ways of every rule of which it is not known whether it applies.

use super::Decider;

/// Whether rules that may apply are taken to apply, in the order in which they are met.
#[derive(Default)]
pub(super) struct Choices<'a> {
    taken: Vec<bool>,
    pub(super) met: Vec<Decider<'a>>,
    /// How many rules have been looked at, on all walks.
    pub(super) looks: usize,
    /// How many there may be at the end of this walk.
    pub(super) most: usize,
}

/// How many rules a flow may meet on one walk: chains that each jump often to the next
/// one could lead through more than there is time for.
const MOST_RULES: usize = 2_000_000;

impl<'a> Choices<'a> {
    pub(super) fn begin(&mut self) {
        self.met.clear();
        self.most = self.looks + MOST_RULES;
    }

    pub(super) fn choose(&mut self, rule: Decider<'a>) -> bool {
        let at = self.met.len();
        self.met.push(rule);
        if at == self.taken.len() {
            self.taken.push(false);
        }
        self.taken[at]
    }

    /// Goes on to the next combination: the last rule not taken yet is, and what came
    /// after it is open again. `None` when all have been tried.
    pub(super) fn advance(&mut self) -> Option<Decider<'a>> {
        let at = self.taken.iter().rposition(|taken| !taken)?;
        self.taken.truncate(at + 1);
        self.taken[at] = true;
        self.met.get(at).copied()
    }
}
