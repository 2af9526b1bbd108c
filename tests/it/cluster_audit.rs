//! `podweir audit --cluster`, against a kubectl that answers as told, and what agents write
//! for it, by the rules of a real kernel.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::fixture::{Namespace, PODWEIR};
use crate::schemas;

/// Answers from files: pages of pods, namespaces, and what each agent writes.
const KUBECTL: &str = r#"#!/bin/sh
d=$(dirname "$0")
echo "$*" >>"$d/asked"
case "$*" in
*exec*) case $4 in
    node-forbidden) echo 'Error from server (Forbidden): pods "node-forbidden" is forbidden: User "eve" cannot create resource "pods/exec" in API group "" in the namespace "mesh"' >&2; exit 1;;
    node-old) echo "error: unrecognized subcommand 'audit'" >&2; exit 2;;
    node-hangs) exec sleep 60;;
    *) cat "$d/$4";;
    esac;;
*labelSelector=app.kubernetes*) cat "$d/agents";;
*continue=more*) cat "$d/pods-2";;
*/pods?*) cat "$d/pods-1";;
*/namespaces?*) cat "$d/namespaces";;
esac
"#;

/// A folder with that kubectl in it, which goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podweir-cluster-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let out = Self(path);
        out.write("kubectl", KUBECTL);
        std::fs::set_permissions(out.0.join("kubectl"), std::fs::Permissions::from_mode(0o755)).unwrap();
        out.write("namespaces", &json!({ "items": [
            { "metadata": { "name": "shop", "labels": { "istio-injection": "enabled" } } }, { "metadata": { "name": "plain" } }
        ] }).to_string());
        out
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn audit(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.0.display());
        Command::new(PODWEIR)
            .args(["audit", "--cluster"])
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .output()
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn agent(node: &str) -> Value {
    json!({ "metadata": { "name": format!("node-{node}"), "namespace": "mesh" }, "spec": { "nodeName": node },
        "status": { "phase": "Running" } })
}

/// A pod with a sidecar, of a Deployment.
fn pod(node: &str, name: &str, annotations: &Value) -> Value {
    let mut annotated = json!({ "sidecar.istio.io/status": "{}" });
    for (key, value) in annotations.as_object().unwrap() {
        annotated[key] = value.clone();
    }
    json!({ "metadata": { "name": format!("{name}-h-{node}"), "namespace": "shop", "uid": format!("{name}-{node}"),
        "labels": { "pod-template-hash": "h" }, "annotations": annotated,
        "ownerReferences": [{ "kind": "ReplicaSet", "name": format!("{name}-h"), "controller": true }] },
        "spec": { "nodeName": node, "containers": [{ "name": "istio-proxy" }, { "name": "app" }] },
        "status": { "phase": "Running" } })
}

fn rules(options: &[&str]) -> Value {
    let words = ["render", "--format", "json", "--pod-ip", "192.0.2.2", "--"];
    let output = Command::new(PODWEIR).args(words).args(options).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// What an agent writes: of each pod its UID, its state, and the name of its rules.
fn facts(node: &str, sources: &[(&str, &Value)], pods: &[(&str, &str, Option<&str>)]) -> String {
    let mut out =
        format!("{}\n", json!({ "format": "podweir-node-facts", "version": 1, "podweir": "0.1.0", "node": node }));
    for (key, source) in sources {
        out += &format!("{}\n", json!({ "rules": key, "source": source }));
    }
    for (uid, state, key) in pods {
        let why = (*state == "drifted").then_some("missing IPv4 nat OUTPUT");
        out += &format!(
            "{}\n",
            json!({ "pod": uid, "namespace": "shop", "name": "x", "state": state, "why": why,
            "escapes": *state == "drifted", "rules": key })
        );
    }
    out + &format!("{}\n", json!({ "end": { "pods": pods.len() } }))
}

fn report(output: &Output) -> Value {
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    schemas::hold("cluster-audit", &report);
    report
}

fn workload<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["workloads"].as_array().unwrap().iter().find(|workload| workload["name"] == name).unwrap()
}

fn ids(workload: &Value) -> Vec<&str> {
    workload["findings"].as_array().unwrap().iter().map(|found| found["id"].as_str().unwrap()).collect()
}

#[test]
fn what_the_kernels_have_counts_and_what_cannot_be_had_is_named() {
    let folder = Folder::new("whole");
    let nodes = ["a", "b", "forbidden", "old", "hangs", "half"];
    let agents: Vec<Value> = nodes.iter().map(|node| agent(node)).collect();
    folder.write("agents", &json!({ "items": agents }).to_string());
    let none = json!({});
    let pages: [Vec<Value>; 2] = [
        nodes.iter().map(|node| pod(node, "web", &none)).collect(),
        vec![pod("a", "db", &none), pod("b", "db", &none), pod("lonely", "db", &none), pod("a", "bare", &none)],
    ];
    folder.write("pods-1", &json!({ "metadata": { "continue": "more" }, "items": pages[0] }).to_string());
    folder.write("pods-2", &json!({ "metadata": {}, "items": pages[1] }).to_string());
    let (usual, open) = (rules(&["-i", "*", "-b", "*"]), rules(&["-i", "*", "-b", "*", "-o", "3306"]));
    let nothing = json!({ "format": "podweir-rules", "version": 1, "told": ["IPv4", "IPv6"],
        "pod": { "addresses": ["192.0.2.2"], "dns_servers": null, "uplink": "eth0", "routes": [] }, "tables": [],
        "routing": null });
    folder.write(
        "node-a",
        &facts(
            "a",
            &[("u", &usual), ("o", &open), ("n", &nothing)],
            &[
                ("web-a", "intercepted", Some("u")),
                ("db-a", "intercepted", Some("o")),
                ("bare-a", "unguarded", Some("n")),
            ],
        ),
    );
    folder.write(
        "node-b",
        &facts(
            "b",
            &[("u", &usual)],
            &[
                ("web-b", "drifted", Some("u")),
                ("db-b", "intercepted", Some("u")),
                ("gone-b", "intercepted", Some("u")),
            ],
        ),
    );
    let half = facts("half", &[("u", &usual)], &[("web-half", "intercepted", Some("u"))]);
    folder.write("node-half", half.lines().next().unwrap());
    let output = folder.audit(&["--format", "json", "--node-timeout", "1"]);
    let report = report(&output);
    assert_eq!(
        (&report["summary"]["pods"], &report["source"], &report["partial"]),
        (&10.into(), &"cluster".into(), &true.into())
    );
    // Ports that the kernel lets out and no manifest asks for; and pods that are not alike.
    let db = workload(&report, "db");
    assert!(ids(db).contains(&"outbound-excluded-port") && ids(db).contains(&"pods-differ"), "{db:#}");
    let bare = workload(&report, "bare");
    assert_eq!(ids(bare), ["not-intercepted"]);
    let web = workload(&report, "web");
    assert_eq!(web["kind"], "Deployment");
    let drift = web["findings"].as_array().unwrap().iter().find(|found| found["id"] == "drift").unwrap();
    assert_eq!((&drift["severity"], &drift["pods"]), (&"high".into(), &1.into()));
    let known: Vec<&str> =
        web["variants"].as_array().unwrap().iter().map(|v| v["known_by"].as_str().unwrap()).collect();
    assert!(known.contains(&"kernel") && known.contains(&"manifest"), "{known:?}");
    let missed: Vec<String> =
        report["not_looked_at"].as_array().unwrap().iter().map(|m| format!("{}: {}", m["what"], m["why"])).collect();
    assert_eq!(missed.len(), 4, "{missed:#?}");
    for (node, why) in [
        ("forbidden", "create pods/exec"),
        ("old", "upgrade the agents"),
        ("hangs", "within 1 s"),
        ("half", "before its last line"),
    ] {
        assert!(
            missed.iter().any(|line| line.contains(&format!("node {node}")) && line.contains(why)),
            "{node}: {missed:#?}"
        );
    }
    assert!(report["notices"].to_string().contains("have no agent that is running (lonely)"), "{}", report["notices"]);
    // A partial answer passes no gate.
    assert_eq!(folder.audit(&["--fail-on", "high", "--node-timeout", "1"]).status.code(), Some(1));
}

#[test]
fn without_agents_without_rights_and_without_kubectl() {
    let folder = Folder::new("none");
    folder.write("agents", "{\"items\": []}");
    folder.write("pods-1", &json!({ "items": [pod("a", "web", &json!({}))] }).to_string());
    let report =
        report(&folder.audit(&["--format", "json", "--namespace", "shop", "--selector", "app=web,tier in (a)"]));
    assert!(report["notices"].to_string().contains("no agent is in the cluster"), "{}", report["notices"]);
    assert_eq!(workload(&report, "web")["variants"][0]["known_by"], "manifest");
    let asked = std::fs::read_to_string(folder.0.join("asked")).unwrap();
    assert!(
        asked.contains("/api/v1/namespaces/shop/pods?limit=500&labelSelector=app%3Dweb%2Ctier%20in%20%28a%29"),
        "{asked}"
    );
    folder.write("kubectl", "#!/bin/sh\necho 'Error from server (Forbidden): pods is forbidden: User \"eve\" cannot list resource \"pods\"' >&2; exit 1\n");
    let output = folder.audit(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the right to list pods"), "{output:?}");
    let output =
        Command::new(PODWEIR).args(["audit", "--cluster"]).env_clear().env("PATH", "/nonexistent").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no kubectl in PATH"), "{output:?}");
}

#[test]
fn a_thousand_nodes_and_thirty_thousand_pods() {
    let folder = Folder::new("large");
    let none = json!({});
    let names: Vec<String> = (0..1000).map(|number| format!("n{number}")).collect();
    folder.write("agents", &json!({ "items": names.iter().map(|node| agent(node)).collect::<Vec<_>>() }).to_string());
    let pods: Vec<Value> = names
        .iter()
        .flat_map(|node| (0..30).map(|of| pod(node, &format!("w{of}"), &none)).collect::<Vec<_>>())
        .collect();
    folder.write("pods-1", &json!({ "items": pods }).to_string());
    let usual = rules(&["-i", "*", "-b", "*"]);
    for node in &names {
        let uids: Vec<String> = (0..30).map(|of| format!("w{of}-{node}")).collect();
        let told: Vec<_> = uids.iter().map(|uid| (uid.as_str(), "intercepted", Some("u"))).collect();
        folder.write(&format!("node-{node}"), &facts(node, &[("u", &usual)], &told));
    }
    let output = folder.audit(&[]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let first = text.lines().next().unwrap();
    assert_eq!(first, "the cluster: 30 workloads, 30000 pods, 1 namespace, 1 distinct interception", "{output:?}");
    assert!(!text.contains("partial") && text.lines().count() < 80, "{text}");
}

/// Answers as an agent does that knows one pod.
fn answering(socket: &Path, uid: &'static str) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let report = match line.contains("\"list\"") {
                true => json!({ "pods": [["shop", "web-0", "intercepted", uid, null, false]] }),
                false => json!({ "node": "n1" }),
            };
            writeln!(stream, "{}", json!({ "version": 1, "answer": "report", "report": report })).unwrap();
        }
    });
}

#[test]
fn an_agent_tells_the_rules_of_its_nodes_kernel() {
    const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";
    let namespace = Namespace::new();
    namespace.ok(&["init", "-i", "*", "-b", "*", "-o", "3306"]);
    let folder = Folder::new("node");
    answering(&folder.0.join("node.sock"), UID);
    // A node whose proc(5) has two processes: its own first one, and the pod's.
    let proc = folder.0.join("proc");
    for process in ["1", "77"] {
        std::fs::create_dir_all(proc.join(process).join("ns")).unwrap();
    }
    symlink("/proc/self/ns/net", proc.join("1/ns/net")).unwrap();
    // The program has it as a file of its own: without CAP_SYS_PTRACE it could not have it of another
    // process, once it has given up what that has.
    let of_test = format!("/proc/{}/fd/{}", std::process::id(), namespace.net().as_raw_fd());
    symlink("/proc/self/fd/9", proc.join("77/ns/net")).unwrap();
    std::fs::write(proc.join("77/cgroup"), format!("0::/kubepods/pod{UID}/c\n")).unwrap();
    let output = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 9<\"$OF_TEST\"", PODWEIR])
        .args(["node", "audit", "--run-dir", folder.0.to_str().unwrap(), "--host-proc", proc.to_str().unwrap()])
        .env("OF_TEST", of_test)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    folder.write("facts", &String::from_utf8(output.stdout).unwrap());
    let mut pod = pod("n1", "web", &json!({}));
    pod["metadata"]["uid"] = UID.into();
    pod["kind"] = "Pod".into();
    folder.write("pods.json", &pod.to_string());
    let path = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    let output = Command::new(PODWEIR)
        .args(["audit", "--manifests", &path("pods.json"), "--facts", &path("facts"), "--format", "json"])
        .output()
        .unwrap();
    let report = report(&output);
    let web = workload(&report, "web");
    assert_eq!((&web["variants"][0]["known_by"], &report["partial"]), (&"kernel".into(), &false.into()), "{report:#}");
    let port =
        web["findings"].as_array().unwrap().iter().find(|found| found["id"] == "outbound-excluded-port").unwrap();
    assert_eq!(port["items"], json!(["3306"]));
}
