//! Sets of ipset(8), over netlink: their own program would have to be installed, and one run
//! of it for each change costs more than the change. Numbers are those of
//! linux/netfilter/ipset/ip_set.h; integers in attributes are big-endian and say so.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::backend::nftables::wire::{
    Attrs, Messages, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NfFamily, attributes, find,
};
use crate::config::types::Family;
use crate::sys::netlink::{Netlink, Received};

/// `NFNL_SUBSYS_IPSET`, the high byte of every message type.
const SUBSYSTEM: u16 = 6 << 8;
/// Commands (`enum ipset_cmd`).
const CREATE: u16 = 2;
const DESTROY: u16 = 3;
const FLUSH: u16 = 4;
const LIST: u16 = 7;
const ADD: u16 = 9;
const DELETE: u16 = 10;

/// The version of ipset's protocol: every kernel since 2.6.39 has it, newer ones have a newer one too.
const PROTOCOL: u8 = 6;
/// The first revision of `hash:ip` with comments (ip_set_hash_ip.c).
const REVISION: u8 = 2;
const TYPE: &str = "hash:ip";
/// `IPSET_FLAG_WITH_COMMENT`.
const WITH_COMMENT: u32 = 1 << 4;
/// `NLA_F_NET_BYTEORDER`.
const NETWORK_ORDER: u16 = 1 << 14;

/// Command attributes: `IPSET_ATTR_PROTOCOL` and so on.
mod attr {
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SETNAME: u16 = 2;
    pub(super) const TYPENAME: u16 = 3;
    pub(super) const REVISION: u16 = 4;
    pub(super) const FAMILY: u16 = 5;
    pub(super) const DATA: u16 = 7;
    pub(super) const ADT: u16 = 8;
}

/// Attributes nested in `IPSET_ATTR_DATA`.
mod data {
    pub(super) const IP: u16 = 1;
    pub(super) const FLAGS: u16 = 8;
    pub(super) const COMMENT: u16 = 26;
    pub(super) const IPV4: u16 = 1;
    pub(super) const IPV6: u16 = 2;
}

/// `IPSET_ERR_BUSY`: a rule refers to the set.
pub const BUSY: i32 = 4100;
/// `IPSET_ERR_EXIST`: there is no such element to delete.
const NO_ELEMENT: i32 = 4103;

/// A set as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpSet {
    /// Whether the set has the type and the options that podweir gives its sets.
    pub usual: bool,
    /// The addresses in the set, each with its comment.
    pub entries: BTreeMap<IpAddr, String>,
}

/// `AF_INET`, `AF_INET6`; ipset's own `NFPROTO_*` are the same.
fn number(family: Family) -> u8 {
    if family == Family::V4 { 2 } else { 10 }
}

fn push(messages: &mut Messages, command: u16, flags: u16, family: Family, name: &str, more: impl FnOnce(&mut Attrs)) {
    messages.push(SUBSYSTEM | command, flags, NfFamily(number(family)), 0, |a| {
        a.bytes(attr::PROTOCOL, &[PROTOCOL]);
        a.string(attr::SETNAME, name);
        more(a);
    });
}

fn address(a: &mut Attrs, address: IpAddr) {
    a.nested(data::IP, |a| match address {
        IpAddr::V4(ip) => a.bytes(data::IPV4 | NETWORK_ORDER, &ip.octets()),
        IpAddr::V6(ip) => a.bytes(data::IPV6 | NETWORK_ORDER, &ip.octets()),
    });
}

/// Sends messages and waits until the last one is acknowledged; errors in `allowed` are ignored.
fn send(netlink: &mut Netlink, mut messages: Messages, allowed: &[i32]) -> io::Result<()> {
    messages.acknowledge_last();
    let last = messages.last_sequence();
    let refused = netlink.transact(messages.bytes(), last)?;
    match refused.iter().find(|refusal| !allowed.contains(&refusal.errno)) {
        None => Ok(()),
        Some(refusal) => Err(error(refusal.errno)),
    }
}

/// The error for an errno; ipset has errors of its own, from 4096 on.
fn error(errno: i32) -> io::Error {
    match errno {
        BUSY => io::Error::new(io::ErrorKind::ResourceBusy, "a rule refers to the set"),
        4097 => io::Error::other("the kernel speaks another version of ipset's protocol"),
        4098 => io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel has no sets of type hash:ip with comments: load the module ip_set_hash_ip on the node",
        ),
        errno if errno >= 4096 => io::Error::other(format!("ipset's error {errno}")),
        errno => io::Error::from_raw_os_error(errno),
    }
}

/// A set with its elements; `None`: there is none of that name.
///
/// # Errors
///
/// The kernel's refusal: it may lack ipset.
pub fn list(netlink: &mut Netlink, family: Family, name: &str) -> io::Result<Option<IpSet>> {
    let mut messages = Messages::default();
    push(&mut messages, LIST, NLM_F_DUMP, family, name, |_| ());
    let mut out = IpSet { usual: true, entries: BTreeMap::new() };
    let mut headers = 0;
    let listed = netlink.dump(messages.bytes(), |message: Received| {
        let attributes_of = message.payload.get(4..).unwrap_or_default();
        if let Some(header) = find(attributes_of, attr::DATA) {
            headers += 1;
            let kind = find(attributes_of, attr::TYPENAME).map(|a| a.string());
            let of_family = find(attributes_of, attr::FAMILY).and_then(|a| a.value.first().copied());
            let flags = find(header.value, data::FLAGS).and_then(|a| a.u32()).unwrap_or(0);
            out.usual &= kind.as_deref() == Some(TYPE) && of_family == Some(number(family)) && flags == WITH_COMMENT;
        }
        for element in find(attributes_of, attr::ADT).iter().flat_map(|list| attributes(list.value)) {
            let Some(ip) = find(element.value, data::IP).and_then(|ip| parse_address(ip.value)) else { continue };
            let comment = find(element.value, data::COMMENT).map(|a| a.string()).unwrap_or_default();
            out.entries.insert(ip, comment);
        }
    });
    match listed {
        Ok(()) => Ok((headers > 0).then_some(out)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error(e.raw_os_error().unwrap_or(0))),
    }
}

fn parse_address(nested: &[u8]) -> Option<IpAddr> {
    let v4 = find(nested, data::IPV4).and_then(|a| <[u8; 4]>::try_from(a.value).ok());
    let v6 = || find(nested, data::IPV6).and_then(|a| <[u8; 16]>::try_from(a.value).ok());
    v4.map(IpAddr::from).or_else(|| v6().map(IpAddr::from))
}

/// Makes a set.
///
/// # Errors
///
/// The kernel's refusal; a set of that name is there already.
pub fn create(netlink: &mut Netlink, family: Family, name: &str) -> io::Result<()> {
    let mut messages = Messages::default();
    push(&mut messages, CREATE, NLM_F_CREATE | NLM_F_EXCL, family, name, |a| {
        a.string(attr::TYPENAME, TYPE);
        a.bytes(attr::REVISION, &[REVISION]);
        a.bytes(attr::FAMILY, &[number(family)]);
        a.nested(attr::DATA, |a| a.u32(data::FLAGS | NETWORK_ORDER, WITH_COMMENT));
    });
    send(netlink, messages, &[])
}

/// Removes addresses, then adds others; an address that is in the set gets the new comment.
///
/// # Errors
///
/// The kernel's refusal; the changes before it are done.
pub fn change(
    netlink: &mut Netlink,
    family: Family,
    name: &str,
    delete: &[IpAddr],
    add: &[(IpAddr, &str)],
) -> io::Result<()> {
    // So many that their acknowledgements, of those that are refused, fit a socket's buffer.
    const AT_ONCE: usize = 200;
    let mut todo: Vec<(u16, IpAddr, Option<&str>)> = Vec::with_capacity(delete.len() + add.len());
    todo.extend(delete.iter().map(|ip| (DELETE, *ip, None)));
    todo.extend(add.iter().map(|(ip, comment)| (ADD, *ip, Some(*comment))));
    for part in todo.chunks(AT_ONCE) {
        let mut messages = Messages::default();
        for (command, ip, comment) in part {
            // Without NLM_F_EXCL an element that is there is written over.
            push(&mut messages, *command, 0, family, name, |a| {
                a.nested(attr::DATA, |a| {
                    address(a, *ip);
                    if let Some(comment) = comment {
                        a.string(data::COMMENT, comment);
                    }
                });
            });
        }
        send(netlink, messages, &[NO_ELEMENT])?;
    }
    Ok(())
}

/// Empties a set.
///
/// # Errors
///
/// The kernel's refusal.
pub fn flush(netlink: &mut Netlink, family: Family, name: &str) -> io::Result<()> {
    let mut messages = Messages::default();
    push(&mut messages, FLUSH, 0, family, name, |_| ());
    send(netlink, messages, &[])
}

/// Removes a set; one that is missing is no failure.
///
/// # Errors
///
/// The kernel's refusal; `ResourceBusy` while a rule refers to it.
pub fn destroy(netlink: &mut Netlink, family: Family, name: &str) -> io::Result<()> {
    let mut messages = Messages::default();
    push(&mut messages, DESTROY, 0, family, name, |_| ());
    send(netlink, messages, &[nix::libc::ENOENT])
}
