//! The kernel as a source: all rules in the network namespace that the calling thread is in. Reading
//! changes nothing: no table is made, and no program is started unless iptables-legacy has tables, which
//! only its own program can list.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::audit::flow::Surroundings;
use crate::audit::routes::{Route, Routes};
use crate::audit::ruleset::Ruleset;
use crate::backend::iptables::programs::ProgramEnvironment;
use crate::backend::limit::Most;
use crate::backend::listing::Listing;
use crate::backend::routing::{self, FoundRouting};
use crate::backend::{everything, ours, route_table};
use crate::config::facts;
use crate::config::types::Mark;
use crate::plan::model::{Dataplane, Routing};
use crate::sys::netlink::Netlink;
use crate::sys::text::printable;

use super::{Source, SourceError};

/// What reading the kernel needs.
pub struct Live<'a> {
    /// Where iptables-legacy-save is looked for.
    pub programs: ProgramEnvironment,
    pub lock_timeout: std::time::Duration,
    /// More rules than these are refused before they are understood.
    pub most: Most,
    /// The pod's resolv.conf(5), if it can be known.
    pub resolv_conf: Option<&'a str>,
}

/// Reads all rules, routes and addresses of the namespace.
///
/// # Errors
///
/// What of the kernel could not be read: rules, routes, addresses, or the namespace itself.
pub fn read(live: &Live) -> Result<Source, SourceError> {
    let Listing { tables, told, mut notes } = everything::listing(&live.programs, live.lock_timeout, live.most)?;
    let held = ours::holdings(&tables);
    let mut route = Netlink::open(Netlink::ROUTE).map_err(|e| SourceError::kernel("routing", e))?;
    let addresses = routing::addresses(&mut route).map_err(|e| SourceError::kernel("the pod's addresses", e))?;
    let mark_rules = routing::mark_rules(&mut route)?;
    let known: Vec<u32> = mark_rules.iter().map(|found| found.priority).collect();
    let others = route_table::other_rules(&mut route, &known)?;
    let marks: Vec<Mark> = held.iter().flat_map(|held| held.plan.marks()).collect();
    let dataplane = held.first().map_or(Dataplane::Sidecar, |held| held.plan.dataplane);
    let found = FoundRouting {
        rules: mark_rules,
        routes: routing::local_routes(&mut route)?,
        mesh_address: routing::has_mesh_address(&addresses),
    };
    let dns_servers = live.resolv_conf.map(|text| facts::name_servers(text).0);
    let pod = Surroundings { dns_servers, ..surroundings(&mut route, addresses)? };
    let ruleset = Ruleset::of_tables(&tables);
    if others > 0 && ruleset.tells_interfaces_apart() {
        notes.push(format!("policy routing of others is not looked at ({others} of ip rule): by which interface a flow goes is what the table main says, unless --interface says it"));
    }
    Ok(Source {
        ruleset,
        tables,
        held,
        routing: Some(found.ours(dataplane, &marks, &Routing::default()).routing().normalised()),
        told,
        pod,
        settings: None,
        given: None,
        notes,
    })
}

/// The surroundings of the pod by its routing; `addresses`: each with its interface's index.
///
/// # Errors
/// The kernel's, when the routes cannot be listed.
pub fn surroundings(route: &mut Netlink, addresses: Vec<(u32, IpAddr)>) -> Result<Surroundings, SourceError> {
    let routes = routes(route)?;
    Ok(Surroundings {
        dns_servers: None,
        uplink: uplink(&routes, &addresses),
        routes,
        addresses: addresses.into_iter().map(|(_, address)| address).collect(),
    })
}

/// The routes with the names of their interfaces. A route whose interface is gone is left out.
fn routes(netlink: &mut Netlink) -> Result<Routes, SourceError> {
    let mut names: HashMap<u32, Option<Box<str>>> = HashMap::new();
    let name = |index: u32| {
        let name = nix::net::if_::if_indextoname(index).ok()?;
        Some(printable(&name.to_string_lossy()).into())
    };
    let found = route_table::routes(netlink)?.into_iter().filter_map(|found| {
        let interface = names.entry(found.interface).or_insert_with(|| name(found.interface)).clone()?;
        Some(Route { to: found.to, interface, own: found.own })
    });
    Ok(Routes::new(found))
}

/// The interface of the default route; without one that of the first global address.
fn uplink(routes: &Routes, addresses: &[(u32, IpAddr)]) -> Box<str> {
    const USUAL: &str = "eth0";
    let by_address =
        || addresses.iter().filter(|(_, a)| facts::is_global(a)).find_map(|(_, a)| routes.interface_of(*a));
    routes.default_interface().or_else(by_address).unwrap_or(USUAL).into()
}
