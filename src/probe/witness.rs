//! Probes for ports on which somebody listens already, who sends no token back. The kernel has a socket
//! for each end of a connection, and sock_diag(7) shows to anybody whose the other end is: the process's
//! that rules should divert it to, or not.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::config::types::Family;
use crate::sys::inet_diag::{self, TcpSocket, TcpState};
use crate::sys::netlink::Netlink;

use super::outbound::as_owner;
use super::trial::{Target, Trial};

/// How long the socket at the other end may take to appear.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Connects, and looks whether the other end is on a port of the pod.
pub(super) fn attempt(target: &Target, port: u16, deadline: Instant) -> Trial {
    let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
        return Trial::Late;
    };
    let Target { to, uid, gid } = *target;
    let who = format!("made by user {uid}, group {gid}, to {to}");
    let stream = match as_owner(uid, gid, || TcpStream::connect_timeout(&to, left)) {
        None => return Trial::Untested(format!("this process cannot act as user {uid}, group {gid}")),
        Some(Err(e)) if matches!(e.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            return Trial::Untested(format!("there is no route to {}", to.ip()));
        }
        Some(Err(e)) => return Trial::Failed(format!("a connection {who}, did not come about: {e}")),
        Some(Ok(stream)) => stream,
    };
    let Ok(own) = stream.local_addr() else {
        return Trial::Untested("the connection was over before it could be looked at".into());
    };
    judge(&who, port, || is_there(|socket| socket.remote == own && socket.local.port() == port))
}

/// Looks whether somebody on a port of the pod has a connection from outside, or one whom
/// TPROXY has handed it to.
pub(super) fn inbound(from: SocketAddr, to: SocketAddr, port: u16) -> Trial {
    let has =
        |socket: &TcpSocket| socket.local.port() == port || (socket.local == to && socket.transparent == Some(true));
    judge(&format!("from outside to {to}"), port, || is_there(|socket| socket.remote == from && has(socket)))
}

fn judge(who: &str, port: u16, arrived: impl FnOnce() -> io::Result<bool>) -> Trial {
    match arrived() {
        Ok(true) => Trial::Passed,
        Ok(false) => {
            Trial::Failed(format!("a connection {who}, was taken by somebody else than who listens on port {port}"))
        }
        Err(e) => Trial::Untested(format!(
            "somebody listens on port {port} already, and whose the connection is cannot be seen: {e}"
        )),
    }
}

/// Whether a socket with a property exists, or appears within [`PATIENCE`].
fn is_there(mut is_it: impl FnMut(&TcpSocket) -> bool) -> io::Result<bool> {
    let mut netlink = Netlink::open(Netlink::SOCK_DIAG)?;
    let started = Instant::now();
    loop {
        if inet_diag::tcp_sockets(&mut netlink)?.iter().any(&mut is_it) {
            return Ok(true);
        }
        if started.elapsed() >= PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether a socket listens on a port for connections of a family.
pub(super) fn is_listening(port: u16, family: Family) -> bool {
    let sockets = Netlink::open(Netlink::SOCK_DIAG).and_then(|mut netlink| inet_diag::tcp_sockets(&mut netlink));
    // Who listens on every address of IPv6 mostly does on those of IPv4, too.
    let takes = |local: IpAddr| local.is_ipv4() == (family == Family::V4) || local == Ipv6Addr::UNSPECIFIED;
    sockets
        .unwrap_or_default()
        .iter()
        .any(|socket| socket.state == TcpState::Listening && socket.local.port() == port && takes(socket.local.ip()))
}

/// Whom those run as that listen on a port, each once.
pub(super) fn listeners(port: u16) -> Vec<u32> {
    let sockets = Netlink::open(Netlink::SOCK_DIAG).and_then(|mut netlink| inet_diag::tcp_sockets(&mut netlink));
    let on_port = |socket: &TcpSocket| socket.state == TcpState::Listening && socket.local.port() == port;
    let mut users: Vec<u32> = sockets.unwrap_or_default().iter().filter(|s| on_port(s)).map(|s| s.uid).collect();
    users.sort_unstable();
    users.dedup();
    users
}
