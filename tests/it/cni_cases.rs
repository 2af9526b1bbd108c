//! What a real istio-cni did with 43 pods, found over TLS: the plugin does the same.

use serde_json::{Value, json};

use crate::api::Api;
use crate::conformance::{expected, refs, strings};
use crate::fixture::{Namespace, RESOLV};
use crate::plugin::{Plugin, RunDir, path};

fn call(case: &Value, namespace: &Namespace, run_dir: &RunDir) -> Plugin {
    let version = case["cni_version"].as_str().unwrap();
    let mut plugin = Plugin::add(&path(namespace), run_dir.path())
        .variable("CNI_ARGS", case["cni_args"].as_str().unwrap())
        .key("cniVersion", json!(version))
        .key("backend", json!("iptables-legacy"))
        .key("ip_families", json!("first"));
    for (key, value) in case["netconf"].as_object().unwrap() {
        plugin = plugin.key(key, value.clone());
    }
    if case["prev_result"] == true {
        let ip = |address: &String| match version < "1" {
            true => {
                json!({ "address": address, "version": if address.contains(':') { "6" } else { "4" }, "interface": 0 })
            }
            false => json!({ "address": address, "interface": 0 }),
        };
        let ips: Vec<Value> = strings(&case["addresses"]).iter().map(ip).collect();
        let result = json!({ "cniVersion": version, "ips": ips, "routes": [{ "dst": "0.0.0.0/0" }],
            "interfaces": [{ "name": "eth0", "mac": "0a:58:0a:f4:00:06", "sandbox": "NETNS" }],
            "dns": { "nameservers": ["10.96.0.10"] } });
        plugin = plugin.key("prevResult", result);
    }
    plugin
}

#[test]
fn recorded_pods_are_handled_the_same_way() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/cni-cases.json")).unwrap();
    assert_eq!(cases.len(), 43);
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let namespace = Namespace::with(&refs(&strings(&case["addresses"])), RESOLV);
        let (api, run_dir) = (Api::with_pod(&case["pod"]), RunDir::new());
        api.write_kubeconfig(run_dir.path());
        let plugin = call(case, &namespace, &run_dir);
        let outcome = plugin.call();
        let (got, want) = (namespace.state("legacy", "133"), expected(&case["expect"]));
        if outcome.status.success() != (case["exit"] == 0) {
            wrong.push(format!("{name}: {outcome:?}"));
        } else if got != want {
            wrong.push(format!("{name}: wanted {want:#?}\ngot {got:#?}"));
        } else if outcome.status.success() && outcome.json() != case["result"] {
            wrong.push(format!("{name}: result {}", outcome.stdout));
        } else if !outcome.status.success() {
            let (code, text) = outcome.error();
            let named = text.contains("annotation ") && text.contains("istio.io/");
            if code != 102 || !named {
                wrong.push(format!("{name}: {code} {text}"));
            }
        } else if api.requests() > 1
            || api.paths().iter().any(|path| !path.starts_with("/api/v1/namespaces/shop/pods/web-0"))
        {
            wrong.push(format!("{name}: asked for {:?}", api.paths()));
        }
        if outcome.status.success() {
            let version = if case["cni_version"] == "0.3.1" { "0.4.0" } else { case["cni_version"].as_str().unwrap() };
            let check = plugin.key("prevResult", Value::Null).key("cniVersion", json!(version)).verb("CHECK").call();
            if !check.status.success() || !check.stdout.is_empty() {
                wrong.push(format!("{name}: {check:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} pods differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
