//! Capabilities (capabilities(7)).

/// What to do about a missing CAP_NET_ADMIN.
pub const NET_ADMIN_HINT: &str = "the process lacks CAP_NET_ADMIN in this network namespace: grant it (in a pod: securityContext.capabilities.add: [NET_ADMIN], and run as user 0)";

/// What to do about a missing CAP_SYS_ADMIN.
pub const SYS_ADMIN_HINT: &str = "the process lacks CAP_SYS_ADMIN, which entering another namespace takes";

/// What to do about a missing CAP_NET_RAW, without which iptables-legacy cannot open its socket.
pub const NET_RAW_HINT: &str = "iptables-legacy needs CAP_NET_RAW besides CAP_NET_ADMIN: grant both (in a pod: securityContext.capabilities.add: [NET_ADMIN, NET_RAW]), or use --backend nftables, which needs NET_ADMIN alone";

/// Numbers of capabilities (linux/capability.h).
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_NET_RAW: u32 = 13;

/// Whether the process has a capability in its own user namespace; `None` where /proc does not tell.
pub fn has(capability: u32) -> Option<bool> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(text.trim(), 16).ok()?;
    Some(set >> capability & 1 == 1)
}
