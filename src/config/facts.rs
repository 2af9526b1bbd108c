//! What options alone do not tell: the pod's addresses, its name servers, its users
//! and groups. Read where they are needed, parsed here, faked in tests.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::types::Families;

/// A source of facts about the pod.
pub trait Facts {
    /// Addresses of all interfaces, in the kernel's order (IPv4 first).
    ///
    /// # Errors
    ///
    /// The kernel does not list them, or nobody told them.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
    /// The text of resolv.conf(5).
    ///
    /// # Errors
    ///
    /// The file cannot be read, or nobody told what it holds.
    fn resolv_conf(&self) -> io::Result<String>;
    /// The text of passwd(5). A static binary has no name service switch.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or nobody told what it holds.
    fn passwd(&self) -> io::Result<String>;
    /// The text of group(5).
    ///
    /// # Errors
    ///
    /// The file cannot be read, or nobody told what it holds.
    fn group(&self) -> io::Result<String>;
    /// In words, for a message: that the pod has no global address.
    fn without_address(&self) -> &'static str {
        "the pod has no global address yet"
    }
    /// In words, for a message: where the name servers are configured.
    fn names_servers(&self) -> &'static str {
        "/etc/resolv.conf"
    }
}

/// The number of a user or group by its name: the third field of a line of passwd(5) or group(5).
fn id_by_name(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The uid of a user, if the file names it.
pub fn uid_by_name(facts: &dyn Facts, name: &str) -> Option<u32> {
    id_by_name(&facts.passwd().ok()?, name)
}

/// The gid of a group, if the file names it.
pub fn gid_by_name(facts: &dyn Facts, name: &str) -> Option<u32> {
    id_by_name(&facts.group().ok()?, name)
}

/// The name servers of resolv.conf(5), in order, and the entries that are no plain address.
pub fn name_servers(text: &str) -> (Vec<IpAddr>, Vec<String>) {
    let (mut servers, mut odd) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(word) = words.next()
        {
            match word.parse() {
                Ok(address) => servers.push(address),
                Err(_) => odd.push(word.to_owned()),
            }
        }
    }
    (servers, odd)
}

/// Whether traffic can reach the pod from elsewhere by this address.
pub fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_link_local() || a.is_unspecified()),
        IpAddr::V6(a) => {
            let mesh = *a == Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
            !(a.is_loopback() || a.is_unicast_link_local() || a.is_unspecified() || mesh)
        }
    }
}

/// Whether an address is an IPv6 one that is valid on one link only.
pub fn is_link_local_v6(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The families in which the pod has a global address.
pub fn families_of(addresses: &[IpAddr]) -> Families {
    addresses
        .iter()
        .filter(|a| is_global(a))
        .fold(Families::NONE, |all, a| all.union(if a.is_ipv4() { Families::V4 } else { Families::V6 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_names_servers() {
        let (servers, odd) = name_servers(
            "# comment\nnameserver 10.96.0.10\n  nameserver\tfd00::a # x\nsearch a\nnameserver fe80::1%eth0\nnameserver\n",
        );
        assert_eq!(servers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fd00::a".parse().unwrap()]);
        assert_eq!(odd, ["fe80::1%eth0"]);
    }

    #[test]
    fn ids_by_name() {
        let text = "root:x:0:0::/:/bin/sh\nistio-proxy:x:1337:1337::/:\nbroken\n";
        assert_eq!(id_by_name(text, "istio-proxy"), Some(1337));
        assert_eq!(id_by_name(text, "broken"), None);
        assert_eq!(id_by_name(text, "istio"), None);
    }

    #[test]
    fn the_mesh_address_is_not_the_pods() {
        // Once programmed, lo carries ::6; it must not make the pod look like it had IPv6.
        let addresses = ["10.244.0.6", "::1", "::6", "fe80::1"].map(|a| a.parse().unwrap());
        assert_eq!(families_of(&addresses), Families::V4);
    }
}
