//! Capabilities (capabilities(7)).

/// What to do about a missing CAP_NET_ADMIN.
pub const NET_ADMIN_HINT: &str = "the process lacks CAP_NET_ADMIN in this network namespace: grant it (in a pod: securityContext.capabilities.add: [NET_ADMIN], and run as user 0)";

/// What to do about a missing CAP_SYS_ADMIN.
pub const SYS_ADMIN_HINT: &str = "the process lacks CAP_SYS_ADMIN, which entering another namespace takes";

/// Names those of the capabilities that programming other namespaces takes and that the
/// process does not have.
pub fn missing_for_namespaces() -> std::io::Result<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.ok_or_else(|| std::io::Error::other("/proc/thread-self/status has no CapEff"))?;
    // linux/capability.h
    let needed = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];
    Ok(needed.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect())
}
