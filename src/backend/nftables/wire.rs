//! Netlink attributes and messages of the nf_tables subsystem, as bytes.
//! Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h; integers in
//! attributes are big-endian.

use crate::sys::netlink::Received;

/// The flag of nested attributes (`NLA_F_NESTED`), and the mask of a type without flags.
const NLA_F_NESTED: u16 = 1 << 15;
pub const TYPE_MASK: u16 = 0x3fff;

/// `NFNL_SUBSYS_NFTABLES`, the high byte of every message type.
const SUBSYSTEM: u16 = 10 << 8;
pub const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub const NFNL_MSG_BATCH_END: u16 = 0x11;

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_APPEND: u16 = 0x800;

/// `enum nf_tables_msg_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Msg {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

impl Msg {
    /// The message type on the wire.
    pub const fn number(self) -> u16 {
        SUBSYSTEM | self as u16
    }
}

/// The family of a table, by the kernel's number (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NfFamily(pub u8);

/// Hooks of devices (`enum nf_dev_hooks`), and that of a device in a table of family inet (`enum nf_inet_hooks`).
pub const NF_NETDEV_INGRESS: u32 = 0;
pub const NF_NETDEV_EGRESS: u32 = 1;
pub const NF_INET_INGRESS: u32 = 5;

impl NfFamily {
    pub const UNSPEC: NfFamily = NfFamily(0);
    pub const INET: NfFamily = NfFamily(1);
    pub const IPV4: NfFamily = NfFamily(2);
    pub const ARP: NfFamily = NfFamily(3);
    pub const NETDEV: NfFamily = NfFamily(5);
    pub const BRIDGE: NfFamily = NfFamily(7);
    pub const IPV6: NfFamily = NfFamily(10);
}

/// A buffer of netlink messages.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    count: u32,
    /// Where the last message starts.
    last: usize,
}

impl Messages {
    /// Appends a message; `attributes` writes its attributes. Sequence numbers count up from 0.
    pub fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: NfFamily,
        resource: u16,
        attributes: impl FnOnce(&mut Attrs),
    ) {
        let start = self.bytes.len();
        self.last = start;
        let mut header = [0u8; 20];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        header[8..12].copy_from_slice(&self.count.to_ne_bytes());
        header[16] = family.0;
        header[18..20].copy_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(&header);
        attributes(&mut Attrs { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.count += 1;
    }

    /// Appends an nf_tables message.
    pub fn nft(&mut self, msg: Msg, flags: u16, family: NfFamily, attributes: impl FnOnce(&mut Attrs)) {
        self.push(msg.number(), flags, family, 0, attributes);
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Asks for an acknowledgement of the last message.
    pub fn acknowledge_last(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
    }

    /// The sequence number of the last message.
    pub fn last_sequence(&self) -> u32 {
        self.count.saturating_sub(1)
    }
}

/// Writes attributes at the end of a buffer.
pub struct Attrs<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attrs<'_> {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A string with its terminating NUL.
    pub fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that holds attributes; at most 64 KiB of them.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Attrs)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        inner(&mut Attrs { bytes: self.bytes });
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    }
}

/// An attribute read: its kind and its value.
#[derive(Debug, Clone, Copy)]
pub struct Attr<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// A string, up to its NUL.
    pub fn string(&self) -> String {
        let end = self.value.iter().position(|&b| b == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(&self.value[..end]).into_owned()
    }

    /// The attributes nested in the value.
    pub fn nested(&self) -> impl Iterator<Item = Attr<'a>> + use<'a> {
        attributes(self.value)
    }
}

/// The attributes in `bytes`, their kinds with flags; stops at the first one that does not fit.
pub fn flagged_attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    std::iter::from_fn(move || {
        let &[a, b, c, d, ..] = bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attr { kind: u16::from_ne_bytes([c, d]), value })
    })
}

/// The attributes in `bytes`; stops at the first one that does not fit.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    flagged_attributes(bytes).map(|a| Attr { kind: a.kind & TYPE_MASK, ..a })
}

/// The first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attr<'_>> {
    attributes(bytes).find(|a| a.kind == kind)
}

/// The parts of an nf_tables message behind the netlink header.
pub trait NfMessage<'a> {
    /// The family byte of the nfgenmsg header.
    fn family(&self) -> NfFamily;
    /// The attributes behind the nfgenmsg header.
    fn attributes(&self) -> &'a [u8];
}

impl<'a> NfMessage<'a> for Received<'a> {
    fn family(&self) -> NfFamily {
        NfFamily(self.payload.first().copied().unwrap_or(0))
    }

    fn attributes(&self) -> &'a [u8] {
        self.payload.get(4..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::messages;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Messages::default();
        out.nft(Msg::NewTable, NLM_F_CREATE, NfFamily::INET, |a| {
            a.string(1, "istio-proxy-nat");
            a.nested(2, |a| a.u32(3, 7));
            a.u64(4, 1 << 40);
        });
        out.nft(Msg::GetGen, 0, NfFamily::UNSPEC, |_| ());
        let read: Vec<Received> = messages(out.bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].family(), read[1].sequence), (0xa00, NfFamily::INET, 1));
        let attrs = read[0].attributes();
        assert_eq!(find(attrs, 1).unwrap().string(), "istio-proxy-nat");
        assert_eq!(find(attrs, 2).unwrap().nested().next().unwrap().u32(), Some(7));
        assert_eq!(find(attrs, 4).unwrap().u64(), Some(1 << 40));
        assert!(find(attrs, 9).is_none());
    }

    #[test]
    fn cut_short_is_not_read_past() {
        let mut out = Messages::default();
        out.nft(Msg::NewTable, 0, NfFamily::INET, |a| a.string(1, "abcdefgh"));
        for end in 0..out.bytes().len() {
            for message in messages(&out.bytes()[..end]) {
                attributes(message.attributes()).count();
            }
        }
    }
}
