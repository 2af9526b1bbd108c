//! What the objects cost a cluster of 5,000 nodes and 150,000 pods. The result is in the documentation
//! of `reports`.

use serde_json::json;

use super::object::{NodeReference, reports};
use super::view::View;
use super::view::tests::{intercepted, pod, policy};

const NODES: usize = 5_000;
const PODS: usize = 30;
const NAMESPACES: usize = 10;
/// The changes of a pod that lives for a day: it comes, and it goes.
const CHANGES_A_DAY: usize = 2;

/// The size of an object as JSON, with what the API server adds to it: its identity, and which fields
/// the agent has set.
fn size(namespaces: usize, pods: usize) -> usize {
    let owner = NodeReference { node: "ip-10-1-2-3.eu-central-1.compute.internal".into(), uid: "u".repeat(36) };
    let pods: Vec<_> = (0..pods)
        .map(|at| {
            let name = format!("checkout-{at:0>3}-7d4b9c6f5d-x2{:0>3}", at % 1000);
            (pod(&format!("team-namespace-{}", at % namespaces), &name, "3306"), intercepted())
        })
        .collect();
    let made = reports(&owner, &View::default().of(&pods, &policy()));
    assert_eq!(made.len(), namespaces);
    let added = json!({
        "uid": "u".repeat(36), "resourceVersion": "1234567890", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{ "manager": "podweir-node", "operation": "Apply", "apiVersion": "wgpolicyk8s.io/v1alpha2",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": { "f:annotations": { "f:podweir.dev/digest": {} }, "f:labels": { "f:app.kubernetes.io/managed-by": {} },
                    "f:ownerReferences": { "k:{\"uid\":\"0123\"}": {} } },
                "f:results": {}, "f:scope": {}, "f:summary": { "f:error": {}, "f:fail": {}, "f:pass": {}, "f:skip": {}, "f:warn": {} } } }],
    });
    let all: usize = made.values().map(|report| report.object.to_string().len() + added.to_string().len()).sum();
    all / namespaces
}

#[test]
fn the_cost_for_a_hundred_and_fifty_thousand_pods_is_what_the_documentation_says() {
    let one = size(NAMESPACES, PODS);
    let objects = NODES * NAMESPACES;
    let (kib, mib) = (|bytes: usize| bytes as f64 / 1024.0, |bytes: usize| bytes as f64 / 1_048_576.0);
    let writes = NODES * PODS * CHANGES_A_DAY / 24;
    let most = size(1, 250);
    let table = format!(
        "{objects} objects of {:.1} KiB, {:.0} MiB in all; {writes} writes an hour, {:.1} a second, {:.0} MiB; with 250 pods of one namespace {:.0} KiB",
        kib(one),
        mib(objects * one),
        writes as f64 / 3600.0,
        mib(writes * one),
        kib(most)
    );
    println!("{table}");
    let said = include_str!("mod.rs");
    for figure in [
        format!("| {:.1} KiB |", kib(one)),
        format!("| {:.0} MiB |\n//! | writes", mib(objects * one)),
        format!("| {},{:03} |", writes / 1000, writes % 1000),
        format!("object of {:.0} KiB", kib(most)),
    ] {
        assert!(said.contains(&figure), "the documentation does not say {figure}: {table}");
    }
    // What etcd takes of one object, and an eighth of what its database should hold (8 GiB).
    assert!(most < 1_572_864 && objects * one < 1 << 30, "{table}");
}
