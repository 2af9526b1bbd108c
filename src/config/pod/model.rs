//! A pod as Kubernetes writes it (core/v1), reduced to the fields that decide about its interception, or
//! show which container could remove the rules. All others are skipped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

/// The annotation that an injector leaves on a pod that it gave a sidecar.
pub const STATUS: &str = "sidecar.istio.io/status";
/// On what the API server shows of a static pod: the uid by which the kubelet knows it
/// (`ConfigMirrorAnnotationKey`, pkg/kubelet/types).
pub const MIRROR_OF: &str = "kubernetes.io/config.mirror";
/// How the sidecar proxy's container is called.
pub const PROXY: &str = "istio-proxy";
/// How the init container is called that makes the rules.
pub const INIT: &str = "istio-init";
/// The programs that make the rules when their first argument is `init` or `istio-iptables`.
const PROGRAMS: [&str; 2] = ["podweir", "pilot-agent"];

pub(super) type Texts = Option<BTreeMap<String, String>>;

/// A pod with the fields that decide about its interception.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod {
    #[serde(default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Metadata {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) uid: Option<String>,
    #[serde(default)]
    pub(super) annotations: Texts,
    #[serde(default)]
    pub(super) labels: Texts,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    pub(super) init_containers: Option<Vec<Container>>,
    #[serde(default)]
    pub(super) containers: Option<Vec<Container>>,
    /// Containers that were added while the pod runs (kubectl debug); a mesh adds none.
    #[serde(default)]
    ephemeral_containers: Option<Vec<Container>>,
    #[serde(default)]
    pub host_network: Option<bool>,
    #[serde(default)]
    pub service_account_name: Option<String>,
    #[serde(default)]
    security_context: Option<SecurityContext>,
    #[serde(default)]
    dns_policy: Option<String>,
    #[serde(default)]
    dns_config: Option<DnsConfig>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct DnsConfig {
    #[serde(default)]
    nameservers: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    #[serde(default)]
    pub(super) command: Option<Vec<String>>,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub(super) env: Option<Vec<Variable>>,
    #[serde(default)]
    pub(super) security_context: Option<SecurityContext>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    /// Absent where the value comes from elsewhere.
    #[serde(default)]
    pub(super) value: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecurityContext {
    #[serde(default)]
    pub(super) run_as_user: Option<i64>,
    #[serde(default)]
    pub(super) run_as_group: Option<i64>,
    #[serde(default)]
    pub(super) privileged: Option<bool>,
    #[serde(default)]
    pub(super) capabilities: Option<Box<Capabilities>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Capabilities {
    #[serde(default)]
    add: Option<Vec<String>>,
    #[serde(default)]
    drop: Option<Vec<String>>,
}

/// The names of capabilities as Kubernetes writes them, with or without `CAP_`.
fn capability_names(names: &Option<Vec<String>>) -> Vec<&str> {
    names.iter().flatten().map(|name| name.trim_start_matches("CAP_")).collect()
}

impl Container {
    /// Drops a proxy's fields that do not decide about its interception: an injector writes kilobytes of
    /// variables.
    fn trim_proxy(&mut self) {
        self.command = None;
        if let Some(args) = &mut self.args {
            args.truncate(2);
            args.shrink_to_fit();
        }
        if let Some(env) = &mut self.env {
            env.retain(|variable| PROXY_VARIABLES.contains(&variable.name.as_str()));
            env.shrink_to_fit();
        }
    }

    /// The literal value of a variable; the last one given counts.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let variables = self.env.iter().flatten().rev();
        variables.filter(|variable| variable.name == name).find_map(|variable| variable.value.as_deref())
    }

    /// The user that a proxy runs as. 0 counts as unknown: no proxy runs as root, or everything
    /// of root's would count as its own.
    pub fn run_as_user(&self) -> Option<i64> {
        self.security_context.as_ref()?.run_as_user.filter(|&id| id != 0)
    }

    /// The group that a proxy runs as. 0 counts as unknown, as it does for the user.
    pub fn run_as_group(&self) -> Option<i64> {
        self.security_context.as_ref()?.run_as_group.filter(|&id| id != 0)
    }

    /// Whether the container is privileged: it has every capability and every device.
    pub fn is_privileged(&self) -> bool {
        self.security_context.as_ref().and_then(|security| security.privileged) == Some(true)
    }

    fn capabilities(&self) -> Option<&Capabilities> {
        self.security_context.as_ref()?.capabilities.as_deref()
    }

    /// The capabilities that it gets over those of the runtime, without `CAP_`.
    pub fn added_capabilities(&self) -> Vec<&str> {
        self.capabilities().map(|capabilities| capability_names(&capabilities.add)).unwrap_or_default()
    }

    /// The capabilities taken from those that the runtime gives, without `CAP_`.
    pub fn dropped_capabilities(&self) -> Vec<&str> {
        self.capabilities().map(|capabilities| capability_names(&capabilities.drop)).unwrap_or_default()
    }
}

/// How the names of annotations and labels begin that decide about an interception.
const DECIDES: [&str; 5] =
    ["sidecar.istio.io/", "traffic.sidecar.istio.io/", "istio.io/", "ambient.istio.io/", "k8s.v1.cni.cncf.io/"];

/// The variables of a proxy that decide about its interception.
const PROXY_VARIABLES: [&str; 4] = ["DISABLE_ENVOY", "ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"];

/// Whether an annotation or label of this name decides about an interception.
pub fn decides(name: &str) -> bool {
    DECIDES.iter().any(|begin| name.starts_with(begin))
}

impl Pod {
    /// A pod with only what decides about its interception: the annotations and labels of a mesh, and
    /// the containers that a mesh adds. The injector's status is kept without its value.
    pub fn trimmed(annotations: Texts, labels: Texts, spec: PodSpec) -> Self {
        let deciding = |texts: Texts| {
            let kept = texts.unwrap_or_default().into_iter();
            kept.filter(|(name, _)| decides(name))
                .map(|(name, text)| if name == STATUS { (name, String::new()) } else { (name, text) })
                .collect()
        };
        let mesh = |containers: Option<Vec<Container>>| {
            let mut kept: Vec<Container> = containers.unwrap_or_default();
            kept.retain(|container| container.name == PROXY || container.name == INIT);
            kept.iter_mut().filter(|container| container.name == PROXY).for_each(Container::trim_proxy);
            kept.shrink_to_fit();
            Some(kept)
        };
        Self {
            kind: None,
            metadata: Metadata {
                annotations: Some(deciding(annotations)),
                labels: Some(deciding(labels)),
                ..Metadata::default()
            },
            spec: PodSpec {
                init_containers: mesh(spec.init_containers),
                containers: mesh(spec.containers),
                ..PodSpec::default()
            },
            status: None,
        }
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// `namespace/name`, as far as it has them.
    pub fn full_name(&self) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        match (text(&self.metadata.namespace), text(&self.metadata.name)) {
            (namespace, name) if namespace.is_empty() => name,
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }

    /// The pod's namespace, where it has one.
    pub fn namespace(&self) -> Option<&str> {
        self.metadata.namespace.as_deref()
    }

    /// The pod's addresses, in the order of its status and each once; none before it runs.
    ///
    /// # Errors
    /// The first text that is no address.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, String> {
        let Some(status) = &self.status else { return Ok(Vec::new()) };
        let all = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_ref()).chain(&status.pod_ip);
        let mut out: Vec<IpAddr> = Vec::new();
        for text in all {
            let ip = text.parse().map_err(|_| text.clone())?;
            if !out.contains(&ip) {
                out.push(ip);
            }
        }
        Ok(out)
    }

    /// The pod's name servers, where it sets all of them itself.
    pub fn dns_servers(&self) -> Option<Vec<IpAddr>> {
        let servers = self.spec.dns_config.as_ref()?.nameservers.as_ref()?;
        let is_all = self.spec.dns_policy.as_deref() == Some("None");
        is_all.then(|| servers.iter().filter_map(|server| server.parse().ok()).collect())
    }

    /// All labels of the pod.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.metadata.labels.clone().unwrap_or_default()
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The arguments and literal variables of the init container that makes the rules; the
    /// arguments without the name of a program in front.
    pub fn init_arguments(&self) -> Option<(Vec<String>, BTreeMap<String, String>)> {
        let init = self.init_containers().find(|container| container.name == INIT)?;
        let is_program = |word: &&String| {
            let name = Path::new(word.as_str()).file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| PROGRAMS.contains(&name))
        };
        let words =
            [&init.command, &init.args].into_iter().flatten().flatten().skip_while(is_program).cloned().collect();
        let variables = init.env.iter().flatten().filter_map(|v| Some((v.name.clone(), v.value.clone()?))).collect();
        Some((words, variables))
    }

    /// The containers that run before the others, sidecars among them.
    pub(super) fn init_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().flatten()
    }

    /// The containers that it starts with.
    pub fn started_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().chain(self.spec.containers.iter().flatten())
    }

    /// The containers that were added to the running pod.
    pub fn added_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.ephemeral_containers.iter().flatten()
    }

    /// The sidecar proxy, which may be an init container that goes on running.
    pub fn proxy(&self) -> Option<&Container> {
        let mut all = self.spec.containers.iter().flatten().chain(self.init_containers());
        all.find(|container| container.name == PROXY)
    }

    /// Whether the pod is in its node's own network namespace.
    pub fn uses_host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    /// The user that a container runs as, by its own security context or else the pod's.
    pub fn user_of(&self, container: &Container) -> Option<u32> {
        self.id_of(container, |security| security.run_as_user)
    }

    /// The group that a container runs as, by its own security context or else the pod's.
    pub fn group_of(&self, container: &Container) -> Option<u32> {
        self.id_of(container, |security| security.run_as_group)
    }

    fn id_of(&self, container: &Container, field: impl Fn(&SecurityContext) -> Option<i64>) -> Option<u32> {
        let of = |security: &Option<SecurityContext>| security.as_ref().and_then(&field);
        let id = of(&container.security_context).or_else(|| of(&self.spec.security_context))?;
        u32::try_from(id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_trimmed_pod_is_decided_as_the_whole_one() {
        use crate::config::given::Given;
        use crate::config::pod::annotations::options;
        let mut env: Vec<serde_json::Value> =
            PROXY_VARIABLES.iter().skip(1).map(|name| json!({ "name": name, "value": "true" })).collect();
        env.push(json!({ "name": "PROXY_CONFIG", "value": "x".repeat(8000) }));
        let value = json!({
            "metadata": { "annotations": { "sidecar.istio.io/status": "y".repeat(8000), "traffic.sidecar.istio.io/includeInboundPorts": "80",
                "other": "z".repeat(8000) }, "labels": { "sidecar.istio.io/inject": "true", "app": "a" } },
            "spec": { "containers": [{ "name": "app" }, { "name": "istio-proxy", "command": ["x".repeat(8000)],
                "args": ["proxy", "sidecar", "x".repeat(8000)], "env": env, "securityContext": { "runAsUser": 7 } }] } });
        let whole: Pod = serde_json::from_value(value).unwrap();
        let trimmed =
            Pod::trimmed(whole.metadata.annotations.clone(), whole.metadata.labels.clone(), whole.spec.clone());
        let made = |pod: &Pod| {
            let options = options(pod, pod.select().unwrap(), &Given::default(), &mut |w| panic!("{w}")).unwrap();
            format!("{options:?}")
        };
        assert_eq!(made(&trimmed), made(&whole));
        assert!(made(&whole).matches("ProxyVariable").count() >= 3, "each of them decides: {}", made(&whole));
        assert!(format!("{trimmed:?}").len() < 1500, "{trimmed:?}");
    }

    #[test]
    fn only_literal_variables_count_and_the_last_one_wins() {
        let proxy: Container = serde_json::from_value(json!({ "name": "p", "env": [
            { "name": "A", "value": "1" }, { "name": "A", "value": "2" }, { "name": "B", "valueFrom": {} }, { "name": "C" } ] }))
        .unwrap();
        assert_eq!((proxy.variable("A"), proxy.variable("B"), proxy.variable("C")), (Some("2"), None, None));
    }
}
