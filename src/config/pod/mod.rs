//! What reads a pod, for everybody who has one: the CNI plugin and the node's agent, which get
//! it from the API server, and `audit`, which gets its manifest.
//!
//! | file | what it owns |
//! |---|---|
//! | `model` | the parts of a pod that decide about its interception, as Kubernetes writes them |
//! | `selection` | whether a pod is the one that was asked for, and whether its traffic is diverted |
//! | `annotations` | from annotations, and the proxy's variables and user, to option texts |
//! | `documents` | manifests of many workloads: what each is, and its pods |
//! | `owner` | which workload a pod belongs to |
//! | `injector` | what an injector of sidecars adds to a pod, by its own configuration |
//! | `manifest` | a pod in a file: YAML or JSON, a workload's template included |
//! | `error` | what is wrong with what a pod asks for |

pub mod annotations;
pub mod documents;
pub mod error;
pub mod injector;
pub mod manifest;
pub mod model;
pub mod owner;
pub mod selection;

use std::fmt;

use super::given::Given;

/// A pod's namespace, name and UID, as the runtime tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    pub namespace: String,
    pub name: String,
    /// The UID, which tells a pod from an older one of the same name; not every runtime says it.
    pub uid: Option<String>,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a node's network configuration decides about a pod whatever the pod says.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The options under its keys `interception`, `backend` and `ip_families`, which a pod's annotations
    /// go over.
    pub options: Given,
    /// Namespaces of Kubernetes whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
}
