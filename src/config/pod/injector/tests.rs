use serde_json::json;

use super::required::InjectorVerdict;
use super::*;
use crate::config::options::Opt;
use crate::config::pod::NodeOptions;
use crate::config::pod::manifest::{Manifest, PodOptions};
use crate::config::pod::model::Pod;

fn pod(labels: Value, annotations: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "shop", "labels": labels,
        "annotations": annotations }, "spec": { "containers": [{ "name": "app" }] } }))
    .unwrap()
}

fn labelled(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn whether_a_pod_gets_a_sidecar_is_decided_as_the_webhooks_do() {
    let injector = Injector::default();
    let enabled = labelled(&[("istio-injection", "enabled")]);
    let none = labelled(&[]);
    let decide = |pod: &Pod, namespace| injector.decide(pod, namespace);
    let plain = pod(json!({}), json!({}));
    let asks = pod(json!({ "sidecar.istio.io/inject": "true" }), json!({}));
    let refuses = pod(json!({ "sidecar.istio.io/inject": "false" }), json!({}));
    assert_eq!(decide(&plain, Some(&enabled)), InjectorVerdict::Injected { assumed: false });
    assert_eq!(decide(&plain, None), InjectorVerdict::Injected { assumed: true });
    assert_eq!(decide(&asks, None), InjectorVerdict::Injected { assumed: false });
    assert!(matches!(decide(&plain, Some(&none)), InjectorVerdict::Outside(_)));
    assert_eq!(decide(&asks, Some(&none)), InjectorVerdict::Injected { assumed: false });
    assert!(matches!(decide(&refuses, Some(&enabled)), InjectorVerdict::LeftAlone(_)));
    // The selector of the webhook for single pods wants no label on the namespace.
    let disabled = labelled(&[("istio-injection", "disabled")]);
    assert!(matches!(decide(&asks, Some(&disabled)), InjectorVerdict::LeftAlone(_)));
    // An annotation alone does not call the webhook.
    let annotated = pod(json!({}), json!({ "sidecar.istio.io/inject": "true" }));
    assert!(matches!(decide(&annotated, Some(&none)), InjectorVerdict::Outside(_)));
    let revision = labelled(&[("istio.io/rev", "1-29")]);
    assert_eq!(decide(&plain, Some(&revision)), InjectorVerdict::Injected { assumed: false });
    assert_eq!(
        decide(&pod(json!({ "istio.io/rev": "1-29" }), json!({})), Some(&none)),
        InjectorVerdict::Injected { assumed: false }
    );
    let gateway = pod(json!({ "sidecar.istio.io/inject": "true" }), json!({ "inject.istio.io/templates": "gateway" }));
    assert!(matches!(decide(&gateway, Some(&none)), InjectorVerdict::LeftAlone(why) if why.contains("gateway")));
    let off = pod(json!({}), json!({ "sidecar.istio.io/interceptionMode": "NONE" }));
    assert!(matches!(decide(&off, Some(&enabled)), InjectorVerdict::LeftAlone(why) if why.contains("NONE")));
    let there = pod(json!({}), json!({ "sidecar.istio.io/status": "{}" }));
    assert_eq!(decide(&there, Some(&none)), InjectorVerdict::AsItIs);
}

#[test]
fn ambient_is_where_no_sidecar_is() {
    let injector = Injector::default();
    let ambient = labelled(&[("istio.io/dataplane-mode", "ambient")]);
    let decide = |labels: Value, namespace| injector.decide(&pod(labels, json!({})), namespace);
    assert_eq!(decide(json!({}), Some(&ambient)), InjectorVerdict::Ambient);
    assert!(matches!(
        decide(json!({ "istio.io/dataplane-mode": "none" }), Some(&ambient)),
        InjectorVerdict::Outside(_)
    ));
    assert_eq!(decide(json!({ "istio.io/dataplane-mode": "ambient" }), None), InjectorVerdict::Ambient);
    // A pod with a sidecar is not the ztunnel's.
    let both = labelled(&[("istio.io/dataplane-mode", "ambient"), ("istio-injection", "enabled")]);
    assert_eq!(decide(json!({}), Some(&both)), InjectorVerdict::Injected { assumed: false });
    let host = json!({ "spec": { "hostNetwork": true, "containers": [] } });
    assert_eq!(injector.decide(&serde_json::from_value(host).unwrap(), Some(&ambient)), InjectorVerdict::HostNetwork);
}

fn options(injector: &Injector, pod: &Pod) -> Vec<(Opt, String)> {
    let manifest = Manifest::of(injector.inject(pod).unwrap()).unwrap();
    match manifest.wanted(&NodeOptions::default()).unwrap() {
        PodOptions::Annotations(given, _) => given.iter().map(|(opt, _, text)| (opt, text.to_owned())).collect(),
        PodOptions::Init { .. } => panic!("annotations were expected"),
    }
}

#[test]
fn what_a_pod_says_goes_over_what_the_mesh_says() {
    let values = "pilot: {cni: {enabled: true}}\nglobal: {proxy: {excludeIPRanges: 10.9.0.0/16, includeOutboundPorts: 99}}\n\
        meshConfig: {defaultConfig: {interceptionMode: TPROXY, proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}}}\n";
    let injector = Injector::parse(values).unwrap();
    let has = |options: &[(Opt, String)], opt, text: &str| options.contains(&(opt, text.into()));
    let mesh = options(&injector, &pod(json!({}), json!({})));
    assert!(has(&mesh, Opt::OutboundRangesExclude, "10.9.0.0/16") && has(&mesh, Opt::Mode, "TPROXY"), "{mesh:?}");
    assert!(has(&mesh, Opt::RedirectDns, "true") && has(&mesh, Opt::OutboundPorts, "99"), "{mesh:?}");
    assert!(has(&mesh, Opt::InboundPortsExclude, "15020,15021,15090"), "{mesh:?}");
    let own = options(
        &injector,
        &pod(
            json!({}),
            json!({ "traffic.sidecar.istio.io/excludeOutboundIPRanges": "", "status.sidecar.istio.io/port": "15099",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
                "proxy.istio.io/config": "interceptionMode: REDIRECT\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\"}" }),
        ),
    );
    assert!(has(&own, Opt::OutboundRangesExclude, "") && has(&own, Opt::Mode, "REDIRECT"), "{own:?}");
    assert!(
        has(&own, Opt::OutboundPortsExclude, "3306") && !own.iter().any(|(opt, _)| *opt == Opt::RedirectDns),
        "{own:?}"
    );
    assert!(own.iter().any(|(opt, text)| *opt == Opt::InboundPortsExclude && text.starts_with("15099")), "{own:?}");
}

#[test]
fn a_configmap_of_the_injector_without_the_plugin_makes_an_init_container() {
    let map = json!({ "kind": "ConfigMap", "data": { "values": "{\"global\":{\"proxy\":{\"excludeOutboundPorts\":\"3306\",\"statusPort\":15020}}}",
        "config": "policy: disabled\nneverInjectSelector: [{matchExpressions: [{key: openshift.io/build.name, operator: Exists}]}]\n" } });
    let injector = Injector::parse(&map.to_string()).unwrap();
    let enabled = labelled(&[("istio-injection", "enabled")]);
    assert!(matches!(injector.decide(&pod(json!({}), json!({})), Some(&enabled)), InjectorVerdict::Outside(_)));
    let build = pod(json!({ "openshift.io/build.name": "1" }), json!({}));
    assert!(matches!(injector.decide(&build, Some(&enabled)), InjectorVerdict::LeftAlone(_)));
    let injected = injector.inject(&pod(json!({}), json!({}))).unwrap();
    let (arguments, _) = injected.init_arguments().unwrap();
    let line = arguments.join(" ");
    assert!(line.contains("-i * -x  -b * -d 15090,15021,15020 -o 3306"), "{line}");
}

#[test]
fn a_file_that_says_nothing_about_injection_is_refused() {
    for text in ["{}", "kind: ConfigMap\ndata: {a: b}", "kind: Deployment\nspec: {}", "some: thing"] {
        assert!(Injector::parse(text).unwrap_err().contains("istio-sidecar-injector"), "{text}");
    }
    assert!(Injector::parse("kind: ConfigMap\ndata: {values: '{'}").is_err());
}

#[test]
fn a_pod_whose_configuration_of_its_proxy_is_none_is_refused_as_the_injector_refuses_it() {
    let injector = Injector::default();
    let enabled = labelled(&[("istio-injection", "enabled")]);
    let configured = |text: &str| pod(json!({}), json!({ "proxy.istio.io/config": text }));
    for text in ["interceptionMode: [TPROXY", "TPROXY", "[]"] {
        let pod = configured(text);
        assert_eq!(injector.decide(&pod, Some(&enabled)), InjectorVerdict::Injected { assumed: false }, "{text}");
        let problem = injector.inject(&pod).unwrap_err();
        assert!(problem.contains("proxy.istio.io/config") && problem.contains(text), "{problem}");
    }
    let mode = injector.inject(&configured("interceptionMode: TPROXY")).unwrap();
    assert_eq!(mode.annotation("sidecar.istio.io/interceptionMode"), Some("TPROXY"));
    assert!(injector.inject(&configured("")).is_ok());
}
