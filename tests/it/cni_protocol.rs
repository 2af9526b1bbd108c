//! The protocol: what runtimes really send, and what none should.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::api::Api;
use crate::fixture::Namespace;
use crate::plugin::{Cluster, KUBERNETES, Outcome, Plugin, RunDir, path, sidecar};

fn nothing_programmed(namespace: &Namespace, before: &str, what: &str) {
    assert_eq!(namespace.everything(), before, "{what}");
}

#[test]
fn bad_input_is_an_error_object_and_programs_nothing() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let before = cluster.namespace.everything();
    let add = cluster.add();
    let plain = cluster.run_dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let file = std::fs::File::open("/proc/self/ns/uts").unwrap();
    let uts = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let netns = |path: &str| add.clone().variable("CNI_NETNS", path);
    let fifo = cluster.run_dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let cases: Vec<(&str, u64, &str, Outcome)> = vec![
        ("empty", 6, "standard input is empty", add.feed(b"")),
        ("spaces", 6, "standard input is empty", add.feed(b" \n")),
        ("no JSON", 6, "no netconf", add.feed(b"hello")),
        ("half", 6, "no netconf", add.feed(br#"{"cniVersion":"1.0.0""#)),
        ("no object", 6, "no netconf", add.feed(b"[1]")),
        ("bytes", 6, "no netconf", add.feed(&[0xff, 0xfe, 0])),
        ("no version", 7, "cniVersion", add.clone().key("cniVersion", Value::Null).call()),
        ("unsupported version", 1, "9.9.9", add.clone().key("cniVersion", json!("9.9.9")).call()),
        ("no netns", 4, "CNI_NETNS", netns("").call()),
        ("no container", 4, "CNI_CONTAINERID", add.clone().variable("CNI_CONTAINERID", "").call()),
        ("odd container", 4, "CNI_CONTAINERID", add.clone().variable("CNI_CONTAINERID", "../../etc").call()),
        ("no interface", 4, "CNI_IFNAME", add.clone().variable("CNI_IFNAME", "").call()),
        ("odd arguments", 4, "CNI_ARGS", add.clone().variable("CNI_ARGS", "what").call()),
        (
            "odd pod",
            4,
            "K8S_POD_NAME",
            add.clone().variable("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=../b").call(),
        ),
        ("odd verb", 4, "CNI_COMMAND", add.clone().verb("PLUG").call()),
        ("missing netns", 4, "/nonexistent", netns("/nonexistent").call()),
        ("a file as netns", 4, "no network namespace", netns(plain.to_str().unwrap()).call()),
        ("a directory as netns", 4, "no network namespace", netns("/tmp").call()),
        ("a pipe as netns", 4, "no network namespace", netns(fifo.to_str().unwrap()).call()),
        ("another kind of namespace", 4, "no network namespace", netns(&uts).call()),
        ("the node's netns", 4, "node's own", netns("/proc/self/ns/net").call()),
        (
            "another version's result",
            7,
            "prevResult",
            add.clone().key("prevResult", json!({ "cniVersion": "0.4.0" })).call(),
        ),
        ("a result that is none", 7, "prevResult", add.clone().key("prevResult", json!([])).call()),
        ("backend", 7, "netconf key backend", add.clone().key("backend", json!("ipfw")).call()),
        ("families", 7, "netconf key ip_families", add.clone().key("ip_families", json!("ipv5")).call()),
        ("timeout", 7, "timeout", add.clone().key("timeout", json!("soon")).call()),
        ("option", 7, "interception.dry-run", add.clone().key("interception", json!({ "dry-run": true })).call()),
        ("unknown option", 7, "interception.no-such", add.clone().key("interception", json!({ "no-such": 1 })).call()),
        (
            "option's value",
            7,
            "'99999'",
            add.clone().key("interception", json!({ "istio-inbound-ports": "99999" })).call(),
        ),
        ("CHECK too early", 1, "CHECK", add.clone().verb("CHECK").key("cniVersion", json!("0.3.1")).call()),
        ("STATUS too early", 1, "STATUS", add.clone().verb("STATUS").call()),
        ("GC too early", 1, "GC", add.clone().verb("GC").call()),
        (
            "valid attachments",
            7,
            "cni.dev/valid-attachments",
            add.clone()
                .verb("GC")
                .key("cniVersion", json!("1.1.0"))
                .key("cni.dev/valid-attachments", json!(["a"]))
                .call(),
        ),
    ];
    for (what, code, text, outcome) in &cases {
        let (got, message) = outcome.error();
        assert!(got == *code && message.contains(text), "{what}: {got} {message}");
        // Nobody can read an error that comes in pieces.
        assert_eq!(outcome.stdout.lines().count(), 1, "{what}");
    }
    nothing_programmed(&cluster.namespace, &before, "bad input");
    assert_eq!(cluster.api.requests(), 0);
}

#[test]
fn annotations_with_nonsense_name_the_annotation_and_what_is_right() {
    for (name, value, text) in [
        ("sidecar.istio.io/interceptionMode", "TPROX", "expected REDIRECT or TPROXY"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,http", "'http'"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "0", "from 1 to 65535"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "80,,81", "empty item"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33", "CIDR"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*", "'*'"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "80-70", "ends before"),
        ("traffic.sidecar.istio.io/excludeInterfaces", "a b", "interface names"),
        ("istio.io/reroute-virtual-interfaces", "this-name-is-far-too-long", "15 characters"),
    ] {
        let cluster = Cluster::new(&sidecar(json!({ name: value })));
        let before = cluster.namespace.everything();
        let (code, message) = cluster.add().call().error();
        assert!(code == 102 && message.contains(&format!("annotation {name}")) && message.contains(text), "{message}");
        nothing_programmed(&cluster.namespace, &before, name);
        assert!(cluster.run_dir.states().is_empty());
    }
}

#[test]
fn the_result_passes_through_letter_by_letter() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let result =
        r#"{ "ips": [ ], "cniVersion":"1.0.0", "future": {"x": 1.50, "n": 123456789012345678901}, "dns": {} }"#;
    let mut input = String::from_utf8(cluster.add().input()).unwrap();
    input.insert_str(1, &format!(r#""unknown":{{"a":[1,2]}},"prevResult":{result},"#));
    let outcome = cluster.add().feed(input.as_bytes()).ok();
    assert_eq!(outcome.stdout, format!("{result}\n"));
    let plain = cluster.add().call().ok();
    assert_eq!(plain.json(), json!({ "cniVersion": "1.0.0" }));
}

#[test]
fn versions_are_told_whoever_asks() {
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let plugin = Plugin::add("dummy", "/nonexistent".as_ref()).verb("VERSION");
    for (input, version) in [
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"0.1.0"}"#, "0.1.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let outcome = plugin.feed(input.as_bytes()).ok();
        assert_eq!(outcome.json(), json!({ "cniVersion": version, "supportedVersions": all }), "{input}");
        assert_eq!(outcome.stderr, "");
    }
    assert_eq!(plugin.feed(b"no JSON").error().0, 6);
    // Nothing but the verb, as a person would try it.
    let bare = Plugin { variables: vec![("CNI_COMMAND".into(), "VERSION".into())], netconf: Default::default() };
    assert_eq!(bare.feed(b"").ok().json()["supportedVersions"], all);
}

#[test]
fn del_succeeds_whatever_comes_and_as_often_as_it_comes() {
    let cluster = Cluster::new(&sidecar(json!({})));
    cluster.add().call().ok();
    assert_eq!(cluster.run_dir.states(), ["abc:eth0.json"]);
    let mode = |name: &str| std::fs::metadata(cluster.run_dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("attachments") & 0o022, mode("attachments/abc:eth0.json"), mode("plugin.log") & 0o027),
        (0, 0o600, 0)
    );
    let del = cluster.add().verb("DEL");
    // StopPodSandbox, then RemovePodSandbox.
    let stop = del.clone().key("prevResult", json!({ "cniVersion": "1.0.0" }));
    let remove = del.clone().variable("CNI_NETNS", "");
    let gone = del.clone().variable("CNI_NETNS", "/var/run/netns/cni-gone");
    let odd = del.clone().key("cniVersion", json!("9.0.0")).key("prevResult", json!({ "cniVersion": "0.2.0" }));
    for plugin in [&stop, &remove, &gone, &stop, &odd] {
        let outcome = plugin.call().ok();
        assert_eq!(outcome.stdout, "");
        assert!(cluster.run_dir.states().is_empty());
    }
    for input in ["", "no JSON", "{}", "[]"] {
        assert_eq!(del.feed(input.as_bytes()).ok().stdout, "");
    }
    let bare = Plugin { variables: vec![("CNI_COMMAND".into(), "DEL".into())], netconf: Default::default() };
    bare.feed(b"{}").ok();
    // A namespace that is going away keeps its rules to the end.
    assert!(cluster.namespace.rules().contains("istio-proxy-nat"));
}

#[test]
fn a_failed_add_is_followed_by_a_del_that_succeeds() {
    let cluster = Cluster::with(Api::start(|_| crate::api::Answer::Refuse(401, "Unauthorized")));
    let before = cluster.namespace.everything();
    assert_eq!(cluster.add().call().error().0, 101);
    cluster.add().verb("DEL").call().ok();
    nothing_programmed(&cluster.namespace, &before, "failed ADD");
}

#[test]
fn what_is_no_kubernetes_pod_passes_through() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let before = cluster.namespace.everything();
    // podman; ctr --cni; a runtime that says nothing of ours.
    for arguments in ["IgnoreUnknown=1;K8S_POD_NAME=web-0", "", "IgnoreUnknown=1;A=b", "K8S_POD_NAMESPACE=shop"] {
        let result = json!({ "cniVersion": "1.0.0", "x": 1 });
        let add = cluster.add().variable("CNI_ARGS", arguments).key("prevResult", result.clone());
        assert_eq!(add.call().ok().json(), result);
        nothing_programmed(&cluster.namespace, &before, arguments);
    }
    assert_eq!(cluster.api.requests(), 0);
    // The order of the arguments is any.
    let mut pairs: Vec<&str> = KUBERNETES.split(';').collect();
    pairs.reverse();
    cluster.add().variable("CNI_ARGS", &pairs.join(";")).call().ok();
    assert!(cluster.namespace.rules().contains("istio-proxy-nat"));
}

#[test]
fn capabilities_left_in_the_netconf_are_no_matter() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let annotations = json!({ "io.kubernetes.cri.pod-annotations": { "sidecar.istio.io/status": "{}" } });
    let add = cluster.add().key("capabilities", json!({ "portMappings": true }));
    add.key("runtimeConfig", annotations).key("args", json!({ "cni": {} })).call().ok();
    assert_eq!(cluster.api.requests(), 1);
    assert!(cluster.namespace.rules().contains("istio-proxy-nat"));
}

#[test]
fn annotations_handed_over_spare_the_look_up() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let before = cluster.namespace.everything();
    let annotations = json!({ "io.kubernetes.cri.pod-annotations": { "kubernetes.io/config.seen": "x" } });
    let add = cluster.add().key("runtimeConfig", annotations);
    add.call().ok();
    assert_eq!(cluster.api.requests(), 0);
    nothing_programmed(&cluster.namespace, &before, "no sidecar");
    assert!(cluster.run_dir.log().contains("sidecar.istio.io/status"), "{}", cluster.run_dir.log());
    add.verb("CHECK").call().ok();
}

#[test]
fn the_agents_own_pod_needs_no_agent() {
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let add = Plugin::add(&path(&namespace), run_dir.path());
    for name in ["podweir-node-x7f2p", "istio-cni-node-abcde"] {
        let arguments = format!("K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME={name}");
        add.clone().variable("CNI_ARGS", &arguments).call().ok();
    }
    let other = "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istiod-1";
    let (code, message) = add.variable("CNI_ARGS", other).key("timeout", json!("200ms")).call().error();
    assert!(code == 101 && message.contains("kubeconfig"), "{message}");
}

#[test]
fn options_come_from_the_netconf_without_kubernetes() {
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let options = json!({ "istio-inbound-ports": [8080], "istio-service-cidr": "10.0.0.0/8", "proxy-uid": 4000 });
    let add = Plugin::add(&path(&namespace), run_dir.path()).variable("CNI_ARGS", "").key("interception", options);
    add.call().ok();
    let rules = namespace.rules();
    assert!(rules.contains("8080") && rules.contains("10.0.0.0/8") && rules.contains("4000"), "{rules}");
    add.clone().verb("CHECK").call().ok();
    // Its annotations say what a pod gets, the netconf what is not said.
    let cluster = Cluster::new(&sidecar(json!({ "traffic.sidecar.istio.io/includeInboundPorts": "9090" })));
    let options = json!({ "istio-inbound-ports": [8080], "exclude-outbound-uids": "2000" });
    cluster.add().key("interception", options).call().ok();
    let rules = cluster.namespace.rules();
    assert!(rules.contains("9090") && !rules.contains("8080") && rules.contains("2000"), "{rules}");
}

#[test]
fn gc_forgets_what_the_runtime_forgot() {
    let run_dir = RunDir::new();
    let namespace = Namespace::new();
    let add = Plugin::add(&path(&namespace), run_dir.path()).variable("CNI_ARGS", "");
    for (id, network) in [("a", "chain"), ("b", "chain"), ("c", "other")] {
        add.clone().variable("CNI_CONTAINERID", id).key("name", json!(network)).call().ok();
    }
    let gc = add.verb("GC").key("cniVersion", json!("1.1.0")).variable("CNI_NETNS", "").variable("CNI_CONTAINERID", "");
    assert_eq!(gc.call().ok().stdout, "");
    assert_eq!(run_dir.states().len(), 3, "without the key everything is kept");
    let valid = json!([{ "containerID": "a", "ifname": "eth0" }]);
    gc.key("cni.dev/valid-attachments", valid.clone()).key("cni.dev/attachments", valid).call().ok();
    assert_eq!(run_dir.states(), ["a:eth0.json", "c:eth0.json"]);
}

#[test]
fn the_log_tells_what_was_decided_and_why() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let outcome = cluster.add().call().ok();
    let log = cluster.run_dir.log();
    assert_eq!(log, outcome.stderr);
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    for (key, value) in [("pod", "shop/web-0"), ("container_id", "abc"), ("verb", "ADD"), ("decision", "intercepted")] {
        assert_eq!(line[key], value, "{line}");
    }
    for key in ["lookup_ms", "read_ms", "apply_ms", "ms"] {
        assert!(line[key].as_f64().is_some_and(|ms| ms >= 0.0), "{key}: {line}");
    }
    let excluded = cluster.add().key("exclude_namespaces", json!(["shop"]));
    excluded.call().ok();
    let log = cluster.run_dir.log();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["decision"], &line["why"]),
        (&json!("left alone"), &json!("its namespace shop is excluded by the netconf"))
    );
    // Failures are there for whoever looks later, and levels are honoured.
    excluded.key("timeout", json!("soon")).call().error();
    let log = cluster.run_dir.log();
    assert!(log.lines().last().unwrap().contains("\"level\":\"error\""), "{log}");
    let lines = log.lines().count();
    assert_eq!(cluster.add().key("plugin_log_level", json!("error")).call().ok().stderr, "");
    assert_eq!(cluster.run_dir.log().lines().count(), lines);
    let odd = cluster.add().key("plugin_log_level", json!("loud")).call().ok();
    assert!(odd.stderr.contains("invalid value 'loud' for the netconf key plugin_log_level"), "{odd:?}");
}
