//! Sets and maps as the kernel lists them: elements put together to ranges.

use std::collections::HashMap;

use super::expr_bytes;
use super::nfta::*;
use super::wire::{Attr, attributes, find};

/// Sorted `(first, last)` keys; a set without intervals has both the same.
pub type Elements = Vec<(Vec<u8>, Vec<u8>)>;

/// A verdict's code, and the chain of a jump.
pub type MapVerdict = (i32, Option<String>);

/// A map from keys to verdicts, in which each key occurs once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerdictMap {
    /// Each verdict with all keys that have it, in the order in which they were listed.
    pub groups: Vec<(Elements, MapVerdict)>,
    /// The verdict for keys that no group lists.
    pub rest: Option<MapVerdict>,
}

impl VerdictMap {
    pub fn new(entries: impl IntoIterator<Item = (Vec<u8>, Vec<u8>, MapVerdict)>, rest: Option<MapVerdict>) -> Self {
        let mut groups: Vec<(Elements, MapVerdict)> = Vec::new();
        let mut places: HashMap<MapVerdict, usize> = HashMap::new();
        for (first, last, verdict) in entries {
            let at = *places.entry(verdict).or_insert_with_key(|verdict| {
                groups.push((Elements::new(), verdict.clone()));
                groups.len() - 1
            });
            groups[at].0.push((first, last));
        }
        Self { groups, rest }
    }
}

/// An element of a set or map: a key, and whether it starts a range or ends one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key; empty in the element for all other keys.
    pub key: Vec<u8>,
    /// Whether the element starts a range. An end sorts before a start at the same key.
    pub starts: bool,
    /// The verdict, in a map of verdicts.
    pub verdict: Option<MapVerdict>,
}

/// The elements of one message of a listing. `None` for keys that are not plain values.
pub fn elements(message: &[u8]) -> Option<Vec<Element>> {
    let Some(list) = find(message, NFTA_SET_ELEM_LIST_ELEMENTS) else { return Some(Vec::new()) };
    attributes(list.value).map(element).collect()
}

fn element(element: Attr) -> Option<Element> {
    if find(element.value, NFTA_SET_ELEM_KEY_END).is_some() {
        return None;
    }
    let flags = find(element.value, NFTA_SET_ELEM_FLAGS).and_then(|a| a.u32()).unwrap_or(0);
    let key = match flags & NFT_SET_ELEM_CATCHALL {
        0 => find(find(element.value, NFTA_SET_ELEM_KEY)?.value, NFTA_DATA_VALUE)?.value.to_vec(),
        _ => Vec::new(),
    };
    let verdict = find(element.value, NFTA_SET_ELEM_DATA).and_then(|data| expr_bytes::verdict(data.value));
    Some(Element { key, starts: flags & NFT_SET_ELEM_INTERVAL_END == 0, verdict })
}

/// The keys of a set. `None` if it has an element for all other keys.
pub fn keys(elements: Vec<Element>, interval: bool) -> Option<Elements> {
    let plain = elements.iter().all(|element| !element.key.is_empty());
    plain.then(|| ranges(elements, interval).into_iter().map(|(first, last, _)| (first, last)).collect())
}

/// A map of verdicts; `None` where an element has none.
pub fn verdicts(mut elements: Vec<Element>, interval: bool) -> Option<VerdictMap> {
    let rest = elements.iter().position(|element| element.key.is_empty()).map(|at| elements.swap_remove(at).verdict);
    let rest = match rest {
        Some(verdict) => Some(verdict?),
        None => None,
    };
    let entries = ranges(elements, interval).into_iter().map(|(first, last, verdict)| Some((first, last, verdict?)));
    Some(VerdictMap::new(entries.collect::<Option<Vec<_>>>()?, rest))
}

/// Puts starts and ends together. In an interval set a start without an end goes on to
/// the largest key.
fn ranges(mut elements: Vec<Element>, interval: bool) -> Vec<(Vec<u8>, Vec<u8>, Option<MapVerdict>)> {
    elements.sort();
    if !interval {
        return elements.into_iter().map(|e| (e.key.clone(), e.key, e.verdict)).collect();
    }
    let mut out = Vec::new();
    let mut open: Option<(Vec<u8>, Option<MapVerdict>)> = None;
    for element in elements {
        if let Some((first, verdict)) = open.take()
            && let Some(last) = before(&element.key)
            && first <= last
        {
            out.push((first, last, verdict));
        }
        if element.starts {
            open = Some((element.key, element.verdict));
        }
    }
    if let Some((first, verdict)) = open {
        let last = vec![0xff; first.len()];
        out.push((first, last, verdict));
    }
    out
}

/// The key before; `None` before zero.
fn before(key: &[u8]) -> Option<Vec<u8>> {
    let mut out = key.to_vec();
    for byte in out.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            return Some(out);
        }
    }
    None
}

/// The key after; `None` after the largest.
pub fn after(key: &[u8]) -> Option<Vec<u8>> {
    let mut out = key.to_vec();
    for byte in out.iter_mut().rev() {
        let (more, carry) = byte.overflowing_add(1);
        *byte = more;
        if !carry {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e(key: u8, starts: bool) -> Element {
        Element { key: vec![0, key], starts, verdict: None }
    }

    #[test]
    fn starts_and_ends_make_ranges() {
        // 10-19, then 20 to the end of all keys; the listing comes unsorted.
        let list = vec![e(20, true), e(10, true), e(20, false), e(0, false)];
        assert_eq!(keys(list, true).unwrap(), [(vec![0, 10], vec![0, 19]), (vec![0, 20], vec![255, 255])]);
        assert_eq!(keys(vec![e(7, true)], false).unwrap(), [(vec![0, 7], vec![0, 7])]);
        assert_eq!(before(&[1, 0]), Some(vec![0, 255]));
        assert_eq!((before(&[0]), after(&[255])), (None, None));
    }
}
