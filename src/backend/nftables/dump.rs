//! Questions to nf_tables, and the messages that answer them.

use std::io;

use crate::sys::netlink::{Netlink, Received};

use super::wire::{Attrs, Messages, Msg, NLM_F_DUMP, NfFamily, NfMessage, find};

pub(super) fn request(msg: Msg, flags: u16, family: NfFamily, attributes: impl FnOnce(&mut Attrs)) -> Messages {
    let mut messages = Messages::default();
    messages.nft(msg, flags, family, attributes);
    messages
}

pub(super) fn dump(
    netlink: &mut Netlink,
    msg: Msg,
    family: NfFamily,
    filter: impl FnOnce(&mut Attrs),
    each: impl FnMut(Received),
) -> io::Result<()> {
    netlink.dump(request(msg, NLM_F_DUMP, family, filter).bytes(), each)
}

/// Lists all objects of a kind in a family.
pub(super) fn dump_all(
    netlink: &mut Netlink,
    msg: Msg,
    family: NfFamily,
    each: impl FnMut(Received),
) -> io::Result<()> {
    dump(netlink, msg, family, |_| (), each)
}

/// A message's attribute as text; empty where there is none.
pub(super) fn text(message: &Received, kind: u16) -> String {
    find(message.attributes(), kind).map(|a| a.string()).unwrap_or_default()
}
