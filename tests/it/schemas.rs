//! What commands print as JSON is what the schema files in `scripts/schemas` say.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};

use jsonschema::Validator;
use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Holds what a command printed against a schema file by name.
pub fn hold(schema: &str, printed: &Value) {
    let validator = validator(schema);
    let errors: Vec<String> = validator.iter_errors(printed).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{schema}.schema.json: {}\n{printed:#}", errors.join("\n"));
}

/// A schema file's validator, which is made once.
fn validator(schema: &str) -> Arc<Validator> {
    static ALL: Mutex<BTreeMap<String, Arc<Validator>>> = Mutex::new(BTreeMap::new());
    let make = || {
        let path = format!("{ROOT}/scripts/schemas/{schema}.schema.json");
        let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        allow_no_unknown_members(&mut schema);
        Arc::new(jsonschema::validator_for(&schema).unwrap())
    };
    ALL.lock().unwrap().entry(schema.to_owned()).or_insert_with(make).clone()
}

/// The files allow members that they do not know, so that some may be added; a test has to notice that one was.
fn allow_no_unknown_members(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("properties").is_some_and(Value::is_object) && members.contains_key("type") {
                members.entry("additionalProperties").or_insert(false.into());
            }
            members.values_mut().for_each(allow_no_unknown_members);
        }
        Value::Array(items) => items.iter_mut().for_each(allow_no_unknown_members),
        _ => {}
    }
}

fn printed(arguments: &[&str]) -> Value {
    let output = Command::new(PODWEIR).args(arguments).env_clear().output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}"))
}

#[test]
fn reports_of_files_and_options_are_as_their_schemas_say() {
    let manifest = format!("{ROOT}/tests/data/pods/init.yaml");
    let pod = ["--pod-ip", "10.244.0.6,fd00:10:244::6"];
    let audit = |rest: &[&str]| hold("audit", &printed(&[&["audit", "--format", "json"], rest].concat()));
    audit(&["--pod-manifest", &manifest]);
    audit(&[&pod[..], &["--", "-i", "*", "-b", "*", "-m", "TPROXY"]].concat());
    audit(&[&pod[..], &["--"]].concat());
    let flow = ["--direction", "outbound", "--proto", "tcp", "--destination", "203.0.113.10", "--port", "443"];
    for rest in [&["--", "-i", "*"][..], &["-v", "--", "-i", "*"], &["--", "-i", ""]] {
        hold("explain", &printed(&[&["explain", "--json"], &flow[..], rest].concat()));
    }
    hold("print-config", &printed(&["init", "--print-config", "--json"]));
    // Every variant of a rule is held against its schema where dumps are written and read again.
    hold("rules", &printed(&["render", "--format", "json", "--", "-i", "*", "-m", "TPROXY"]));
    let diff = ["render", "--format", "json", "--pod-ip", "10.244.0.6", "--diff", "--", "-b", "*"];
    hold("verify", &printed(&[&diff[..], &["--against", "--", "-b", "80"]].concat()));
}

#[test]
fn reports_of_a_kernel_are_as_their_schemas_say() {
    let pod = Namespace::new();
    let run = |arguments: &[&str]| pod.podweir(arguments);
    let value = |arguments: &[&str]| -> Value {
        let output = run(arguments);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}"))
    };
    let verify = ["verify", "--json", "--live", "--", "-i", "*", "-b", "*"];
    hold("verify", &value(&verify));
    assert!(run(&["init", "-i", "*", "-b", "*"]).status.success());
    let same = value(&verify);
    assert_eq!(same["same"], true);
    hold("verify", &same);
    let other = value(&["verify", "--json", "--live", "--", "-i", "*", "-b", "80"]);
    assert!(!other["findings"].as_array().unwrap().is_empty() && !other["effects"].as_array().unwrap().is_empty());
    hold("verify", &other);
    hold("audit", &value(&["audit", "--format", "json", "--live", "--", "-i", "*", "-b", "80"]));
}
