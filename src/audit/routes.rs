//! By which interface packets go, as far as the main routing table tells it: for each
//! length of prefixes what they lead to, so that a lookup is quick however long the table.
//! Where nothing is known, in options and most dumps, the table is empty.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// One entry of a routing table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    pub to: IpNet,
    pub interface: Box<str>,
    /// The pod's own address, which the interface has, instead of a way to others.
    pub own: bool,
}

/// A routing table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// By family (IPv4 or not) and length.
    ways: BTreeMap<(bool, u8), BTreeMap<IpAddr, Box<str>>>,
    own: BTreeMap<IpAddr, Box<str>>,
}

impl Routes {
    /// Of routes to the same prefix the first one counts.
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
                    let length = out.ways.entry((to.addr().is_ipv4(), to.prefix_len())).or_default();
                    length.entry(to.addr()).or_insert(interface);
                }
            }
        }
        out
    }

    /// By which interface packets to an address of others leave.
    pub fn egress_interface(&self, address: IpAddr) -> Option<&str> {
        let family = (address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX);
        self.ways.range(family).rev().find_map(|(&(_, length), ways)| {
            let to = IpNet::new(address, length).ok()?.network();
            ways.get(&to).map(|interface| &**interface)
        })
    }

    /// The interface of the default route.
    pub fn default_interface(&self) -> Option<&str> {
        let default = |v4| self.ways.get(&(v4, 0))?.values().next();
        default(true).or_else(|| default(false)).map(|interface| &**interface)
    }

    /// Which interface has an address of the pod's. What is on lo comes in by another one.
    pub fn interface_of(&self, address: IpAddr) -> Option<&str> {
        self.own.get(&address).map(|interface| &**interface).filter(|&interface| interface != "lo")
    }

    /// All of them, in a stable order.
    pub fn all(&self) -> Vec<Route> {
        let own = self.own.iter().filter_map(|(&address, interface)| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            Some(Route { to: IpNet::new(address, length).ok()?, interface: interface.clone(), own: true })
        });
        let ways = self.ways.iter().flat_map(|(&(_, length), ways)| {
            ways.iter().filter_map(move |(&address, interface)| {
                Some(Route { to: IpNet::new(address, length).ok()?, interface: interface.clone(), own: false })
            })
        });
        let mut all: Vec<Route> = own.chain(ways).collect();
        all.sort_unstable();
        all
    }
}
