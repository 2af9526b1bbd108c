//! Whether an injector gives a pod a sidecar, decided as Istio's does: first by the selectors
//! of its webhooks (`mutatingwebhook.yaml` of its chart), then by what the pod asks for, its
//! selectors and its policy (`injectRequired`, pkg/kube/inject).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::pod::model::{Pod, STATUS};
use crate::config::settings::LONGEST_QUOTE;
use crate::sys::text::shortened;

use super::{Injector, proxy_config};

const INJECT: &str = "sidecar.istio.io/inject";
const REVISION: &str = "istio.io/rev";
const INJECTION: &str = "istio-injection";
const DATAPLANE: &str = "istio.io/dataplane-mode";
const TEMPLATES: &str = "inject.istio.io/templates";
/// A pod's own configuration of its proxy.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
pub(super) const MODE: &str = "sidecar.istio.io/interceptionMode";

/// Namespaces that no injector looks at (`IgnoredNamespaces`, pkg/kube/inject).
const IGNORED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// What an injector decides about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InjectorVerdict {
    /// The injector has changed the pod already, or the pod has its init container: nothing is added.
    AsItIs,
    /// The pod gets a sidecar. `assumed`: the labels of its namespace, which decide, are not known.
    Injected { assumed: bool },
    /// The pod is in its node's network namespace, where no pod is intercepted.
    HostNetwork,
    /// The pod is ambient: its node's ztunnel takes its traffic.
    Ambient,
    /// The pod gets no sidecar since something says so, in words.
    LeftAlone(String),
    /// The pod gets no sidecar since nothing asks for one, in words.
    Outside(String),
}

type Labels = BTreeMap<String, String>;

impl Injector {
    /// What becomes of a pod. `namespace`: the labels of its namespace, where they are known.
    pub fn decide(&self, pod: &Pod, namespace: Option<&Labels>) -> InjectorVerdict {
        if pod.annotation(STATUS).is_some() || pod.init_arguments().is_some() {
            return InjectorVerdict::AsItIs;
        }
        if pod.uses_host_network() {
            return InjectorVerdict::HostNetwork;
        }
        match self.sidecar(pod, namespace) {
            standing @ InjectorVerdict::Injected { .. } => standing,
            _ if is_ambient(pod, namespace) => InjectorVerdict::Ambient,
            without => without,
        }
    }

    fn sidecar(&self, pod: &Pod, namespace: Option<&Labels>) -> InjectorVerdict {
        let quoted = |text: &str| shortened(text, LONGEST_QUOTE).into_owned();
        if let Some(name) = pod.namespace().filter(|name| IGNORED.contains(name)) {
            return InjectorVerdict::LeftAlone(format!("injectors pass over the namespace {name}"));
        }
        let label = pod.label(INJECT);
        let asked = label.or_else(|| pod.annotation(INJECT)).unwrap_or_default().to_lowercase();
        let asks = ["y", "yes", "true", "on"].contains(&asked.as_str());
        if !asks && !asked.is_empty() {
            return InjectorVerdict::LeftAlone(format!("{INJECT} is '{}'", quoted(&asked)));
        }
        if let Some(names) = pod.annotation(TEMPLATES)
            && !names.split(',').any(|name| name.trim() == "sidecar")
        {
            return InjectorVerdict::LeftAlone(format!(
                "it gets the template '{}', which intercepts nothing",
                quoted(names)
            ));
        }
        let itself = label == Some("true") || pod.label(REVISION).is_some();
        let known = match namespace {
            None if is_ambient(pod, None) && !itself => return InjectorVerdict::Ambient,
            None => itself,
            Some(labels) => {
                match (labels.get(INJECTION).map(String::as_str), labels.contains_key(REVISION)) {
                    (Some("enabled"), _) | (None, true) => {}
                    (Some(other), _) => {
                        let label = format!("its namespace is labelled {INJECTION}={}", quoted(other));
                        return InjectorVerdict::LeftAlone(label);
                    }
                    (None, false) if itself || self.every_namespace => {}
                    (None, false) => {
                        return InjectorVerdict::Outside(format!(
                            "neither it nor its namespace is labelled for a sidecar ({INJECTION}, {REVISION})"
                        ));
                    }
                }
                true
            }
        };
        let labels = pod.labels();
        let injected = match asks {
            true => true,
            false if self.never.iter().any(|selector| selector.chooses(&labels)) => {
                return InjectorVerdict::LeftAlone("the injector's neverInjectSelector chooses it".into());
            }
            false => self.by_default || self.always.iter().any(|selector| selector.chooses(&labels)),
        };
        if !injected {
            return InjectorVerdict::Outside(format!(
                "the injector's policy is disabled, and it does not ask ({INJECT})"
            ));
        }
        match self.config_of(pod) {
            Ok((mode, _)) if mode == "NONE" => InjectorVerdict::LeftAlone("its interception mode is NONE".into()),
            // Why it cannot be injected where its configuration is none, `inject` tells.
            _ => InjectorVerdict::Injected { assumed: !known },
        }
    }

    /// The pod's interception mode and its proxy's variables.
    ///
    /// # Errors
    ///
    /// That the pod's own configuration of its proxy is none; Istio's injector refuses such a pod.
    pub(super) fn config_of(&self, pod: &Pod) -> Result<(String, Labels), String> {
        let (mut mode, mut metadata) = (self.mode.clone(), self.metadata.clone());
        if let Some(text) = pod.annotation(PROXY_CONFIG) {
            let config = serde_saphyr::from_str::<Value>(text).ok();
            match config.filter(|config| config.is_object() || config.is_null()) {
                Some(config) => proxy_config(&config, &mut mode, &mut metadata),
                None => {
                    let text = shortened(text, LONGEST_QUOTE);
                    return Err(format!(
                        "annotation {PROXY_CONFIG}: '{text}' is no YAML object; expected a ProxyConfig, such as interceptionMode: TPROXY"
                    ));
                }
            }
        }
        Ok((pod.annotation(MODE).map_or(mode, str::to_owned), metadata))
    }
}

/// Whether the pod, or else its namespace, is labelled for a ztunnel.
fn is_ambient(pod: &Pod, namespace: Option<&Labels>) -> bool {
    let label = pod.label(DATAPLANE).or_else(|| namespace?.get(DATAPLANE).map(String::as_str));
    label == Some("ambient")
}
