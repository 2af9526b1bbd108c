//! The interfaces by which packets go, as far as the main routing table tells: routes are kept by the
//! length of their prefix, so that a lookup is quick however long the table is. The table is empty where
//! no routes are known, as for options and most dumps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// One entry of a routing table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    pub to: IpNet,
    pub interface: Box<str>,
    /// Whether it is the pod's own address, which the interface has, instead of a route to others.
    pub own: bool,
}

/// A routing table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// The interfaces of routes, by family (IPv4 or not), length of prefix and prefix.
    egress: BTreeMap<(bool, u8), BTreeMap<IpAddr, Box<str>>>,
    /// The interfaces that have the pod's own addresses.
    own: BTreeMap<IpAddr, Box<str>>,
}

impl Routes {
    /// The table of these routes. Of several to the same prefix the first one counts.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut out = Self::default();
        for Route { to, interface, own } in routes {
            let to = to.trunc();
            match own {
                true if to.prefix_len() == to.max_prefix_len() => {
                    out.own.entry(to.addr()).or_insert(interface);
                }
                true => {}
                false => {
                    let length = out.egress.entry((to.addr().is_ipv4(), to.prefix_len())).or_default();
                    length.entry(to.addr()).or_insert(interface);
                }
            }
        }
        out
    }

    /// The interface by which packets to an address of others leave, where that is known.
    pub fn egress_interface(&self, address: IpAddr) -> Option<&str> {
        let family = (address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX);
        self.egress.range(family).rev().find_map(|(&(_, length), prefixes)| {
            let to = IpNet::new(address, length).ok()?.network();
            prefixes.get(&to).map(|interface| &**interface)
        })
    }

    /// The interface of the default route: of IPv4, or else of IPv6.
    pub fn default_interface(&self) -> Option<&str> {
        let default = |v4| self.egress.get(&(v4, 0))?.values().next();
        default(true).or_else(|| default(false)).map(|interface| &**interface)
    }

    /// The interface that has an address of the pod's, and by which packets to it come in: what
    /// is on lo comes in by another one.
    pub fn interface_of(&self, address: IpAddr) -> Option<&str> {
        self.own.get(&address).map(|interface| &**interface).filter(|&interface| interface != "lo")
    }

    /// All routes, in a stable order.
    pub fn all(&self) -> Vec<Route> {
        let own = self.own.iter().filter_map(|(&address, interface)| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            Some(Route { to: IpNet::new(address, length).ok()?, interface: interface.clone(), own: true })
        });
        let egress = self.egress.iter().flat_map(|(&(_, length), prefixes)| {
            prefixes.iter().filter_map(move |(&address, interface)| {
                Some(Route { to: IpNet::new(address, length).ok()?, interface: interface.clone(), own: false })
            })
        });
        let mut all: Vec<Route> = own.chain(egress).collect();
        all.sort_unstable();
        all
    }
}
