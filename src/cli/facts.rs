//! Facts about the pod, from the namespace and file system the process is in.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;

use crate::backend::routing;
use crate::config::facts::Facts;
use crate::sys::netlink::Netlink;

/// The running system.
#[derive(Default)]
pub struct System {
    read: OnceCell<(Netlink, Vec<(u32, IpAddr)>)>,
}

impl System {
    fn read(&self) -> io::Result<&(Netlink, Vec<(u32, IpAddr)>)> {
        if let Some(known) = self.read.get() {
            return Ok(known);
        }
        let mut netlink = Netlink::open(Netlink::ROUTE)?;
        let addresses = routing::addresses(&mut netlink)?;
        Ok(self.read.get_or_init(|| (netlink, addresses)))
    }

    /// The addresses of all interfaces, with the interface's index, and the open socket
    /// that told them.
    ///
    /// # Errors
    ///
    /// The kernel's, when they cannot be listed.
    pub fn into_addresses(self) -> io::Result<(Netlink, Vec<(u32, IpAddr)>)> {
        self.read()?;
        match self.read.into_inner() {
            Some(read) => Ok(read),
            None => Err(io::Error::other("they were not read")),
        }
    }
}

impl Facts for System {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.read()?.1.iter().map(|(_, address)| *address).collect())
    }

    fn resolv_conf(&self) -> io::Result<String> {
        std::fs::read_to_string("/etc/resolv.conf")
    }

    fn passwd(&self) -> io::Result<String> {
        std::fs::read_to_string("/etc/passwd")
    }

    fn group(&self) -> io::Result<String> {
        std::fs::read_to_string("/etc/group")
    }
}
