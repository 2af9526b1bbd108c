//! Capabilities (capabilities(7)).

use std::io;

/// What to do about a missing CAP_NET_ADMIN.
pub const NET_ADMIN_HINT: &str = "the process lacks CAP_NET_ADMIN in this network namespace: grant it (in a pod: securityContext.capabilities.add: [NET_ADMIN], and run as user 0)";

/// What to do about a missing CAP_SYS_ADMIN.
pub const SYS_ADMIN_HINT: &str = "the process lacks CAP_SYS_ADMIN, which entering another namespace takes";

/// What to do about a missing CAP_NET_RAW, without which iptables-legacy cannot open its socket.
pub const NET_RAW_HINT: &str = "iptables-legacy needs CAP_NET_RAW besides CAP_NET_ADMIN: grant both (in a pod: securityContext.capabilities.add: [NET_ADMIN, NET_RAW]), or use --backend nftables, which needs NET_ADMIN alone";

/// Numbers of capabilities (linux/capability.h).
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_NET_RAW: u32 = 13;
pub const CAP_SYS_ADMIN: u32 = 21;

/// Whether the process has a capability in its own user namespace.
///
/// # Errors
///
/// `/proc/self/status` cannot be read.
pub fn has(capability: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.ok_or_else(|| io::Error::other("/proc/thread-self/status has no CapEff"))?;
    Ok(effective >> capability & 1 == 1)
}

/// Names those of the capabilities that programming other namespaces takes and that the
/// process does not have.
///
/// # Errors
///
/// `/proc/self/status` cannot be read.
pub fn missing_for_namespaces() -> io::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for (name, capability) in [("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN)] {
        if !has(capability)? {
            missing.push(name);
        }
    }
    Ok(missing)
}
