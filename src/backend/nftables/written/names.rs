//! nft's names for families, hooks and priorities.

use crate::backend::hook::{Base, ChainKind, Hook};
use crate::backend::nftables::table::{self, Devices};
use crate::backend::nftables::wire::{NF_INET_INGRESS, NF_NETDEV_EGRESS, NF_NETDEV_INGRESS, NfFamily};
use crate::config::types::Interface;

/// `ip`, `inet` …: the number of a family.
///
/// # Errors
///
/// That there is no such family.
pub fn family(name: &str) -> Result<u8, String> {
    Ok(match name {
        "ip" => NfFamily::IPV4.0,
        "ip6" => NfFamily::IPV6.0,
        "inet" => NfFamily::INET.0,
        "netdev" => NfFamily::NETDEV.0,
        "arp" => NfFamily::ARP.0,
        "bridge" => NfFamily::BRIDGE.0,
        _ => return Err(format!("'{name}' is no family of tables")),
    })
}

/// A base chain's place, and the devices that it is bound to. `named`: those that the listing
/// names, if it does.
///
/// # Errors
///
/// That there is no such hook, kind or priority in that family.
pub fn base(
    family: u8,
    hook: &str,
    kind: &str,
    priority: i32,
    named: Option<Vec<Interface>>,
) -> Result<(Base, Option<Devices>), String> {
    let netdev = family == NfFamily::NETDEV.0;
    let number = match hook {
        "ingress" if netdev => NF_NETDEV_INGRESS,
        "egress" if netdev => NF_NETDEV_EGRESS,
        "prerouting" => Hook::Prerouting as u32,
        "input" => Hook::Input as u32,
        "forward" => Hook::Forward as u32,
        "output" => Hook::Output as u32,
        "postrouting" => Hook::Postrouting as u32,
        "ingress" => NF_INET_INGRESS,
        _ => return Err(format!("'{hook}' is no hook")),
    };
    let place = table::base(NfFamily(family), number, ChainKind::by_name(kind), priority);
    let (base, is_of_devices) = place.ok_or_else(|| format!("'{hook}' is no hook of this family"))?;
    Ok((base, is_of_devices.then(|| named.map_or(Devices::Unnamed, Devices::Named))))
}

/// The devices of a chain, by name; `None` if they are not certain: only newer versions of nft read an
/// asterisk as any ending.
pub fn devices<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Vec<Interface>> {
    let mut names = names.into_iter();
    names.try_fold(Vec::new(), |mut all, name| {
        all.push((!name.ends_with('*')).then(|| Interface::new(name, false))?);
        Some(all)
    })
}

/// A priority's name, as a number; what a name means depends on hook and family.
pub fn priority(name: &str) -> Option<i32> {
    Some(match name {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        "out" => 100,
        _ => return None,
    })
}
