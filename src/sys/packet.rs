//! Packet sockets (packet(7)): whole Ethernet frames to and from one interface.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// A socket for the frames of one interface.
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens a packet socket on an interface; takes CAP_NET_RAW.
    ///
    /// # Errors
    ///
    /// socket(2)'s and bind(2)'s: `EPERM` without CAP_NET_RAW.
    pub fn open(interface: u32) -> io::Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers are involved; the result is checked before it is used.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: sockaddr_ll is plain numbers, for which zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = interface as i32;
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer is to a local of the size given.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd })
    }

    /// Sends a frame, from its Ethernet header on.
    ///
    /// # Errors
    ///
    /// send(2)'s.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::unistd::write(&self.fd, frame)?;
        Ok(())
    }

    /// The next frame that the interface received; `None` after the timeout.
    ///
    /// # Errors
    ///
    /// poll(2)'s and recv(2)'s.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout)? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 2048];
        let length = nix::unistd::read(&self.fd, &mut frame)?;
        frame.truncate(length);
        Ok(Some(frame))
    }
}
