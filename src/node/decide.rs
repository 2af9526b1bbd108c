//! What is to be done with a pod of this node: the same decision for the plugin that asks
//! at the pod's start and for the verifier that looks later. Pure; nothing is looked up.

use std::collections::BTreeMap;

use crate::backend::facts::NoFacts;
use crate::cni::namespace::refused;
use crate::cni::protocol::CniError;
use crate::config::given::Given;
use crate::config::pod::annotations;
use crate::config::pod::model::Pod;
use crate::config::pod::selection::LeftAlone;
use crate::config::settings::{Face, Settings};

use super::cache::Known;

/// The decisions of the cluster's administrator for all pods.
#[derive(Clone)]
pub struct Policy {
    /// Namespaces of Kubernetes whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The default options, which a pod's own ones override.
    pub defaults: Given,
    /// How options are read from an init container's arguments and variables.
    pub read_init: ReadInit,
}

/// Reads the options of an init container from its arguments and variables; fails if they make none.
pub type ReadInit = fn(&[String], &BTreeMap<String, String>) -> Result<(Given, Face), String>;

/// Who makes a pod's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Programmer {
    /// The plugin, or the agent in its place.
    Plugin,
    /// The pod's own init container.
    Init,
}

/// The decision about a pod.
#[derive(Debug, Clone)]
pub(super) enum PodDecision {
    LeaveAlone(String),
    Intercept {
        by: Programmer,
        options: Given,
        face: Face,
        why: &'static str,
        warnings: Vec<String>,
    },
    /// The pod has options that make no sense.
    Refuse(CniError),
}

/// Decides about a pod.
pub(super) fn decide(known: &Known, policy: &Policy) -> PodDecision {
    if known.host_network {
        return PodDecision::LeaveAlone("it is in the node's own network namespace".into());
    }
    if policy.exclude_namespaces.contains(&known.namespace) {
        return PodDecision::LeaveAlone(LeftAlone::ExcludedNamespace(known.namespace.clone()).to_string());
    }
    match known.pod.select() {
        Ok(proxy) => {
            let mut warnings = Vec::new();
            match annotations::options(&known.pod, proxy, &policy.defaults, &mut |w| warnings.push(w)) {
                Ok(options) if let Some(error) = nonsense(&options) => PodDecision::Refuse(error),
                Ok(options) => PodDecision::Intercept {
                    by: Programmer::Plugin,
                    options,
                    face: Face::Init,
                    why: "a sidecar was injected",
                    warnings,
                },
                Err(error) => PodDecision::Refuse(error.into()),
            }
        }
        Err(LeftAlone::HasInit) => by_init(&known.pod, policy),
        Err(why) => PodDecision::LeaveAlone(why.to_string()),
    }
}

/// The reason why a pod is left alone, as a word for metrics; `other` if ambient mode or the arguments
/// of its init container are the reason.
pub(super) fn left_alone_by(known: &Known, policy: &Policy) -> &'static str {
    if known.host_network {
        return "host-network";
    }
    if policy.exclude_namespaces.contains(&known.namespace) {
        return LeftAlone::ExcludedNamespace(String::new()).word();
    }
    known.pod.select().err().map_or("other", |why| why.word())
}

/// The error in a pod's options that holds whatever its addresses are, if there is one.
fn nonsense(options: &Given) -> Option<CniError> {
    let error = Settings::resolve(options, Face::Init, &NoFacts).err()?;
    error.is_usage().then(|| refused(error))
}

/// The decision about a pod whose own init container makes its rules.
fn by_init(pod: &Pod, policy: &Policy) -> PodDecision {
    let Some((arguments, variables)) = pod.init_arguments() else {
        return PodDecision::LeaveAlone(LeftAlone::HasInit.to_string());
    };
    match (policy.read_init)(&arguments, &variables) {
        Ok((options, face)) => PodDecision::Intercept {
            by: Programmer::Init,
            options,
            face,
            why: "its init container makes its rules",
            warnings: Vec::new(),
        },
        Err(problem) => PodDecision::LeaveAlone(format!(
            "{}, by arguments that podweir does not understand: {problem}",
            LeftAlone::HasInit
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_is_left_alone_has_a_word_for_the_reason() {
        let policy = Policy {
            exclude_namespaces: vec!["kube-system".into()],
            defaults: Given::default(),
            read_init: |_, _| Err("there is none".into()),
        };
        let pod = |namespace: &str, host_network: bool, containers: serde_json::Value, init: serde_json::Value| {
            let watched = serde_json::from_value(json!({
                "metadata": { "namespace": namespace, "name": "web", "uid": "1" },
                "spec": { "hostNetwork": host_network, "containers": containers, "initContainers": init },
            }));
            Known::of(watched.unwrap()).unwrap()
        };
        let (app, proxy) =
            (json!([{ "name": "app" }]), json!([{ "name": "istio-proxy", "args": ["proxy", "sidecar"] }]));
        for (known, word) in [
            (pod("shop", true, app.clone(), json!([])), "host-network"),
            (pod("kube-system", false, app.clone(), json!([])), "excluded-namespace"),
            (pod("shop", false, app.clone(), json!([])), "no-proxy"),
            (pod("shop", false, proxy.clone(), json!([])), "not-injected"),
            (pod("shop", false, proxy, json!([{ "name": "istio-init" }])), "own-init-container"),
        ] {
            assert!(matches!(decide(&known, &policy), PodDecision::LeaveAlone(_)), "{word}");
            assert_eq!(left_alone_by(&known, &policy), word);
        }
    }

    #[test]
    fn what_a_pod_asks_for_and_makes_no_sense_is_refused_with_its_annotation() {
        let known = |value: &str| {
            let watched = serde_json::from_value(json!({
                "metadata": { "namespace": "shop", "name": "web", "uid": "1", "annotations": {
                    "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": value } },
                "spec": { "containers": [{ "name": "app" }, { "name": "istio-proxy", "args": ["proxy", "sidecar"] }] },
            }));
            Known::of(watched.unwrap()).unwrap()
        };
        let policy = Policy {
            exclude_namespaces: Vec::new(),
            defaults: Given::default(),
            read_init: |_, _| Err("there is none".into()),
        };
        assert!(matches!(decide(&known("80,8080"), &policy), PodDecision::Intercept { .. }));
        let PodDecision::Refuse(error) = decide(&known("99999"), &policy) else { panic!() };
        let text = error.to_string();
        for words in ["99999", "traffic.sidecar.istio.io/includeInboundPorts", "correct the pod's annotation"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
