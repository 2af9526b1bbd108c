//! Capabilities (capabilities(7)).

/// What to do about a missing CAP_NET_ADMIN.
pub const NET_ADMIN_HINT: &str = "the process lacks CAP_NET_ADMIN in this network namespace: grant it (in a pod: securityContext.capabilities.add: [NET_ADMIN], and run as user 0)";

/// What to do about a missing CAP_SYS_ADMIN.
pub const SYS_ADMIN_HINT: &str = "the process lacks CAP_SYS_ADMIN, which entering another namespace takes";
