//! A pod as the watch delivers it: only the fields that decide are ever taken out of its text, so that
//! the others take no memory, not even for a moment.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::pod::model::{MIRROR_OF, PodSpec, decides};

/// A pod as the watch delivers it. Only the fields of specification and status that decide are ever
/// taken out of the text.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct WatchedPod {
    #[serde(default, deserialize_with = "what_decides")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: WatchedStatus,
}

/// Reads of a pod's metadata what decides and what a watch needs. The rest, who set which
/// field and the manifest as it was applied, is most of it: in a list of 500 pods, which comes
/// whole, it would take tens of megabytes for a moment.
fn what_decides<'de, D: Deserializer<'de>>(reader: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<Deciding>,
        annotations: Option<Deciding>,
    }
    let told = Metadata::deserialize(reader)?;
    let texts = |texts: Option<Deciding>| texts.map(|Deciding(texts)| texts);
    Ok(ObjectMeta {
        name: told.name,
        namespace: told.namespace,
        uid: told.uid,
        resource_version: told.resource_version,
        creation_timestamp: told.creation_timestamp,
        deletion_timestamp: told.deletion_timestamp,
        labels: texts(told.labels),
        annotations: texts(told.annotations),
        ..ObjectMeta::default()
    })
}

/// The annotations or labels that decide about a pod; all others are not kept.
struct Deciding(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Deciding {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Deciding;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("texts by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Deciding, M::Error> {
                let mut texts = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if decides(&name) || ALSO.contains(&name.as_str()) {
                        texts.insert(name, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Deciding(texts))
            }
        }
        reader.deserialize_map(Texts)
    }
}

/// Annotations and labels besides those of meshes: the UID by which the kubelet knows a pod, and whether
/// the pod is a ztunnel.
const ALSO: [&str; 3] = [MIRROR_OF, "app", "app.kubernetes.io/name"];

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WatchedStatus {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(default)]
    pub(super) conditions: Vec<PodCondition>,
    #[serde(default, rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: String,
}

impl kube::Resource for WatchedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "Pod".into()
    }

    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cache::Known;
    use super::*;

    #[test]
    fn what_does_not_decide_is_not_even_read() {
        let pod: WatchedPod = serde_json::from_value(json!({ "metadata": {
            "name": "a", "namespace": "b", "uid": "c", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            "ownerReferences": [{ "name": "n" }],
            "labels": { "app": "ztunnel", "pod-template-hash": "x", "istio.io/dataplane-mode": "none" },
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "x", MIRROR_OF: "m", "istio.io/rev": "r" } } }))
        .unwrap();
        let meta = &pod.metadata;
        assert!(meta.managed_fields.is_none() && meta.owner_references.is_none());
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        let names = |texts: &Option<BTreeMap<String, String>>| {
            texts.iter().flatten().map(|(n, _)| n.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&meta.labels), ["app", "istio.io/dataplane-mode"]);
        assert_eq!(names(&meta.annotations), ["istio.io/rev", MIRROR_OF]);
        let known = Known::of(pod).unwrap();
        assert!(known.ztunnel && known.mirror && known.uid == "m" && known.created.is_some());
    }
}
