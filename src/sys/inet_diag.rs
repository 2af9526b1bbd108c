//! The TCP sockets of a network namespace, listed and ended by way of sock_diag(7)
//! (linux/inet_diag.h). Listing takes no capability, ending CAP_NET_ADMIN.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use nix::libc;

use super::netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, attributes, request};

/// Types of requests (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Attributes of an answer; the second has been there since Linux 5.10.
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_SOCKOPT: u16 = 22;
/// `transparent` in the first byte of `struct inet_diag_sockopt`: the sixth field of one bit.
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };
/// The length of `struct inet_diag_sockid`, and where it begins in an answer.
const KEY: usize = 48;
const KEY_AT: usize = 4;

/// The state of a TCP socket (`enum` in net/tcp_states.h), as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TcpState {
    Listening,
    /// The handshake is not complete yet.
    Opening,
    Established,
    /// One direction of the connection is closed; the other may go on without limit.
    HalfClosed,
    /// Both directions are closed or closing: only packets that end the connection are sent.
    Over,
    /// The connection is closed at both ends, and known only to recognise late packets (TIME_WAIT).
    Remembered,
}

impl TcpState {
    fn of(number: u8) -> Self {
        match number {
            1 => TcpState::Established,
            2 | 3 | 12 => TcpState::Opening,
            4 | 5 | 8 => TcpState::HalfClosed,
            6 => TcpState::Remembered,
            10 => TcpState::Listening,
            _ => TcpState::Over,
        }
    }
}

/// A TCP socket as sock_diag(7) reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    pub state: TcpState,
    /// The local address and port; an IPv4-mapped IPv6 address is given as IPv4.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The user who made the socket, as the caller's user namespace knows it; 0 where no process has a
    /// descriptor of the socket.
    pub uid: u32,
    /// By which /proc/PID/fd names it; 0 where no process has a descriptor of it.
    pub inode: u32,
    /// The mark on the socket's packets, as far as the caller may know it.
    pub mark: u32,
    /// Whether the socket may use addresses that are not the host's (`IP_TRANSPARENT`); `None` where the
    /// kernel does not tell.
    pub transparent: Option<bool>,
    family: u8,
    key: [u8; KEY],
}

/// Lists the sockets of both families.
///
/// # Errors
/// The kernel's (sock_diag(7)); `NotFound` where it has no tcp_diag.
pub fn tcp_sockets(netlink: &mut Netlink) -> io::Result<Vec<TcpSocket>> {
    let mut out = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let message = message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family as u8, &[0; KEY]);
        netlink.dump(&message, |received| out.extend(parse(received.payload)))?;
    }
    Ok(out)
}

/// Ends a connection: its process gets ECONNABORTED, the other end a reset (`tcp_abort`).
///
/// # Errors
/// `NotFound`: it is gone already. `Unsupported`: the kernel is built without
/// CONFIG_INET_DIAG_DESTROY. `PermissionDenied`: CAP_NET_ADMIN is missing.
pub fn end(netlink: &mut Netlink, socket: &TcpSocket) -> io::Result<()> {
    netlink.command(&message(SOCK_DESTROY, NLM_F_ACK, socket.family, &socket.key))
}

/// The ports from which the kernel chooses for connections that the network namespace of the
/// calling thread begins, of both families (ip_local_port_range, ip-sysctl.rst).
///
/// # Errors
/// What kept the file from being read; `InvalidData` where it holds something else than two ports.
pub fn source_ports() -> io::Result<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let ports = text.split_whitespace().map(str::parse).collect::<Result<Vec<u16>, _>>();
    match ports.map_err(io::Error::other)?[..] {
        [first, last] => Ok(first..=last),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A request with `struct inet_diag_req_v2`.
fn message(kind: u16, flags: u16, family: u8, key: &[u8; KEY]) -> Vec<u8> {
    let head = [family, libc::IPPROTO_TCP as u8, 0, 0];
    let every_state = u32::MAX.to_ne_bytes();
    request(kind, flags, &[&head, &every_state, key])
}

/// A socket as the kernel tells of it: `struct inet_diag_msg`, then attributes.
fn parse(bytes: &[u8]) -> Option<TcpSocket> {
    let &[family, state, ..] = bytes else { return None };
    let key: [u8; KEY] = bytes.get(KEY_AT..KEY_AT + KEY)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = key.get(at..at + 16)?.try_into().ok()?;
        Some(match i32::from(family) {
            libc::AF_INET => Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into(),
            _ => IpAddr::from(Ipv6Addr::from(octets)).to_canonical(),
        })
    };
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut out = TcpSocket {
        state: TcpState::of(state),
        local: SocketAddr::new(address(4)?, port(0)),
        remote: SocketAddr::new(address(20)?, port(2)),
        uid: word(64)?,
        inode: word(68)?,
        mark: 0,
        transparent: None,
        family,
        key,
    };
    for (kind, value) in attributes(bytes.get(72..)?) {
        match kind {
            INET_DIAG_MARK => out.mark = value.try_into().map_or(0, u32::from_ne_bytes),
            INET_DIAG_SOCKOPT => out.transparent = value.first().map(|flags| flags & TRANSPARENT != 0),
            _ => {}
        }
    }
    Some(out)
}

/// Sockets for tests, and one of how they are read.
#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::sys::netlink::attribute;

    fn answer(state: u8, ends: [SocketAddr; 2], uid: u32, inode: u32, transparent: Option<bool>) -> Vec<u8> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(a) => [&a.octets()[..], &[0; 12]].concat(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let family = if ends[0].is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut bytes = vec![family as u8, state, 0, 0];
        ends.iter().for_each(|end| bytes.extend(end.port().to_be_bytes()));
        ends.iter().for_each(|end| bytes.extend(octets(end.ip())));
        bytes.extend([0; 24]);
        bytes.extend([uid.to_ne_bytes(), inode.to_ne_bytes()].concat());
        let flags = |transparent: bool| attribute(INET_DIAG_SOCKOPT, &[if transparent { TRANSPARENT } else { 0 }, 0]);
        bytes.extend(transparent.map(flags).unwrap_or_default());
        bytes
    }

    /// A socket with these ends, of this user; its inode is its local port.
    pub fn socket(state: TcpState, local: &str, remote: &str, uid: u32, transparent: Option<bool>) -> TcpSocket {
        let ends: [SocketAddr; 2] = [local, remote].map(|end| end.parse().unwrap());
        let number = match state {
            TcpState::Established => 1,
            TcpState::Opening => 2,
            TcpState::Over => 9,
            TcpState::Remembered => 6,
            TcpState::HalfClosed => 8,
            TcpState::Listening => 10,
        };
        parse(&answer(number, ends, uid, ends[0].port().into(), transparent)).unwrap()
    }

    #[test]
    fn an_answer_is_read_and_one_cut_short_is_none() {
        let mapped = socket(TcpState::Established, "[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:4000", 7, Some(true));
        assert_eq!((mapped.local, mapped.remote), ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap()));
        assert_eq!((mapped.family, mapped.uid, mapped.inode), (libc::AF_INET6 as u8, 7, 80));
        assert_eq!((mapped.transparent, mapped.state), (Some(true), TcpState::Established));
        let plain = socket(TcpState::HalfClosed, "10.0.0.1:80", "10.0.0.2:4000", 0, None);
        assert_eq!((plain.local, plain.transparent), ("10.0.0.1:80".parse().unwrap(), None));
        let ends = ["[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap()];
        let bytes = answer(1, ends, 1, 2, Some(false));
        for end in 0..bytes.len() {
            let read = parse(&bytes[..end]);
            assert_eq!(read.is_some(), end >= 72, "{end}");
        }
    }
}
