//! Makes the parts of ambient mode, starts them beside the agent's other tasks, and leaves the node.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use crate::backend::conditions::Conditions;
use crate::backend::host::{HostError, HostProbes};
use crate::backend::iptables::programs::ProgramEnvironment;
use crate::config::ambient::HostOptions;
use crate::config::given::process_environment;
use crate::config::settings::BackendChoice;
use crate::sys::seqpacket::Listener;

use super::super::kept_socket;
use super::super::settings::AmbientFlags;
use super::super::shared::Shared;
use super::host::Host;
use super::real::{LOCK_TIMEOUT, Real};
use super::standing::EnrolmentPolicy;
use super::zds::{self, ListenError};
use super::{Ambient, AmbientSettings, host, kubelet, namespaces, probe, writer};

/// Ambient mode that is ready to run.
pub(in crate::node) struct ReadyAmbient {
    pub ambient: Arc<Ambient<Real>>,
    host: Arc<Host>,
    kubelet_uid: u32,
    socket: PathBuf,
    listener: Listener,
}

/// Makes the parts of ambient mode.
///
/// # Errors
///
/// The socket for ztunnels cannot be made.
pub(in crate::node) fn prepare(shared: &Arc<Shared>, given: &AmbientFlags) -> Result<ReadyAmbient, ListenError> {
    let settings = &shared.settings;
    let kubelet_uid = given.kubelet_uid.or_else(|| kubelet::uid(&settings.host_proc));
    match kubelet_uid {
        Some(uid) => info!(uid, "the kubelet's user, by which probes are told"),
        None => warn!(
            "no kubelet is seen in {}: its probes are told by user 0; give --kubelet-uid where it runs as another one",
            settings.host_proc.display()
        ),
    }
    let kubelet_uid = kubelet_uid.unwrap_or(0);
    let host_options = HostOptions { families: given.families, kubelet_uid };
    let host = Arc::new(Host::new(given.backend, host_options, of_node()));
    let policy = EnrolmentPolicy { exclude_namespaces: settings.policy.exclude_namespaces.clone(), dns: given.dns };
    let ambient_settings = AmbientSettings {
        policy,
        families: given.families,
        heal: settings.heal,
        verify_interval: settings.verify_interval,
    };
    let world = Real::new(shared.clone(), host.clone(), given);
    let ambient = Arc::new(Ambient::new(world, ambient_settings, shared.metrics.ambient.clone()));
    let listener = zds::listen(&given.socket)?;
    Ok(ReadyAmbient { ambient, host, kubelet_uid, socket: given.socket.clone(), listener })
}

impl ReadyAmbient {
    /// Starts the tasks of ambient mode. `client` is for the watch of namespaces; `changed` is called
    /// with the namespaces that got or lost the label.
    pub(crate) fn run(
        self,
        shared: &Arc<Shared>,
        client: kube::Client,
        changed: impl Fn(&[String]) + Send + Sync + 'static,
    ) {
        let Self { ambient, host, kubelet_uid, socket, listener } = self;
        info!(socket = %socket.display(), "ambient mode is on");
        let for_ztunnels = zds::ServerContext {
            book: ambient.book.clone(),
            figures: ambient.figures.clone(),
            patience: zds::PATIENCE,
        };
        tokio::spawn({
            let shared = shared.clone();
            async move {
                let (bind, serve) = (|| zds::listen(&socket), |listener| zds::serve(listener, for_ztunnels.clone()));
                kept_socket::serve(&socket, "the socket for ztunnels", listener, bind, serve, &shared.lost_sockets)
                    .await;
            }
        });
        tokio::spawn(host::keep(ambient.clone(), host));
        tokio::spawn(writer::write(ambient.clone()));
        tokio::spawn(namespaces::watch(shared.clone(), ambient.clone(), client, changed));
        tokio::spawn(probe::until_seen(ambient, kubelet_uid));
    }
}

/// Removes the node's rules, unless pods are still in ambient mode: these keep their own rules and their
/// ztunnel, and without the node's rules the kubelet could not probe them.
pub async fn leave_node(ambient: &Ambient<Real>) {
    let is_used = !ambient.entries().is_empty();
    told(if is_used { Ok(Left::Used) } else { ambient.world.host().remove().await.map(Left::removed) });
}

/// Does the same as [`leave_node`] where no agent runs: the pods in ambient mode are those in the node's
/// sets. The rules are those of the network namespace that the process is in.
pub fn leave_node_by_hand() {
    let remove = || {
        let mut probes = HostProbes::open(BackendChoice::Auto, HostOptions::default(), of_node())?;
        let is_used = !probes.entries()?.is_empty();
        if is_used { Ok(Left::Used) } else { probes.remove().map(Left::removed) }
    };
    told(remove().map_err(|problem: HostError| problem.to_string()));
}

/// What became of the node's rules for probes.
enum Left {
    Nothing,
    Removed,
    /// The rules stay, since pods in ambient mode need them.
    Used,
}

impl Left {
    fn removed(there_were: bool) -> Self {
        if there_were { Self::Removed } else { Self::Nothing }
    }
}

fn told(left: Result<Left, String>) {
    const BY_HAND: &str = "podweir ambient-host --remove takes them away";
    match left {
        Ok(Left::Nothing) => {}
        Ok(Left::Removed) => info!("the node's rules for probes are gone"),
        Ok(Left::Used) => warn!("the node's rules for probes stay, since there are pods in ambient mode: {BY_HAND}"),
        Err(problem) => warn!("the node's rules for probes stay: {problem}; {BY_HAND}"),
    }
}

/// The conditions for changing the node's rules, which other programs change as well: they all take the
/// same lock.
fn of_node() -> Conditions {
    let programs = ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        host_network: true,
        ..ProgramEnvironment::default()
    };
    Conditions { rule_comments: false, lock_timeout: LOCK_TIMEOUT, programs }
}
