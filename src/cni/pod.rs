//! A pod as the API server tells it: as much as decides about it, and whether it is one
//! whose traffic is to be diverted.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::config::settings::LONGEST_QUOTE;
use crate::config::value;
use crate::sys::text::shortened;

use super::request::PodId;

pub const STATUS: &str = "sidecar.istio.io/status";
/// On what the API server shows of a static pod: the uid by which the kubelet knows it
/// (`ConfigMirrorAnnotationKey`, pkg/kubelet/types).
pub const MIRROR_OF: &str = "kubernetes.io/config.mirror";
const INJECT: &str = "sidecar.istio.io/inject";
const PROXY: &str = "istio-proxy";
const INIT: &str = "istio-init";

type Texts = Option<BTreeMap<String, String>>;

/// The parts of a pod that decide.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: PodSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Metadata {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    annotations: Texts,
    #[serde(default)]
    labels: Texts,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    init_containers: Option<Vec<Container>>,
    #[serde(default)]
    containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    security_context: Option<SecurityContext>,
}

#[derive(Debug, Clone, Deserialize)]
struct Variable {
    name: String,
    /// Absent where the value comes from elsewhere.
    #[serde(default)]
    value: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    #[serde(default)]
    run_as_user: Option<i64>,
    #[serde(default)]
    run_as_group: Option<i64>,
}

/// Why what was found is not the pod that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// It is something else.
    NoPod(String),
    /// Another pod of that name, made after the one that was asked for was deleted.
    Uid,
}

/// Why a pod's traffic is not diverted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftAlone {
    NotKubernetes,
    ExcludedNamespace(String),
    OwnAgent,
    HasInit,
    NoProxy,
    ProxyDisabled,
    NoSidecar(String),
    InjectFalse,
    NotInjected,
    /// The node's agent decided so, with this reason.
    AgentSays(String),
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NotKubernetes => f.write_str(
                "CNI_ARGS names no pod with its namespace, and the netconf has no interception: this is not Kubernetes",
            ),
            Self::ExcludedNamespace(namespace) => write!(f, "its namespace {namespace} is excluded by the netconf"),
            Self::OwnAgent => f.write_str("it is the node's own agent"),
            Self::HasInit => write!(f, "it has an init container {INIT}, which does the work"),
            Self::NoProxy => write!(f, "it has no container {PROXY}"),
            Self::ProxyDisabled => write!(f, "DISABLE_ENVOY is true for its container {PROXY}"),
            Self::NoSidecar(kind) => {
                write!(f, "its proxy is no sidecar, but '{}'", shortened(kind, LONGEST_QUOTE))
            }
            Self::AgentSays(why) => f.write_str(why),
            Self::InjectFalse => write!(f, "{INJECT} is false"),
            Self::NotInjected => write!(f, "it lacks the annotation {STATUS}: no sidecar was injected"),
        }
    }
}

impl Container {
    /// The literal value of a variable; the last one given counts.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let variables = self.env.iter().flatten().rev();
        variables.filter(|variable| variable.name == name).find_map(|variable| variable.value.as_deref())
    }

    /// Who it runs as; 0 is as good as unknown: no proxy runs as root, or everything of
    /// root's would count as its own.
    pub fn run_as_user(&self) -> Option<i64> {
        self.security_context.as_ref()?.run_as_user.filter(|&id| id != 0)
    }

    pub fn run_as_group(&self) -> Option<i64> {
        self.security_context.as_ref()?.run_as_group.filter(|&id| id != 0)
    }
}

/// The beginnings of the names of annotations and labels that decide.
const DECIDES: [&str; 5] =
    ["sidecar.istio.io/", "traffic.sidecar.istio.io/", "istio.io/", "ambient.istio.io/", "k8s.v1.cni.cncf.io/"];

impl Pod {
    /// A pod with only what decides: the annotations and labels of a mesh, and the
    /// containers that a mesh adds. Of the injector's note only that it is there is kept.
    pub fn trimmed(annotations: Texts, labels: Texts, spec: PodSpec) -> Self {
        let decides = |texts: Texts| {
            let kept = texts.unwrap_or_default().into_iter();
            kept.filter(|(name, _)| DECIDES.iter().any(|begin| name.starts_with(begin)))
                .map(|(name, text)| if name == STATUS { (name, String::new()) } else { (name, text) })
                .collect()
        };
        let mesh = |containers: Option<Vec<Container>>| {
            let mut kept: Vec<Container> = containers.unwrap_or_default();
            kept.retain(|container| container.name == PROXY || container.name == INIT);
            kept.shrink_to_fit();
            Some(kept)
        };
        Self {
            kind: None,
            metadata: Metadata {
                annotations: Some(decides(annotations)),
                labels: Some(decides(labels)),
                ..Metadata::default()
            },
            spec: PodSpec { init_containers: mesh(spec.init_containers), containers: mesh(spec.containers) },
        }
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether this is a certain pod. To be left alone it is enough that containers are
    /// missing, so anything could pass for a pod without a sidecar.
    ///
    /// # Errors
    /// When it is another one, or none.
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

    fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The arguments and literal variables of the init container that makes the rules.
    pub fn init_arguments(&self) -> Option<(Vec<String>, BTreeMap<String, String>)> {
        let init = self.init_containers().find(|container| container.name == INIT)?;
        let words = [&init.command, &init.args].into_iter().flatten().flatten().cloned().collect();
        let variables = init.env.iter().flatten().filter_map(|v| Some((v.name.clone(), v.value.clone()?))).collect();
        Some((words, variables))
    }

    fn init_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().flatten()
    }

    /// The sidecar proxy, which may be an init container that goes on running.
    fn proxy(&self) -> Option<&Container> {
        let mut all = self.spec.containers.iter().flatten().chain(self.init_containers());
        all.find(|container| container.name == PROXY)
    }

    /// The proxy that the pod's traffic goes to, or why it goes to none.
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

    #[test]
    fn only_literal_variables_count_and_the_last_one_wins() {
        let proxy: Container = serde_json::from_value(json!({ "name": "p", "env": [
            { "name": "A", "value": "1" }, { "name": "A", "value": "2" }, { "name": "B", "valueFrom": {} }, { "name": "C" } ] }))
        .unwrap();
        assert_eq!((proxy.variable("A"), proxy.variable("B"), proxy.variable("C")), (Some("2"), None, None));
    }
}
