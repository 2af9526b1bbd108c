//! Whether a pod is to be in ambient mode, and with which options: pure, from the pod, its namespace and
//! the agent's settings.

use crate::config::types::Interface;
use crate::config::value;

use super::super::cache::{Known, Phase};

/// The label by which a pod or a namespace asks for ambient mode, and its values.
pub const MODE: &str = "istio.io/dataplane-mode";
pub const AMBIENT: &str = "ambient";
const NONE: &str = "none";
/// The annotation that says whether ztunnel takes the pod's traffic.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
pub const ENABLED: &str = "enabled";
pub const PENDING: &str = "pending";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const SIDECAR: &str = "sidecar.istio.io/status";

/// The agent's settings about which pods are in ambient mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentPolicy {
    /// Namespaces of Kubernetes whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// Whether DNS is captured for a pod that does not say.
    pub dns: bool,
}

/// The options of a pod in ambient mode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Whether DNS goes to ztunnel.
    pub dns: bool,
    /// Whether inbound traffic is left alone, since the pod is the mesh's ingress.
    pub ingress: bool,
    /// Interfaces of virtual machines.
    pub virtual_interfaces: Vec<Interface>,
}

/// Whether a pod is to be in ambient mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The pod is not in ambient mode.
    Out { why: String },
    /// Ztunnel is to take the pod's traffic.
    In { why: &'static str, options: Options, warnings: Vec<String> },
}

impl Standing {
    pub fn is_in(&self) -> bool {
        matches!(self, Self::In { .. })
    }
}

/// Decides whether a pod is to be in ambient mode. `namespace`: whether its namespace has the label.
pub fn standing(known: &Known, namespace: bool, policy: &EnrolmentPolicy) -> Standing {
    let out = |why: &str| Standing::Out { why: why.into() };
    if known.host_network {
        return out("it is in the node's own network namespace");
    }
    if known.phase == Phase::Ended {
        return out("all its containers have ended");
    }
    if policy.exclude_namespaces.contains(&known.namespace) {
        return Standing::Out { why: format!("its namespace {} is excluded", known.namespace) };
    }
    if known.ztunnel {
        return out("it is a ztunnel itself");
    }
    if known.pod.annotation(SIDECAR).is_some() {
        return out("it has a sidecar");
    }
    let why = match (known.pod.label(MODE), namespace) {
        (Some(AMBIENT), _) => "its label istio.io/dataplane-mode is ambient",
        (Some(NONE), _) => return out("its label istio.io/dataplane-mode is none"),
        (_, true) => "the label istio.io/dataplane-mode of its namespace is ambient",
        (_, false) => return out("neither it nor its namespace has the label istio.io/dataplane-mode=ambient"),
    };
    let mut warnings = Vec::new();
    let mut boolean = |name: &str, default: bool| match known.pod.annotation(name).map(value::boolean) {
        None => default,
        Some(Ok(value)) => value,
        Some(Err(e)) => {
            warnings
                .push(format!("annotation {name}: '{}' {}; it is ignored, expected {}", e.item, e.problem, e.expected));
            default
        }
    };
    let ingress = boolean(BYPASS_INBOUND, false);
    let dns = boolean(DNS_CAPTURE, policy.dns);
    let mut virtual_interfaces = Vec::new();
    for text in known.pod.annotation(VIRTUAL_INTERFACES).into_iter().flat_map(value::items) {
        match value::interfaces(text) {
            Ok(interfaces) => {
                for interface in interfaces {
                    if !virtual_interfaces.contains(&interface) {
                        virtual_interfaces.push(interface);
                    }
                }
            }
            Err(e) => warnings.push(format!(
                "annotation {VIRTUAL_INTERFACES}: '{}' {}; it is ignored, expected {}",
                e.item, e.problem, e.expected
            )),
        }
    }
    Standing::In { why, options: Options { dns, ingress, virtual_interfaces }, warnings }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy() -> EnrolmentPolicy {
        EnrolmentPolicy { exclude_namespaces: vec!["kube-system".into()], dns: true }
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Known {
        let mut pod = json!({ "metadata": { "namespace": "shop", "name": "web-0", "uid": "7",
                "labels": {}, "annotations": {} },
            "spec": { "containers": [{ "name": "app" }] }, "status": { "phase": "Running" } });
        change(&mut pod);
        Known::of(serde_json::from_value(pod).unwrap()).unwrap()
    }

    fn labelled(value: &str) -> Known {
        pod(|pod| pod["metadata"]["labels"][MODE] = value.into())
    }

    #[test]
    fn a_pods_label_beats_that_of_its_namespace() {
        let is_in = |known: &Known, namespace: bool| standing(known, namespace, &policy()).is_in();
        let plain = pod(|_| ());
        assert_eq!((is_in(&plain, false), is_in(&plain, true)), (false, true));
        assert_eq!((is_in(&labelled(AMBIENT), false), is_in(&labelled(AMBIENT), true)), (true, true));
        assert_eq!((is_in(&labelled(NONE), false), is_in(&labelled(NONE), true)), (false, false));
        // What is neither says nothing.
        assert_eq!((is_in(&labelled("Ambient"), false), is_in(&labelled("Ambient"), true)), (false, true));
    }

    #[test]
    fn some_pods_never_are() {
        let cases: [(&str, &str, Value, &str); 5] = [
            ("/spec", "hostNetwork", json!(true), "own"),
            ("/metadata/annotations", "sidecar.istio.io/status", json!("{}"), "sidecar"),
            ("/metadata", "namespace", json!("kube-system"), "excluded"),
            ("/status", "phase", json!("Succeeded"), "ended"),
            ("/metadata/labels", "app", json!("ztunnel"), "ztunnel"),
        ];
        for (at, key, value, word) in cases {
            for label in [None, Some(AMBIENT)] {
                let known = pod(|pod| {
                    pod.pointer_mut(at).unwrap()[key] = value.clone();
                    if let Some(label) = label {
                        pod["metadata"]["labels"][MODE] = label.into();
                    }
                });
                let Standing::Out { why } = standing(&known, true, &policy()) else { panic!("{word}") };
                assert!(why.contains(word), "{why}");
            }
        }
    }

    #[test]
    fn annotations_are_read_as_go_reads_them_and_nonsense_is_told() {
        let options = |annotations: Value, policy: &EnrolmentPolicy| {
            let known = pod(|pod| pod["metadata"]["annotations"] = annotations);
            let Standing::In { options, warnings, .. } = standing(&known, true, policy) else { panic!() };
            (options, warnings)
        };
        let no_dns = EnrolmentPolicy { dns: false, ..policy() };
        let (plain, warnings) = options(json!({}), &policy());
        assert_eq!((plain, warnings.len()), (Options { dns: true, ..Options::default() }, 0));
        assert!(!options(json!({}), &no_dns).0.dns);
        for (text, value) in [("true", true), ("T", true), ("1", true), ("False", false), ("0", false), ("f", false)] {
            let (options, warnings) = options(json!({ BYPASS_INBOUND: text, DNS_CAPTURE: text }), &no_dns);
            assert_eq!((options.ingress, options.dns, warnings.len()), (value, value, 0), "{text}");
        }
        for text in ["yes", "", "tRUE", " true", "on"] {
            let (options, warnings) = options(json!({ BYPASS_INBOUND: text, DNS_CAPTURE: text }), &policy());
            assert_eq!((options.ingress, options.dns, warnings.len()), (false, true, 2), "{text}");
            assert!(warnings[0].contains(BYPASS_INBOUND), "{warnings:?}");
        }
        let (options, warnings) =
            options(json!({ VIRTUAL_INTERFACES: "tap0, tap+,a/b,tap0,, way-too-long-a-name" }), &policy());
        let names: Vec<String> =
            options.virtual_interfaces.iter().map(|i| format!("{}{}", i.name, i.any_ending)).collect();
        assert_eq!(names, ["tap0false", "taptrue"]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
