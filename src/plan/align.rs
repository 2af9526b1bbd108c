//! Alignment: which rules of two lists are each other's counterparts when both lists keep their order.
//! Drift is what has no counterpart; a rule that was found takes its reason from its counterpart in a
//! plan.

use std::collections::HashMap;
use std::hash::Hash;

/// How many pairs of equal items are considered. Lists of an interception have hardly more
/// pairs than items; tables of others, with thousands of equal rules, could have millions.
const MOST_PAIRS: usize = 1_000_000;

/// Two equal items, the weight of the best alignment that starts with them, and the pair
/// that follows them in it.
struct Pair {
    want: usize,
    have: usize,
    weight: u64,
    next: Option<usize>,
}

/// The heaviest common subsequence of two lists, as pairs of indices (into `want`, into
/// `have`) that grow in both; of two as heavy, the one that keeps the earlier items of
/// `have`. What both lists begin and end with is taken as it is, so that lists which hardly
/// differ are aligned in linear time; otherwise it takes `n log n`.
pub fn align<T: Eq + Hash>(want: &[T], have: &[T], weight: impl Fn(&T) -> u64) -> Vec<(usize, usize)> {
    let start = want.iter().zip(have).take_while(|(a, b)| a == b).count();
    let (rest, others) = (&want[start..], &have[start..]);
    let end = rest.iter().rev().zip(others.iter().rev()).take_while(|(a, b)| a == b).count();
    let (want_end, have_end) = (want.len() - end, have.len() - end);
    let middle = heaviest(&want[start..want_end], &have[start..have_end], weight);
    (0..start)
        .map(|at| (at, at))
        .chain(middle.into_iter().map(|(i, j)| (start + i, start + j)))
        .chain((0..end).map(|at| (want_end + at, have_end + at)))
        .collect()
}

fn heaviest<T: Eq + Hash>(want: &[T], have: &[T], weight: impl Fn(&T) -> u64) -> Vec<(usize, usize)> {
    if want.is_empty() || have.is_empty() {
        return Vec::new();
    }
    let mut places: HashMap<&T, Vec<usize>> = HashMap::new();
    for (at, item) in want.iter().enumerate() {
        places.entry(item).or_default().push(at);
    }
    let equal = |item: &T| places.get(item).map_or(&[][..], Vec::as_slice);
    if have.iter().map(|item| equal(item).len()).sum::<usize>() > MOST_PAIRS {
        return Vec::new();
    }
    // From the end: the best alignment that starts with a pair is the pair and the best one
    // among the pairs behind it in both lists.
    let mut pairs: Vec<Pair> = Vec::new();
    let mut best = Suffixes::new(want.len());
    for (j, item) in have.iter().enumerate().rev() {
        let first = pairs.len();
        // The last place first, so that of the pairs found so far the newest is the earliest.
        for &i in equal(item).iter().rev() {
            let (behind, next) = best.from(i + 1);
            pairs.push(Pair { want: i, have: j, weight: behind + weight(&want[i]), next });
        }
        for (at, pair) in pairs.iter().enumerate().skip(first) {
            best.offer(pair.want, (pair.weight, Some(at)));
        }
    }
    let chain = std::iter::successors(best.from(0).1, |&at| pairs[at].next);
    chain.map(|at| (pairs[at].want, pairs[at].have)).collect()
}

/// The weight of an alignment, and the pair that it starts with.
type Offer = (u64, Option<usize>);

/// For every index the best of the offers made at it or behind it; of equal weights the
/// newest offer is the best. (A Fenwick tree for maxima, counted from the last index.)
struct Suffixes(Vec<Offer>);

impl Suffixes {
    fn new(len: usize) -> Self {
        Self(vec![(0, None); len + 1])
    }

    fn from(&self, index: usize) -> Offer {
        let mut node = (self.0.len() - 1).saturating_sub(index);
        let mut out = (0, None);
        while node > 0 {
            out = out.max(self.0[node]);
            node &= node - 1;
        }
        out
    }

    fn offer(&mut self, index: usize, offer: Offer) {
        let mut node = self.0.len() - 1 - index;
        while node < self.0.len() {
            self.0[node] = offer.max(self.0[node]);
            node += node & node.wrapping_neg();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The weight of the heaviest common subsequence, from the definition.
    fn weight_by_definition(want: &[u8], have: &[u8], weight: fn(&u8) -> u64) -> u64 {
        let mut best = vec![vec![0; have.len() + 1]; want.len() + 1];
        for i in (0..want.len()).rev() {
            for j in (0..have.len()).rev() {
                let both = if want[i] == have[j] { best[i + 1][j + 1] + weight(&want[i]) } else { 0 };
                best[i][j] = both.max(best[i + 1][j]).max(best[i][j + 1]);
            }
        }
        best[0][0]
    }

    proptest! {
        #[test]
        fn an_alignment_is_in_order_and_none_is_longer(
            want in proptest::collection::vec(0..6u8, 0..12), have in proptest::collection::vec(0..6u8, 0..12)
        ) {
            let pairs = align(&want, &have, |_| 1);
            prop_assert!(pairs.iter().all(|&(i, j)| want[i] == have[j]));
            prop_assert!(pairs.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "{:?}", pairs);
            prop_assert_eq!(pairs.len() as u64, weight_by_definition(&want, &have, |_| 1));
            // Between what both begin and end with, the heaviest is found, not the longest.
            let weight = |item: &u8| if *item < 2 { 100 } else { 1 };
            let heavy: u64 = heaviest(&want, &have, weight).iter().map(|&(i, _)| weight(&want[i])).sum();
            prop_assert_eq!(heavy, weight_by_definition(&want, &have, weight));
        }
    }

    #[test]
    fn long_lists_are_aligned() {
        let want: Vec<usize> = (0..20_000).collect();
        let have: Vec<usize> = [99_999].into_iter().chain(0..10_000).chain(10_001..20_000).chain([99_998]).collect();
        let pairs = align(&want, &have, |_| 1);
        assert_eq!((pairs.len(), pairs[0], pairs[19_998]), (19_999, (0, 1), (19_999, 19_999)));
    }
}
