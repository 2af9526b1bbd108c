//! From what was found of pods to objects, one a namespace: a result for each finding, with the
//! pods that have it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::audit::escapes::kind::Severity;
use crate::node::cache::Known;

use super::view::{PASSES, PodFinding, PodFindings};

/// The annotation with the digest of an object's results.
pub(super) const DIGEST: &str = "podweir.dev/digest";
/// The label that marks the objects as podweir's, so that all can be found at once.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "podweir");
/// The most pods of one result.
const MOST_PODS: usize = 1000;
/// The most characters of an object's name (DNS subdomain, RFC 1123).
const LONGEST_NAME: usize = 253;

/// The Node that an agent is on.
#[derive(Debug, Clone)]
pub(super) struct NodeReference {
    pub(super) node: String,
    pub(super) uid: String,
}

/// An object, and the digest of its results.
#[derive(Debug, Clone)]
pub(super) struct ReportObject {
    pub(super) digest: String,
    pub(super) object: Value,
}

/// The name of a node's objects.
pub(super) fn object_name(node: &str) -> String {
    let name = format!("podweir-{node}");
    if name.len() <= LONGEST_NAME { name } else { format!("podweir-{}", hex(node)) }
}

fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut out, byte| {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The objects of a node, by namespace.
pub(super) fn reports(owner: &NodeReference, told: &[PodFindings]) -> BTreeMap<String, ReportObject> {
    let mut namespaces: BTreeMap<&str, BTreeMap<Reverse<PodFinding>, Vec<&Known>>> = BTreeMap::new();
    for PodFindings { pod, found } in told {
        let results = namespaces.entry(&pod.namespace).or_default();
        let passes = PodFinding {
            severity: Severity::Info,
            rule: PASSES.into(),
            items: Vec::new(),
            message: "the pod's traffic is diverted as it asks for".into(),
            is_error: false,
        };
        let is_intercepted = !found.iter().any(|found| found.is_error || NOT_AS_ASKED.contains(&found.rule.as_str()));
        for found in found.iter().cloned().chain(is_intercepted.then_some(passes)) {
            results.entry(Reverse(found)).or_default().push(pod);
        }
    }
    let object = |(namespace, results): (&str, BTreeMap<_, Vec<&Known>>)| {
        let all: Vec<Value> = results.iter().map(|(Reverse(found), pods)| result(found, pods)).collect();
        (namespace.to_owned(), report(owner, namespace, all))
    };
    namespaces.into_iter().map(object).collect()
}

/// Rules of an object that mean that the pod does not pass.
const NOT_AS_ASKED: [&str; 2] = ["not-intercepted", "drift"];

/// The format's word for a finding. `warn` is traffic that the pod's options let out by name.
fn outcome(found: &PodFinding) -> &'static str {
    match found.severity {
        _ if found.is_error => "error",
        Severity::High => "fail",
        Severity::Medium | Severity::Low => "warn",
        Severity::Info => "pass",
    }
}

fn result(found: &PodFinding, pods: &[&Known]) -> Value {
    let resource = |pod: &&Known| json!({ "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid });
    let items = found.items.join(", ");
    let mut message = if items.is_empty() { found.message.clone() } else { format!("{items}: {}", found.message) };
    if pods.len() > MOST_PODS {
        message += &format!(" (and {} pods more)", pods.len() - MOST_PODS);
    }
    let mut out = json!({
        "source": "podweir",
        "policy": "podweir",
        "rule": found.rule,
        "category": "Traffic interception",
        "result": outcome(found),
        "scored": true,
        "message": message,
        "resources": pods.iter().take(MOST_PODS).map(resource).collect::<Vec<_>>(),
    });
    if found.severity > Severity::Info {
        out["severity"] = found.severity.name().into();
    }
    if !items.is_empty() {
        out["properties"] = json!({ "items": items });
    }
    out
}

fn report(owner: &NodeReference, namespace: &str, results: Vec<Value>) -> ReportObject {
    let count = |word: &str| results.iter().filter(|result| result["result"] == word).count();
    let words = ["pass", "fail", "warn", "error", "skip"];
    let summary: BTreeMap<&str, usize> = words.into_iter().map(|word| (word, count(word))).collect();
    let results = Value::from(results);
    let digest = hex(&results.to_string());
    let owners = match owner.uid.as_str() {
        "" => json!([]),
        uid => json!([{ "apiVersion": "v1", "kind": "Node", "name": owner.node, "uid": uid }]),
    };
    let object = json!({
        "apiVersion": "wgpolicyk8s.io/v1alpha2",
        "kind": "PolicyReport",
        "metadata": {
            "name": object_name(&owner.node),
            "namespace": namespace,
            "labels": { MANAGED_BY.0: MANAGED_BY.1 },
            "annotations": { DIGEST: digest },
            "ownerReferences": owners,
        },
        "scope": { "apiVersion": "v1", "kind": "Node", "name": owner.node },
        "summary": summary,
        "results": results,
    });
    ReportObject { digest, object }
}

#[cfg(test)]
mod tests {
    use super::super::view::View;
    use super::super::view::tests::{intercepted, pod, policy};
    use super::*;
    use crate::node::inventory::State;

    /// Checks an object against the schema of the format's CRD.
    pub(super) fn hold(object: &Value) {
        let crd: Value =
            serde_saphyr::from_str(include_str!("../../../tests/data/policyreports.wgpolicyk8s.io.yaml")).unwrap();
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1alpha2");
        let mut schema = version["schema"]["openAPIV3Schema"].clone();
        closed(&mut schema);
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(object).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:?}: {object:#}");
    }

    /// Closes a schema: members that it does not know, which an API server drops, are errors here.
    fn closed(schema: &mut Value) {
        if schema.get("properties").is_some() {
            schema["additionalProperties"] = false.into();
        }
        for (_, member) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            closed(member);
        }
        if let Some(items) = schema.get_mut("items") {
            closed(items);
        }
    }

    #[test]
    fn objects_are_as_the_crd_says_and_tell_each_finding_once_with_its_pods() {
        let owner = NodeReference { node: "node1".into(), uid: "u".into() };
        let failed = State::Failed { why: "its rules cannot be verified".into() };
        let pods = [
            (pod("shop", "web-0", "3306"), intercepted()),
            (pod("shop", "web-1", "3306"), intercepted()),
            (pod("shop", "bare", ""), State::Unguarded),
            (pod("shop", "odd", ""), failed),
            (pod("mesh", "in", ""), State::Enrolled),
        ];
        let made = reports(&owner, &View::default().of(&pods, &policy()));
        made.values().for_each(|report| hold(&report.object));
        let shop = &made["shop"].object;
        let results = shop["results"].as_array().unwrap();
        let of = |rule: &str| results.iter().find(|result| result["rule"] == rule).unwrap();
        let names = |rule: &str| -> Vec<&str> {
            of(rule)["resources"].as_array().unwrap().iter().map(|pod| pod["name"].as_str().unwrap()).collect()
        };
        assert_eq!(names("outbound-excluded-port"), ["web-0", "web-1"]);
        assert_eq!((names("not-intercepted"), names("not-looked-at")), (vec!["bare"], vec!["odd"]));
        assert_eq!(names("intercepted"), ["web-0", "web-1"]);
        assert_eq!(
            (&of("outbound-excluded-port")["result"], &of("not-intercepted")["result"]),
            (&"warn".into(), &"fail".into())
        );
        assert_eq!((&shop["summary"]["fail"], &shop["summary"]["error"]), (&1.into(), &1.into()));
        assert_eq!(made["mesh"].object["summary"]["pass"], 1);
        // The same pods give the same object, and others another one.
        let again = reports(&owner, &View::default().of(&pods, &policy()));
        assert_eq!(made["shop"].digest, again["shop"].digest);
        let fewer = reports(&owner, &View::default().of(&pods[..3], &policy()));
        assert_ne!(made["shop"].digest, fewer["shop"].digest);
    }

    #[test]
    fn a_name_fits_however_long_the_nodes_is() {
        assert_eq!(object_name("node1.example"), "podweir-node1.example");
        let long = "n".repeat(LONGEST_NAME);
        assert_eq!(object_name(&long).len(), "podweir-".len() + 64);
    }
}
