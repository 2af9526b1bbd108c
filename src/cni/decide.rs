//! Decides whether and how a pod's traffic is diverted, by what is known about it: first what is known
//! at once, then what has to be asked for.

use std::time::Duration;

use tracing::warn;

use crate::config::given::Given;
use crate::config::pod::model::{Pod, STATUS};
use crate::config::pod::selection::LeftAlone;
use crate::config::pod::{PodId, annotations};

use super::agent;
use super::agent::message::Decide as Asked;
use super::decision::Decision;
use super::kubeconfig::{self, KubeconfigPlace};
use super::lookup;
use super::netconf::Netconf;
use super::protocol::{CniError, Code};
use super::request::Deadline;

/// How the names of agents' pods begin: with the names of their DaemonSets.
const AGENTS: [&str; 2] = ["podweir-node-", "istio-cni-node-"];

/// How long a pod waits for an agent that is away, unless the netconf says otherwise.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a pod waits for an agent that is away where there is a kubeconfig as well.
const AGENT_TIMEOUT_BESIDE: Duration = Duration::from_secs(2);

/// Why nothing is done where no pod is named.
const NOT_KUBERNETES: &str =
    "CNI_ARGS names no pod with its namespace, and the netconf has no interception: this is not Kubernetes";

/// Decides for a container that is no pod of Kubernetes'.
pub(crate) fn without_pod(netconf: &Netconf) -> Decision {
    let why = "the netconf has an interception";
    match netconf.intercepts {
        true => Decision::Intercept { options: netconf.options.clone(), why, warnings: Vec::new() },
        false => Decision::LeaveAlone(NOT_KUBERNETES.into()),
    }
}

/// Decides about a pod after asking who it is: the node's agent, where there is one; else,
/// or where it does not answer and there is a kubeconfig, the API server.
///
/// # Errors
/// Nobody answers, or the pod's options are not valid.
pub(crate) fn by_asking(
    netconf: &Netconf,
    pod: &PodId,
    asked: Asked,
    deadline: &Deadline,
) -> Result<Decision, CniError> {
    let place = KubeconfigPlace { run_dir: netconf.run_dir.clone(), allow_http: netconf.allow_http };
    // The netconf of an installation by an agent says so; a socket says it as well.
    if netconf.agent_timeout.is_some() || agent::is_there(&netconf.run_dir) {
        let longest = netconf.agent_timeout.unwrap_or(AGENT_TIMEOUT);
        // With a kubeconfig, an agent that does not answer at once is not waited for. What is in
        // ambient mode the API server's answer alone does not tell, nor what ztunnel has taken.
        let has_kubeconfig = kubeconfig::is_there(&place) && !netconf.ambient;
        let longest = if has_kubeconfig { longest.min(AGENT_TIMEOUT_BESIDE) } else { longest };
        match agent::decide(&netconf.run_dir, &asked, deadline, longest) {
            Err(error) if has_kubeconfig && error.code == Code::TryAgainLater => {
                warn!("{error}; the API server is asked, since there is a kubeconfig");
            }
            decided => return decided,
        }
    }
    about(&lookup::pod(pod, &place, deadline)?, &netconf.options)
}

/// Decides about a pod that is known, whoever told of it. `netconf`: the options that the
/// node sets beneath those of the pod.
///
/// # Errors
/// When an annotation makes no sense.
pub(crate) fn about(pod: &Pod, netconf: &Given) -> Result<Decision, CniError> {
    let proxy = match pod.select() {
        Ok(proxy) => proxy,
        Err(why) => return Ok(Decision::LeaveAlone(why.to_string())),
    };
    let mut warnings = Vec::new();
    let options = annotations::options(pod, proxy, netconf, &mut |warning| warnings.push(warning))?;
    Ok(Decision::Intercept { options, why: "a sidecar was injected", warnings })
}

/// Why a pod is left alone, if that is known without a request.
pub(crate) fn without_asking(netconf: &Netconf, pod: &PodId) -> Option<String> {
    if netconf.exclude_namespaces.contains(&pod.namespace) {
        return Some(LeftAlone::ExcludedNamespace(pod.namespace.clone()).to_string());
    }
    // The agent brings the credential for looking pods up: it cannot wait for that.
    if pod.namespace == netconf.pod_namespace && AGENTS.iter().any(|agent| pod.name.starts_with(agent)) {
        return Some("it is the node's own agent".into());
    }
    // In ambient mode labels decide, of the pod and of its namespace, and these are not handed over.
    if netconf.ambient {
        return None;
    }
    // Labels are not handed over, so of all the rules only this one can be told.
    let annotations = netconf.annotations.as_ref()?;
    (!annotations.contains_key(STATUS)).then(|| LeftAlone::NotInjected.to_string())
}
