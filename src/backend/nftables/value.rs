//! The values of expressions: bytes to numbers, names and ranges, and their places among
//! a rule's conditions.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Family, Interface};
use crate::plan::canon::address;
use crate::plan::model::Cond;

/// The address in some bytes, IPv4 or IPv6 by their number.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from).or_else(v6)
}

/// Sets a condition; `None` if there is another one already.
pub(super) fn place<T: PartialEq>(slot: &mut Option<Cond<T>>, cond: Cond<T>) -> Option<()> {
    match slot {
        Some(before) => (*before == cond).then_some(()),
        None => {
            *slot = Some(cond);
            Some(())
        }
    }
}

/// Adds a condition on a number to the one that there is.
pub(super) fn place_list<T: Discrete>(
    slot: &mut Option<Cond<RangeList<T>>>,
    negated: bool,
    list: RangeList<T>,
) -> Option<()> {
    let new = Cond { negated, value: list };
    *slot = Some(match slot.take() {
        None => new,
        Some(old) => match (old.negated, new.negated) {
            (true, true) => {
                let mut both = old.value;
                both.extend(&new.value);
                Cond::is_not(both)
            }
            (false, false) => Cond::is(old.value.normalised().intersection(&new.value.normalised())),
            (false, true) => Cond::is(old.value.normalised().intersection(&new.value.complement())),
            (true, false) => Cond::is(new.value.normalised().intersection(&old.value.complement())),
        },
    });
    Some(())
}

pub(super) fn place_names(slot: &mut Option<Cond<Vec<Interface>>>, negated: bool, names: Vec<Interface>) -> Option<()> {
    match slot {
        Some(cond) if cond.negated && negated => {
            cond.value.extend(names);
            Some(())
        }
        _ => place(slot, Cond { negated, value: names }),
    }
}

/// An interface name; without a NUL it is only a beginning.
pub(super) fn interface(data: &[u8]) -> Option<Interface> {
    let end = data.iter().position(|&b| b == 0);
    let name = std::str::from_utf8(&data[..end.unwrap_or(data.len())]).ok()?;
    Some(Interface::new(name, end.is_none() && data.len() < 16))
}

/// The interfaces in a range of names: a single one, or all with the same beginning.
pub(super) fn interfaces_between(first: &[u8], last: &[u8]) -> Option<Interface> {
    if first == last {
        return interface(first);
    }
    let beginning = first.iter().zip(last).take_while(|(a, b)| a == b && **a != 0).count();
    let all = first[beginning..].iter().all(|&b| b == 0) && last.get(beginning..)?.iter().all(|&b| b == 0xff);
    (all && first.len() == last.len()).then(|| interface(&first[..beginning]))?
}

/// Turns a number into the host's byte order; `network`: it is in network order.
pub(super) fn in_host_order(bytes: &[u8], network: bool) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if network && cfg!(target_endian = "little") {
        out.reverse();
    }
    out
}

/// The elements of a set that holds no ranges.
pub(super) fn single(elements: &[(Vec<u8>, Vec<u8>)]) -> Option<impl Iterator<Item = &[u8]>> {
    let exact = elements.iter().all(|(first, last)| first == last);
    exact.then(|| elements.iter().map(|(first, _)| first.as_slice()))
}

pub(super) fn native(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

pub(super) fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

pub(super) fn big_endian(bytes: &[u8]) -> Option<u128> {
    (bytes.len() <= 16).then(|| bytes.iter().fold(0, |n, &b| n << 8 | u128::from(b)))
}

pub(super) fn list<T: Discrete>(
    ranges: &[(Vec<u8>, Vec<u8>)],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<RangeList<T>> {
    ranges.iter().map(|(first, last)| Some((read(first)?, read(last)?))).collect::<Option<Vec<_>>>().map(RangeList::new)
}

/// The range of addresses for a compared address, or for its first bytes.
pub(super) fn prefix(family: Family, data: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let whole = usize::from(family.bits()) / 8;
    let bits = match mask {
        None => data.len() * 8,
        Some(mask) => {
            let ones = mask.iter().map(|b| b.count_ones() as usize).sum();
            let leading = big_endian(mask)? << (128 - mask.len() * 8);
            if leading.leading_ones() as usize != ones {
                return None;
            }
            ones
        }
    };
    let missing = whole.checked_sub(data.len())?;
    let number = big_endian(data)? << (missing * 8);
    let net = IpNet::new(address(family, number), u8::try_from(bits).ok()?).ok()?;
    // An address with bits outside of its mask is none that the masked one could be.
    (net.trunc() == net).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_load_is_a_prefix() {
        assert_eq!(prefix(Family::V4, &[10], None).unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(prefix(Family::V4, &[10, 16, 0, 0], Some(&[255, 240, 0, 0])).unwrap().to_string(), "10.16.0.0/12");
        assert!(prefix(Family::V4, &[10, 0, 0, 0], Some(&[255, 0, 255, 0])).is_none());
        assert!(prefix(Family::V4, &[10, 1, 0, 0], Some(&[255, 0, 0, 0])).is_none());
    }
}
