//! Facts about the pod whose network namespace the calling thread is in.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;

use crate::config::facts::Facts;
use crate::sys::netlink::Netlink;

use super::routing;

/// Where the pod's files are read, which tell what its network namespace does not.
pub enum PodFiles<'a> {
    /// The process is in the pod, and reads its own files.
    Own,
    /// The process is on the pod's node, and does not see the pod's files.
    OfNode {
        /// The name servers that network plugins called before this one gave.
        name_servers: &'a [String],
        /// The pod's resolv.conf(5), where the pod runs already.
        resolv_conf: Option<&'a str>,
    },
}

/// Facts about the pod; its addresses are read once.
pub struct NamespaceFacts<'a> {
    read: OnceCell<(Netlink, Vec<(u32, IpAddr)>)>,
    files: PodFiles<'a>,
}

impl<'a> NamespaceFacts<'a> {
    pub fn new(files: PodFiles<'a>) -> Self {
        Self { read: OnceCell::new(), files }
    }

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
    /// The kernel's, when they cannot be listed.
    pub fn into_addresses(self) -> io::Result<(Netlink, Vec<(u32, IpAddr)>)> {
        self.read()?;
        match self.read.into_inner() {
            Some(read) => Ok(read),
            None => Err(io::Error::other("they were not read")),
        }
    }

    fn file(&self, path: &str, what: &str) -> io::Result<String> {
        match self.files {
            PodFiles::Own => std::fs::read_to_string(path),
            PodFiles::OfNode { .. } => Err(unseen(what)),
        }
    }
}

fn unseen(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the pod's {what} cannot be seen from the node"))
}

impl Facts for NamespaceFacts<'_> {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.read()?.1.iter().map(|(_, address)| *address).collect())
    }

    /// The text of resolv.conf(5). A container without name servers of its own gets the node's.
    fn resolv_conf(&self) -> io::Result<String> {
        match self.files {
            PodFiles::OfNode { resolv_conf: Some(text), .. } => Ok(text.to_owned()),
            PodFiles::OfNode { name_servers: servers @ [_, ..], .. } => {
                Ok(servers.iter().map(|server| format!("nameserver {server}\n")).collect())
            }
            PodFiles::Own | PodFiles::OfNode { .. } => std::fs::read_to_string("/etc/resolv.conf"),
        }
    }

    fn passwd(&self) -> io::Result<String> {
        self.file("/etc/passwd", "users")
    }

    fn group(&self) -> io::Result<String> {
        self.file("/etc/group", "groups")
    }
}

/// No facts at all: enough to tell whether options are well formed.
pub struct NoFacts;

impl Facts for NoFacts {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(Vec::new())
    }

    fn resolv_conf(&self) -> io::Result<String> {
        Err(unseen("resolv.conf"))
    }

    fn passwd(&self) -> io::Result<String> {
        Err(unseen("users"))
    }

    fn group(&self) -> io::Result<String> {
        Err(unseen("groups"))
    }
}
