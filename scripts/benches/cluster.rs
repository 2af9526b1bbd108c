//! `podweir audit --cluster` of 1,000 nodes and 30,000 pods. Where kubectl is asked for stands this
//! program, which answers as an API server and agents do: pages of whole pods, and the rules of a node.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::namespace::wait;

const NODES: usize = 1_000;
const PODS_A_NODE: usize = 30;
const WORKLOADS: usize = 1_500;
const NAMESPACES: usize = 100;
/// How many distinct interceptions there are.
const SHAPES: usize = 40;
/// An injector writes kilobytes into each pod.
const INJECTED: usize = 8 << 10;
/// As many as podweir asks for at once.
const PAGE: usize = 500;
/// The argument by which this program stands in for kubectl.
pub const KUBECTL: &str = "kubectl";

/// What pods of a workload are like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Like {
    Intercepted,
    Unguarded,
    HostNetwork,
    LeftAlone,
    Outside,
}

fn like(workload: usize) -> Like {
    match workload % 20 {
        16 => Like::HostNetwork,
        17 => Like::Outside,
        18 => Like::LeftAlone,
        19 => Like::Unguarded,
        _ => Like::Intercepted,
    }
}

fn excluded_port(workload: usize) -> usize {
    3000 + workload % SHAPES
}

fn uid(pod: usize) -> String {
    format!("01234567-89ab-cdef-0123-{pod:012}")
}

/// A node of which nobody tells: without an agent, or with one of an older release.
fn has_agent(node: usize) -> bool {
    node % 200 != 7
}

fn is_old(node: usize) -> bool {
    node % 333 == 5
}

fn pod(number: usize) -> Value {
    let (node, workload) = (number / PODS_A_NODE, number % WORKLOADS);
    let like = like(workload);
    let mut annotations = json!({});
    let mut containers = vec![json!({ "name": "app", "image": "registry.example/app:1" })];
    if matches!(like, Like::Intercepted | Like::Unguarded) {
        annotations = json!({ "sidecar.istio.io/status": "{}",
            "traffic.sidecar.istio.io/excludeOutboundPorts": excluded_port(workload).to_string() });
        containers.push(json!({ "name": "istio-proxy", "args": ["proxy", "sidecar"],
            "env": [{ "name": "PROXY_CONFIG", "value": "x".repeat(INJECTED) }] }));
    }
    let inject = if like == Like::LeftAlone { "false" } else { "true" };
    let mut labels = json!({ "pod-template-hash": "5d8f6c7b9", "app": format!("w{workload}") });
    if like != Like::Outside {
        labels["sidecar.istio.io/inject"] = inject.into();
    }
    json!({
        "metadata": { "name": format!("w{workload}-5d8f6c7b9-{number:05}"), "namespace": format!("team-{}", workload % NAMESPACES),
            "uid": uid(number), "labels": labels, "annotations": annotations,
            "ownerReferences": [{ "kind": "ReplicaSet", "name": format!("w{workload}-5d8f6c7b9"), "controller": true }] },
        "spec": { "nodeName": format!("n{node}"), "containers": containers, "hostNetwork": like == Like::HostNetwork },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] },
    })
}

/// Answers as kubectl does. `folder`: where the rules are.
pub fn kubectl(folder: &str, words: &[&str]) {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let query = words.last().copied().unwrap_or_default();
    if words.contains(&"exec") {
        let name = words.iter().find_map(|word| word.strip_prefix("podweir-node-")).expect("an agent's pod");
        return facts(folder, name.parse().expect("a number"), &mut out);
    }
    let value = if query.contains("labelSelector=app.kubernetes") {
        let agent = |node: usize| {
            json!({ "metadata": { "name": format!("podweir-node-{node}"), "namespace": "podweir-system" },
                "spec": { "nodeName": format!("n{node}") }, "status": { "phase": "Running" } })
        };
        json!({ "items": (0..NODES).filter(|node| has_agent(*node)).map(agent).collect::<Vec<_>>() })
    } else if query.contains("/namespaces?") {
        json!({ "items": (0..NAMESPACES).map(|number| json!({ "metadata": { "name": format!("team-{number}") } })).collect::<Vec<_>>() })
    } else {
        let page: usize = query.split_once("&continue=").map_or(0, |(_, page)| page.parse().expect("a page"));
        let pods = (page * PAGE..(page + 1) * PAGE).map(pod).collect::<Vec<_>>();
        let more = if (page + 1) * PAGE < NODES * PODS_A_NODE { (page + 1).to_string() } else { String::new() };
        json!({ "metadata": { "continue": more }, "items": pods })
    };
    write!(out, "{value}").expect("stdout");
}

/// What an agent tells.
fn facts(folder: &str, node: usize, out: &mut impl Write) {
    if is_old(node) {
        eprintln!("error: unrecognized subcommand 'audit'");
        std::process::exit(2);
    }
    let mut told = std::collections::BTreeSet::new();
    writeln!(
        out,
        "{}",
        json!({ "format": "podweir-node-facts", "version": 1, "podweir": "0.1.0", "node": format!("n{node}") })
    )
    .expect("stdout");
    for number in node * PODS_A_NODE..(node + 1) * PODS_A_NODE {
        let workload = number % WORKLOADS;
        let (state, key) = match like(workload) {
            Like::Intercepted if number % 1000 == 3 => ("drifted", excluded_port(workload).to_string()),
            Like::Intercepted => ("intercepted", excluded_port(workload).to_string()),
            Like::Unguarded => ("unguarded", "none".into()),
            _ => ("left-alone", "none".into()),
        };
        if told.insert(key.clone()) {
            let text = std::fs::read_to_string(Path::new(folder).join(&key)).expect("rules");
            writeln!(out, "{{\"rules\":\"{key}\",\"source\":{}}}", text.trim()).expect("stdout");
        }
        writeln!(out, "{}", json!({ "pod": uid(number), "namespace": "-", "name": "-", "state": state, "why": null, "escapes": false, "rules": key }))
            .expect("stdout");
    }
    writeln!(out, "{}", json!({ "end": { "pods": PODS_A_NODE } })).expect("stdout");
}

/// The rules of every distinct interception, and none, each on a line.
fn write_rules(podweir: &str, folder: &Path) {
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).expect("a file");
    let mut none = Value::Null;
    for shape in 0..SHAPES {
        let port = excluded_port(shape).to_string();
        let words = ["render", "--format", "json", "--pod-ip", "192.0.2.2", "--", "-i", "*", "-b", "*", "-o", &port];
        let output = Command::new(podweir).args(words).output().expect("podweir");
        let rules: Value = serde_json::from_slice(&output.stdout).expect("rules");
        write(&port, &rules);
        none = rules;
    }
    none["tables"] = json!([]);
    none["routing"] = Value::Null;
    write("none", &none);
}

pub fn measure(podweir: &str) {
    let folder = std::env::temp_dir().join(format!("podweir-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    write_rules(podweir, &folder);
    let own = std::env::current_exe().expect("own path");
    let script = format!("#!/bin/sh\nexec {} {KUBECTL} {} \"$@\"\n", own.display(), folder.display());
    let kubectl = folder.join("kubectl");
    std::fs::write(&kubectl, script).expect("a file");
    std::fs::set_permissions(&kubectl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    println!(
        "| {NODES} nodes, {} pods, {WORKLOADS} workloads, {SHAPES} interceptions | s | peak RSS, MB | written, MB |",
        NODES * PODS_A_NODE
    );
    println!("|---|---:|---:|---:|");
    for format in ["text", "json", "sarif", "html", "prometheus"] {
        let written = folder.join(format);
        let mut command = Command::new(podweir);
        command.args(["audit", "--cluster", "--format", format]).env("PATH", &path).stdin(Stdio::null());
        command.stdout(File::create(&written).expect("a file")).stderr(Stdio::null());
        let start = Instant::now();
        let memory = wait(command.spawn().expect("podweir"));
        let size = std::fs::metadata(&written).expect("the answer").len();
        println!(
            "| `--format {format}` | {:.1} | {:.0} | {:.2} |",
            start.elapsed().as_secs_f64(),
            memory as f64 / 1024.0,
            size as f64 / 1e6
        );
    }
    std::fs::remove_dir_all(&folder).expect("a folder");
}
