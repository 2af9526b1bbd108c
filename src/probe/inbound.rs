//! A probe that comes from outside. Nothing a process of the pod sends to its own pod
//! passes the rules for inbound traffic: the kernel loops it back as a connection it
//! knows. So a pair of interfaces is made for the time of the probe, and a client that
//! is no part of the kernel's TCP talks through it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::sys::link::{self, Mac};
use crate::sys::netlink::Netlink;
use crate::sys::packet::PacketSocket;

use super::outbound::check;
use super::tcp::{self, ACK, PSH, RST, SYN, Segment};
use super::{Path, Route, TOKEN, Trial};
use crate::config::types::Family;

/// The pod's end of the pair: the interface by which the probe comes in.
pub const NEAR: &str = "podweir-in";
/// The client's end.
const FAR: &str = "podweir-out";
const NEAR_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 1];
const FAR_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 2];
/// The client's own. Not its interface's, or the kernel would take what comes there for
/// its own and answer it too.
const CLIENT_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 3];

/// The pair; gone when dropped.
struct Pair {
    netlink: Netlink,
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Removing one end removes both. A pair that stays is found by the next run.
        let _ = link::remove(&mut self.netlink, NEAR);
    }
}

/// The client's address, and the pod's on the same net (RFC 5737, RFC 3849).
fn addresses(v4: bool) -> (IpAddr, IpAddr, u8) {
    match v4 {
        true => ([192, 0, 2, 250].into(), [192, 0, 2, 249].into(), 30),
        false => ([0x2001, 0xdb8, 0, 0, 0, 0, 0x7077, 2].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0x7077, 1].into(), 126),
    }
}

/// Connects to an address of the pod from outside, and waits for the token.
pub fn attempt(to: SocketAddr, deadline: Instant) -> Trial {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let path = Path { route: Route::Inbound, family };
    let (client, gateway, bits) = addresses(to.is_ipv4());
    let (_pair, socket) = match pair(client, gateway, bits) {
        Ok(made) => made,
        Err(e) => {
            return Trial::Untested(format!(
                "a pair of interfaces to come in by cannot be made (it takes CAP_NET_ADMIN and CAP_NET_RAW): {e}"
            ));
        }
    };
    if Instant::now() >= deadline {
        return Trial::Late;
    }
    let from = SocketAddr::new(client, 40_000 + (std::process::id() % 20_000) as u16);
    match exchange(&socket, from, to, deadline) {
        Ok(answer) => match check(&answer, path, to) {
            None => Trial::Passed,
            Some(problem) => Trial::Failed(format!("a token sent to {to} from outside {problem}")),
        },
        Err(e) => Trial::Failed(format!("a token sent to {to} from outside did not come back: {e}")),
    }
}

fn pair(client: IpAddr, gateway: IpAddr, bits: u8) -> io::Result<(Pair, PacketSocket)> {
    let mut netlink = Netlink::open(Netlink::ROUTE)?;
    // Left over from a run that was killed.
    let _ = link::remove(&mut netlink, NEAR);
    link::add_veth(&mut netlink, (NEAR, NEAR_MAC), (FAR, FAR_MAC))?;
    let mut pair = Pair { netlink };
    let (near, far) = (link::index(NEAR)?, link::index(FAR)?);
    link::add_address(&mut pair.netlink, near, gateway, bits)?;
    link::set_up(&mut pair.netlink, near)?;
    link::set_up(&mut pair.netlink, far)?;
    link::add_neighbour(&mut pair.netlink, near, client, CLIENT_MAC)?;
    let socket = PacketSocket::open(far)?;
    Ok((pair, socket))
}

fn exchange(socket: &PacketSocket, from: SocketAddr, to: SocketAddr, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut next = 1000u32;
    let send = |sequence: u32, acknowledged: u32, flags: u8, data: &[u8]| {
        let segment = Segment { from, to, sequence, acknowledged, flags, data: data.to_vec() };
        socket.send(&tcp::frame((CLIENT_MAC, NEAR_MAC), &segment))
    };
    let receive = |resend: &dyn Fn() -> io::Result<()>| loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        };
        match socket.receive(left.min(Duration::from_millis(300)))? {
            None => resend()?,
            Some(frame) => {
                if let Some(segment) = tcp::parse(&frame).filter(|s| s.from == to && s.to == from) {
                    return Ok(segment);
                }
            }
        }
    };
    send(next, 0, SYN, b"")?;
    let opened = receive(&|| send(1000, 0, SYN, b""))?;
    if opened.flags & RST != 0 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    next += 1;
    let mut expected = opened.sequence.wrapping_add(1);
    send(next, expected, ACK | PSH, TOKEN)?;
    let mut answer = Vec::new();
    let wanted = TOKEN.len() + to.to_string().len();
    let after = next + TOKEN.len() as u32;
    while answer.len() < wanted {
        let acknowledged = expected;
        let segment = receive(&|| send(next, acknowledged, ACK | PSH, TOKEN))?;
        if segment.flags & RST != 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if segment.sequence == expected && !segment.data.is_empty() {
            expected = expected.wrapping_add(segment.data.len() as u32);
            answer.extend(segment.data);
            send(after, expected, ACK, b"")?;
        } else if segment.flags & 1 != 0 {
            break; // the end came early
        }
    }
    send(after, expected, RST | ACK, b"")?;
    Ok(answer)
}
