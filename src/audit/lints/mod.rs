//! Lints: findings that are no escapes by themselves, but probably mistakes.
//!
//! | lint | about |
//! |---|---|
//! | `rule-never-matches` | earlier rules of the chain take every packet that the rule is for |
//! | `rule-loop-shadowed` | the same of a proxy owner's loop rule: its calls to the pod's own service do not go in through the proxy |
//! | `chain-never-entered` | rules stand in a chain that no rule jumps to |
//! | `jump-to-nowhere` | a rule jumps to a chain that is not there |
//! | `foreign-rule-in-front` | a rule of another tool is looked at before the interception's |
//! | `marked-packets-escape` | rules let packets out by a mark, and a process can mark its own |
//! | `order-not-known` | chains of iptables-legacy and nftables want the same place: which comes first is not known |
//! | `option-without-effect` | an option that changes nothing, because of another one or of the pod |
//! | `options-contradict` | two options that want opposite things; one of them wins |
//! | `link-local-ipv6` | the pod has IPv6 by link-local addresses only, by which neighbours reach it past the proxy |
//! | `established-past-proxy` | connections are older than the rules, which would take them, and pass the proxy by |
//! | `tproxy-proxy-user` | with TPROXY the proxy runs as a user by which inbound connections hang or loop |
//! | `tproxy-source-ports` | with TPROXY the proxy's connections to the app begin from ports that clients use too, and can hang one |
//! | `shares-proxy-user` | an app container runs as the proxy's user or group: all its traffic escapes |
//! | `can-become-proxy` | an app container may change the rules, or become the proxy's user |
//! | `host-network` | the pod has no network of its own to intercept |

pub mod containers;
pub mod established;
pub mod foreign;
pub mod link_local;
pub mod marks;
pub mod options;
pub mod shadow;
pub mod tproxy;

use super::escapes::kind::Severity;

/// Something that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lint {
    pub severity: Severity,
    /// The lint's stable name.
    pub id: &'static str,
    /// What it is about: a rule's place, an option, a container.
    pub subject: String,
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// Every lint's name, the severity it has (or the worst), and what it is about.
pub const LINTS: &[(&str, Severity, &str)] = &[
    ("rule-never-matches", Severity::Info, "earlier rules take every packet that the rule is for"),
    ("rule-loop-shadowed", Severity::Low, "a proxy owner's loop rule that never matches"),
    ("chain-never-entered", Severity::Info, "rules in a chain that no rule jumps to"),
    ("jump-to-nowhere", Severity::High, "a jump to a chain that is not there"),
    ("foreign-rule-in-front", Severity::Medium, "a rule of another tool before the interception's"),
    ("marked-packets-escape", Severity::Medium, "packets that rules let out by a mark, which a process can set"),
    ("order-not-known", Severity::Medium, "chains of iptables-legacy and nftables in one place"),
    ("option-without-effect", Severity::Low, "an option that changes nothing"),
    ("options-contradict", Severity::Medium, "two options that want opposite things"),
    ("link-local-ipv6", Severity::Medium, "IPv6 by link-local addresses only, past the proxy"),
    ("established-past-proxy", Severity::High, "connections older than the rules that pass the proxy by"),
    ("tproxy-proxy-user", Severity::Medium, "a user of the proxy's by which TPROXY's connections hang or loop"),
    ("tproxy-source-ports", Severity::Info, "source ports of TPROXY's connections that can meet those of clients"),
    ("shares-proxy-user", Severity::High, "an app container that runs as the proxy's user or group"),
    ("can-become-proxy", Severity::Medium, "an app container that may change the rules or become the proxy's user"),
    ("host-network", Severity::High, "a pod without a network of its own"),
];

/// Id, severity and title of each finding that is about many pods.
pub const OF_MANY: &[(&str, Severity, &str)] = &[
    ("not-intercepted", Severity::High, "a pod that is to be in the mesh, and whose traffic nothing diverts"),
    ("refused", Severity::Medium, "a pod that asks for what makes no sense, and does not start"),
    ("pods-differ", Severity::Medium, "pods of one workload whose traffic is not diverted alike"),
];

/// Sorts lints, the worst first, and removes doubles.
pub fn sorted(mut lints: Vec<Lint>) -> Vec<Lint> {
    lints.sort_by(|a, b| (b.severity, a).cmp(&(a.severity, b)));
    lints.dedup();
    lints
}
