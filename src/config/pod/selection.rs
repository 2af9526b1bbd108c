//! Whether a pod is the one that was asked for, and whether its traffic is diverted.

use std::fmt;

use crate::config::settings::LONGEST_QUOTE;
use crate::config::value;
use crate::sys::text::shortened;

use super::PodId;
use super::model::{Container, INIT, MIRROR_OF, Metadata, PROXY, Pod, STATUS};

const INJECT: &str = "sidecar.istio.io/inject";

/// Why what was found is not the pod that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The object is no pod, or has another name or namespace; in words.
    NoPod(String),
    /// The pod has the same name but another UID: the one that was asked for was deleted.
    Uid,
}

/// Why a pod's traffic is not diverted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftAlone {
    /// The node's configuration excludes its namespace, which this is.
    ExcludedNamespace(String),
    /// An init container of its own makes the rules.
    HasInit,
    /// No container is called as a sidecar proxy is.
    NoProxy,
    /// The pod's proxy does not run Envoy.
    ProxyDisabled,
    /// The pod's proxy has another role, which is given: a gateway's, for instance.
    NoSidecar(String),
    /// The pod's label or annotation asks for no sidecar.
    InjectFalse,
    /// The pod has no status of an injector.
    NotInjected,
}

impl LeftAlone {
    /// The reason as one word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::ExcludedNamespace(_) => "excluded-namespace",
            Self::HasInit => "own-init-container",
            Self::NoProxy => "no-proxy",
            Self::ProxyDisabled => "proxy-disabled",
            Self::NoSidecar(_) => "no-sidecar",
            Self::InjectFalse => "inject-false",
            Self::NotInjected => "not-injected",
        }
    }
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ExcludedNamespace(namespace) => write!(f, "its namespace {namespace} is excluded by the netconf"),
            Self::HasInit => write!(f, "it has an init container {INIT}, which does the work"),
            Self::NoProxy => write!(f, "it has no container {PROXY}"),
            Self::ProxyDisabled => write!(f, "DISABLE_ENVOY is true for its container {PROXY}"),
            Self::NoSidecar(kind) => {
                write!(f, "its proxy is no sidecar, but '{}'", shortened(kind, LONGEST_QUOTE))
            }
            Self::InjectFalse => write!(f, "{INJECT} is false"),
            Self::NotInjected => write!(f, "it lacks the annotation {STATUS}: no sidecar was injected"),
        }
    }
}

impl Pod {
    /// Checks that an object is the pod that was asked for. Anything could pass for a pod without a
    /// sidecar, since a pod is left alone if containers are missing.
    ///
    /// # Errors
    /// When the object is another pod, or none.
    pub fn is(&self, wanted: &PodId) -> Result<(), Mismatch> {
        let Metadata { name, namespace, uid, .. } = &self.metadata;
        for (what, found, wanted) in [
            ("kind", &self.kind, "Pod"),
            ("namespace", namespace, wanted.namespace.as_str()),
            ("name", name, wanted.name.as_str()),
        ] {
            // What it is instead is not repeated: it may be anything, what was sent included.
            match found.as_deref() {
                Some(found) if found == wanted => {}
                Some(_) => return Err(Mismatch::NoPod(format!("its {what} is another than {wanted}"))),
                None => return Err(Mismatch::NoPod(format!("it has no {what}; expected {wanted}"))),
            }
        }
        let Some(wanted) = &wanted.uid else { return Ok(()) };
        // What the API server shows of a pod from a file on the node has a uid of its own.
        if [uid.as_deref(), self.annotation(MIRROR_OF)].contains(&Some(wanted)) {
            return Ok(());
        }
        match uid {
            Some(_) => Err(Mismatch::Uid),
            None => Err(Mismatch::NoPod("it has no uid".into())),
        }
    }

    /// The proxy that the pod's traffic goes to.
    ///
    /// # Errors
    /// Why the pod's traffic is not diverted.
    pub fn select(&self) -> Result<&Container, LeftAlone> {
        if self.init_containers().any(|container| container.name == INIT) {
            return Err(LeftAlone::HasInit);
        }
        let proxy = self.proxy().ok_or(LeftAlone::NoProxy)?;
        if proxy.variable("DISABLE_ENVOY").is_some_and(|text| value::boolean(text) == Ok(true)) {
            return Err(LeftAlone::ProxyDisabled);
        }
        match proxy.args.as_deref() {
            Some([first, second, ..]) if first == "proxy" && second != "sidecar" => {
                return Err(LeftAlone::NoSidecar(second.clone()));
            }
            _ => {}
        }
        // What is no boolean says nothing, as for an injector.
        let inject = self.label(INJECT).or_else(|| self.annotation(INJECT));
        if inject.is_some_and(|text| value::boolean(text) == Ok(false)) {
            return Err(LeftAlone::InjectFalse);
        }
        match self.annotation(STATUS) {
            Some(_) => Ok(proxy),
            None => Err(LeftAlone::NotInjected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_smallest_pods_are_understood() {
        let pod = |value: serde_json::Value| serde_json::from_value::<Pod>(value).unwrap();
        assert_eq!(pod(json!({})).select().unwrap_err(), LeftAlone::NoProxy);
        let nulls = json!({ "metadata": { "annotations": null, "labels": null },
            "spec": { "containers": [{ "name": "istio-proxy", "args": null, "env": null, "securityContext": null }] } });
        assert_eq!(pod(nulls).select().unwrap_err(), LeftAlone::NotInjected);
    }

    #[test]
    fn a_pod_is_known_by_kind_namespace_name_and_uid() {
        let wanted =
            |uid: Option<&str>| PodId { namespace: "shop".into(), name: "web-0".into(), uid: uid.map(str::to_owned) };
        let good = json!({ "kind": "Pod", "metadata": { "name": "web-0", "namespace": "shop", "uid": "7" } });
        let is =
            |value: &serde_json::Value, uid| serde_json::from_value::<Pod>(value.clone()).unwrap().is(&wanted(uid));
        assert_eq!((is(&good, Some("7")), is(&good, None), is(&good, Some("8"))), (Ok(()), Ok(()), Err(Mismatch::Uid)));
        for key in ["/kind", "/metadata/name", "/metadata/namespace"] {
            for other in [json!(null), json!("Status")] {
                let mut odd = good.clone();
                *odd.pointer_mut(key).unwrap() = other;
                assert!(matches!(is(&odd, None), Err(Mismatch::NoPod(_))), "{odd}");
            }
        }
        let mut mirror = good.clone();
        mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "8" });
        assert_eq!(is(&mirror, Some("8")), Ok(()));
        mirror["metadata"]["uid"] = json!(null);
        assert!(matches!(is(&mirror, Some("9")), Err(Mismatch::NoPod(_))));
    }
}
