//! Facts about a pod that is not running yet, as seen from the node.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;

use crate::backend::routing;
use crate::config::facts::Facts;
use crate::sys::netlink::Netlink;

/// Nothing is known: enough to tell whether options are well formed.
pub struct NoFacts;

fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the pod's {what} cannot be seen from the node"))
}

impl Facts for NoFacts {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(Vec::new())
    }

    fn resolv_conf(&self) -> io::Result<String> {
        Err(unknown("resolv.conf"))
    }

    fn passwd(&self) -> io::Result<String> {
        Err(unknown("users"))
    }

    fn group(&self) -> io::Result<String> {
        Err(unknown("groups"))
    }
}

/// The network namespace that the calling thread is in.
pub struct PodFacts<'a> {
    netlink: OnceCell<(Netlink, Vec<(u32, IpAddr)>)>,
    /// As the plugins before us told.
    name_servers: &'a [String],
    /// The pod's own, where it runs already.
    resolv_conf: Option<&'a str>,
}

impl<'a> PodFacts<'a> {
    pub fn new(name_servers: &'a [String], resolv_conf: Option<&'a str>) -> Self {
        Self { netlink: OnceCell::new(), name_servers, resolv_conf }
    }

    fn read(&self) -> io::Result<&(Netlink, Vec<(u32, IpAddr)>)> {
        if let Some(known) = self.netlink.get() {
            return Ok(known);
        }
        let mut netlink = Netlink::open(Netlink::ROUTE)?;
        let addresses = routing::addresses(&mut netlink)?;
        Ok(self.netlink.get_or_init(|| (netlink, addresses)))
    }

    /// Whether `::6` is on lo, and the open socket that told.
    pub fn into_mesh_address(self) -> io::Result<(bool, Netlink)> {
        let mesh_address = routing::has_mesh_address(&self.read()?.1);
        match self.netlink.into_inner() {
            Some((netlink, _)) => Ok((mesh_address, netlink)),
            None => Ok((mesh_address, Netlink::open(Netlink::ROUTE)?)),
        }
    }
}

impl Facts for PodFacts<'_> {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.read()?.1.iter().map(|(_, address)| *address).collect())
    }

    /// A container without name servers of its own gets the node's.
    fn resolv_conf(&self) -> io::Result<String> {
        if let Some(text) = self.resolv_conf {
            return Ok(text.to_owned());
        }
        match self.name_servers {
            [] => std::fs::read_to_string("/etc/resolv.conf"),
            servers => Ok(servers.iter().map(|server| format!("nameserver {server}\n")).collect()),
        }
    }

    fn passwd(&self) -> io::Result<String> {
        NoFacts.passwd()
    }

    fn group(&self) -> io::Result<String> {
        NoFacts.group()
    }
}
