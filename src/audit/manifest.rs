//! A pod's manifest: what its injector wants intercepted, and which of its containers
//! could undo it. YAML or JSON; a workload's pod template is as good as a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::cni::pod::{LeftAlone, Pod};
use crate::cni::{NodeOptions, annotations};
use crate::config::given::Given;

use super::escapes::kind::Severity;
use super::lints::Lint;

/// The containers that a mesh adds.
const MESH: [&str; 4] = ["istio-proxy", "istio-init", "istio-validation", "istio-cni"];
const INIT: &str = "istio-init";

/// Where a pod lists the containers that it starts with.
const STARTED: [&str; 2] = ["initContainers", "containers"];
/// Those added to it while it runs (kubectl debug); a mesh adds none.
const ADDED: [&str; 1] = ["ephemeralContainers"];

/// A pod as its manifest tells it.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// `namespace/name`, as far as it has them.
    pub name: String,
    /// Its own addresses, if it has run.
    pub addresses: Vec<IpAddr>,
    /// Its name servers, where the manifest sets them.
    pub dns_servers: Option<Vec<IpAddr>>,
    spec: Value,
    pod: Pod,
}

/// What a manifest asks for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// The arguments and variables of its init container.
    Init { arguments: Vec<String>, variables: BTreeMap<String, String> },
    /// Options from its annotations and its proxy, as the CNI plugin takes them; what the
    /// user should hear about them.
    Annotations(Given, Vec<String>),
}

/// Why a manifest tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("is no YAML: {0}")]
    Syntax(String),
    #[error("holds no pod, nor a workload with a pod template")]
    NoPod,
    #[error("holds {0} pods; give one of them")]
    ManyPods(usize),
    #[error("the pod is not as it should be: {0}")]
    Pod(String),
    #[error("nothing would intercept this pod's traffic: {0}")]
    LeftAlone(String),
}

impl Manifest {
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
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = match (text("/metadata/namespace"), text("/metadata/name")) {
            (namespace, name) if namespace.is_empty() => name,
            (namespace, name) => format!("{namespace}/{name}"),
        };
        let ips = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
        let ips = ips.filter_map(|ip| ip.get("ip")).chain(pod.pointer("/status/podIP"));
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in ips.filter_map(Value::as_str) {
            let ip = ip.parse().map_err(|_| ManifestError::Pod(format!("its address '{ip}' is none")))?;
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        let servers = pod.pointer("/spec/dnsConfig/nameservers").and_then(Value::as_array);
        let servers = servers.filter(|_| text("/spec/dnsPolicy") == "None");
        Ok(Self {
            name: if name.is_empty() { "pod".into() } else { name },
            addresses,
            dns_servers: servers.map(|list| list.iter().filter_map(|s| s.as_str()?.parse().ok()).collect()),
            spec: pod.get("spec").cloned().unwrap_or_default(),
            pod: serde_json::from_value(pod.clone()).map_err(|e| ManifestError::Pod(e.to_string()))?,
        })
    }

    /// What is to be intercepted. `node`: what the netconf of the pod's node says, which
    /// counts where the CNI plugin does the work.
    ///
    /// # Errors
    ///
    /// That nothing would intercept the pod, or that what it asks for makes no sense.
    pub fn wanted(&self, node: &NodeOptions) -> Result<Wanted, ManifestError> {
        if let Some(init) = self.containers(&STARTED).find(|container| container.name == INIT) {
            return Ok(Wanted::Init { arguments: init.arguments()?, variables: init.variables() });
        }
        let left_alone = |reason: LeftAlone| ManifestError::LeftAlone(reason.to_string());
        if let Some((namespace, _)) = self.name.split_once('/')
            && node.exclude_namespaces.iter().any(|excluded| excluded == namespace)
        {
            return Err(left_alone(LeftAlone::ExcludedNamespace(namespace.into())));
        }
        let proxy = self.pod.select().map_err(left_alone)?;
        let mut notes = Vec::new();
        let given = annotations::options(&self.pod, proxy, &node.options, &mut |note| notes.push(note));
        Ok(Wanted::Annotations(given.map_err(|e| ManifestError::Pod(e.to_string()))?, notes))
    }

    fn containers(&self, fields: &'static [&'static str]) -> impl Iterator<Item = Container<'_>> {
        let of = |field: &&str| self.spec.get(*field).and_then(Value::as_array).into_iter().flatten();
        fields.iter().flat_map(of).map(|value| Container {
            name: value.get("name").and_then(Value::as_str).unwrap_or_default(),
            value,
            pod: &self.spec,
        })
    }

    /// Whom the proxy runs as, where the manifest says so.
    pub fn proxy_user(&self) -> Option<u32> {
        self.containers(&STARTED).find(|container| container.name == MESH[0])?.id("runAsUser")
    }

    /// Containers that share the proxy's owners, or could take what it has.
    pub fn lints(&self, proxy_uids: &[u32], proxy_gids: &[u32]) -> Vec<Lint> {
        let mut out = Vec::new();
        if self.spec.get("hostNetwork") == Some(&Value::Bool(true)) {
            out.push(Lint {
                severity: Severity::High,
                id: "host-network",
                subject: self.name.clone(),
                message: "the pod uses its node's network: rules for it would be the node's".into(),
                advice: "such a pod cannot be intercepted; take it out of the mesh, or drop hostNetwork".into(),
            });
        }
        let started = self.containers(&STARTED).filter(|container| !MESH.contains(&container.name));
        for container in started.chain(self.containers(&ADDED)) {
            out.extend(container.shares(proxy_uids, proxy_gids));
            out.extend(container.can_change());
        }
        out
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

struct Container<'a> {
    name: &'a str,
    value: &'a Value,
    pod: &'a Value,
}

impl Container<'_> {
    fn arguments(&self) -> Result<Vec<String>, ManifestError> {
        let words = self.value.get("args").and_then(Value::as_array).into_iter().flatten();
        let word = |word: &Value| match word {
            Value::String(text) => Ok(text.clone()),
            other => Err(ManifestError::Pod(format!("the argument {other} of {INIT} is no text"))),
        };
        words.map(word).collect()
    }

    /// Those with a literal value; of several the last one counts.
    fn variables(&self) -> BTreeMap<String, String> {
        let all = self.value.get("env").and_then(Value::as_array).into_iter().flatten();
        let text = |variable: &Value, field| variable.get(field).and_then(Value::as_str).map(str::to_owned);
        all.filter_map(|variable| Some((text(variable, "name")?, text(variable, "value")?))).collect()
    }

    /// A field of the container's security context, else of the pod's.
    fn security(&self, field: &str) -> Option<&Value> {
        let path = format!("/securityContext/{field}");
        self.value.pointer(&path).or_else(|| self.pod.pointer(&path))
    }

    fn id(&self, field: &str) -> Option<u32> {
        self.security(field).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }

    fn shares(&self, proxy_uids: &[u32], proxy_gids: &[u32]) -> Vec<Lint> {
        let lint = |word: &str, field: &str, id: u32| Lint {
            severity: Severity::High,
            id: "shares-proxy-user",
            subject: format!("container {}", self.name),
            message: format!("it runs as {word} {id}, the proxy's: all its outbound traffic passes the proxy by"),
            advice: format!("give it another {field}"),
        };
        let uid = self.id("runAsUser").filter(|id| proxy_uids.contains(id));
        let gid = self.id("runAsGroup").filter(|id| proxy_gids.contains(id));
        let of_uid = uid.map(|id| lint("user", "runAsUser", id));
        of_uid.into_iter().chain(gid.map(|id| lint("group", "runAsGroup", id))).collect()
    }

    fn capabilities(&self, field: &str) -> Vec<&str> {
        let list = self.value.pointer(&format!("/securityContext/capabilities/{field}")).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(|name| name.trim_start_matches("CAP_")).collect()
    }

    /// What would let it change the rules, or become whom they let through.
    fn can_change(&self) -> Option<Lint> {
        let added = self.capabilities("add");
        let over = ["ALL", "NET_ADMIN", "SYS_ADMIN", "NET_RAW"].into_iter().find(|name| added.contains(name));
        let privileged = self.security("privileged") == Some(&Value::Bool(true));
        let lint = |severity, message: String, advice: &str| Lint {
            severity,
            id: "can-become-proxy",
            subject: format!("container {}", self.name),
            message,
            advice: advice.into(),
        };
        if privileged {
            let message = "it is privileged: it can change or remove the rules".into();
            return Some(lint(Severity::Medium, message, "drop privileged"));
        }
        if let Some(name) = over {
            let message = format!("it has CAP_{name}: it can change the rules or send packets past them");
            return Some(lint(Severity::Medium, message, "drop the capability"));
        }
        // Root has CAP_SETUID and CAP_SETGID unless they are taken away.
        let dropped = self.capabilities("drop");
        let has = |name: &str| !dropped.contains(&"ALL") && !dropped.contains(&name);
        let can_switch = has("SETUID") || has("SETGID") || added.iter().any(|name| ["SETUID", "SETGID"].contains(name));
        if self.id("runAsUser") == Some(0) && can_switch {
            let message = "it runs as root with CAP_SETUID: it can become the proxy's user".into();
            return Some(lint(Severity::Low, message, "run it as another user, or drop SETUID and SETGID"));
        }
        None
    }
}
