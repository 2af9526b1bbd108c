//! Listeners in the proxy's place. Each gives back what it gets, followed by the address
//! that the connection was meant for.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockopt, listen, setsockopt, socket,
    sockopt,
};

use crate::config::interception::Interception;
use crate::config::types::{Families, Family, Port};

use super::outbound::{as_owner, can_be};
use super::trial::TOKEN;

/// How long a connected prober may take to send its token.
const PATIENCE: Duration = Duration::from_secs(1);

/// Listeners on the proxy's ports, which end when this is dropped.
pub(super) struct Listeners {
    _stop: OwnedFd,
    /// The proxy's ports on which somebody else listens already.
    pub occupied: Vec<Occupied>,
}

/// A port of the proxy's on which a process listens already, perhaps the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occupied {
    pub at: SocketAddr,
    pub udp: bool,
}

enum ProbeSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl AsFd for ProbeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ProbeSocket::Tcp(listener) => listener.as_fd(),
            ProbeSocket::Udp(socket) => socket.as_fd(),
        }
    }
}

impl Listeners {
    /// Takes the proxy's ports in the families of the plan, as far as nobody else has them.
    /// An error says which port could not be had, and why.
    ///
    /// The answer to a redirected datagram finds its way back only if the proxy's owner
    /// sends it: see [`can_answer_dns`].
    pub(super) fn start(interception: &Interception, families: Families) -> Result<Self, String> {
        let (mut listeners, mut occupied) = (Vec::new(), Vec::new());
        let mut add = |made: Result<ProbeSocket, std::io::Error>, at: SocketAddr, udp: bool| {
            match made {
                Ok(listener) => listeners.push(listener),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => occupied.push(Occupied { at, udp }),
                Err(e) => return Err(format!("cannot listen on {at}: {e}")),
            }
            Ok(())
        };
        let mut ports = vec![interception.outbound_port, interception.inbound_port];
        ports.dedup();
        for family in families.iter() {
            let any: IpAddr = match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            for &port in &ports {
                let at = SocketAddr::new(any, port.get());
                add(tcp(at).map(ProbeSocket::Tcp), at, false)?;
            }
            if interception.dns.is_some() {
                // Loopback only, as a mesh agent does: answers leave from where they were asked.
                let lo: IpAddr = match family {
                    Family::V4 => Ipv4Addr::LOCALHOST.into(),
                    Family::V6 => Ipv6Addr::LOCALHOST.into(),
                };
                let at = SocketAddr::new(lo, Port::AGENT_DNS.get());
                add(tcp(at).map(ProbeSocket::Tcp), at, false)?;
                let proxy = dns_owner(interception);
                let bound = proxy.and_then(|(uid, gid)| as_owner(uid, gid, || UdpSocket::bind(at)));
                if let Some(bound) = bound {
                    add(bound.map(ProbeSocket::Udp), at, true)?;
                }
            }
        }
        let (stopped, stop) = nix::unistd::pipe().map_err(|e| format!("cannot make a pipe: {e}"))?;
        std::thread::Builder::new()
            .spawn(move || serve(&listeners, &stopped))
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self { _stop: stop, occupied })
    }
}

/// The proxy's first user and group, if this process can act as them.
fn dns_owner(interception: &Interception) -> Option<(u32, u32)> {
    let owner = (*interception.proxy_uids.first()?, *interception.proxy_gids.first()?);
    can_be(owner.0, owner.1).then_some(owner)
}

/// Whether DNS over UDP can be answered in the proxy's place. The rules put answers into the right
/// conntrack zone only if the proxy's user or group sends them.
pub(super) fn can_answer_dns(interception: &Interception) -> bool {
    dns_owner(interception).is_some()
}

fn tcp(at: SocketAddr) -> std::io::Result<TcpListener> {
    let make = || -> Result<TcpListener, Errno> {
        let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if at.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        // TPROXY hands packets only to such a listener; it takes CAP_NET_ADMIN, and
        // redirected connections come without it.
        let _ = setsockopt(&fd, sockopt::IpTransparent, &true);
        match at {
            SocketAddr::V4(at) => bind(fd.as_raw_fd(), &SockaddrIn::from(at))?,
            SocketAddr::V6(at) => bind(fd.as_raw_fd(), &SockaddrIn6::from(at))?,
        }
        listen(&fd, Backlog::new(16)?)?;
        Ok(TcpListener::from(fd))
    };
    Ok(make()?)
}

fn serve(listeners: &[ProbeSocket], stopped: &OwnedFd) {
    loop {
        let mut fds: Vec<PollFd> = listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(stopped.as_fd(), PollFlags::POLLIN));
        if poll(&mut fds, PollTimeout::NONE).is_err_and(|e| e != Errno::EINTR) {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if ready.last() == Some(&true) {
            return;
        }
        for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            // A probe that is not answered fails by itself.
            let _ = match listener {
                ProbeSocket::Tcp(listener) => listener.accept().and_then(|(stream, _)| answer(stream)),
                ProbeSocket::Udp(socket) => echo(socket),
            };
        }
    }
}

fn echo(socket: &UdpSocket) -> std::io::Result<()> {
    let mut token = [0; TOKEN.len()];
    let (length, from) = socket.recv_from(&mut token)?;
    socket.send_to(&token[..length], from).map(|_| ())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut token = [0; TOKEN.len()];
    stream.read_exact(&mut token)?;
    let meant_for = original_destination(&stream)?;
    stream.write_all(&[&token[..], meant_for.to_string().as_bytes()].concat())
}

/// The address to which a client connected: what connection tracking remembers (`SO_ORIGINAL_DST`), or
/// with TPROXY the socket's own address.
fn original_destination(stream: &TcpStream) -> std::io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let tracked = match local {
        SocketAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).ok().map(|a| {
            let address = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            SocketAddr::V4(SocketAddrV4::new(address, u16::from_be(a.sin_port)))
        }),
        SocketAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst).ok().map(|a| {
            let address = Ipv6Addr::from(a.sin6_addr.s6_addr);
            SocketAddr::V6(SocketAddrV6::new(address, u16::from_be(a.sin6_port), 0, 0))
        }),
    };
    Ok(tracked.unwrap_or(local))
}
