//! Sets as the kernel lists them: elements put together to ranges.

use super::wire::{Attr, attributes, find};

/// Sorted `(first, last)` keys; a set without intervals has both the same.
pub type Elements = Vec<(Vec<u8>, Vec<u8>)>;

const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
/// This key is the first one after a range.
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

/// One element: a key, and whether it ends a range instead of starting one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    /// Sorts before a start at the same key.
    pub starts: bool,
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
    let key = find(find(element.value, NFTA_SET_ELEM_KEY)?.value, 1)?;
    let flags = find(element.value, NFTA_SET_ELEM_FLAGS).and_then(|a| a.u32()).unwrap_or(0);
    Some(Element { key: key.value.to_vec(), starts: flags & NFT_SET_ELEM_INTERVAL_END == 0 })
}

/// Puts starts and ends together. In an interval set a start without an end goes on to
/// the largest key.
pub fn ranges(mut elements: Vec<Element>, interval: bool) -> Elements {
    elements.sort();
    if !interval {
        return elements.into_iter().map(|e| (e.key.clone(), e.key)).collect();
    }
    let mut out: Elements = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for element in elements {
        if let Some(first) = open.take()
            && let Some(last) = before(&element.key)
            && first <= last
        {
            out.push((first, last));
        }
        if element.starts {
            open = Some(element.key);
        }
    }
    if let Some(first) = open {
        let last = vec![0xff; first.len()];
        out.push((first, last));
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
        Element { key: vec![0, key], starts }
    }

    #[test]
    fn starts_and_ends_make_ranges() {
        // 10-19, then 20 to the end of all keys; the listing comes unsorted.
        let list = vec![e(20, true), e(10, true), e(20, false), e(0, false)];
        assert_eq!(ranges(list, true), [(vec![0, 10], vec![0, 19]), (vec![0, 20], vec![255, 255])]);
        assert_eq!(ranges(vec![e(7, true)], false), [(vec![0, 7], vec![0, 7])]);
        assert_eq!(before(&[1, 0]), Some(vec![0, 255]));
        assert_eq!((before(&[0]), after(&[255])), (None, None));
    }
}
