//! Probes that a process of the pod sends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};

use super::trial::{Path, PathKind, TOKEN, Target, Trial};

/// The user and group that this process sends as.
pub(super) fn me() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Makes sockets of the calling thread belong to a user and group (setfsuid(2)); other threads stay as
/// they are. The call does not tell whether it succeeded, so it is repeated to see.
fn become_owner(uid: u32, gid: u32) -> bool {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    setfsgid(gid) == gid && setfsuid(uid) == uid
}

/// Whether this process may act as a user and group.
pub(super) fn can_be(uid: u32, gid: u32) -> bool {
    as_owner(uid, gid, || ()).is_some()
}

/// Does something as a user and group; `None` if this process may not.
pub(super) fn as_owner<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> Option<T> {
    let result = become_owner(uid, gid).then(work);
    let (uid, gid) = me();
    become_owner(uid, gid);
    result
}

/// Sends the token to a target and checks the answer.
pub(super) fn attempt(path: Path, target: &Target, deadline: Instant) -> Trial {
    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
        return Trial::Late;
    };
    let sent = as_owner(target.uid, target.gid, || match path.route {
        PathKind::DnsUdp => datagram(target.to, left),
        _ => connection(target.to, left),
    });
    let who = format!("sent by user {}, group {}, to {}", target.uid, target.gid, target.to);
    match sent {
        None => Trial::Untested(format!("this process cannot act as user {}, group {}", target.uid, target.gid)),
        Some(Ok(answer)) => match check(&answer, path, target.to) {
            None => Trial::Passed,
            Some(problem) => Trial::Failed(format!("a token {who}, {problem}")),
        },
        Some(Err(e)) if matches!(e.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            Trial::Untested(format!("there is no route to {}", target.to.ip()))
        }
        Some(Err(e)) => Trial::Failed(format!("a token {who}, did not come back: {e}")),
    }
}

fn connection(to: SocketAddr, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, timeout.max(Duration::from_millis(1)))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(TOKEN)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn datagram(to: SocketAddr, timeout: Duration) -> io::Result<Vec<u8>> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Connected, so that an answer from elsewhere than was asked does not count.
    socket.connect(to)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(TOKEN)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(answer[..length].to_vec())
}

/// What is wrong with an answer; `None` if it is right.
pub(super) fn check(answer: &[u8], path: Path, to: SocketAddr) -> Option<String> {
    let Some(meant_for) = answer.strip_prefix(TOKEN) else {
        return Some("was answered by somebody else than the proxy's stand-in".into());
    };
    let meant_for = String::from_utf8_lossy(meant_for);
    // A datagram has no such memory; that the answer came from the server asked is proof.
    (path.route != PathKind::DnsUdp && meant_for != to.to_string())
        .then(|| format!("came back, but as if it had been addressed to {meant_for}"))
}
