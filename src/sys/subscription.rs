//! Hearing of changes: a netlink socket that is told by the kernel (netlink(7), multicast
//! groups). It belongs to the network namespace that the thread which opens it is in, and
//! keeps that namespace alive until it is closed.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NETLINK_NETFILTER` and its group of nf_tables (`NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h).
pub const NFTABLES: (isize, &[u32]) = (12, &[7]);

/// `NETLINK_ROUTE` and its groups of links, addresses, routes and policy rules of both
/// families (`RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`,
/// `_IPV6_ROUTE`, `_IPV6_RULE`, linux/rtnetlink.h).
pub const ROUTING: (isize, &[u32]) = (0, &[1, 5, 7, 8, 9, 11, 19]);

/// A socket that becomes readable when something has changed.
#[derive(Debug)]
pub struct Subscription {
    socket: Socket,
}

impl Subscription {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's: it has no such family, or the process may not.
    pub fn open((family, groups): (isize, &[u32])) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket })
    }

    /// Has tokio's reactor of the current runtime watch it.
    ///
    /// # Errors
    /// The kernel's (epoll_ctl(2)).
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket's descriptor stays open, and stays the same one, until the
        // subscription is dropped, which takes it out of the reactor first.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }.map_err(|e| e.into_parts().1)
    }

    /// Reads all reports that have come, and says whether there was any. Reports that were lost for want
    /// of room (`ENOBUFS`) count as one.
    ///
    /// # Errors
    /// The kernel's; the subscription is then of no use any more.
    pub fn drain(&self) -> io::Result<bool> {
        let mut told = false;
        // What is told does not matter: everything is looked at again.
        let mut buffer = [0u8; 64];
        loop {
            match self.socket.recv(&mut &mut buffer[..], libc::MSG_TRUNC | libc::MSG_DONTWAIT) {
                Ok(_) => told = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(told),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => told = true,
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
