//! `podweir audit --cluster` in a real cluster, by people with rights of their own: every pod
//! has its place, and what cannot be had is named with the reason.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::{Value, json};

use super::agent::{NAMESPACE, flush};
use super::images::BUSYBOX;
use super::pods::{deployment, injected, plain};
use super::{Cluster, alone};
use crate::schemas;

/// What an administrator applies for somebody who audits.
const AUDITOR: &str = include_str!("../../../cni-conf/auditor.yaml");
const PROJECT: &str = "audited";

/// In front of kubectl: `DO` before the words that contain `WHEN`, once.
const IN_FRONT: &str = r#"#!/bin/sh
case "$*" in *"WHEN"*)
	if mkdir "$0.done" 2>/dev/null; then KUBECONFIG=ADMIN REAL DO >/dev/null 2>&1; fi ;;
esac
exec REAL "$@"
"#;

/// What an agent of an older release says, and one of a newer release.
const OTHERS: [(&str, &str); 2] = [
    ("old", "echo \"error: unrecognized subcommand 'audit'\" >&2; exit 2"),
    ("new", r#"echo '{"format":"podweir-node-facts","version":2,"podweir":"9.0.0","node":"node1"}'"#),
];

/// A person of that name, with a kubeconfig of their own.
fn person(cluster: &Cluster, name: &str) -> String {
    cluster.kubectl(&["-n", PROJECT, "create", "serviceaccount", name]);
    let token = cluster.kubectl(&["-n", PROJECT, "create", "token", name]);
    let folder = cluster.machine().folder();
    let cluster_of = json!({ "server": format!("https://{}:6443", super::machine::ADDRESS),
        "certificate-authority": folder.join("pki/ca.crt") });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": cluster_of }], "users": [{ "name": "u", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
    });
    let path = folder.join(format!("{name}.conf"));
    std::fs::write(&path, config.to_string()).unwrap();
    path.display().to_string()
}

/// Gives people the roles of the file, or just those of these kinds of bindings.
fn bind(cluster: &Cluster, people: &[&str], kinds: &[&str]) {
    for text in AUDITOR.split("\n---\n") {
        let mut object: Value = serde_saphyr::from_str(text).unwrap();
        let kind = object["kind"].as_str().unwrap().to_owned();
        if kind.ends_with("Binding") {
            if !kinds.contains(&kind.as_str()) {
                continue;
            }
            let name = format!("{}-{}", object["metadata"]["name"].as_str().unwrap(), people[0]);
            object["metadata"]["name"] = name.into();
            let account = |name: &&str| json!({ "kind": "ServiceAccount", "name": name, "namespace": PROJECT });
            object["subjects"] = people.iter().map(account).collect();
        }
        cluster.apply(&object);
    }
}

fn audit(cluster: &Cluster, kubeconfig: &str, arguments: &[&str]) -> Output {
    let program = cluster.program();
    let all = [&["audit", "--cluster", "--kubeconfig", kubeconfig], arguments].concat();
    cluster.machine().run(program.to_str().unwrap(), &all, "")
}

fn report(output: &Output) -> Value {
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    schemas::hold("cluster-audit", &report);
    report
}

/// Of a workload: how it stands, by what that is known, and its findings of medium severity or worse.
fn place(report: &Value, name: &str) -> (String, Vec<String>) {
    let all = report["workloads"].as_array().unwrap();
    let is_it = |workload: &&Value| workload["name"] == name && workload["namespace"] == PROJECT;
    let workload = all.iter().find(is_it).unwrap_or_else(|| panic!("no {name} in {report:#}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let variants = workload["variants"].as_array().unwrap().iter();
    let stands = variants.map(|v| format!("{} {} by {}", v["pods"], text(&v["standing"]), text(&v["known_by"])));
    let worse = |found: &&Value| ["high", "medium"].contains(&found["severity"].as_str().unwrap());
    let findings = workload["findings"].as_array().unwrap().iter().filter(worse);
    let named = findings.map(|found| format!("{} {}", text(&found["id"]), found["items"]));
    (stands.collect::<Vec<_>>().join(", "), named.collect())
}

fn missed(report: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = report["not_looked_at"].as_array().unwrap().iter();
    rows.map(|row| format!("{}: {}", text(&row["what"]), text(&row["why"]))).collect()
}

impl Cluster {
    /// A folder with a kubectl that does something once, before it is asked for what contains `when`.
    fn kubectl_that(&self, name: &str, when: &str, does: &str) -> String {
        let folder = self.machine().folder().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let real = super::components::programs().join("kubectl").display().to_string();
        let admin = self.machine().folder().join("admin.conf").display().to_string();
        let script = IN_FRONT.replace("WHEN", when).replace("DO", does).replace("REAL", &real).replace("ADMIN", &admin);
        std::fs::write(folder.join("kubectl"), script).unwrap();
        std::fs::set_permissions(folder.join("kubectl"), PermissionsExt::from_mode(0o755)).unwrap();
        folder.display().to_string()
    }

    fn audit_with(&self, folder: &str, kubeconfig: &str) -> Output {
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
        let program = self.program().display().to_string();
        let arguments = ["audit", "--cluster", "--format", "json", "--kubeconfig", kubeconfig];
        self.machine().command(&program, &arguments, &[("PATH", &path)]).output().unwrap()
    }
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn an_audit_of_the_cluster_has_every_pod_in_its_place() {
    let cluster = alone();
    // Rules that somebody takes away are to stay away.
    cluster.install_agent_with(&[("--heal=true", "--heal=false")]);
    let project = cluster.project(PROJECT);
    cluster.kubectl(&["label", "namespace", PROJECT, "istio-injection=enabled"]);
    let (eve, peeker) = (person(&cluster, "eve"), person(&cluster, "peeker"));
    bind(&cluster, &["eve"], &["ClusterRoleBinding", "RoleBinding"]);
    bind(&cluster, &["peeker"], &["ClusterRoleBinding"]);

    let open = json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "3306" });
    let mut tidy = plain("tidy");
    tidy["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
    let mut logs = plain("logs");
    logs["spec"]["hostNetwork"] = true.into();
    // The ports of this node are for others.
    logs["spec"]["containers"][0]["command"] = json!(["/bin/busybox", "sleep", "1000"]);
    let workloads: [(Value, usize); 6] = [
        (injected("web", &json!({})), 2),
        (injected("db", &open), 1),
        (injected("bare", &json!({})), 1),
        (plain("late"), 1),
        (tidy, 1),
        (logs, 1),
    ];
    for (pod, replicas) in &workloads {
        project.apply(deployment(pod.clone(), u32::try_from(*replicas).unwrap()));
    }
    project.apply(injected("alone", &json!({})));
    let mut pods = Vec::new();
    for (pod, replicas) in &workloads {
        let app = pod["metadata"]["name"].as_str().unwrap();
        pods.push((app, project.wait_for_app(app, *replicas)));
    }
    project.wait_for_pod("alone");
    let of = |app: &str| &pods.iter().find(|(name, _)| *name == app).unwrap().1;
    flush(&of("bare")[0]);
    let told = || cluster.ask_agent(&["list"]).is_ok_and(|list| list.contains("unguarded")).then_some(());
    cluster.wait("the agent to notice", told).unwrap_or_else(|e| panic!("{e}"));

    let output = audit(&cluster, &eve, &["--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let whole = report(&output);
    assert_eq!((missed(&whole), &whole["partial"]), (vec![], &false.into()));
    let (stands, web) = place(&whole, "web");
    assert_eq!(stands, "2 intercepted by kernel");
    let lets_out = |found: &String| found.starts_with("outbound-excluded-port ") && found.contains("\"3306\"");
    assert!(!web.iter().any(lets_out), "{web:?}");
    let (stands, db) = place(&whole, "db");
    assert_eq!(stands, "1 intercepted by kernel");
    assert!(db.iter().any(lets_out), "{db:?}");
    assert_eq!(place(&whole, "bare"), ("1 not-intercepted by kernel".into(), vec!["not-intercepted []".into()]));
    assert_eq!(place(&whole, "late"), ("1 not-intercepted by manifest".into(), vec!["not-intercepted []".into()]));
    assert_eq!(place(&whole, "tidy"), ("1 left-alone by manifest".into(), vec![]));
    assert_eq!(place(&whole, "logs"), ("1 host-network by manifest".into(), vec![]));
    assert_eq!(place(&whole, "alone").0, "1 intercepted by kernel");
    // As a person sees it, and a gate; just some of the pods, of which the others say nothing.
    let output = audit(&cluster, &eve, &["--namespace", PROJECT, "--fail-on", "high"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 findings of workloads"), "{output:?}");
    for words in ["outbound-excluded-port 3306", "Deployment audited/db, 1 pod", "8 pods"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let some = report(&audit(&cluster, &eve, &["--selector", "app=db", "--format", "json"]));
    assert_eq!(some["summary"]["pods"], 1);
    assert_eq!(place(&some, "db").0, "1 intercepted by kernel");

    // Who may not run programs in the agents is told so, and has what manifests tell.
    let partial = report(&audit(&cluster, &peeker, &["--format", "json"]));
    let why = missed(&partial);
    let words = format!("the right to create pods/exec in namespace {NAMESPACE}");
    assert!(why.len() == 1 && why[0].starts_with("node node1: ") && why[0].contains(&words), "{why:?}");
    assert_eq!(place(&partial, "web").0, "2 intercepted by manifest");
    assert_eq!(audit(&cluster, &peeker, &["--fail-on", "high"]).status.code(), Some(1));

    // A pod that goes, and an agent that is replaced, while the audit asks.
    let does = format!("delete pod -n {PROJECT} alone --force --grace-period=0 --wait=true");
    let folder = cluster.kubectl_that("vanishing", "/api/v1/namespaces?", &does);
    let without = report(&cluster.audit_with(&folder, &eve));
    assert_eq!(missed(&without), Vec::<String>::new());
    assert!(without["workloads"].as_array().unwrap().iter().all(|workload| workload["name"] != "alone"));
    let does = format!("delete pod -n {NAMESPACE} -l app.kubernetes.io/component=node --wait=true");
    let rolled = format!("KUBECONFIG=ADMIN REAL -n {NAMESPACE} rollout status daemonset/podweir-node --timeout=60s");
    let folder = cluster.kubectl_that("replaced", "exec --namespace", &format!("{does}; {rolled}"));
    let replaced = report(&cluster.audit_with(&folder, &eve));
    assert_eq!((missed(&replaced), place(&replaced, "web").0), (vec![], "2 intercepted by kernel".into()));

    // Agents of other releases.
    for (name, says) in OTHERS {
        let script = "busybox mkdir -p /usr/local/bin; echo '#!/bin/busybox sh' >/usr/local/bin/podweir; \
            echo \"$SAYS\" >>/usr/local/bin/podweir; busybox chmod +x /usr/local/bin/podweir; exec busybox sleep 1000";
        let agent = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/name": "podweir", "app.kubernetes.io/component": "node" } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "agent", "image": BUSYBOX,
                "env": [{ "name": "SAYS", "value": says }], "command": ["/bin/busybox", "sh", "-c", script] }] } });
        project.apply(agent);
    }
    project.kubectl(&["create", "role", "asks", "--verb=create", "--resource=pods/exec"]);
    project.kubectl(&["create", "rolebinding", "asks", "--role=asks", &format!("--serviceaccount={PROJECT}:eve")]);
    OTHERS.iter().for_each(|(name, _)| drop(project.wait_for_pod(name)));
    let others = missed(&report(&audit(&cluster, &eve, &["--format", "json"])));
    assert_eq!(others.len(), 2, "{others:?}");
    for (name, why) in [("old", "upgrade the agents"), ("new", "podweir 9.0.0 and tells facts of version 2")] {
        let of = |line: &String| line.contains(&format!("{PROJECT}/{name} ")) && line.contains(why);
        assert!(others.iter().any(of), "{name}: {others:?}");
    }
    project.kubectl(&["delete", "pod", "old", "new", "--wait=true"]);

    // Without agents everything is told by manifests, and that this is so.
    cluster.remove_agent();
    let none = report(&audit(&cluster, &eve, &["--format", "json", "--namespace", PROJECT]));
    assert_eq!(place(&none, "web").0, "2 intercepted by manifest");
    assert!(none["notices"].to_string().contains("no agent is in the cluster"), "{}", none["notices"]);
    let bindings = ["podweir-auditor-eve", "podweir-auditor-peeker"];
    cluster.kubectl(&[&["delete", "clusterrolebinding"], &bindings[..]].concat());
    cluster.kubectl(&["delete", "clusterrole", "podweir-auditor"]);
}
