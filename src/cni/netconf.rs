//! The netconf: the network configuration on standard input, checked. Unknown keys are ignored; the
//! result of the plugin before this one is kept as it came.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::backend::facts::NoFacts;
use crate::config::given::{Given, Origin};
use crate::config::options::{Group, OPTIONS, Opt, Spec};
use crate::config::pod::NodeOptions;
use crate::config::settings::{Face, Settings, SettingsError};
use crate::config::value;

use super::protocol::{CniError, CniVersion, Code, VERSIONS};
use super::request::DEFAULT_TIMEOUT;

/// The default run directory, in which the agent puts what the plugin needs, and the plugin its state.
const DEFAULT_RUN_DIR: &str = "/var/run/podweir";

/// The capability by which containerd hands a pod's annotations over.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// An attachment that the runtime still knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// The checked netconf.
#[derive(Debug)]
pub(crate) struct Netconf {
    pub version: CniVersion,
    /// The network's name.
    pub name: String,
    /// The run directory, with the kubeconfig and the plugin's state.
    pub run_dir: PathBuf,
    /// A kubeconfig may name a server without TLS.
    pub allow_http: bool,
    pub exclude_namespaces: Vec<String>,
    /// The namespace of the agent's pods.
    pub pod_namespace: String,
    pub timeout: Duration,
    /// How long a pod waits for the node's agent while it does not answer; `None`: the netconf does not
    /// say that the node has an agent.
    pub agent_timeout: Option<Duration>,
    /// Whether the node's agent has pods of ambient mode as well, which only it can recognise.
    pub ambient: bool,
    /// The netconf itself asks for an interception.
    pub intercepts: bool,
    /// Options that the netconf sets.
    pub options: Given,
    /// The pod's annotations, if the runtime passes them.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The result of the plugins before this one, as it came.
    pub prev_result: Option<Box<RawValue>>,
    /// The name servers in that result.
    pub name_servers: Vec<String>,
    /// The attachments that GC must keep; `None`: the runtime names none.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

type Keys = HashMap<String, Box<RawValue>>;

/// The keys of the netconf, before their values are parsed.
#[derive(Default)]
pub(crate) struct RawNetconf {
    keys: Keys,
}

impl RawNetconf {
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        if input.iter().all(u8::is_ascii_whitespace) {
            return Err(CniError::new(Code::Decode, "standard input is empty; expected the netconf, a JSON object"));
        }
        let keys = serde_json::from_slice(input);
        keys.map(|keys| Self { keys }).map_err(|e| {
            CniError::new(Code::Decode, format!("standard input is no netconf: {e}; expected a JSON object"))
        })
    }

    /// The netconf's version, even if other keys are not valid.
    pub(crate) fn version(&self) -> Result<CniVersion, CniError> {
        let text: Option<String> = get(&self.keys, "cniVersion")?;
        match text.as_deref() {
            None | Some("") => Err(CniError::new(Code::Netconf, "the netconf has no cniVersion")
                .details(format!("add one of {}", VERSIONS.join(", ")))),
            Some(text) => CniVersion::parse(text).ok_or_else(|| {
                CniError::new(Code::IncompatibleVersion, format!("cniVersion {text:?} is not supported"))
                    .details(format!("supported are {}", VERSIONS.join(", ")))
            }),
        }
    }

    /// The level of the log, even if other keys are not valid.
    pub(crate) fn log_level(&self) -> String {
        get(&self.keys, "plugin_log_level").ok().flatten().unwrap_or_default()
    }

    /// The run directory, even if other keys are not valid.
    pub(crate) fn run_dir(&self) -> Result<PathBuf, CniError> {
        const KEY: &str = "cni_agent_run_dir";
        let dir: Option<PathBuf> = get(&self.keys, KEY)?;
        match dir.filter(|dir| !dir.as_os_str().is_empty()) {
            None => Ok(DEFAULT_RUN_DIR.into()),
            Some(dir) if dir.is_absolute() => Ok(dir),
            Some(_) => Err(wrong(KEY, "is no absolute path")),
        }
    }

    /// Parses and checks all keys.
    pub(crate) fn check(mut self, version: CniVersion) -> Result<Netconf, CniError> {
        let keys = &self.keys;
        let timeout: Option<Value> = get(keys, "timeout")?;
        let agent_timeout: Option<Value> = get(keys, "agent_timeout")?;
        let runtime: Option<HashMap<String, Value>> = get(keys, "runtimeConfig")?;
        let interception: Option<serde_json::Map<String, Value>> = get(keys, "interception")?;
        let run_dir = self.run_dir()?;
        let mut options = Given::default();
        for (key, opt) in [("backend", Opt::Backend), ("ip_families", Opt::IpFamilies)] {
            if let Some(text) = get::<String>(keys, key)? {
                options.set(opt, Origin::Netconf(key.into()), text);
            }
        }
        if get::<bool>(keys, "native_nftables")? == Some(true) {
            options.set(Opt::NativeNftables, Origin::Netconf("native_nftables".into()), "true");
            if let Some((_, text)) = options.get(Opt::Backend).filter(|(_, text)| !["auto", "nftables"].contains(text))
            {
                return Err(contradiction(("backend", text), ("native_nftables", "true")));
            }
        }
        for (name, value) in interception.iter().flatten() {
            let key = format!("interception.{name}");
            let (opt, text) = (option(name)?.opt, text_of(&key, value)?);
            if let Some((Origin::Netconf(other), known)) = options.get(opt).filter(|(_, known)| *known != text) {
                return Err(contradiction((other, known), (&key, &text)));
            }
            options.set(opt, Origin::Netconf(key), text);
        }
        // Whatever the pod says, these must be right.
        match Settings::resolve(&options, Face::Init, &NoFacts) {
            Err(error) if error.is_usage() => return Err(wrong_option(&error)),
            _ => {}
        }
        let prev_result = prev_result(keys, version)?;
        Ok(Netconf {
            version,
            name: get(keys, "name")?.unwrap_or_default(),
            run_dir,
            allow_http: get(keys, "allow_http")?.unwrap_or_default(),
            exclude_namespaces: get(keys, "exclude_namespaces")?.unwrap_or_default(),
            pod_namespace: get(keys, "pod_namespace")?.unwrap_or_default(),
            timeout: timeout.map_or(Ok(DEFAULT_TIMEOUT), |value| duration("timeout", &value))?,
            agent_timeout: agent_timeout.map(|value| duration("agent_timeout", &value)).transpose()?,
            ambient: get(keys, "ambient")?.unwrap_or_default(),
            intercepts: interception.is_some(),
            options,
            annotations: annotations(runtime.unwrap_or_default())?,
            name_servers: prev_result.map(|result| result.dns.unwrap_or_default().nameservers).unwrap_or_default(),
            valid_attachments: get(keys, "cni.dev/valid-attachments")?,
            prev_result: self.keys.remove("prevResult").filter(|raw| raw.get() != "null"),
        })
    }
}

/// What a node's netconf decides about a pod whatever the pod says, from a file of the node's
/// `/etc/cni/net.d`: a list of plugins with podweir among
/// them, or podweir's own entry.
///
/// # Errors
/// The file is no netconf, does not name podweir, or is not valid.
pub fn node_options(text: &[u8]) -> Result<NodeOptions, CniError> {
    #[derive(Deserialize)]
    struct PluginEntry {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let file = RawNetconf::parse(text)?;
    let entries: Option<Vec<Box<RawValue>>> = get(&file.keys, "plugins")?;
    let is_ours = |kind: Option<String>| kind.as_deref() == Some("podweir");
    let ours = match &entries {
        None if is_ours(get(&file.keys, "type")?) => file,
        None => return Err(wrong("type", "is not podweir, and there is no list of plugins with it")),
        Some(entries) => {
            let kind = |entry: &RawValue| serde_json::from_str::<PluginEntry>(entry.get()).ok()?.kind;
            match entries.iter().find(|entry| is_ours(kind(entry))) {
                Some(entry) => RawNetconf::parse(entry.get().as_bytes())?,
                None => return Err(wrong("plugins", "has no plugin of type podweir")),
            }
        }
    };
    // Neither decides anything here; the list has the version, and a runtime adds the result.
    let netconf = RawNetconf { keys: ours.keys.into_iter().filter(|(key, _)| key != "prevResult").collect() };
    let netconf = netconf.check(CniVersion::LATEST)?;
    Ok(NodeOptions { options: netconf.options, exclude_namespaces: netconf.exclude_namespaces })
}

fn wrong(key: &str, problem: impl std::fmt::Display) -> CniError {
    CniError::new(Code::Netconf, format!("netconf key {key}: {problem}"))
        .details("correct the network configuration on the node (usually in /etc/cni/net.d)")
}

fn contradiction((one, this): (&str, &str), (other, that): (&str, &str)) -> CniError {
    let problem = format!("netconf keys {one} ('{this}') and {other} ('{that}') contradict each other");
    CniError::new(Code::Netconf, problem)
        .details("correct the network configuration on the node (usually in /etc/cni/net.d)")
}

fn wrong_option(error: &SettingsError) -> CniError {
    CniError::new(Code::Netconf, error.to_string())
        .details("correct the network configuration on the node (usually in /etc/cni/net.d)")
}

/// A key's value; `null` counts as absent.
fn get<T: DeserializeOwned>(keys: &Keys, key: &str) -> Result<Option<T>, CniError> {
    let Some(raw) = keys.get(key) else { return Ok(None) };
    serde_json::from_str(raw.get()).map_err(|e| wrong(key, e))
}

/// The parts of a result that are used.
#[derive(Deserialize)]
struct PrevResult {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    dns: Option<Dns>,
}

#[derive(Default, Deserialize)]
struct Dns {
    #[serde(default)]
    nameservers: Vec<String>,
}

fn prev_result(keys: &Keys, version: CniVersion) -> Result<Option<PrevResult>, CniError> {
    let result: Option<PrevResult> = get(keys, "prevResult")?;
    match result.as_ref().and_then(|result| result.version.as_deref()) {
        Some(other) if other != version.name() => Err(wrong(
            "prevResult",
            format_args!("is of version {other:?}, the netconf of {}; a chain has one version", version.name()),
        )),
        _ => Ok(result),
    }
}

/// Seconds, or a text such as "90s".
fn duration(key: &str, value: &Value) -> Result<Duration, CniError> {
    const EXPECTED: &str = "expected seconds, or a text such as \"90s\", from 1ms to 24h";
    let text = match value {
        Value::Number(seconds) => format!("{seconds}s"),
        Value::String(text) => text.clone(),
        _ => return Err(wrong(key, EXPECTED)),
    };
    value::duration(&text).map_err(|_| wrong(key, format_args!("{value} is no time; {EXPECTED}")))
}

fn annotations(mut runtime: HashMap<String, Value>) -> Result<Option<BTreeMap<String, String>>, CniError> {
    match runtime.remove(POD_ANNOTATIONS) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            serde_json::from_value(value).map_err(|e| wrong(&format!("runtimeConfig.{POD_ANNOTATIONS}"), e)).map(Some)
        }
    }
}

/// An option's key in the netconf's `interception`: its long flag, or the variable of an option without
/// a flag.
pub(crate) fn option_name(spec: &Spec) -> &'static str {
    if spec.long.is_empty() { spec.env[0] } else { spec.long }
}

fn option(name: &str) -> Result<&'static Spec, CniError> {
    let key = format!("interception.{name}");
    let spec = OPTIONS.iter().find(|spec| option_name(spec) == name);
    let spec = spec
        .ok_or_else(|| wrong(&key, "is no option; expected the long name of one, as podweir init --help lists them"))?;
    let elsewhere = [Opt::NetworkNamespace, Opt::CniMode, Opt::HostNetwork].contains(&spec.opt);
    let job = [Opt::Reconcile, Opt::ForceApply, Opt::Established, Opt::Strict];
    let ours = spec.group != Group::Operation || job.contains(&spec.opt);
    match ours && !elsewhere {
        true => Ok(spec),
        false => Err(wrong(&key, "means nothing to the plugin; leave it out")),
    }
}

/// An option's text: a string, a number, a boolean, or a list of such.
fn text_of(key: &str, value: &Value) -> Result<String, CniError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_number()) => {
            let texts: Result<Vec<String>, CniError> = items.iter().map(|item| text_of(key, item)).collect();
            Ok(texts?.join(","))
        }
        _ => Err(wrong(key, "is no text, number, boolean or list of them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Netconf, CniError> {
        let raw = RawNetconf::parse(text.as_bytes())?;
        let version = raw.version()?;
        raw.check(version)
    }

    fn code(text: &str) -> Code {
        check(text).unwrap_err().code
    }

    #[test]
    fn what_is_no_netconf_is_told_apart() {
        assert_eq!(code(""), Code::Decode);
        assert_eq!(code("hello"), Code::Decode);
        assert_eq!(code("[]"), Code::Decode);
        assert_eq!(code("{}"), Code::Netconf);
        assert_eq!(code(r#"{"cniVersion":"9.0.0"}"#), Code::IncompatibleVersion);
        assert_eq!(code(r#"{"cniVersion":1}"#), Code::Netconf);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.4.0"}}"#), Code::Netconf);
        for key in [
            r#""backend":"bogus""#,
            r#""backend":"iptables-legacy","native_nftables":true"#,
            r#""ip_families":"ipv4","interception":{"ip-families":"both"}"#,
            r#""backend":"nftables","interception":{"backend":"iptables-nft"}"#,
            r#""timeout":"soon""#,
            r#""timeout":-1"#,
            r#""exclude_namespaces":"a""#,
            r#""interception":{"no-such-option":1}"#,
            r#""interception":{"dry-run":true}"#,
            r#""interception":{"istio-inbound-ports":"0"}"#,
            r#""interception":{"istio-inbound-ports":{}}"#,
            r#""interception":[]"#,
            r#""cni_agent_run_dir":"relative""#,
            r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}"#,
        ] {
            assert_eq!(code(&format!(r#"{{"cniVersion":"1.0.0",{key}}}"#)), Code::Netconf, "{key}");
        }
    }

    #[test]
    fn the_result_so_far_is_kept_letter_by_letter() {
        let result = r#"{ "cniVersion":"1.0.0", "x": 1.50, "big":123456789012345678901234567890,"dns":{} }"#;
        let netconf = check(&format!(r#"{{"cniVersion":"1.0.0","unknown":[1],"prevResult":{result}}}"#)).unwrap();
        assert_eq!(netconf.prev_result.unwrap().get(), result);
        assert!(check(r#"{"cniVersion":"1.0.0","prevResult":null}"#).unwrap().prev_result.is_none());
    }

    #[test]
    fn a_nodes_file_is_a_list_with_podweir_or_its_entry() {
        let of = |text: &str| node_options(text.as_bytes());
        let entry = r#"{"type":"podweir","exclude_namespaces":["a"],"interception":{"istio-inbound-ports":"80"},"prevResult":7}"#;
        let list = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"bridge"}},{entry}]}}"#);
        for text in [entry, &list] {
            let node = of(text).unwrap();
            assert_eq!(node.options.text(Opt::InboundPorts).1, "80");
            assert_eq!(node.exclude_namespaces, ["a"]);
        }
        for text in ["", "x", "[]", "{}", r#"{"type":"bridge"}"#, r#"{"plugins":[{"type":"bridge"}, 7]}"#] {
            assert!(of(text).is_err(), "{text}");
        }
        assert!(of(r#"{"type":"podweir","interception":{"istio-inbound-ports":"0"}}"#).is_err());
    }

    #[test]
    fn options_come_by_their_long_names() {
        let netconf = check(
            r#"{"cniVersion":"1.0.0","timeout":1.5,"interception":{"istio-inbound-ports":[80,"8000-8100"],"redirect-dns":true,"proxy-uid":7}}"#,
        )
        .unwrap();
        assert_eq!(netconf.options.text(Opt::InboundPorts).1, "80,8000-8100");
        assert_eq!(netconf.options.text(Opt::RedirectDns).1, "true");
        assert_eq!(netconf.options.text(Opt::ProxyUid).1, "7");
        assert_eq!(netconf.timeout, Duration::from_millis(1500));
        assert!(netconf.intercepts);
    }
}
