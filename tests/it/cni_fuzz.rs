//! Whatever the environment and standard input hold: a result or an error object, and
//! nothing else on standard output.

use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};

use crate::fixture::Namespace;
use crate::plugin::{KUBERNETES, Plugin, RunDir, path};

/// Any JSON, not too deep.
fn any_json() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof![Just("1.0.0"), Just("*"), Just("80,443"), Just("-1"), Just("10.0.0.0/8")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("\\PC{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
    .boxed()
}

/// A netconf with a few keys of which some make sense.
fn netconf() -> BoxedStrategy<Vec<u8>> {
    const KEYS: [&str; 14] = [
        "cniVersion",
        "name",
        "type",
        "plugin_log_level",
        "exclude_namespaces",
        "pod_namespace",
        "native_nftables",
        "backend",
        "ip_families",
        "interception",
        "prevResult",
        "runtimeConfig",
        "cni.dev/valid-attachments",
        "istio-inbound-ports",
    ];
    let key = prop::sample::select(KEYS.to_vec());
    let options = prop::collection::vec(
        (prop::sample::select(vec!["istio-inbound-ports", "proxy-uid", "backend", "redirect-dns", "x"]), any_json()),
        0..3,
    );
    let options = options.prop_map(|pairs| {
        Value::Object(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    });
    (prop::collection::vec((key, any_json()), 0..5), prop::option::of(options), any::<bool>())
        .prop_map(|(pairs, options, version)| {
            let mut object: Map<String, Value> =
                pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            if version {
                object.insert("cniVersion".into(), json!("1.1.0"));
            }
            if let Some(options) = options {
                object.insert("interception".into(), options);
            }
            Value::Object(object).to_string().into_bytes()
        })
        .boxed()
}

fn input() -> BoxedStrategy<Vec<u8>> {
    Union::new_weighted(vec![
        (1, prop::collection::vec(any::<u8>(), 0..200).boxed()),
        (1, "\\PC{0,60}".prop_map(String::into_bytes).boxed()),
        (2, any_json().prop_map(|value| value.to_string().into_bytes()).boxed()),
        (8, netconf()),
        // Cut off somewhere.
        (2, (netconf(), 0..100usize).prop_map(|(bytes, at)| bytes[..at.min(bytes.len())].to_vec()).boxed()),
    ])
    .boxed()
}

/// A variable: any text, or one that makes sense.
fn text(good: &'static [&'static str]) -> BoxedStrategy<String> {
    let good = prop::sample::select(good.to_vec()).prop_map(str::to_owned);
    prop_oneof![3 => good, 1 => "[^\\x00]{0,40}"].boxed()
}

#[test]
fn there_is_always_a_result_or_an_error_object() {
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let netns: &'static [&'static str] =
        Vec::leak(vec![path(&namespace).leak() as &str, "", "/dev/null", "/proc/self/ns/net"]);
    let call = (
        text(&["ADD", "ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"]),
        text(&["abc", ""]),
        text(netns),
        text(&["eth0", ""]),
        text(&[KUBERNETES, "", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=b"]),
        input(),
    );
    let mut runner =
        TestRunner::new(Config { cases: crate::cases(300), failure_persistence: None, ..Config::default() });
    let result = runner.run(&call, |(verb, id, netns, ifname, arguments, input)| {
        let mut plugin = Plugin::add("", run_dir.path());
        plugin.variables = [
            ("CNI_COMMAND", &verb),
            ("CNI_CONTAINERID", &id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", &ifname),
            ("CNI_ARGS", &arguments),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into();
        // The run directory and a short deadline, where the input leaves room for them.
        let mut input = input;
        if let Ok(Value::Object(mut object)) = serde_json::from_slice::<Value>(&input) {
            object.insert("cni_agent_run_dir".into(), json!(run_dir.path()));
            object.insert("timeout".into(), json!("150ms"));
            input = Value::Object(object).to_string().into_bytes();
        }
        let outcome = plugin.feed(&input);
        let fail = |why: &str| TestCaseError::fail(format!("{why}: {verb} {outcome:?}"));
        match outcome.status.code() {
            Some(0) if outcome.stdout.is_empty() => {
                let silent = ["CHECK", "DEL", "GC", "STATUS"].contains(&verb.as_str());
                if silent { Ok(()) } else { Err(fail("no result")) }
            }
            Some(0) => match serde_json::from_str::<Value>(&outcome.stdout) {
                Ok(Value::Object(_)) => Ok(()),
                _ => Err(fail("no result")),
            },
            Some(1) => match serde_json::from_str::<Value>(&outcome.stdout) {
                Ok(error) if error["code"].is_u64() && error["msg"].is_string() && error["code"] != 999 => Ok(()),
                _ => Err(fail("no error object")),
            },
            _ => Err(fail("neither 0 nor 1")),
        }
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
