//! What an injector of sidecars (Istio's) says about a pod's interception: whether it adds a
//! sidecar, and with which options where the pod names none. Its own configuration decides,
//! as its ConfigMaps or a chart's values hold it.

mod add;
pub mod required;
mod selector;

use std::collections::BTreeMap;

use serde_json::Value;

use selector::Selector;

/// An injector's configuration.
#[derive(Debug, Clone)]
pub struct Injector {
    /// Whether the CNI plugin makes the rules, by annotations; otherwise an init container.
    by_plugin: bool,
    /// Whether the injector takes pods without a label of their own in chosen namespaces (its `policy`).
    by_default: bool,
    /// Whether namespaces without a label are chosen.
    every_namespace: bool,
    include_ranges: String,
    exclude_ranges: String,
    include_inbound: String,
    exclude_inbound: String,
    include_outbound: String,
    exclude_outbound: String,
    status_port: String,
    native_nftables: bool,
    outbound_port: String,
    inbound_port: String,
    mode: String,
    /// Variables of the proxy.
    metadata: BTreeMap<String, String>,
    never: Vec<Selector>,
    always: Vec<Selector>,
}

impl Default for Injector {
    /// The configuration of a mesh that was installed with defaults and the CNI plugin.
    fn default() -> Self {
        Self {
            by_plugin: true,
            by_default: true,
            every_namespace: false,
            include_ranges: "*".into(),
            exclude_ranges: String::new(),
            include_inbound: "*".into(),
            exclude_inbound: String::new(),
            include_outbound: String::new(),
            exclude_outbound: String::new(),
            status_port: "15020".into(),
            native_nftables: false,
            outbound_port: "15001".into(),
            inbound_port: "15006".into(),
            mode: "REDIRECT".into(),
            metadata: BTreeMap::new(),
            never: Vec::new(),
            always: Vec::new(),
        }
    }
}

/// A file counts as a chart's values if it has one of these members.
const VALUES: [&str; 8] =
    ["global", "sidecarInjectorWebhook", "pilot", "meshConfig", "istio_cni", "cni", "revision", "proxy"];

impl Injector {
    /// Reads a chart's values, or the injector's ConfigMap, the mesh's, or both.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|e| format!("is no YAML: {}", first(e.to_string())))?;
        let mut out = Self { by_plugin: false, ..Self::default() };
        let mut is_known = false;
        for document in documents.iter().filter(|document| !document.is_null()) {
            let items = document.get("items").and_then(Value::as_array);
            for object in items.map_or(std::slice::from_ref(document), Vec::as_slice) {
                is_known |= out.take(object)?;
            }
        }
        match is_known {
            true => Ok(out),
            false => Err("holds neither an injector's values nor its ConfigMap: expected members such as global and pilot, or data.values (kubectl -n istio-system get configmap istio-sidecar-injector -o yaml)".into()),
        }
    }

    /// Reads one object, and tells whether it configures anything.
    fn take(&mut self, object: &Value) -> Result<bool, String> {
        let part = |name: &str| -> Result<Option<Value>, String> {
            let Some(text) = object.pointer(&format!("/data/{name}")).and_then(Value::as_str) else { return Ok(None) };
            let value = serde_saphyr::from_str(text);
            value.map(Some).map_err(|_| format!("data.{name} of the ConfigMap is no YAML"))
        };
        match object["kind"].as_str() {
            Some("ConfigMap") => {
                let (values, config, mesh) = (part("values")?, part("config")?, part("mesh")?);
                if let Some(values) = &values {
                    self.values(values)?;
                }
                if let Some(config) = &config {
                    self.by_default = config["policy"] != "disabled";
                    self.selectors(config)?;
                }
                if let Some(mesh) = &mesh {
                    self.mesh(mesh);
                }
                Ok(values.is_some() || config.is_some() || mesh.is_some())
            }
            // An object of an operator.
            Some(_) => {
                let (values, mesh) = (object.pointer("/spec/values"), object.pointer("/spec/meshConfig"));
                values.map(|values| self.values(values)).transpose()?;
                mesh.into_iter().for_each(|mesh| self.mesh(mesh));
                Ok(values.is_some() || mesh.is_some())
            }
            None => {
                self.values(object)?;
                Ok(VALUES.iter().any(|name| object.get(name).is_some()))
            }
        }
    }

    fn values(&mut self, values: &Value) -> Result<(), String> {
        let is_on = |path: &str| values.pointer(path).and_then(Value::as_bool);
        if let Some(on) = ["/pilot/cni/enabled", "/istio_cni/enabled", "/cni/enabled"].into_iter().find_map(is_on) {
            self.by_plugin = on;
        }
        self.every_namespace =
            is_on("/sidecarInjectorWebhook/enableNamespacesByDefault").unwrap_or(self.every_namespace);
        self.native_nftables = is_on("/global/nativeNftables").unwrap_or(self.native_nftables);
        let texts: [(&str, &mut String); 7] = [
            ("/global/proxy/includeIPRanges", &mut self.include_ranges),
            ("/global/proxy/excludeIPRanges", &mut self.exclude_ranges),
            ("/global/proxy/includeInboundPorts", &mut self.include_inbound),
            ("/global/proxy/excludeInboundPorts", &mut self.exclude_inbound),
            ("/global/proxy/includeOutboundPorts", &mut self.include_outbound),
            ("/global/proxy/excludeOutboundPorts", &mut self.exclude_outbound),
            ("/global/proxy/statusPort", &mut self.status_port),
        ];
        for (path, into) in texts {
            take_text(values, path, into);
        }
        if let Some(webhook) = values.get("sidecarInjectorWebhook") {
            self.selectors(webhook)?;
        }
        values.get("meshConfig").into_iter().for_each(|mesh| self.mesh(mesh));
        Ok(())
    }

    fn mesh(&mut self, mesh: &Value) {
        take_text(mesh, "/proxyListenPort", &mut self.outbound_port);
        take_text(mesh, "/proxyInboundListenPort", &mut self.inbound_port);
        if let Some(config) = mesh.get("defaultConfig") {
            proxy_config(config, &mut self.mode, &mut self.metadata);
        }
    }

    fn selectors(&mut self, place: &Value) -> Result<(), String> {
        for (name, into) in [("neverInjectSelector", &mut self.never), ("alwaysInjectSelector", &mut self.always)] {
            let all = place.get(name).and_then(Value::as_array).into_iter().flatten();
            into.extend(all.map(Selector::read).collect::<Result<Vec<_>, _>>().map_err(|e| format!("{name}: {e}"))?);
        }
        Ok(())
    }
}

/// Sets a text from a member that is a text or a number; leaves it where there is none.
fn take_text(place: &Value, path: &str, into: &mut String) {
    match place.pointer(path) {
        Some(Value::String(text)) => into.clone_from(text),
        Some(Value::Number(number)) => *into = number.to_string(),
        _ => {}
    }
}

/// What a proxy's configuration says about interception: its mode, and its variables.
fn proxy_config(config: &Value, mode: &mut String, metadata: &mut BTreeMap<String, String>) {
    take_text(config, "/interceptionMode", mode);
    for (name, value) in config.get("proxyMetadata").and_then(Value::as_object).into_iter().flatten() {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        metadata.insert(name.clone(), text);
    }
}

#[cfg(test)]
mod tests;
