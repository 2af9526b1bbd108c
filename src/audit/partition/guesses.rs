//! Which of the rules that flows may meet were taken to apply, in the order in which they
//! are met. Flows that went the same way so far share what they have in common.

/// Guesses made one after the other; [`Guesses::NONE`] is none.
pub type Guess = u32;

/// All sequences of guesses, as a tree.
#[derive(Debug)]
pub struct Guesses {
    /// What comes next where the rule was taken not to apply, and where it was.
    nodes: Vec<[Option<Guess>; 2]>,
}

impl Default for Guesses {
    fn default() -> Self {
        Self { nodes: vec![[None; 2]] }
    }
}

impl Guesses {
    pub const NONE: Guess = 0;

    /// A sequence with one more guess.
    pub fn and(&mut self, before: Guess, applies: bool) -> Guess {
        let new = self.nodes.len() as Guess;
        let Some(node) = self.nodes.get_mut(before as usize) else { return before };
        let next = *node[usize::from(applies)].get_or_insert(new);
        if next == new {
            self.nodes.push([None; 2]);
        }
        next
    }

    /// Each sequence's place in the order in which `explain` tries them: "does not apply"
    /// comes first.
    pub fn places(&self) -> Vec<usize> {
        let mut out = vec![0; self.nodes.len()];
        let mut open = vec![Self::NONE];
        let mut place = 0;
        while let Some(guess) = open.pop() {
            out[guess as usize] = place;
            place += 1;
            open.extend(self.nodes[guess as usize].iter().rev().flatten());
        }
        out
    }
}
