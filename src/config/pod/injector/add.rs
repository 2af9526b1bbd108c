//! What an injector adds to a pod, of that what decides about its interception: annotations
//! that the CNI plugin reads, or the init container, and the proxy.

use std::collections::BTreeMap;

use crate::config::pod::model::{Container, INIT, PROXY, Pod, STATUS, SecurityContext, Variable};

use super::Injector;
use super::required::MODE;

const INCLUDE_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const INCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_OUTBOUND: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const VIRTUAL: [&str; 2] = ["istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"];
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
/// Whom the proxy runs as.
const PROXY_ID: i64 = 1337;

impl Injector {
    /// The pod as the injector would change it.
    ///
    /// # Errors
    ///
    /// For what the injector refuses the pod.
    pub fn inject(&self, pod: &Pod) -> Result<Pod, String> {
        let mut pod = pod.clone();
        let (mode, metadata) = self.config_of(&pod)?;
        let said = |name: &str, default: &str| pod.annotation(name).unwrap_or(default).to_owned();
        let status = said(STATUS_PORT, &self.status_port);
        let excluded = with_port(&status, &said(EXCLUDE_INBOUND, &self.exclude_inbound));
        // What is empty is left out of these, so that the program's default counts.
        let some = |name: &'static str, default: &str| Some(said(name, default)).filter(|text| !text.is_empty());
        let include_ports = some(INCLUDE_OUTBOUND, &self.include_outbound);
        let exclude_ports = pod
            .annotation(EXCLUDE_OUTBOUND)
            .map(str::to_owned)
            .or_else(|| some(EXCLUDE_OUTBOUND, &self.exclude_outbound));
        let ranges = (said(INCLUDE_RANGES, &self.include_ranges), said(EXCLUDE_RANGES, &self.exclude_ranges));
        let include_inbound = said(INCLUDE_INBOUND, &self.include_inbound);
        if self.by_plugin {
            let mut annotate = |name: &str, text: String| {
                pod.metadata.annotations.get_or_insert_default().insert(name.into(), text);
            };
            annotate(MODE, mode.clone());
            annotate(INCLUDE_RANGES, ranges.0);
            annotate(EXCLUDE_RANGES, ranges.1);
            annotate(INCLUDE_INBOUND, include_inbound);
            annotate(EXCLUDE_INBOUND, excluded);
            include_ports.into_iter().for_each(|ports| annotate(INCLUDE_OUTBOUND, ports));
            exclude_ports.into_iter().for_each(|ports| annotate(EXCLUDE_OUTBOUND, ports));
        } else {
            let mut words = vec!["istio-iptables".to_owned()];
            let mut option = |name: &str, text: &str| words.extend([name.to_owned(), text.to_owned()]);
            option("-p", &self.outbound_port);
            option("-z", &self.inbound_port);
            option("-u", &PROXY_ID.to_string());
            option("-m", &mode);
            option("-i", &ranges.0);
            option("-x", &ranges.1);
            option("-b", &include_inbound);
            option("-d", &format!("15090,15021,{excluded}"));
            include_ports.iter().for_each(|ports| option("-q", ports));
            exclude_ports.iter().for_each(|ports| option("-o", ports));
            let virtual_interfaces = VIRTUAL.iter().find_map(|name| pod.annotation(name));
            virtual_interfaces.into_iter().for_each(|names| option("-k", names));
            pod.annotation(INTERFACES).into_iter().for_each(|names| option("-c", names));
            words.extend(self.native_nftables.then(|| "--native-nftables".to_owned()));
            let init = Container {
                name: INIT.into(),
                args: Some(words),
                env: Some(variables(&metadata)),
                ..Container::default()
            };
            pod.spec.init_containers.get_or_insert_default().push(init);
        }
        add_proxy(&mut pod, mode == "TPROXY", &metadata);
        pod.metadata.annotations.get_or_insert_default().insert(STATUS.into(), "{}".into());
        Ok(pod)
    }
}

fn variables(metadata: &BTreeMap<String, String>) -> Vec<Variable> {
    metadata.iter().map(|(name, value)| Variable { name: name.clone(), value: Some(value.clone()) }).collect()
}

/// Adds the proxy's container; the pod's own container of that name overrides what it sets.
fn add_proxy(pod: &mut Pod, is_tproxy: bool, metadata: &BTreeMap<String, String>) {
    let all = [&mut pod.spec.containers, &mut pod.spec.init_containers];
    let own = all.into_iter().find_map(|list| {
        let list = list.as_mut()?;
        let at = list.iter().position(|container| container.name == PROXY)?;
        Some(list.remove(at))
    });
    let mut proxy = Container {
        name: PROXY.into(),
        args: Some(vec!["proxy".into(), "sidecar".into()]),
        env: Some(variables(metadata)),
        security_context: Some(SecurityContext {
            run_as_user: Some(if is_tproxy { 0 } else { PROXY_ID }),
            run_as_group: Some(PROXY_ID),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    if let Some(own) = own {
        proxy.env.get_or_insert_default().extend(own.env.unwrap_or_default());
        if let (Some(ours), Some(own)) = (&mut proxy.security_context, own.security_context) {
            ours.run_as_user = own.run_as_user.or(ours.run_as_user);
            ours.run_as_group = own.run_as_group.or(ours.run_as_group);
        }
    }
    pod.spec.containers.get_or_insert_default().push(proxy);
}

/// Adds the port of the proxy's status to a list of ports, unless it is empty or 0.
fn with_port(port: &str, list: &str) -> String {
    let port = port.trim();
    let mut items: Vec<&str> = list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if port.is_empty() || port == "0" || items.contains(&port) {
        return list.to_owned();
    }
    items.push(port);
    items.join(",")
}
