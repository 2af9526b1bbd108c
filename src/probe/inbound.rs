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
use super::tcp::{self, ACK, FIN, PSH, RST, SYN, Segment};
use super::trial::{Path, PathKind, TOKEN, Trial};
use super::witness;
use crate::config::types::Family;

/// The pod's end of the pair: the interface by which the probe comes in.
pub(super) const NEAR: &str = "podweir-in";
/// The client's end of the veth pair.
const FAR: &str = "podweir-out";
const NEAR_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 1];
const FAR_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 2];
/// The client's Ethernet address. It is not its interface's, or the kernel would answer packets for it
/// too.
const CLIENT_MAC: Mac = [0x02, 0, 0, 0x70, 0x77, 3];

/// The veth pair, which is removed when this is dropped.
struct Pair {
    netlink: Netlink,
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Removing one end removes both. A pair that stays is found by the next run.
        let _ = link::remove(&mut self.netlink, NEAR);
    }
}

/// The client's address, the pod's on the same net, and the prefix length (RFC 5737, RFC 3849).
fn addresses(v4: bool) -> (IpAddr, IpAddr, u8) {
    match v4 {
        true => ([192, 0, 2, 250].into(), [192, 0, 2, 249].into(), 30),
        false => ([0x2001, 0xdb8, 0, 0, 0, 0, 0x7077, 2].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0x7077, 1].into(), 126),
    }
}

/// Connects to an address of the pod from outside, and waits for the token; or where
/// somebody else listens on the proxy's port, looks whether he has the connection.
pub(super) fn attempt(to: SocketAddr, occupied: Option<u16>, deadline: Instant) -> Trial {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let path = Path { route: PathKind::Inbound, family };
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
    let mut talk = Talk { socket: &socket, from, to, deadline, expected: 0 };
    let done = match (talk.open(), occupied) {
        (Err(e), _) => Err(e),
        (Ok(()), Some(port)) => {
            let trial = witness::inbound(from, to, port);
            return talk
                .close(TOKEN_AT)
                .map_or_else(|e| Trial::Untested(format!("a packet cannot be sent: {e}")), |()| trial);
        }
        (Ok(()), None) => talk.token(),
    };
    match done {
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
    let (pods_end, peers_end) = (link::index(NEAR)?, link::index(FAR)?);
    link::add_address(&mut pair.netlink, pods_end, gateway, bits)?;
    link::set_up(&mut pair.netlink, pods_end)?;
    link::set_up(&mut pair.netlink, peers_end)?;
    link::add_neighbour(&mut pair.netlink, pods_end, client, CLIENT_MAC)?;
    let socket = PacketSocket::open(peers_end)?;
    Ok((pair, socket))
}

/// The client's first sequence number, and that of the token.
const START: u32 = 1000;
const TOKEN_AT: u32 = START + 1;

/// A connection, as the client sees it.
struct Talk<'a> {
    socket: &'a PacketSocket,
    from: SocketAddr,
    to: SocketAddr,
    deadline: Instant,
    /// The next sequence number that the pod sends.
    expected: u32,
}

impl Talk<'_> {
    fn send(&self, sequence: u32, flags: u8, data: &[u8]) -> io::Result<()> {
        let acknowledged = if flags & ACK != 0 { self.expected } else { 0 };
        let segment = Segment { from: self.from, to: self.to, sequence, acknowledged, flags, data: data.to_vec() };
        self.socket.send(&tcp::frame((CLIENT_MAC, NEAR_MAC), &segment))
    }

    /// Waits for the pod's next segment; `resend` repeats what may have been lost.
    fn receive(&self, resend: impl Fn() -> io::Result<()>) -> io::Result<Segment> {
        loop {
            let Some(left) = self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            };
            match self.socket.receive(left.min(Duration::from_millis(300)))? {
                None => resend()?,
                Some(frame) => {
                    if let Some(segment) = tcp::parse(&frame).filter(|s| s.from == self.to && s.to == self.from) {
                        return Ok(segment);
                    }
                }
            }
        }
    }

    fn open(&mut self) -> io::Result<()> {
        self.send(START, SYN, b"")?;
        let opened = self.receive(|| self.send(START, SYN, b""))?;
        if opened.flags & RST != 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.expected = opened.sequence.wrapping_add(1);
        self.send(TOKEN_AT, ACK, b"")
    }

    /// Sends the token and gives the answer.
    fn token(&mut self) -> io::Result<Vec<u8>> {
        self.send(TOKEN_AT, ACK | PSH, TOKEN)?;
        let mut answer = Vec::new();
        let wanted = TOKEN.len() + self.to.to_string().len();
        let after = TOKEN_AT + TOKEN.len() as u32;
        while answer.len() < wanted {
            let segment = self.receive(|| self.send(TOKEN_AT, ACK | PSH, TOKEN))?;
            if segment.flags & RST != 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if segment.sequence == self.expected && !segment.data.is_empty() {
                self.expected = self.expected.wrapping_add(segment.data.len() as u32);
                answer.extend(segment.data);
                self.send(after, ACK, b"")?;
            } else if segment.flags & FIN != 0 {
                break; // the end came early
            }
        }
        self.close(after)?;
        Ok(answer)
    }

    fn close(&self, sequence: u32) -> io::Result<()> {
        self.send(sequence, RST | ACK, b"")
    }
}
