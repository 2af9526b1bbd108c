//! What connection tracking knows of a connection, asked and forgotten by way of
//! ctnetlink (linux/netfilter/nfnetlink_conntrack.h). Takes CAP_NET_ADMIN.
//!
//! Connections are asked for one by one where their addresses are known: they are found at
//! once, while a dump walks the table of the whole node, whichever namespace asks (10 ms for
//! a table of the usual size without an entry).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;

use super::netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, attribute, attributes, request};

/// `NFNL_SUBSYS_CTNETLINK`, the high byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const NLA_F_NESTED: u16 = 1 << 15;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
/// Attributes nested in a tuple, and those nested in them.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// The attribute nested in `CTA_PROTOINFO`, and one nested in that.
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;

/// The two ends of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// A TCP connection that is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The ends of the packet that began the connection.
    pub original: Ends,
    /// The ends of the replies as they are sent: where the destination was rewritten, replies come from
    /// the rewritten one.
    pub reply: Ends,
    pub mark: u32,
    /// Whether the handshake is complete and neither end has closed the connection.
    pub established: bool,
    id: [u8; 4],
}

/// How many connections are tracked in the namespace that the calling thread is in.
///
/// # Errors
/// `NotFound`: the kernel has no connection tracking, or does not tell in this namespace.
pub fn count() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Asks for the TCP connection with packets between these ends, whichever way it was begun.
///
/// # Errors
/// The kernel's: EINVAL where it has no ctnetlink, `PermissionDenied` without CAP_NET_ADMIN.
pub fn find(netlink: &mut Netlink, ends: Ends) -> io::Result<Option<Tracked>> {
    let mut found = None;
    let request = message(IPCTNL_MSG_CT_GET, 0, ends, &[]);
    match netlink.get(&request, |received| found = found.take().or(parse(received.payload))) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|()| found),
    }
}

/// Lists the TCP connections of the namespace.
///
/// # Errors
/// As for [`find`].
pub fn list(netlink: &mut Netlink) -> io::Result<Vec<Tracked>> {
    let mut out = Vec::new();
    // Of every family.
    let request = request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, &[&[0; 4]]);
    netlink.dump(&request, |received| out.extend(parse(received.payload)))?;
    Ok(out)
}

/// Makes connection tracking forget a connection: its next packet is the first of a new one.
///
/// # Errors
/// As for [`find`]; `NotFound` if it is gone already.
pub fn forget(netlink: &mut Netlink, connection: &Tracked) -> io::Result<()> {
    let id = attribute(CTA_ID, &connection.id);
    netlink.command(&message(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, connection.original, &id))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A request about the connection with packets between these ends.
fn message(kind: u16, flags: u16, ends: Ends, more: &[u8]) -> Vec<u8> {
    request(kind, flags, &[&family(ends), &tuple(CTA_TUPLE_ORIG, ends), more])
}

/// `struct nfgenmsg`: family, version, resource.
fn family(ends: Ends) -> [u8; 4] {
    let family = if ends.to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    [family as u8, 0, 0, 0]
}

fn tuple(kind: u16, ends: Ends) -> Vec<u8> {
    let (from, to) = if ends.to.is_ipv4() { (CTA_IP_V4_SRC, CTA_IP_V4_DST) } else { (CTA_IP_V6_SRC, CTA_IP_V6_DST) };
    let ip = [attribute(from, &octets(ends.from.ip())), attribute(to, &octets(ends.to.ip()))].concat();
    let protocol = [
        attribute(CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]),
        attribute(CTA_PROTO_SRC_PORT, &ends.from.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &ends.to.port().to_be_bytes()),
    ]
    .concat();
    let (ip, protocol) =
        (attribute(CTA_TUPLE_IP | NLA_F_NESTED, &ip), attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, &protocol));
    attribute(kind | NLA_F_NESTED, &[ip, protocol].concat())
}

fn parse(payload: &[u8]) -> Option<Tracked> {
    let (mut original, mut reply, mut mark, mut id, mut established) = (None, None, 0, None, false);
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            CTA_TUPLE_ORIG => original = ends(value),
            CTA_TUPLE_REPLY => reply = ends(value),
            CTA_PROTOINFO => {
                let inside =
                    |value, wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                let state = inside(value, CTA_PROTOINFO_TCP).and_then(|tcp| inside(tcp, CTA_PROTOINFO_TCP_STATE));
                established = state == Some(&[ESTABLISHED]);
            }
            CTA_MARK => mark = u32::from_be_bytes(value.try_into().ok()?),
            CTA_ID => id = Some(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(Tracked { original: original?, reply: reply?, mark, established, id: id? })
}

/// The addresses and ports of a TCP connection's tuple.
fn ends(tuple: &[u8]) -> Option<Ends> {
    let (mut addresses, mut ports) = ([None, None], [None, None]);
    for (kind, value) in attributes(tuple) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    let v4 = || <[u8; 4]>::try_from(value).ok().map(|o| IpAddr::from(Ipv4Addr::from(o)));
                    let v6 = || <[u8; 16]>::try_from(value).ok().map(|o| IpAddr::from(Ipv6Addr::from(o)));
                    match kind {
                        CTA_IP_V4_SRC => addresses[0] = v4(),
                        CTA_IP_V4_DST => addresses[1] = v4(),
                        CTA_IP_V6_SRC => addresses[0] = v6(),
                        CTA_IP_V6_DST => addresses[1] = v6(),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    let port = || value.try_into().ok().map(u16::from_be_bytes);
                    match kind {
                        CTA_PROTO_NUM if value != [libc::IPPROTO_TCP as u8] => return None,
                        CTA_PROTO_SRC_PORT => ports[0] = port(),
                        CTA_PROTO_DST_PORT => ports[1] = port(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let end = |at: usize| Some(SocketAddr::new(addresses[at]?, ports[at]?));
    Some(Ends { from: end(0)?, to: end(1)? })
}

#[cfg(test)]
impl Tracked {
    /// An established connection, for tests.
    pub fn of(original: Ends, reply: Ends, mark: u32) -> Self {
        Self { original, reply, mark, established: true, id: [0; 4] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_one_cut_short_is_none() {
        for (from, to, proxy) in [
            ("10.244.0.6:40000", "198.51.100.7:80", "127.0.0.1:15001"),
            ("[fd00::6]:1", "[2001:db8::7]:65535", "[::1]:15001"),
        ] {
            let original = Ends { from: from.parse().unwrap(), to: to.parse().unwrap() };
            let reply = Ends { from: proxy.parse().unwrap(), to: original.from };
            let mut bytes = family(original).to_vec();
            bytes.extend(tuple(CTA_TUPLE_ORIG, original));
            bytes.extend(tuple(CTA_TUPLE_REPLY, reply));
            bytes.extend(attribute(CTA_MARK, &[0, 0, 5, 0x39]));
            let state =
                attribute(CTA_PROTOINFO_TCP | NLA_F_NESTED, &attribute(CTA_PROTOINFO_TCP_STATE, &[ESTABLISHED]));
            bytes.extend(attribute(CTA_PROTOINFO | NLA_F_NESTED, &state));
            bytes.extend(attribute(CTA_ID, &[1, 2, 3, 4]));
            let wanted = Tracked { original, reply, mark: 1337, established: true, id: [1, 2, 3, 4] };
            assert_eq!(parse(&bytes), Some(wanted));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), None, "{end}");
            }
        }
    }
}
