//! Links, addresses and neighbours (rtnetlink(7)): listing links, and as much as a probe's
//! pair of interfaces takes.

use std::io;
use std::net::IpAddr;

use super::netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, attribute, attributes, request};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
/// `RTEXT_FILTER_SKIP_STATS`: counters are not asked for, which are half of a listing.
const SKIP_STATS: u32 = 8;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
/// No duplicate address detection.
const IFA_F_NODAD: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// An Ethernet address.
pub type Mac = [u8; 6];

fn name(name: &str) -> Vec<u8> {
    attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat())
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32) -> Vec<u8> {
    let mut out = vec![0u8; 4];
    out.extend(index.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(flags.to_ne_bytes()); // which flags change
    out
}

fn transact(netlink: &mut Netlink, kind: u16, flags: u16, body: &[&[u8]]) -> io::Result<()> {
    netlink.command(&request(kind, flags | NLM_F_ACK, body))
}

/// A network interface, with what tells a node's namespace from a pod's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Which driver made it, such as `veth`; empty for lo and for hardware.
    pub kind: String,
    /// The index of the bridge, bond or the like that it is a port of; 0 where it is none.
    pub master: u32,
    /// This namespace's number for the namespace of the interface's other end, where that is another one
    /// (`IFLA_LINK_NETNSID`).
    pub elsewhere: Option<i32>,
}

/// Lists the links of the socket's network namespace.
///
/// # Errors
///
/// The kernel's (rtnetlink(7)).
pub fn list(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let body = [link_header(0, 0), attribute(IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes())].concat();
    let mut links = Vec::new();
    netlink.dump(&request(RTM_GETLINK, NLM_F_DUMP, &[&body]), |received| {
        if received.kind == RTM_NEWLINK {
            links.extend(parse(received.payload));
        }
    })?;
    Ok(links)
}

fn parse(payload: &[u8]) -> Option<Link> {
    let number = |bytes: &[u8]| bytes.get(..4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    let mut link = Link { index: number(payload.get(4..)?)?, ..Link::default() };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MASTER => link.master = number(value)?,
            IFLA_LINK_NETNSID => link.elsewhere = Some(number(value)? as i32),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// Makes a pair of connected interfaces.
///
/// # Errors
///
/// The kernel's: `EEXIST` where there is an interface of that name, `EPERM` without CAP_NET_ADMIN.
pub fn add_veth(netlink: &mut Netlink, one: (&str, Mac), other: (&str, Mac)) -> io::Result<()> {
    let peer = [link_header(0, 0), name(other.0), attribute(IFLA_ADDRESS, &other.1)].concat();
    let data = attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer));
    let info = attribute(IFLA_LINKINFO, &[attribute(IFLA_INFO_KIND, b"veth"), data].concat());
    let body = [link_header(0, 0), name(one.0), attribute(IFLA_ADDRESS, &one.1), info].concat();
    transact(netlink, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &[&body])
}

/// Removes an interface by name.
///
/// # Errors
///
/// The kernel's: `ENODEV` where there is none of that name.
pub fn remove(netlink: &mut Netlink, interface: &str) -> io::Result<()> {
    transact(netlink, RTM_DELLINK, 0, &[&link_header(0, 0), &name(interface)])
}

/// Sets an interface up.
///
/// # Errors
///
/// The kernel's: `ENODEV` where there is none of that number.
pub fn set_up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    transact(netlink, RTM_NEWLINK, 0, &[&link_header(index, IFF_UP)])
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { nix::libc::AF_INET as u8 } else { nix::libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Gives an interface an address with a prefix of so many bits.
///
/// # Errors
///
/// The kernel's: `EEXIST` where it has the address.
pub fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr, bits: u8) -> io::Result<()> {
    let mut header = vec![family(address), bits, IFA_F_NODAD, 0];
    header.extend(index.to_ne_bytes());
    let octets = octets(address);
    let body = [header, attribute(IFA_LOCAL, &octets), attribute(IFA_ADDRESS, &octets)].concat();
    transact(netlink, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &[&body])
}

/// Adds a permanent neighbour entry, so that the address is not asked for on the link.
///
/// # Errors
///
/// The kernel's (rtnetlink(7), `RTM_NEWNEIGH`).
pub fn add_neighbour(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
    let mut header = vec![family(address), 0, 0, 0];
    header.extend(index.to_ne_bytes());
    header.extend(NUD_PERMANENT.to_ne_bytes());
    header.extend([0, 0]);
    let body = [header, attribute(NDA_DST, &octets(address)), attribute(NDA_LLADDR, &mac)].concat();
    transact(netlink, RTM_NEWNEIGH, NLM_F_CREATE, &[&body])
}

/// The number of an interface.
///
/// # Errors
///
/// The kernel's: `ENODEV` where there is none of that name.
pub fn index(interface: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}
