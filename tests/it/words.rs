//! What is printed says how much there is, and reaches a terminal as text.

use podweir::audit::describe;
use podweir::config::ranges::RangeList;
use podweir::config::types::{Family, Networks};
use podweir::plan::canon::{CanonMatches, address, cover};
use podweir::plan::model::{Cond, Masked, Matches};
use proptest::collection::vec;
use proptest::prelude::*;

fn words(matches: Matches, family: Family) -> String {
    describe::matches(&CanonMatches::of(&matches, family).unwrap(), family)
}

/// The ranges as networks, one after the other.
fn networks(family: Family, ranges: &RangeList<u128>) -> Networks {
    let mut out = Networks::default();
    ranges.iter().for_each(|(first, last)| cover(family, first, last, &mut out));
    out
}

proptest! {
    #[test]
    fn all_ranges_of_a_long_list_are_counted(
        v4 in any::<bool>(), ranges in vec((any::<u128>(), prop_oneof![Just(0), 0..300u128, any::<u128>()]), 1..30)
    ) {
        let family = if v4 { Family::V4 } else { Family::V6 };
        let most = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        let ranges = ranges.into_iter().map(|(first, more)| (first & most, (first & most).saturating_add(more & most).min(most)));
        let ranges = RangeList::new(ranges).normalised();
        let rest = RangeList::new([(0, most)]).minus(&ranges);
        prop_assume!(!rest.is_empty());
        let (not, shown) = if rest.len() < ranges.len() { ("not ", rest) } else { ("", ranges.clone()) };
        let all: Vec<String> = networks(family, &shown).of(family).iter().map(ToString::to_string).collect();
        let mut expected = all.iter().take(6).cloned().collect::<Vec<_>>().join(",");
        if all.len() > 6 {
            expected += &format!(",and {} more", all.len() - 6);
        }
        let matches = Matches { destination: Some(Cond::is(networks(family, &ranges))), ..Matches::default() };
        prop_assert_eq!(words(matches, family), format!("to {not}{expected}"));
    }
}

#[test]
fn a_long_list_says_how_long_it_is() {
    let hosts = (0..700_000u128).map(|n| 0x0a00_0000 + 2 * n);
    let hosts: Networks = hosts.map(|n| format!("{}/32", address(Family::V4, n)).parse().unwrap()).collect();
    let matches = Matches { destination: Some(Cond::is(hosts)), ..Matches::default() };
    let shown = "to 10.0.0.0/32,10.0.0.2/32,10.0.0.4/32,10.0.0.6/32,10.0.0.8/32,10.0.0.10/32,and 699994 more";
    assert_eq!(words(matches, Family::V4), shown);
}

#[test]
fn a_mark_says_which_bits_count() {
    let marked = |value, mask| Matches { mark: Some(Cond::is(Masked { value, mask })), ..Matches::default() };
    assert_eq!(words(marked(1, u32::MAX), Family::V4), "marked 0x1");
    assert_eq!(words(marked(1, 3), Family::V4), "marked 0x1/0x3");
    let connection = Matches {
        connection_mark: Some(Cond { negated: true, value: Masked { value: 0, mask: 0xff00 } }),
        ..Matches::default()
    };
    assert_eq!(words(connection, Family::V6), "not of a connection marked 0x0/0xff00");
}
