//! The rights of the agent's account, one by one, at an API server that enforces them: none
//! is missing, and none is there that is not missed.

use std::process::Stdio;

use serde_json::{Value, json};

use super::agent::MANIFESTS;
use super::images::PODWEIR_IMAGE;
use super::{Cluster, shared};

const PROJECT: &str = "rights";

/// The manifests' role of a kind, with the namespace of its own account.
fn role(kind: &str) -> Value {
    let documents = MANIFESTS.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    let mut role = documents.into_iter().find(|document| document["kind"] == kind).unwrap();
    role["metadata"] = json!({ "name": PROJECT, "namespace": if kind == "Role" { PROJECT } else { "" } });
    role
}

/// Every right of a role, as its place in it and its words.
fn rights(role: &Value) -> Vec<((usize, usize), String)> {
    let mut out = Vec::new();
    for (at, rule) in role["rules"].as_array().unwrap().iter().enumerate() {
        let resources = rule["resources"].as_array().unwrap();
        assert_eq!(resources.len(), 1, "{rule}");
        for (verb_at, verb) in rule["verbs"].as_array().unwrap().iter().enumerate() {
            out.push(((at, verb_at), format!("{} {}", verb.as_str().unwrap(), resources[0].as_str().unwrap())));
        }
    }
    out
}

/// Runs an agent on the node as the account, until it has said what it lacks, and gives what
/// it said. It manages no chain.
fn said(cluster: &Cluster, token: &str, until: &str) -> String {
    let folder = cluster.machine().folder().join(PROJECT);
    std::fs::create_dir_all(folder.join("account")).unwrap();
    std::fs::write(folder.join("account/token"), token.trim()).unwrap();
    std::fs::copy(cluster.machine().folder().join("pki/ca.crt"), folder.join("account/ca.crt")).unwrap();
    let (account, run_dir) = (folder.join("account").display().to_string(), folder.join("run").display().to_string());
    let arguments = [
        "node".to_owned(),
        "run".to_owned(),
        "--node-name=node1".to_owned(),
        format!("--account={account}"),
        format!("--run-dir={run_dir}"),
        format!("--daemon-set={PROJECT}/podweir-node"),
        format!("--api-server=https://{}:6443", super::machine::ADDRESS),
        "--chain=none".to_owned(),
        format!("--cni-bin-dir={}", folder.display()),
        "--listen=none".to_owned(),
        "--heal=false".to_owned(),
        "--log_output_level=default:debug".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = folder.join("log");
    let mut command = cluster.machine().command(cluster.program().to_str().unwrap(), &arguments, &[]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut agent = command.spawn().unwrap();
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    let waited = cluster.wait(until, || text().contains(until).then_some(()));
    // `agent` only waits for the agent, which is known by its command line.
    let _ = agent.kill();
    let _ = agent.wait();
    let end = format!(
        "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline 2>/dev/null) in '{} node run '*) kill -9 ${{p#/proc/}} ;; esac; done; true",
        cluster.program().display()
    );
    cluster.output("sh", &["-c", &end], "").unwrap();
    waited.unwrap_or_else(|e| panic!("{e}\n{}", text()));
    text()
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn every_right_of_the_agents_account_is_needed_and_none_is_missing() {
    let cluster = shared();
    let project = cluster.project(PROJECT);
    let account = format!("system:serviceaccount:{PROJECT}:agent");
    project.kubectl(&["create", "serviceaccount", "agent"]);
    let (cluster_role, role) = (role("ClusterRole"), role("Role"));
    let binding = |kind: &str, of: &str| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": PROJECT, "namespace": if of == "Role" { PROJECT } else { "" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": of, "name": PROJECT },
            "subjects": [{ "kind": "ServiceAccount", "name": "agent", "namespace": PROJECT }] })
    };
    for object in [&cluster_role, &role, &binding("ClusterRoleBinding", "ClusterRole"), &binding("RoleBinding", "Role")]
    {
        cluster.apply(object);
    }
    let token = project.kubectl(&["create", "token", "agent"]);

    // A pod with a sidecar and without rules: there is an event to tell.
    let mut pod = super::pods::injected("web", &json!({}));
    pod["spec"]["initContainers"] = json!([]);
    pod["spec"]["containers"][0]["image"] = json!(super::images::BUSYBOX);
    assert!(!pod.to_string().contains(PODWEIR_IMAGE));
    project.apply(pod);
    // A plugin that another test has put in place may have programmed it.
    super::agent::flush(&project.wait_for_pod("web"));

    // A role that was just made is known a moment later.
    cluster
        .wait("the rights", || {
            let can = ["auth", "can-i", "list", "pods", "--as", &account];
            cluster.try_kubectl(&can).is_ok().then_some(())
        })
        .unwrap();
    // The last thing that it does at its start, since it has to know its pods for that.
    let text = said(&cluster, &token, "the node's condition podweir.dev/Intercepting is");
    assert!(!text.contains("may not"), "{text}");
    cluster.wait("the condition", || cluster.intercepting()).unwrap();
    let event = || project.events("web").into_iter().find(|event| event.starts_with("Interception"));
    if event().is_none() {
        let text = said(&cluster, &token, "it is not repaired");
        assert!(!text.contains("may not"), "{text}");
    }

    for (role, kind) in [(&cluster_role, "ClusterRole"), (&role, "Role")] {
        for ((rule, verb), right) in rights(role) {
            let mut less = role.clone();
            less["rules"][rule]["verbs"].as_array_mut().unwrap().remove(verb);
            if less["rules"][rule]["verbs"] == json!([]) {
                less["rules"].as_array_mut().unwrap().remove(rule);
            }
            cluster.apply(&less);
            let of: Vec<&str> = right.split(' ').collect();
            let (resource, sub) = match of[1] {
                "events" => ("events.events.k8s.io", ""),
                "daemonsets" => ("daemonsets.apps/podweir-node", ""),
                other => other.split_once('/').unwrap_or((other, "")),
            };
            let subresource = format!("--subresource={sub}");
            let can = ["auth", "can-i", of[0], resource, &subresource, "--as", &account, "-n", PROJECT];
            cluster.wait("the right to be gone", || cluster.try_kubectl(&can).is_err().then_some(())).unwrap();
            let text = said(&cluster, &token, &format!("may not {right}:"));
            // The watch says it in words of its own.
            let said = text.matches("apply the chart's ClusterRole and Role").count();
            assert_eq!(said, 1, "{kind} {right}: {text}");
        }
        cluster.apply(role);
    }
    cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", PROJECT]);
}
