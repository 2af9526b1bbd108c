//! TCP connections that are there already: whether there can be any, which sockets and
//! tracked connections there are, and ending them. Which of them rules would take is the
//! business of `audit::established`.

use std::io;

use crate::sys::conntrack::{self, Ends, Tracked};
use crate::sys::inet_diag::{self, TcpSocket};
use crate::sys::netlink::Netlink;
use crate::sys::proc_net;

/// A TCP connection, by its sockets and its entry in connection tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConnection {
    /// The sockets of its ends in this namespace, one or both; none if it is only forwarded.
    pub sockets: Vec<TcpSocket>,
    /// The entry in connection tracking; `None` if it has not seen the connection.
    pub tracked: Option<Tracked>,
}

/// Whether the namespace that the calling thread is in has TCP sockets at all: one that
/// was just made has none, and then there is nothing to list. Two small files tell what
/// listing would take a walk through the tables of the whole node for.
pub fn possible() -> bool {
    let has = |file: &str, protocol: &str| match proc_net::read(file) {
        Ok(text) => sockets_in_use(&text, protocol).is_none_or(|count| count > 0),
        // Without IPv6 there is no such file.
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    };
    has("sockstat", "TCP:") || has("sockstat6", "TCP6:")
}

/// The number of sockets in use, from a line such as `TCP: inuse 5 orphan 0 tw 2 alloc 7 mem 1`.
fn sockets_in_use(text: &str, protocol: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|line| line.strip_prefix(protocol))?.split_whitespace();
    words.find(|word| *word == "inuse")?;
    words.next()?.parse().ok()
}

/// The sockets and tracked connections of the namespace that the calling thread was in at
/// [`Kernel::open`].
pub struct Kernel {
    diag: Netlink,
    /// The socket for connection tracking; `None` if no connection is tracked.
    conntrack: Option<Netlink>,
}

impl Kernel {
    /// Opens the netlink sockets in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's, when the sockets cannot be opened.
    pub fn open() -> io::Result<Self> {
        let tracks = !matches!(conntrack::count(), Ok(0));
        let conntrack = tracks.then(|| Netlink::open(Netlink::NETFILTER)).transpose()?;
        Ok(Self { diag: Netlink::open(Netlink::SOCK_DIAG)?, conntrack })
    }

    /// Every TCP socket of the namespace.
    ///
    /// # Errors
    /// The errors of [`inet_diag::tcp_sockets`].
    pub fn sockets(&mut self) -> io::Result<Vec<TcpSocket>> {
        inet_diag::tcp_sockets(&mut self.diag)
    }

    /// What connection tracking knows of the connection with packets between these ends.
    ///
    /// # Errors
    /// The errors of [`conntrack::find`].
    pub fn tracked(&mut self, ends: Ends) -> io::Result<Option<Tracked>> {
        match &mut self.conntrack {
            Some(netlink) => conntrack::find(netlink, ends),
            None => Ok(None),
        }
    }

    /// Every TCP connection that is tracked. Takes a walk through the table of the whole node.
    ///
    /// # Errors
    /// The errors of [`conntrack::list`].
    pub fn all_tracked(&mut self) -> io::Result<Vec<Tracked>> {
        self.conntrack.as_mut().map_or(Ok(Vec::new()), conntrack::list)
    }
}

/// The operations by which connections are ended.
pub trait Ending {
    /// Ends the socket of one end of a connection.
    ///
    /// # Errors
    ///
    /// The kernel's, of `SOCK_DESTROY` (sock_diag(7)): `EOPNOTSUPP` where it was built without,
    /// `ENOENT` where the socket has gone.
    fn end(&mut self, socket: &TcpSocket) -> io::Result<()>;
    /// Makes connection tracking forget a connection.
    ///
    /// # Errors
    ///
    /// The kernel's, of `IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink_conntrack.h): `ENOENT`
    /// where the entry has gone.
    fn forget(&mut self, tracked: &Tracked) -> io::Result<()>;
}

impl Ending for Kernel {
    fn end(&mut self, socket: &TcpSocket) -> io::Result<()> {
        inet_diag::end(&mut self.diag, socket)
    }

    fn forget(&mut self, tracked: &Tracked) -> io::Result<()> {
        match &mut self.conntrack {
            Some(netlink) => conntrack::forget(netlink, tracked),
            None => Ok(()),
        }
    }
}

/// How many connections were ended, by result.
#[derive(Debug, Default)]
pub struct Ended {
    /// Connections that are over: both ends know it, or they were over before; or no end is in this
    /// namespace, and the next packet breaks them.
    pub ended: usize,
    /// Connections that break: the socket could not be ended, but connection tracking does not know the
    /// connection, so that its next packet meets the rules as the first one of a new connection.
    pub breaks: usize,
    /// Connections that could neither be ended nor forgotten, and go on as before.
    pub left: usize,
    /// Why a socket could not be ended.
    pub problem: Option<io::Error>,
}

/// Ends connections. The socket first: its reset leaves by the connection as it is known,
/// and reaches the other end.
pub fn end<'a>(kernel: &mut dyn Ending, connections: impl Iterator<Item = &'a TcpConnection>) -> Ended {
    let mut out = Ended::default();
    for connection in connections {
        let mut problem = None;
        for socket in &connection.sockets {
            match kernel.end(socket) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => problem = Some(e),
                _ => {}
            }
        }
        let forgotten = connection.tracked.as_ref().is_none_or(|tracked| match kernel.forget(tracked) {
            Ok(()) => true,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        });
        match problem {
            None => out.ended += 1,
            Some(_) if forgotten => out.breaks += 1,
            Some(_) => out.left += 1,
        }
        out.problem = out.problem.or(problem);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::inet_diag::TcpState;
    use crate::sys::inet_diag::tests::socket;
    use nix::errno::Errno;

    #[test]
    fn sockets_are_counted_by_protocol() {
        let text = "sockets: used 16\nTCP: inuse 12 orphan 0 tw 0 alloc 1 mem 277\nUDP: inuse 3 mem 0\n";
        assert_eq!(sockets_in_use(text, "TCP:"), Some(12));
        assert_eq!(sockets_in_use("TCP6: inuse 0\nUDP6: inuse 1\n", "TCP6:"), Some(0));
        assert_eq!(sockets_in_use("nonsense", "TCP:"), None);
    }

    /// A kernel that answers every request the same.
    struct Answers(Option<Errno>);

    impl Ending for Answers {
        fn end(&mut self, _: &TcpSocket) -> io::Result<()> {
            self.0.map_or(Ok(()), |errno| Err(errno.into()))
        }

        fn forget(&mut self, _: &Tracked) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_gone_already_is_ended_and_what_cannot_be_is_told() {
        let socket = socket(TcpState::Established, "10.0.0.1:40000", "10.0.0.2:80", 1000, None);
        let untracked = TcpConnection { sockets: vec![socket], tracked: None };
        let told = |errno| {
            let Ended { ended, breaks, left, problem } = end(&mut Answers(errno), [&untracked, &untracked].into_iter());
            (ended, breaks, left, problem.and_then(|e| e.raw_os_error()))
        };
        assert_eq!(told(None), (2, 0, 0, None));
        assert_eq!(told(Some(Errno::ENOENT)), (2, 0, 0, None));
        assert_eq!(told(Some(Errno::EOPNOTSUPP)), (0, 2, 0, Some(nix::libc::EOPNOTSUPP)));
    }
}
