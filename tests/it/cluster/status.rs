//! STATUS speaks of the node, not of the mesh's credential or the API server: the runtime
//! asks it every few seconds, and a failure takes the whole node out of service.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::by_hand::ACCOUNT;
use super::components::Component;
use super::pods::{PLAIN, plain};
use super::{Cluster, alone};

fn succeeded(calls: &[String]) -> bool {
    calls.iter().all(|call| call.starts_with("STATUS 0"))
}

/// What changes when a node stops being ready, and again when it is.
fn since(condition: &Value) -> (&Value, &Value) {
    (&condition["status"], &condition["lastTransitionTime"])
}

/// From now on containerd asks for STATUS.
fn asked(cluster: &Cluster) -> impl Drop {
    cluster.set_up_by_hand();
    let version = cluster.with_version("1.1.0");
    let calls = cluster.wait_for_calls("STATUS", 1);
    assert!(succeeded(&calls), "{calls:?}");
    version
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_node_without_the_kubeconfig_is_ready_and_starts_pods() {
    let cluster = alone();
    let _version = asked(&cluster);
    let ready = cluster.node_ready();
    assert_eq!(ready["status"], "True", "{ready}");
    let _away = cluster.without_kubeconfig();
    let calls = cluster.wait_for_calls("STATUS", 4);
    assert!(succeeded(&calls), "{calls:?}");
    // A pod without a sidecar needs no credential.
    let shop = cluster.project("no-kubeconfig");
    shop.apply(plain("plain"));
    assert_eq!(shop.answers(&shop.wait_for_pod("plain")), PLAIN);
    assert_eq!(since(&cluster.node_ready()), since(&ready));
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn an_api_server_that_restarts_leaves_the_node_ready() {
    let cluster = alone();
    let _version = asked(&cluster);
    let ready = cluster.node_ready();
    assert_eq!(ready["status"], "True", "{ready}");
    cluster.end(Component::ApiServer, Signal::SIGKILL);
    let calls = cluster.wait_for_calls("STATUS", 2);
    assert!(succeeded(&calls), "{calls:?}");
    cluster.start(Component::ApiServer).unwrap();
    cluster.wait_for_api_server().unwrap();
    let lease = cluster.lease();
    // The API server knows little at first, and the node tells it what it has seen meanwhile.
    let calls = cluster.wait_for_calls("STATUS", 2);
    assert!(succeeded(&calls), "{calls:?}");
    cluster.wait("the node to report", || (cluster.lease() != lease).then_some(())).unwrap();
    assert_eq!(since(&cluster.node_ready()), since(&ready));
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn status_asks_the_api_server_for_nothing() {
    let cluster = alone();
    let _version = asked(&cluster);
    let before = cluster.requests_of(ACCOUNT);
    let calls = cluster.wait_for_calls("STATUS", 2);
    assert!(succeeded(&calls), "{calls:?}");
    assert_eq!(cluster.requests_of(ACCOUNT)[before.len()..], [""; 0]);
}
