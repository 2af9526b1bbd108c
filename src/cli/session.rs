//! What commands that change a network namespace's rules have in common: their settings, the check that
//! the namespace may be changed, and the line that reports what was done.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use tracing::{info, warn};

use crate::backend::conditions::Conditions;
use crate::backend::install::{Action, Outcome};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::node::{self, Evidence};
use crate::config::given::process_environment;
use crate::config::settings::{Face, Run};
use crate::plan::model::Plan;
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::error::CliError;

/// The settings with which rules are changed, by the options.
pub(super) fn conditions(run: &Run) -> Conditions {
    let mut programs = ProgramEnvironment { host_network: run.host_network, ..programs() };
    if run.cni_mode {
        // The namespace itself is locked; the file is the node's.
        programs.variables.insert("XTABLES_LOCKFILE", NO_LOCK.into());
    }
    Conditions { rule_comments: run.rule_comments, lock_timeout: run.lock_timeout, programs }
}

/// The environment of the iptables programs, from the process's own.
pub(super) fn programs() -> ProgramEnvironment {
    let variable = |name: &'static str| process_environment(name).map(|value| (name, value.into()));
    ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        variables: ["XTABLES_LOCKFILE", "XTABLES_LIBDIR"].into_iter().filter_map(variable).collect(),
        ..ProgramEnvironment::default()
    }
}

/// Refuses a node's network namespace, which a pod with hostNetwork shares: programming it
/// would divert the node's own traffic, and that of the pods it forwards for. A virtual
/// machine that is intercepted itself is programmed in its first namespace, by
/// `istio-iptables`.
///
/// # Errors
///
/// It is a node's, and how that is known; or that is not known.
pub(super) fn check_namespace(
    face: Face,
    run: &Run,
    netlink: &mut Netlink,
    addresses: &[(u32, IpAddr)],
) -> Result<(), CliError> {
    let unknown = |e| CliError::Failed(format!("cannot tell which network namespace this is: {e}"));
    if run.host_network {
        return Ok(());
    }
    let inode = netns::current().map_err(unknown)?;
    // What the kubelet writes there is about the container's own network.
    let hosts = run.network_namespace.is_none().then_some(Path::new("/etc/hosts"));
    let Some(evidence) = node::evidence(inode, hosts, netlink, addresses).map_err(unknown)? else {
        return Ok(());
    };
    let is_first = matches!(evidence, Evidence::FirstNamespace { .. });
    if face == Face::IstioIptables && is_first && node::looks_like_a_virtual_machine(netlink).map_err(unknown)? {
        warn!("this is the machine's own network namespace ({evidence}): all of the machine's traffic is diverted");
        return Ok(());
    }
    let machine = match face {
        Face::IstioIptables if is_first => {
            " (a virtual machine of its own would have no forwarding and no veth interface)"
        }
        _ => "",
    };
    Err(CliError::Failed(format!(
        "this is a node's own network namespace: {evidence}{machine}; a pod with hostNetwork has no traffic of its own to divert: take it out of the mesh (sidecar.istio.io/inject: \"false\"), or give --host-network if the node's is meant"
    )))
}

/// Logs one line that says what was done.
pub(super) fn report(outcome: &Outcome, plan: &Plan, started: Instant) {
    for warning in &outcome.warnings {
        warn!("{warning}");
    }
    let ms = started.elapsed().as_micros() as f64 / 1000.0;
    let elsewhere: Vec<&str> = outcome.removed_from.iter().map(|kind| kind.name()).collect();
    let elsewhere = elsewhere.join(", ");
    let backend = outcome.backend.name();
    let (families, rules) = (plan.families.to_string(), plan.rule_count());
    match outcome.action {
        Action::Installed => info!(backend, %families, rules, ms, "installed"),
        Action::Replaced if elsewhere.is_empty() => info!(backend, %families, rules, ms, "replaced"),
        Action::Replaced => info!(backend, %families, rules, ms, from = %elsewhere, "replaced"),
        Action::Unchanged => info!(backend, %families, rules, ms, "unchanged"),
        Action::Removed => info!(from = %elsewhere, ms, "removed"),
        Action::Nothing => info!(ms, "nothing to remove"),
    }
}
