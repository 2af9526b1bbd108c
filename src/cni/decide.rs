//! Whether a pod's traffic is diverted, and how: everything known about it, in the order
//! in which knowing gets more expensive.

use crate::config::given::Given;

use super::annotations;
use super::lookup;
use super::netconf::Netconf;
use super::pod::{LeftAlone, STATUS};
use super::protocol::CniError;
use super::request::{Deadline, PodName};

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

/// Decides; looks the pod up where nothing cheaper tells.
pub fn decide(netconf: &Netconf, pod: Option<&PodName>, deadline: &Deadline) -> Result<Decision, CniError> {
    let name = match pod {
        Some(name) => name,
        None if netconf.intercepts => {
            let why = "the netconf has an interception";
            return Ok(Decision::Intercept { options: netconf.options.clone(), why, warnings: Vec::new() });
        }
        None => return Ok(Decision::LeaveAlone(LeftAlone::NotKubernetes)),
    };
    if let Some(why) = without_looking(netconf, name) {
        return Ok(Decision::LeaveAlone(why));
    }
    let pod = lookup::pod(name, &netconf.run_dir, deadline)?;
    let proxy = match pod.select() {
        Ok(proxy) => proxy,
        Err(why) => return Ok(Decision::LeaveAlone(why)),
    };
    let mut warnings = Vec::new();
    let options = annotations::options(&pod, proxy, &netconf.options, &mut |warning| warnings.push(warning))?;
    Ok(Decision::Intercept { options, why: "a sidecar was injected", warnings })
}

/// What can be told of a pod without asking the API server.
fn without_looking(netconf: &Netconf, pod: &PodName) -> Option<LeftAlone> {
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
