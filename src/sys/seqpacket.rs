//! Sockets of whole packets between processes of one machine (`SOCK_SEQPACKET`, unix(7)):
//! a packet arrives as it was sent or not at all, and may carry a descriptor.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    self as sys, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use tokio::io::unix::AsyncFd;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 16;

/// A packet that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// A packet of so many bytes. Of one that is longer than the buffer the rest is lost.
    Packet(usize),
    /// The other side has closed the connection.
    End,
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is registered, so that it stays open, and the
    // same one, until it has been taken out of the reactor.
    unsafe { AsyncFd::register(socket) }.map_err(|e| e.into_parts().1)
}

/// A socket that takes connections.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens at a path, which must be free. Whoever is not of the process's own user cannot
    /// connect as long as the umask is set so; the caller sees to the mode.
    ///
    /// # Errors
    /// The kernel's (bind(2), listen(2)).
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = sys::socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        sys::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        sys::listen(&socket, Backlog::new(BACKLOG)?)?;
        watched(socket).map(Self)
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The kernel's (accept(2)); the listener may be asked again.
    pub async fn accept(&self) -> io::Result<Connection> {
        let accepted = self.0.async_io(tokio::io::Interest::READABLE, |socket| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let raw = sys::accept4(socket.as_raw_fd(), flags)?;
            // SAFETY: a descriptor that was just made and that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        });
        watched(accepted.await?).map(Connection)
    }
}

/// One end of a connection, which sends and receives packets.
#[derive(Debug)]
pub struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// Makes a connection, and gives both of its ends.
    ///
    /// # Errors
    /// The kernel's (socketpair(2)).
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = sys::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(watched(one)?), Self(watched(other)?)))
    }

    /// The user and the process at the other side when it connected (`SO_PEERCRED`).
    ///
    /// # Errors
    /// The kernel's (getsockopt(2)).
    pub fn peer(&self) -> io::Result<(u32, i32)> {
        let peer = sys::getsockopt(self.0.get_ref(), sockopt::PeerCredentials)?;
        Ok((peer.uid(), peer.pid()))
    }

    /// Sends a packet, and a descriptor with it; waits until there is room.
    ///
    /// # Errors
    /// The kernel's (sendmsg(2)): the other side has gone, for one.
    pub async fn send(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let raw = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        let rights: Vec<ControlMessage> = raw.iter().map(|raw| ControlMessage::ScmRights(raw)).collect();
        let send = |socket: &OwnedFd| {
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sys::sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], &rights, flags, None)?)
        };
        self.0.async_io(tokio::io::Interest::WRITABLE, send).await.map(drop)
    }

    /// Waits for a packet. Descriptors that come with it are closed. Nothing is lost if the
    /// waiting is given up.
    ///
    /// # Errors
    /// The kernel's (recv(2)).
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Reception> {
        let receive = |socket: &OwnedFd| {
            // With MSG_TRUNC the length is that of the packet, not of what had room.
            match sys::recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => Ok(Reception::End),
                Ok(length) => Ok(Reception::Packet(length)),
                Err(errno) => Err(errno.into()),
            }
        };
        self.0.async_io(tokio::io::Interest::READABLE, receive).await
    }

    /// Connects to a listener.
    ///
    /// # Errors
    ///
    /// socket(2)'s and connect(2)'s.
    #[cfg(test)]
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = sys::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        sys::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        watched(socket).map(Self)
    }

    /// Waits for a packet and the descriptors that come with it.
    ///
    /// # Errors
    ///
    /// recvmsg(2)'s.
    #[cfg(test)]
    pub async fn receive_with_descriptors(&self, buffer: &mut [u8]) -> io::Result<(Reception, Vec<OwnedFd>)> {
        let receive = |socket: &OwnedFd| {
            let mut iov = [io::IoSliceMut::new(buffer)];
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let message = sys::recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let sys::ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made these for whoever receives them.
                    descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                }
            }
            match message.bytes {
                0 => Ok((Reception::End, descriptors)),
                length => Ok((Reception::Packet(length), descriptors)),
            }
        };
        self.0.async_io(tokio::io::Interest::READABLE, receive).await
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn packets_keep_their_bounds_and_an_end_is_an_end() {
        let (one, other) = Connection::pair().unwrap();
        one.send(b"first", None).await.unwrap();
        one.send(b"second", None).await.unwrap();
        let mut buffer = [0; 5];
        assert_eq!(other.receive(&mut buffer).await.unwrap(), Reception::Packet(5));
        assert_eq!(&buffer, b"first");
        // Longer than the buffer: its length is told.
        assert_eq!(other.receive(&mut buffer).await.unwrap(), Reception::Packet(6));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(5), other.receive(&mut buffer)).await;
        assert!(waits.is_err());
        drop(one);
        assert_eq!(other.receive(&mut buffer).await.unwrap(), Reception::End);
        assert!(other.send(b"x", None).await.is_err());
        assert_eq!(other.peer().unwrap().0, nix::unistd::getuid().as_raw());
    }
}
