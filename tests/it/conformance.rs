//! What a real istio-iptables left in a real kernel: podweir's compatible face leaves the
//! same, on both iptables variants.

use std::collections::HashMap;

use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR, State, TableState};

pub fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../data/cases.json")).unwrap()
}

pub fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

pub fn refs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

pub fn variables(value: &Value) -> Vec<(String, String)> {
    value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

fn tables(value: &Value) -> HashMap<String, TableState> {
    let table = |value: &Value| TableState {
        chains: strings(&value["chains"]),
        rules: value["rules"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(chain, rules)| (chain.clone(), strings(rules)))
            .collect(),
    };
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), table(value))).collect()
}

pub fn expected(value: &Value) -> State {
    let by_family = |value: &Value| value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), strings(v))).collect();
    State {
        ip4: tables(&value["ip4"]),
        ip6: tables(&value["ip6"]),
        rules: by_family(&value["rules"]),
        routes: by_family(&value["routes"]),
        lo6: strings(&value["lo6"]),
    }
}

fn check(variant: &str) {
    let mut wrong = Vec::new();
    let cases = cases();
    assert_eq!(cases.len(), 48);
    for case in &cases {
        let (name, arguments) = (case["name"].as_str().unwrap(), strings(&case["args"]));
        let addresses = strings(&case["addresses"]);
        let namespace = Namespace::with(&refs(&addresses), case["resolv_conf"].as_str().unwrap());
        let mut environment = variables(&case["env"]);
        environment.push(("FORCE_IPTABLES_BINARY".into(), variant.into()));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let arguments: Vec<&str> = std::iter::once("istio-iptables").chain(refs(&arguments)).collect();
        let output = namespace.command(PODWEIR, &arguments, &environment);
        let table = arguments.iter().position(|a| *a == "-r").map_or("133", |at| arguments[at + 1]);
        let (got, want) = (namespace.state(variant, table), expected(&case["expect"]));
        if output.status.success() != (case["exit"] == 0) || got != want {
            wrong.push(format!("{name}: {}\nwanted {want:#?}\ngot {got:#?}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn recorded_cases_on_iptables_legacy() {
    check("legacy");
}

#[test]
fn recorded_cases_on_iptables_nft() {
    check("nft");
}
