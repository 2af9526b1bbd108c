//! Containers of a pod's manifest that could undo its interception: they share the proxy's
//! owners, or could take what it has.

use crate::audit::escapes::kind::Severity;
use crate::config::pod::manifest::Manifest;
use crate::config::pod::model::{Container, INIT, PROXY, Pod};

use super::Lint;

/// The containers that a mesh adds.
const MESH: [&str; 4] = [PROXY, INIT, "istio-validation", "istio-cni"];

/// What a pod's manifest shows. `proxy_uids` and `proxy_gids`: the owners whose traffic the rules
/// take for the proxy's.
pub fn lints(manifest: &Manifest, proxy_uids: &[u32], proxy_gids: &[u32]) -> Vec<Lint> {
    let pod = &manifest.pod;
    let mut out = Vec::new();
    if pod.uses_host_network() {
        out.push(Lint {
            severity: Severity::High,
            id: "host-network",
            subject: manifest.name.clone(),
            message: "the pod uses its node's network: rules for it would be the node's".into(),
            advice: "such a pod cannot be intercepted; take it out of the mesh, or drop hostNetwork".into(),
        });
    }
    let started = pod.started_containers().filter(|container| !MESH.contains(&container.name.as_str()));
    for container in started.chain(pod.added_containers()) {
        out.extend(shared_owners(pod, container, proxy_uids, proxy_gids));
        out.extend(dangerous_right(pod, container));
    }
    out
}

/// Owners that a container has in common with the proxy.
fn shared_owners(pod: &Pod, container: &Container, proxy_uids: &[u32], proxy_gids: &[u32]) -> Vec<Lint> {
    let lint = |word: &str, field: &str, id: u32| Lint {
        severity: Severity::High,
        id: "shares-proxy-user",
        subject: format!("container {}", container.name),
        message: format!("it runs as {word} {id}, the proxy's: all its outbound traffic passes the proxy by"),
        advice: format!("give it another {field}"),
    };
    let uid = pod.user_of(container).filter(|id| proxy_uids.contains(id));
    let gid = pod.group_of(container).filter(|id| proxy_gids.contains(id));
    let of_uid = uid.map(|id| lint("user", "runAsUser", id));
    of_uid.into_iter().chain(gid.map(|id| lint("group", "runAsGroup", id))).collect()
}

/// A capability or the like that would let a container change the rules, or become the proxy's user.
fn dangerous_right(pod: &Pod, container: &Container) -> Option<Lint> {
    let lint = |severity, message: String, advice: &str| Lint {
        severity,
        id: "can-become-proxy",
        subject: format!("container {}", container.name),
        message,
        advice: advice.into(),
    };
    if container.is_privileged() {
        let message = "it is privileged: it can change or remove the rules".into();
        return Some(lint(Severity::Medium, message, "drop privileged"));
    }
    let added = container.added_capabilities();
    if let Some(name) = ["ALL", "NET_ADMIN", "SYS_ADMIN", "NET_RAW"].into_iter().find(|name| added.contains(name)) {
        let message = format!("it has CAP_{name}: it can change the rules or send packets past them");
        return Some(lint(Severity::Medium, message, "drop the capability"));
    }
    // Root has CAP_SETUID and CAP_SETGID unless they are taken away.
    let dropped = container.dropped_capabilities();
    let has = |name: &str| !dropped.contains(&"ALL") && !dropped.contains(&name);
    let can_switch = has("SETUID") || has("SETGID") || added.iter().any(|name| ["SETUID", "SETGID"].contains(name));
    if pod.user_of(container) == Some(0) && can_switch {
        let message = "it runs as root with CAP_SETUID: it can become the proxy's user".into();
        return Some(lint(Severity::Low, message, "run it as another user, or drop SETUID and SETGID"));
    }
    None
}
