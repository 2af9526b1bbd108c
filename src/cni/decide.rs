//! Whether a pod's traffic is diverted, and how: everything known about it, in the order
//! in which knowing gets more expensive.

use crate::config::given::Given;

use super::annotations;
use super::kubeconfig::Place;
use super::lookup;
use super::netconf::Netconf;
use super::pod::{LeftAlone, Pod, STATUS};
use super::protocol::CniError;
use super::request::{Deadline, PodId};

/// How the DaemonSets of agents are called; their pods' names begin so.
const AGENTS: [&str; 2] = ["podweir-node-", "istio-cni-node-"];

/// What is to be done with a pod.
#[derive(Debug)]
pub enum Decision {
    LeaveAlone(LeftAlone),
    Intercept {
        options: Given,
        why: &'static str,
        /// What the user should hear.
        warnings: Vec<String>,
    },
}

/// Decides where there is no pod: this is not Kubernetes.
pub fn without_pod(netconf: &Netconf) -> Decision {
    let why = "the netconf has an interception";
    match netconf.intercepts {
        true => Decision::Intercept { options: netconf.options.clone(), why, warnings: Vec::new() },
        false => Decision::LeaveAlone(LeftAlone::NotKubernetes),
    }
}

/// Decides about a pod after asking who it is.
///
/// # Errors
/// When nobody can tell, or what the pod asks for makes no sense.
pub fn by_asking(netconf: &Netconf, pod: &PodId, deadline: &Deadline) -> Result<Decision, CniError> {
    let place = Place { run_dir: netconf.run_dir.clone(), allow_http: netconf.allow_http };
    about(&lookup::pod(pod, &place, deadline)?, &netconf.options)
}

/// Decides about a pod that is known, whoever told of it. `netconf`: the options that the
/// node sets beneath those of the pod.
///
/// # Errors
/// When an annotation makes no sense.
pub fn about(pod: &Pod, netconf: &Given) -> Result<Decision, CniError> {
    let proxy = match pod.select() {
        Ok(proxy) => proxy,
        Err(why) => return Ok(Decision::LeaveAlone(why)),
    };
    let mut warnings = Vec::new();
    let options = annotations::options(pod, proxy, netconf, &mut |warning| warnings.push(warning))?;
    Ok(Decision::Intercept { options, why: "a sidecar was injected", warnings })
}

/// What can be told of a pod without asking anybody.
pub fn without_asking(netconf: &Netconf, pod: &PodId) -> Option<LeftAlone> {
    if netconf.exclude_namespaces.contains(&pod.namespace) {
        return Some(LeftAlone::ExcludedNamespace(pod.namespace.clone()));
    }
    // The agent brings the credential for looking pods up: it cannot wait for that.
    if pod.namespace == netconf.pod_namespace && AGENTS.iter().any(|agent| pod.name.starts_with(agent)) {
        return Some(LeftAlone::OwnAgent);
    }
    // Labels are not handed over, so of all the rules only this one can be told.
    let annotations = netconf.annotations.as_ref()?;
    (!annotations.contains_key(STATUS)).then_some(LeftAlone::NotInjected)
}
