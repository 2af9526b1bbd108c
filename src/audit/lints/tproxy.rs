//! Whom the proxy runs as with TPROXY. It connects to the app in the client's name, so that
//! rules tell these connections from others by their owner alone: what users call the
//! proxy's own goes back to the proxy when it is sent to the pod itself, and what its group
//! calls its own does not. And only root keeps CAP_NET_ADMIN in a container, without which no
//! socket takes what TPROXY hands over (`IP_TRANSPARENT`, ip(7)).

use crate::audit::escapes::kind::Severity;
use crate::audit::established::older::Established;
use crate::config::interception::Interception;
use crate::config::types::Mode;

use super::Lint;

/// What is known of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Unknown,
    /// What a manifest says that it runs as.
    RunsAs(u32),
    /// Who listens where inbound connections are handed to, and whether the socket is
    /// transparent, as far as the kernel tells.
    Listens {
        uid: u32,
        transparent: Option<bool>,
    },
}

impl Proxy {
    /// The one that listens in the pod, if one does.
    pub fn seen(found: Option<&Established>) -> Option<Self> {
        let socket = found?.inbound_listeners.first()?;
        Some(Proxy::Listens { uid: socket.uid, transparent: socket.transparent })
    }
}

/// What is wrong with it under an interception, or has to be seen to.
pub fn warning(interception: &Interception, proxy: Proxy) -> Option<String> {
    let Interception { mode, proxy_uids, proxy_gids, .. } = interception;
    lint(*mode == Mode::Tproxy, proxy_uids, proxy_gids, proxy).map(|lint| format!("{}; {}", lint.message, lint.advice))
}

/// What is wrong with the proxy's user under TPROXY, as a finding of an audit. `uids` and `gids`:
/// those that rules call the proxy's.
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
