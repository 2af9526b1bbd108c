//! Starts ambient mode: makes its parts, and lets them run beside the agent's others.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use crate::backend::conditions::Conditions;
use crate::backend::host::{HostError, HostProbes};
use crate::backend::iptables::programs::ProgramEnvironment;
use crate::config::ambient::HostOptions;
use crate::config::given::process_environment;
use crate::config::settings::BackendChoice;
use crate::config::types::Families;

use super::super::{Agent, kept_socket};
use super::host::Host;
use super::real::{LOCK_TIMEOUT, Real};
use super::standing::EnrolmentPolicy;
use super::zds::{self, ListenError};
use super::{Ambient, AmbientSettings, host, kubelet, namespaces, probe, writer};

/// What the agent is told about ambient mode.
#[derive(Debug, Clone)]
pub struct AmbientFlags {
    /// Where ztunnels connect to.
    pub socket: PathBuf,
    /// Whether DNS is taken of a pod that does not say.
    pub dns: bool,
    pub backend: BackendChoice,
    /// The families to program.
    pub families: Families,
    /// As whom the kubelet runs, where that is not to be found out.
    pub kubelet_uid: Option<u32>,
}

/// Starts ambient mode.
///
/// # Errors
///
/// Ztunnels cannot be listened for.
pub fn start(agent: &Arc<Agent>, given: &AmbientFlags, client: kube::Client) -> Result<(), ListenError> {
    let kubelet_uid = given.kubelet_uid.or_else(|| kubelet::uid(&agent.settings.host_proc));
    match kubelet_uid {
        Some(uid) => info!(uid, "the kubelet's user, by which probes are told"),
        None => warn!(
            "no kubelet is seen in {}: its probes are told by user 0; give --kubelet-uid where it runs as another one",
            agent.settings.host_proc.display()
        ),
    }
    let host_options = HostOptions { families: given.families, kubelet_uid: kubelet_uid.unwrap_or(0) };
    let host = Arc::new(Host::new(given.backend, host_options, of_node()));
    let policy = EnrolmentPolicy { exclude_namespaces: agent.policy.exclude_namespaces.clone(), dns: given.dns };
    let settings = AmbientSettings {
        policy,
        families: given.families,
        heal: agent.settings.heal,
        verify_interval: agent.settings.verify_interval,
    };
    let world = Real::new(agent.clone(), host.clone(), given);
    let ambient = Arc::new(Ambient::new(world, settings, agent.metrics.ambient.clone()));
    let listener = zds::listen(&given.socket)?;
    let shared =
        zds::ServerContext { book: ambient.book.clone(), figures: ambient.figures.clone(), patience: zds::PATIENCE };
    if agent.ambient.set(ambient.clone()).is_err() {
        return Ok(());
    }
    tokio::spawn({
        let (agent, path) = (agent.clone(), given.socket.clone());
        async move {
            let (bind, serve) = (|| zds::listen(&path), |listener| zds::serve(listener, shared.clone()));
            kept_socket::serve(&path, "the socket for ztunnels", listener, bind, serve, &agent.lost_sockets).await;
        }
    });
    tokio::spawn(host::keep(ambient.clone(), host));
    tokio::spawn(writer::write(ambient.clone()));
    tokio::spawn(namespaces::watch(agent.clone(), ambient.clone(), client));
    tokio::spawn(probe::until_seen(ambient, kubelet_uid.unwrap_or(0)));
    info!(socket = %given.socket.display(), "ambient mode is on");
    Ok(())
}

/// Takes the node's rules away with the agent, unless pods are in ambient mode still: these keep
/// their own rules and their ztunnel, and the kubelet could not probe them any more.
pub async fn leave_node(ambient: &Ambient<Real>) {
    let is_used = !ambient.entries().is_empty();
    told(if is_used { Ok(Left::Used) } else { ambient.world.host().remove().await.map(Left::removed) });
}

/// As [`leave_node`] without an agent: the pods that are in ambient mode are those in the node's
/// sets. It works in the network namespace that the process is in.
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
    /// Pods in ambient mode need them.
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

/// In the node's namespace others change rules, too: whoever does so goes by the same lock.
fn of_node() -> Conditions {
    let programs = ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        host_network: true,
        ..ProgramEnvironment::default()
    };
    Conditions { rule_comments: false, lock_timeout: LOCK_TIMEOUT, programs }
}
