//! From a pod's annotations, and its proxy's variables and user, to option texts, which are parsed and
//! checked where all options are.

use crate::config::given::{Given, Origin};
use crate::config::options::{Opt, Takes};
use crate::config::value;

use super::error::PodError;
use super::model::{Container, Pod};

/// Ports of the proxy itself, never intercepted inbound.
const PROXY_PORTS: [u16; 3] = [15020, 15021, 15090];

/// How many ports, ranges and interfaces a pod's annotations may list together. A pod is
/// set up outside its own limits of CPU: so many take 10 ms natively and 0.3 s with
/// iptables, which makes rules of each, in both families.
const MOST_ENTRIES: usize = 2000;

/// What the proxy runs as, unless the pod says otherwise.
const PROXY_ID: &str = "1337";

/// The annotations that are options; of two for the same option the first one set counts.
const ANNOTATIONS: &[(&str, Opt)] = &[
    ("sidecar.istio.io/interceptionMode", Opt::Mode),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", Opt::OutboundRanges),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", Opt::OutboundRangesExclude),
    ("traffic.sidecar.istio.io/includeInboundPorts", Opt::InboundPorts),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Opt::InboundPortsExclude),
    ("traffic.sidecar.istio.io/includeOutboundPorts", Opt::OutboundPorts),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Opt::OutboundPortsExclude),
    ("traffic.sidecar.istio.io/excludeInterfaces", Opt::ExcludeInterfaces),
    ("istio.io/reroute-virtual-interfaces", Opt::VirtualInterfaces),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", Opt::VirtualInterfaces),
];

/// The options of a pod that neither an annotation nor the netconf sets.
const DEFAULTS: &[(Opt, &str)] = &[
    (Opt::OutboundRanges, "*"),
    (Opt::InboundPorts, "*"),
    (Opt::InboundPortsExclude, "15020"),
    (Opt::OutboundPortsExclude, "15020"),
    (Opt::ProxyUid, PROXY_ID),
    (Opt::ProxyGid, PROXY_ID),
];

/// The options of a pod, which go over those of the netconf. `warn` is told which values are ignored.
///
/// # Errors
/// When a list of an annotation has an empty item, or the lists are too long together.
pub fn options(pod: &Pod, proxy: &Container, netconf: &Given, warn: &mut dyn FnMut(String)) -> Result<Given, PodError> {
    let mut given = Given::default();
    let mut entries = 0;
    for (name, opt) in ANNOTATIONS {
        if let Some(text) = pod.annotation(name).filter(|_| !given.has(*opt)) {
            check_items(name, *opt, text)?;
            entries += entries_of(*opt, text);
            if entries > MOST_ENTRIES {
                return Err(PodError::TooManyEntries { annotation: name, entries, most: MOST_ENTRIES });
            }
            given.set(*opt, Origin::Annotation((*name).into()), text);
        }
    }
    for (opt, field, id) in
        [(Opt::ProxyUid, "runAsUser", proxy.run_as_user()), (Opt::ProxyGid, "runAsGroup", proxy.run_as_group())]
    {
        if let Some(id) = id {
            given.set(opt, Origin::ProxyField(field), id.to_string());
        }
    }
    let mut is_on = |name: &str| match proxy.variable(name).map(|text| (text, value::boolean(text))) {
        None => false,
        Some((_, Ok(on))) => on,
        Some((_, Err(invalid))) => {
            warn(format!("{}; it counts as false", invalid.of_option(&format!("the proxy's variable {name}"))));
            false
        }
    };
    let variables: [(&str, &[Opt]); 3] = [
        ("ISTIO_META_DNS_CAPTURE", &[Opt::RedirectDns, Opt::CaptureAllDns]),
        ("ISTIO_DUAL_STACK", &[Opt::DualStack]),
        ("INVALID_DROP", &[Opt::DropInvalid]),
    ];
    for (name, opts) in variables.into_iter().filter(|(name, _)| is_on(name)) {
        for opt in opts {
            given.set(*opt, Origin::ProxyVariable(name.into()), "true");
        }
    }
    below(&mut given, netconf);
    for (opt, text) in DEFAULTS.iter().filter(|(opt, _)| netconf.get(*opt).is_none()) {
        if !given.has(*opt) {
            given.set(*opt, Origin::Default, *text);
        }
    }
    let (origin, text) = given.text(Opt::InboundPortsExclude);
    let (origin, text) = (origin.clone(), with_proxy_ports(text));
    given.set(Opt::InboundPortsExclude, origin, text);
    Ok(given)
}

/// Sets from the netconf the options that the pod does not set.
fn below(given: &mut Given, netconf: &Given) {
    for (opt, origin, text) in netconf.iter() {
        // A pod that asks for both families is not held to the node's choice.
        let overruled = opt == Opt::IpFamilies && given.has(Opt::DualStack);
        if !given.has(opt) && !overruled {
            given.set(opt, origin.clone(), text);
        }
    }
}

/// Refuses an empty item, which may be all that is left of one that mattered.
fn check_items(name: &'static str, opt: Opt, text: &str) -> Result<(), PodError> {
    let is_list = matches!(opt.spec().takes, Takes::List(_));
    if is_list && !text.trim().is_empty() && text.split(',').any(|item| item.trim().is_empty()) {
        return Err(PodError::EmptyItem { annotation: name, text: text.into() });
    }
    Ok(())
}

/// How many rules or elements of a set a list makes: neighbouring ports are one.
fn entries_of(opt: Opt, text: &str) -> usize {
    match opt.spec().takes {
        Takes::List("PORTS") => {
            value::port_list(text).map_or_else(|_| value::items(text).count(), |list| list.normalised().len())
        }
        Takes::List(_) => value::items(text).count(),
        Takes::One(_) | Takes::Boolean => 0,
    }
}

/// Adds the proxy's own ports where they are not in the list yet.
fn with_proxy_ports(text: &str) -> String {
    let has = |port: u16| value::port_list(text).is_ok_and(|list| list.iter().any(|(a, b)| (a..=b).contains(&port)));
    let mut items: Vec<String> = value::items(text).map(str::to_owned).collect();
    items.extend(PROXY_PORTS.iter().filter(|port| !has(**port)).map(u16::to_string));
    items.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn given(annotations: serde_json::Value, env: serde_json::Value, netconf: &Given) -> (Given, Vec<String>) {
        let pod = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [
            { "name": "istio-proxy", "env": env, "securityContext": { "runAsUser": 7, "runAsGroup": 0 } } ] } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let proxy: Container = serde_json::from_value(json!({ "name": "p", "env": env,
            "securityContext": { "runAsUser": 7, "runAsGroup": 0 } }))
        .unwrap();
        let mut warnings = Vec::new();
        (options(&pod, &proxy, netconf, &mut |w| warnings.push(w)).unwrap(), warnings)
    }

    #[test]
    fn a_pod_beats_the_netconf_and_the_netconf_the_defaults() {
        let mut netconf = Given::default();
        let key = || Origin::Netconf("interception".into());
        netconf.set(Opt::InboundPorts, key(), "80");
        netconf.set(Opt::OutboundRanges, key(), "10.0.0.0/8");
        netconf.set(Opt::IpFamilies, key(), "ipv4");
        netconf.set(Opt::ProxyGid, key(), "9");
        let name = "traffic.sidecar.istio.io/includeInboundPorts";
        let (options, warnings) =
            given(json!({ name: "443" }), json!([{ "name": "ISTIO_DUAL_STACK", "value": "1" }]), &netconf);
        assert_eq!(options.get(Opt::InboundPorts), Some((&Origin::Annotation(name.into()), "443")));
        assert_eq!(options.text(Opt::OutboundRanges).1, "10.0.0.0/8");
        assert_eq!((options.text(Opt::ProxyUid).1, options.text(Opt::ProxyGid).1), ("7", "9"));
        assert_eq!(options.text(Opt::OutboundPortsExclude).1, "15020");
        assert!(!options.has(Opt::IpFamilies) && options.has(Opt::DualStack) && warnings.is_empty());
    }

    #[test]
    fn nonsense_in_a_variable_is_told_and_counts_as_false() {
        let env = json!([{ "name": "ISTIO_META_DNS_CAPTURE", "value": "yes please" }]);
        let (options, warnings) = given(json!({}), env, &Given::default());
        assert!(!options.has(Opt::RedirectDns));
        assert!(warnings[0].contains("ISTIO_META_DNS_CAPTURE") && warnings[0].contains("yes please"), "{warnings:?}");
    }

    #[test]
    fn the_proxys_ports_are_added_once() {
        assert_eq!(with_proxy_ports(""), "15020,15021,15090");
        assert_eq!(with_proxy_ports("15020,7777,15021"), "15020,7777,15021,15090");
        assert_eq!(with_proxy_ports("15000-15050"), "15000-15050,15090");
    }
}
