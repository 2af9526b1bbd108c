//! A netlink socket, blocking, for requests that are answered at once (netlink(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use super::process;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Masks the flags out of an attribute's type (`NLA_TYPE_MASK`).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Flags of requests (netlink(7)).
pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
/// The size of the buffer for reading: no datagram of the kernel is larger, since it fits a listing to
/// the reader's buffer, up to this size (`netlink_recvmsg`, af_netlink.c).
const BUFFER: usize = 32 * 1024;
/// The longest request that certainly fits a socket's default send buffer.
const USUAL_SEND: usize = 128 * 1024;
/// How long the kernel may take for a long request: as long as a program that changes
/// rules may (`backend::iptables`).
const PATIENCE: Duration = Duration::from_secs(20);

/// A netlink message that was received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// After the 16 bytes of the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The errno of an NLMSG_ERROR or NLMSG_DONE, positive; 0 is an acknowledgement.
    pub fn errno(&self) -> i32 {
        let bytes = self.payload.get(..4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, |b: [u8; 4]| i32::from_ne_bytes(b).saturating_neg())
    }

    /// The kernel's own words about an error (`NLMSGERR_ATTR_MSG`), if it has any.
    fn message(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let echoed = if self.flags & NLM_F_CAPPED != 0 {
            16
        } else {
            u32::from_ne_bytes(self.payload.get(4..8)?.try_into().ok()?) as usize
        };
        let rest = self.payload.get(4 + echoed.next_multiple_of(4)..)?;
        let (_, text) = attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        Some(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

/// The messages in a datagram; stops at the first one that does not fit.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        let half = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        let length = word(0)? as usize;
        let (kind, flags, sequence) = (half(4)?, half(6)?, word(8)?);
        let payload = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, flags, sequence, payload })
    })
}

/// One attribute, padded (`struct nlattr`).
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + value.len());
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The attributes in some bytes, by their kind without flags; stops at the first one that
/// does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = bytes.get(..4)? else { return None };
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// A request of one message: a header, numbered 0, and what follows it.
pub fn request(kind: u16, flags: u16, body: &[&[u8]]) -> Vec<u8> {
    let length = 16 + body.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]);
    body.iter().for_each(|part| message.extend(*part));
    message
}

/// The kernel's answer to one message of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The message's sequence number.
    pub sequence: u32,
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's own words, if it has any.
    pub message: Option<String>,
}

/// A connection to one netlink family of the kernel.
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    /// How long the kernel may take for a long request, such as one with many thousand
    /// elements of a set. A short one is done before anybody could tell.
    pub patience: Duration,
}

impl Netlink {
    /// `NETLINK_ROUTE`.
    pub const ROUTE: isize = 0;
    /// `NETLINK_SOCK_DIAG`.
    pub const SOCK_DIAG: isize = 4;
    /// `NETLINK_NETFILTER`.
    pub const NETFILTER: isize = 12;

    /// Opens a socket of a netlink family (netlink(7)), with a buffer for the longest answer.
    ///
    /// # Errors
    ///
    /// The kernel's: `EPROTONOSUPPORT` where it does not have the family.
    pub fn open(family: isize) -> io::Result<Self> {
        let socket = Socket::new(family)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Only words are lost without it.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), patience: PATIENCE })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > USUAL_SEND {
            // Needs CAP_NET_ADMIN, like everything sent here.
            setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &(bytes.len() * 2))?;
            return self.send_in_time(bytes);
        }
        let sent = self.socket.send(bytes, 0)?;
        if sent != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "netlink took only part of a request"));
        }
        Ok(())
    }

    /// Sends by way of a child process: the kernel works on a request before it returns from
    /// sending, and nothing but the sender's end makes it stop.
    fn send_in_time(&self, bytes: &[u8]) -> io::Result<()> {
        let send = || match nix::sys::socket::send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(Errno::EMSGSIZE),
            Err(errno) => Err(errno),
        };
        process::in_child(self.patience, send).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the kernel was not done with a request of {} KiB after {:?} and was told to stop; ask for less, in shorter lists",
                    bytes.len() >> 10,
                    self.patience
                ),
            ),
            _ => e,
        })
    }

    /// Receives one datagram into the buffer; `Ok(false)` when there is none and `flags`
    /// say not to wait.
    fn receive(&mut self, flags: i32) -> io::Result<bool> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, flags | libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.capacity() => {
                    return Err(io::Error::other("netlink sent more than fits"));
                }
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends a dump request and hands every message of the answer to `each`.
    ///
    /// # Errors
    ///
    /// The kernel's; `Interrupted` when what was being listed changed meanwhile.
    pub fn dump(&mut self, request: &[u8], mut each: impl FnMut(Received)) -> io::Result<()> {
        self.send(request)?;
        let mut changed = false;
        loop {
            self.receive(0)?;
            for message in messages(&self.buffer) {
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match (message.kind, message.errno()) {
                    (NLMSG_ERROR, 0) => {}
                    (NLMSG_DONE, 0) if changed => return Err(io::ErrorKind::Interrupted.into()),
                    (NLMSG_DONE, 0) => return Ok(()),
                    (NLMSG_ERROR | NLMSG_DONE, errno) => return Err(io::Error::from_raw_os_error(errno)),
                    _ => each(message),
                }
            }
        }
    }

    /// Sends a request that is answered by one message.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOENT` where there is no such object.
    pub fn get(&mut self, request: &[u8], mut each: impl FnMut(Received)) -> io::Result<()> {
        self.send(request)?;
        self.receive(0)?;
        for message in messages(&self.buffer) {
            match (message.kind, message.errno()) {
                (NLMSG_ERROR, 0) => {}
                (NLMSG_ERROR, errno) => return Err(io::Error::from_raw_os_error(errno)),
                _ => each(message),
            }
        }
        Ok(())
    }

    /// Sends a request of one message that asks for an acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal, or that of the socket.
    pub fn command(&mut self, request: &[u8]) -> io::Result<()> {
        match self.transact(request, 0)?.first() {
            None => Ok(()),
            Some(refusal) => Err(io::Error::from_raw_os_error(refusal.errno)),
        }
    }

    /// Sends messages of which the one numbered `last` asks for an acknowledgement, and
    /// gives what the kernel refused; nothing refused means done.
    ///
    /// # Errors
    ///
    /// Sending or receiving failed. What the kernel refused is no error here.
    pub fn transact(&mut self, request: &[u8], last: u32) -> io::Result<Vec<Refusal>> {
        match self.send(request) {
            Ok(()) => Ok(self.answers(last, 0)?.1),
            // It may have been done a moment before it was to stop.
            Err(late) if late.kind() == io::ErrorKind::TimedOut => match self.answers(last, libc::MSG_DONTWAIT)? {
                (false, refused) if refused.is_empty() => Err(late),
                (_, refused) => Ok(refused),
            },
            Err(e) => Err(e),
        }
    }

    /// Whether the kernel acknowledged the message numbered `last`, and what it refused.
    /// `flags`: of waiting for the first answer.
    fn answers(&mut self, last: u32, flags: i32) -> io::Result<(bool, Vec<Refusal>)> {
        let mut refused = Vec::new();
        // Without a refusal the acknowledgement must come. After one, whatever else the
        // kernel has to say is there already.
        while self.receive(if refused.is_empty() { flags } else { libc::MSG_DONTWAIT })? {
            let mut acknowledged = false;
            for message in messages(&self.buffer).filter(|m| m.kind == NLMSG_ERROR) {
                match message.errno() {
                    0 => acknowledged |= message.sequence == last,
                    errno => {
                        refused.push(Refusal { sequence: message.sequence, errno, message: message.message() });
                    }
                }
            }
            if acknowledged && refused.is_empty() {
                return Ok((true, refused));
            }
        }
        Ok((false, refused))
    }
}
