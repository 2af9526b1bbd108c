//! Values in nft's words as the bytes that the kernel compares.

use std::net::IpAddr;

use crate::config::types::Family;
use crate::plan::model::{CtStates, protocol};

use super::fields::{Class, Item};

/// First and last value of an item: a value, a range, or a prefix of addresses.
pub fn range_bytes(class: Class, (first, last): &Item) -> Option<(Vec<u8>, Vec<u8>)> {
    if let (Class::Address(family), None, Some(_)) = (class, last, first.find('/')) {
        let net: ipnet::IpNet = first.parse().ok()?;
        let of_family = net.addr().is_ipv4() == (family == Family::V4);
        return of_family.then(|| (octets(net.network()), octets(net.broadcast())));
    }
    let from = value_bytes(class, first)?;
    let to = last.as_deref().map_or(Some(from.clone()), |last| value_bytes(class, last))?;
    (from <= to || class == Class::Mark).then_some((from, to))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A value as the kernel compares it.
pub fn value_bytes(class: Class, text: &str) -> Option<Vec<u8>> {
    match class {
        Class::Name => name(text),
        // Still a number: the interface was gone when the rules were listed.
        Class::Index if text.bytes().all(|b| b.is_ascii_digit()) => None,
        Class::Index => name(text).filter(|bytes| bytes.len() == 16),
        Class::Family => match text {
            "ipv4" | "2" => Some(vec![2]),
            "ipv6" | "10" => Some(vec![10]),
            _ => None,
        },
        Class::EtherType => match text {
            "ip" => Some(vec![0x08, 0x00]),
            "ip6" => Some(vec![0x86, 0xdd]),
            _ => None,
        },
        Class::Byte => protocol::by_name(text).map(|n| vec![n]),
        Class::Mark => number(text).map(|n| n.to_ne_bytes().to_vec()),
        Class::State => {
            let (state, _) = CtStates::NAMED.iter().find(|(_, name)| name.eq_ignore_ascii_case(text))?;
            Some(u32::from(state.0).to_ne_bytes().to_vec())
        }
        // nft looks ids up where it runs; of the names only this one means the same everywhere.
        Class::Id if text == "root" => Some(vec![0; 4]),
        Class::Id => text.parse::<u32>().ok().map(|n| n.to_be_bytes().to_vec()),
        Class::Address(family) => {
            let address: IpAddr = text.parse().ok()?;
            (address.is_ipv4() == (family == Family::V4)).then(|| octets(address))
        }
        Class::Port => text.parse::<u16>().ok().map(|n| n.to_be_bytes().to_vec()),
    }
}

/// An interface name with its NUL; with a `*` at the end only how it begins.
fn name(text: &str) -> Option<Vec<u8>> {
    match text.strip_suffix('*') {
        Some(beginning) if beginning.len() < 16 => Some(beginning.as_bytes().to_vec()),
        None if text.len() < 16 && !text.is_empty() => {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(16, 0);
            Some(bytes)
        }
        _ => None,
    }
}

/// A number in decimal or hexadecimal.
pub fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
