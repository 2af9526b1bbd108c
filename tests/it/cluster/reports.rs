//! PolicyReports that the agent keeps, in a cluster that knows the format.

use serde_json::{Value, json};

use super::agent::{ACCOUNT, NAMESPACE, flush};
use super::pods::{deployment, injected};
use super::{Cluster, alone};

const CRD: &str = include_str!("../../data/policyreports.wgpolicyk8s.io.yaml");
const CHART_ROLES: &str = include_str!("../../../cni-conf/chart/templates/rbac.yaml");
const PROJECT: &str = "reported";
const CROWDED: &str = "crowded";
/// What the chart changes where the value is on.
const OFF: (&str, &str) = ("--heal=true", "--heal=false");
const ON: (&str, &str) = ("- --log_as_json", "- --log_as_json\n            - --policy-reports");

/// The rights that the chart gives the account where the value is on, and no others.
fn rights() -> Value {
    let (_, from) = CHART_ROLES.split_once("{{- if .Values.policyReports }}\n").unwrap();
    serde_saphyr::from_str(from.split_once("{{- end }}").unwrap().0).unwrap()
}

/// How often the account wrote or removed the object of the namespace that takes one.
fn writes(cluster: &Cluster) -> usize {
    let verbs = ["patch ", "create ", "update ", "delete "];
    let requests = cluster.requests_of(ACCOUNT);
    let place = format!("/namespaces/{PROJECT}/policyreports");
    let of = |request: &&String| request.contains(&place) && verbs.iter().any(|verb| request.starts_with(verb));
    requests.iter().filter(of).count()
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn policy_reports_tell_what_was_found_and_are_written_only_when_that_changes() {
    let cluster = alone();
    cluster.output("kubectl", &["apply", "-f", "-"], CRD).unwrap_or_else(|e| panic!("{e}"));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/policyreports.wgpolicyk8s.io", "--timeout=9s"]);
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": PROJECT }, "rules": rights() });
    cluster.apply(&role);
    let account = format!("--serviceaccount={NAMESPACE}:podweir-node");
    cluster.kubectl(&["create", "clusterrolebinding", PROJECT, &format!("--clusterrole={PROJECT}"), &account]);
    // One namespace, the first of all, takes none.
    let rules = json!([{ "apiGroups": ["wgpolicyk8s.io"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
        "resources": ["policyreports"] }]);
    let policy = |kind: &str, spec: Value| json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": CROWDED }, "spec": spec });
    let validations =
        json!([{ "expression": format!("object.metadata.namespace != '{CROWDED}'"), "message": "it is full" }]);
    let spec =
        json!({ "failurePolicy": "Fail", "matchConstraints": { "resourceRules": rules }, "validations": validations });
    cluster.apply(&policy("ValidatingAdmissionPolicy", spec));
    let spec = json!({ "policyName": CROWDED, "validationActions": ["Deny"] });
    cluster.apply(&policy("ValidatingAdmissionPolicyBinding", spec));
    cluster.install_agent_with(&[OFF]);
    let crowded = cluster.project(CROWDED);
    crowded.apply(injected("web", &json!({})));
    let project = cluster.project(PROJECT);
    let open = json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": "3306" });
    project.apply(deployment(injected("db", &open), 2));
    project.apply(deployment(injected("bare", &json!({})), 1));
    let (db, bare) = (project.wait_for_app("db", 2), project.wait_for_app("bare", 1));
    crowded.wait_for_pod("web");
    flush(&bare[0]);
    cluster.with_changed_manifests("apply", &[OFF, ON]);
    cluster.wait_for_agent();

    let there = || cluster.try_kubectl(&["-n", PROJECT, "get", "policyreport", "podweir-node1", "-o", "json"]).ok();
    let text = cluster.wait("the report", there).unwrap_or_else(|e| panic!("{e}"));
    let report: Value = serde_json::from_str(&text).unwrap();
    let results = report["results"].as_array().unwrap();
    let names = |rule: &str, outcome: &str| -> Vec<&str> {
        let is_it = |result: &&Value| result["rule"] == rule && result["result"] == outcome;
        let pods = results.iter().filter(is_it).flat_map(|result| result["resources"].as_array().unwrap());
        pods.map(|pod| pod["name"].as_str().unwrap()).collect()
    };
    let mut of_db: Vec<&str> = db.iter().map(|pod| pod.name.as_str()).collect();
    of_db.sort_unstable();
    assert_eq!(names("outbound-excluded-port", "warn"), of_db, "{report:#}");
    assert_eq!(names("intercepted", "pass"), of_db, "{report:#}");
    assert_eq!(names("not-intercepted", "fail"), [&bare[0].name], "{report:#}");
    assert_eq!((&report["summary"]["fail"], &report["summary"]["pass"]), (&1.into(), &1.into()));
    let node = cluster.get(&["node", "node1"]);
    assert_eq!(report["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
    let shown = cluster.kubectl(&["get", "policyreports", "-A", "-o", "wide"]);
    println!("{shown}");
    assert!(!shown.contains(CROWDED), "{shown}");
    let log = cluster.kubectl(&["-n", NAMESPACE, "logs", "daemonset/podweir-node"]);
    assert!(
        log.contains("cannot write the PolicyReport crowded/podweir-node1: ") && log.contains("it is full"),
        "{log}"
    );
    let row = shown.lines().find(|line| line.starts_with(PROJECT)).unwrap();
    assert_eq!(
        row.split_whitespace().take(6).collect::<Vec<_>>(),
        [PROJECT, "podweir-node1", "Node", "node1", "1", "1"]
    );

    // Another agent knows what stands there, and writes nothing that is the same.
    let before = writes(&cluster);
    cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/podweir-node"]);
    cluster.wait_for_agent();
    let listed = || {
        let log = cluster.try_kubectl(&["-n", NAMESPACE, "logs", "daemonset/podweir-node"]).ok()?;
        log.contains("PolicyReports are kept").then_some(())
    };
    cluster.wait("the new agent's reports", listed).unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(writes(&cluster), before);

    // Where nothing is left to tell, nothing is left.
    project.kubectl(&["delete", "deployment", "db", "bare"]);
    cluster.wait("the report to be gone", || there().is_none().then_some(())).unwrap_or_else(|e| panic!("{e}"));
    cluster.remove_agent();
    cluster.kubectl(&["delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", CROWDED]);
    cluster.kubectl(&["delete", "crd", "policyreports.wgpolicyk8s.io"]);
    cluster.kubectl(&["delete", "clusterrole,clusterrolebinding", PROJECT]);
}
