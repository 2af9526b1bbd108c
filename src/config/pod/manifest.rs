//! A pod's manifest in a file, and which interception it asks for: YAML or JSON, of a pod, of a workload
//! with a pod template, or of a list with one of either.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::config::given::Given;

use super::error::PodError;
use super::model::Pod;
use super::selection::LeftAlone;
use super::{NodeOptions, annotations};

/// A pod as its manifest tells it.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// `namespace/name`, as far as it has them.
    pub name: String,
    /// The pod's addresses, once it runs.
    pub addresses: Vec<IpAddr>,
    /// The pod's name servers, where the manifest sets them.
    pub dns_servers: Option<Vec<IpAddr>>,
    pub pod: Pod,
}

/// The options of an interception, as a manifest gives them.
#[derive(Debug, Clone)]
pub enum PodOptions {
    /// The arguments and variables of its init container.
    Init { arguments: Vec<String>, variables: BTreeMap<String, String> },
    /// Options from the pod's annotations and its proxy, as the CNI plugin takes them, and warnings
    /// about them.
    Annotations(Given, Vec<String>),
}

/// Why no options can be taken from a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("is no YAML: {0}")]
    Syntax(String),
    #[error("holds no pod, nor a workload with a pod template")]
    NoPod,
    #[error("holds {0} pods; give one of them")]
    ManyPods(usize),
    #[error("the pod is not as it should be: {0}")]
    Fields(String),
    #[error("the pod is not as it should be: {0}; {advice}", advice = .0.advice())]
    Options(#[from] PodError),
    #[error("nothing would intercept this pod's traffic: {0}")]
    LeftAlone(#[from] LeftAlone),
}

impl Manifest {
    /// Reads the one pod of a text.
    ///
    /// # Errors
    /// When the text is no YAML, holds no pod or several, or a field of the pod is of a wrong type.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|e| ManifestError::Syntax(first_line(&e.to_string())))?;
        let mut pods = Vec::new();
        documents.iter().for_each(|document| find_pods(document, 0, &mut pods));
        let pod = match pods[..] {
            [] => return Err(ManifestError::NoPod),
            [pod] => pod,
            _ => return Err(ManifestError::ManyPods(pods.len())),
        };
        Self::of(serde_json::from_value(pod.clone()).map_err(|e| ManifestError::Fields(e.to_string()))?)
    }

    /// Makes a manifest of a parsed pod.
    ///
    /// # Errors
    /// A text among the pod's addresses is no address.
    pub fn of(pod: Pod) -> Result<Self, ManifestError> {
        let name = pod.full_name();
        let no_address = |text| ManifestError::Fields(format!("status: '{text}' is no address of a pod"));
        Ok(Self {
            name: if name.is_empty() { "pod".into() } else { name },
            addresses: pod.addresses().map_err(no_address)?,
            dns_servers: pod.dns_servers(),
            pod,
        })
    }

    /// The options of the pod's interception. `node`: the netconf of the pod's node, used where the CNI
    /// plugin makes the rules.
    ///
    /// # Errors
    /// When nothing would intercept the pod, or what it asks for makes no sense.
    pub fn wanted(&self, node: &NodeOptions) -> Result<PodOptions, ManifestError> {
        if let Some((arguments, variables)) = self.pod.init_arguments() {
            return Ok(PodOptions::Init { arguments, variables });
        }
        if let Some(namespace) = self.pod.namespace()
            && node.exclude_namespaces.iter().any(|excluded| excluded == namespace)
        {
            return Err(LeftAlone::ExcludedNamespace(namespace.into()).into());
        }
        let proxy = self.pod.select()?;
        let mut notes = Vec::new();
        let given = annotations::options(&self.pod, proxy, &node.options, &mut |note| notes.push(note))?;
        Ok(PodOptions::Annotations(given, notes))
    }

    /// The user that the proxy runs as, where the manifest says so.
    pub fn proxy_user(&self) -> Option<u32> {
        self.pod.user_of(self.pod.proxy()?)
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Pods and pod templates in a document; lists hold several.
fn find_pods<'a>(value: &'a Value, depth: usize, out: &mut Vec<&'a Value>) {
    if value.pointer("/spec/containers").is_some_and(Value::is_array) {
        return out.push(value);
    }
    for path in ["/spec/template", "/spec/jobTemplate/spec/template"] {
        if let Some(template) = value.pointer(path)
            && template.pointer("/spec/containers").is_some_and(Value::is_array)
        {
            return out.push(template);
        }
    }
    if depth == 0 {
        let items = value.get("items").and_then(Value::as_array).into_iter().flatten();
        items.for_each(|item| find_pods(item, depth + 1, out));
    }
}
