//! nft's names for families, hooks and priorities.

use crate::backend::nftables::read::ListedHook;
use crate::backend::nftables::wire::NfFamily;

/// `ip`, `inet` …: the number of a family.
pub fn family(name: &str) -> Result<u8, String> {
    Ok(match name {
        "ip" => NfFamily::IPV4.0,
        "ip6" => NfFamily::IPV6.0,
        "inet" => NfFamily::INET.0,
        "netdev" => NfFamily::NETDEV.0,
        "arp" => 3,
        "bridge" => 7,
        _ => return Err(format!("'{name}' is no family of tables")),
    })
}

/// A base chain's place.
pub fn hook(family: u8, hook: &str, priority: i32, kind: &str, drops: bool) -> Result<ListedHook, String> {
    let devices = family == NfFamily::NETDEV.0;
    let number = match hook {
        "ingress" if devices => 0,
        "egress" if devices => 1,
        "prerouting" => 0,
        "input" => 1,
        "forward" => 2,
        "output" => 3,
        "postrouting" => 4,
        "ingress" => 5,
        _ => return Err(format!("'{hook}' is no hook")),
    };
    Ok(ListedHook { number, priority, kind: kind.to_owned(), drops })
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
