//! Lists of inclusive ranges over a number type: ports, user and group ids,
//! protocol numbers.
//!
//! A list keeps the order (and the repetitions) in which it was written, because
//! an iptables rule set shows both. [`RangeList::normalised`] gives the set the
//! list stands for: sorted, disjoint, with neighbours merged.

use std::fmt::{self, Debug};
use std::sync::{Arc, LazyLock};

/// A number with a next and a previous one.
pub trait Discrete: Copy + Ord + Debug + std::hash::Hash + std::fmt::Display {
    const MIN: Self;
    const MAX: Self;
    /// The next number, or `None` at the largest.
    fn next(self) -> Option<Self>;
    /// The previous number, or `None` at the smallest.
    fn previous(self) -> Option<Self>;
    /// The list that holds every number of the type; all copies share one.
    fn full() -> RangeList<Self>;
}

macro_rules! step {
    ($($t:ty),*) => {$(
        impl Discrete for $t {
            const MIN: Self = <$t>::MIN;
            const MAX: Self = <$t>::MAX;
            fn next(self) -> Option<Self> { self.checked_add(1) }
            fn previous(self) -> Option<Self> { self.checked_sub(1) }
            fn full() -> RangeList<Self> {
                static FULL: LazyLock<RangeList<$t>> = LazyLock::new(|| vec![(<$t>::MIN, <$t>::MAX)].into());
                FULL.clone()
            }
        }
    )*};
}
step!(u8, u16, u32, u64, u128);

/// Inclusive ranges `(first, last)` with `first <= last`, in the order given. Copies share
/// them: an audit cuts traffic into sets that have most of their lists in common.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeList<T>(Arc<Vec<(T, T)>>);

impl<T: Debug> Debug for RangeList<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("RangeList").field(&*self.0).finish()
    }
}

impl<T> Default for RangeList<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<(T, T)>> for RangeList<T> {
    fn from(ranges: Vec<(T, T)>) -> Self {
        Self(Arc::new(ranges))
    }
}

impl<T: Discrete> RangeList<T> {
    /// The list of the given ranges; a range whose ends are swapped is turned around.
    pub fn new(ranges: impl IntoIterator<Item = (T, T)>) -> Self {
        ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect::<Vec<_>>().into()
    }

    /// The list of the given single numbers.
    pub fn of(items: impl IntoIterator<Item = T>) -> Self {
        items.into_iter().map(|i| (i, i)).collect::<Vec<_>>().into()
    }

    /// The list that holds every number of the type.
    pub fn full() -> Self {
        T::full()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (T, T)> + '_ {
        self.0.iter().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of ranges written (not of numbers covered).
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn push(&mut self, first: T, last: T) {
        Arc::make_mut(&mut self.0).push((first.min(last), first.max(last)));
    }

    pub fn extend(&mut self, other: &Self) {
        Arc::make_mut(&mut self.0).extend_from_slice(&other.0);
    }

    /// The only number in the list, if it holds exactly one.
    pub fn single(&self) -> Option<T> {
        match self.0[..] {
            [(a, b)] if a == b => Some(a),
            _ => None,
        }
    }

    pub fn contains(&self, item: T) -> bool {
        self.0.iter().any(|&(a, b)| a <= item && item <= b)
    }

    /// Whether the list covers every number of the type. Expects a normalised list.
    pub fn is_full(&self) -> bool {
        *self.0 == [(T::MIN, T::MAX)]
    }

    /// The set of the same numbers in its one normal form: sorted, disjoint, neighbours merged.
    pub fn normalised(&self) -> Self {
        let mut sorted = self.0.to_vec();
        sorted.sort_unstable();
        let mut out: Vec<(T, T)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match out.last_mut() {
                Some(open) if open.1.next().is_none_or(|n| first <= n) => open.1 = open.1.max(last),
                _ => out.push((first, last)),
            }
        }
        out.into()
    }

    /// The set of the same numbers, sorted and without doubles: single numbers stay single if the list
    /// has no ranges; otherwise normalised.
    pub fn distinct(&self) -> Self {
        if self.0.iter().any(|(first, last)| first != last) {
            return self.normalised();
        }
        let mut sorted = self.0.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.into()
    }

    /// Everything that is not in the list, normalised.
    pub fn complement(&self) -> Self {
        let mut out = Vec::new();
        let mut from = Some(T::MIN);
        for (first, last) in self.normalised().iter() {
            if let (Some(start), Some(end)) = (from, first.previous())
                && start <= end
            {
                out.push((start, end));
            }
            from = last.next();
        }
        if let Some(start) = from {
            out.push((start, T::MAX));
        }
        out.into()
    }

    /// What both hold. Expects normalised lists, gives a normalised one.
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_full() || Arc::ptr_eq(&self.0, &other.0) {
            return other.clone();
        }
        if other.is_full() {
            return self.clone();
        }
        let mut out = Vec::new();
        self.each_shared(other, |first, last| {
            out.push((first, last));
            true
        });
        out.into()
    }

    /// Whether the two share a number. Expects normalised lists.
    pub fn overlaps(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.0, &other.0) {
            return !self.is_empty();
        }
        let mut found = false;
        self.each_shared(other, |_, _| {
            found = true;
            false
        });
        found
    }

    /// Gives every range that both hold to `each`, until that says `false`. A long list is
    /// searched for the ranges of a short one, not walked.
    fn each_shared(&self, other: &Self, mut each: impl FnMut(T, T) -> bool) {
        let (few, mut many) = if self.len() <= other.len() { (&self.0, &other.0[..]) } else { (&other.0, &self.0[..]) };
        for &(first, last) in few.iter() {
            let ends_before = |range: &(T, T)| range.1 < first;
            let skipped = match many.first() {
                Some(range) if !ends_before(range) => 0,
                // Mostly the next one is close by.
                _ => match many.iter().take(8).position(|range| !ends_before(range)) {
                    Some(at) => at,
                    None => many.partition_point(ends_before),
                },
            };
            many = &many[skipped..];
            for &(a, b) in many.iter().take_while(|range| range.0 <= last) {
                if !each(first.max(a), last.min(b)) {
                    return;
                }
            }
        }
    }

    /// What is in this list and not in the other. Expects normalised lists, gives one.
    pub fn minus(&self, other: &Self) -> Self {
        let mut out = Vec::with_capacity(self.len() + other.len());
        let mut left = &self.0[..];
        // What is left of the first range of `left` when a range was cut out of it.
        let mut tail: Option<(T, T)> = None;
        for &(a, b) in other.0.iter() {
            while let Some(&whole) = left.first() {
                let (first, last) = tail.unwrap_or(whole);
                if last < a {
                    out.push((first, last));
                    let run = left[1..].partition_point(|range| range.1 < a);
                    out.extend_from_slice(&left[1..=run]);
                    left = &left[run + 1..];
                } else if first > b {
                    break;
                } else {
                    out.extend(a.previous().filter(|before| first <= *before).map(|before| (first, before)));
                    if last > b {
                        tail = b.next().map(|next| (next, last));
                        break;
                    }
                    left = &left[1..];
                }
                tail = None;
            }
        }
        if let (Some(tail), Some((_, rest))) = (tail, left.split_first()) {
            out.push(tail);
            left = rest;
        }
        out.extend_from_slice(left);
        out.into()
    }

    /// Whether a normalised list holds `item`; logarithmic in its length.
    pub fn holds(&self, item: T) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= item);
        after > 0 && item <= self.0[after - 1].1
    }
}

impl<T: Discrete> FromIterator<(T, T)> for RangeList<T> {
    fn from_iter<I: IntoIterator<Item = (T, T)>>(iter: I) -> Self {
        Self::new(iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn complement_of_ends_and_neighbours() {
        let list = RangeList::<u8>::new([(0, 3), (4, 9), (200, 255)]);
        assert_eq!(*list.normalised().0, [(0, 9), (200, 255)]);
        assert_eq!(*list.complement().0, [(10, 199)]);
        assert!(RangeList::<u8>::default().complement().is_full());
        assert!(RangeList::<u8>::full().complement().is_empty());
    }

    fn lists() -> impl Strategy<Value = RangeList<u8>> {
        prop_oneof![
            proptest::collection::vec((any::<u8>(), any::<u8>()), 0..8).prop_map(RangeList::new),
            proptest::collection::vec(any::<u8>(), 0..80).prop_map(RangeList::of),
        ]
    }

    proptest! {
        #[test]
        fn set_algebra_agrees_with_membership(a in lists(), b in lists(), x in any::<u8>()) {
            let (na, nb) = (a.normalised(), b.normalised());
            prop_assert_eq!(na.holds(x), a.contains(x));
            prop_assert_eq!(a.complement().holds(x), !a.contains(x));
            prop_assert_eq!(na.intersection(&nb).holds(x), a.contains(x) && b.contains(x));
            prop_assert_eq!(na.minus(&nb).holds(x), a.contains(x) && !b.contains(x));
            prop_assert_eq!(na.overlaps(&nb), !na.intersection(&nb).is_empty());
            prop_assert_eq!(na.intersection(&nb).normalised(), na.intersection(&nb));
            prop_assert_eq!(na.minus(&nb).normalised(), na.minus(&nb));
        }
    }
}
