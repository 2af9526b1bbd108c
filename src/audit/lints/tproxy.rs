//! The user that the proxy runs as with TPROXY. It connects to the app in the client's name, so that
//! rules tell these connections from others by their owner alone: connections of the proxy's user to the
//! pod itself go back to the proxy, those of its group do not. And only root keeps CAP_NET_ADMIN in a
//! container, without which no socket takes what TPROXY hands over (`IP_TRANSPARENT`, ip(7)).

use std::ops::RangeInclusive;

use crate::audit::escapes::kind::Severity;
use crate::audit::established::older::Established;
use crate::config::interception::Interception;
use crate::config::types::Mode;

use super::Lint;

/// From which ports Linux lets connections begin, unless it is told otherwise
/// (`inet_init_net`, net/ipv4/af_inet.c).
const USUAL_PORTS: RangeInclusive<u16> = 32768..=60999;

/// What is known of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Unknown,
    /// The manifest names the user.
    RunsAs(u32),
    /// Who listens where inbound connections are handed to, and whether the socket is
    /// transparent, as far as the kernel tells.
    Listens {
        uid: u32,
        transparent: Option<bool>,
    },
}

impl Proxy {
    /// The process that listens in the pod, if there is one.
    pub fn seen(found: Option<&Established>) -> Option<Self> {
        let socket = found?.inbound_listeners.first()?;
        Some(Proxy::Listens { uid: socket.uid, transparent: socket.transparent })
    }
}

/// A warning about the proxy's user under an interception, if it has a problem.
pub fn warning(interception: &Interception, proxy: Proxy) -> Option<String> {
    let Interception { mode, proxy_uids, proxy_gids, .. } = interception;
    lint(*mode == Mode::Tproxy, proxy_uids, proxy_gids, proxy).map(|lint| format!("{}; {}", lint.message, lint.advice))
}

/// A lint about the proxy's user under TPROXY. `uids` and `gids`: the owners whose traffic rules take
/// for the proxy's.
pub fn lint(is_tproxy: bool, uids: &[u32], gids: &[u32], proxy: Proxy) -> Option<Lint> {
    if !is_tproxy {
        return None;
    }
    let loops = |uid: u32| {
        format!(
            "the proxy runs as user {uid}, whose connections to the pod itself go to the proxy: its connections to the app come back to it, and inbound connections hang or loop"
        )
    };
    let (severity, message) = match proxy {
        Proxy::RunsAs(uid) | Proxy::Listens { uid, .. } if uids.contains(&uid) => (Severity::Medium, loops(uid)),
        Proxy::Listens { transparent: Some(true), .. } | Proxy::RunsAs(0) => return None,
        Proxy::Listens { uid: 0, transparent: None } => return None,
        Proxy::RunsAs(uid) | Proxy::Listens { uid, .. } => (
            Severity::Medium,
            format!(
                "the proxy runs as user {uid} and has no transparent socket, or cannot make one: what TPROXY hands over is dropped, and inbound connections hang"
            ),
        ),
        Proxy::Unknown if uids.contains(&0) => (Severity::Medium, loops(0)),
        Proxy::Unknown => (
            Severity::Info,
            "with TPROXY the proxy has to be another user than rules call its own, or inbound connections hang or loop"
                .into(),
        ),
    };
    let list = |ids: &[u32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    Some(Lint {
        severity,
        id: "tproxy-proxy-user",
        subject: "the proxy's user".into(),
        message,
        advice: format!(
            "run it as user 0 with group {} and CAP_NET_ADMIN, as injectors do (runAsUser, runAsGroup), and let -u name another user, such as 1337",
            list(gids)
        ),
    })
}

/// Whether source ports can meet. The proxy's connection to the app and its client's with the
/// proxy have the same addresses, and the same port of the pod. Where they have the same source
/// port too, connection tracking takes the two for one, and the rule that saves the mark gives it
/// to the client's, whose answers stay in the pod from then on.
pub fn source_ports(is_tproxy: bool, ports: Option<&RangeInclusive<u16>>) -> Option<Lint> {
    let ports = ports.filter(|_| is_tproxy)?;
    let meet = ports.start() <= USUAL_PORTS.end() && USUAL_PORTS.start() <= ports.end();
    meet.then(|| Lint {
        severity: Severity::Info,
        id: "tproxy-source-ports",
        subject: format!("source ports {} to {}", ports.start(), ports.end()),
        message: "with TPROXY the proxy connects to the app from its client's address, and from one of these ports, which clients use as well: a client's connection from the same port hangs".into(),
        advice: "let the pod choose from ports that its clients do not use, by the sysctl net.ipv4.ip_local_port_range (20000 32767), which Kubernetes allows in a pod's securityContext".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_meet_where_they_overlap() {
        let meet = |first, last| source_ports(true, Some(&(first..=last))).is_some();
        assert!(meet(32768, 60999) && meet(1024, 65535) && meet(60999, 65535) && meet(1, 32768));
        assert!(!meet(20000, 32767) && !meet(61000, 65535));
        assert!(source_ports(false, Some(&USUAL_PORTS)).is_none() && source_ports(true, None).is_none());
    }
}
