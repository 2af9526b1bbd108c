//! The plugin set up by hand as the page says, and what becomes of pods.

use serde_json::json;

use super::pods::{DIVERTED, PLAIN, deployment, injected, plain};
use super::{alone, shared};

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_deployment_with_sidecars_is_intercepted_and_others_are_left_alone() {
    let cluster = shared();
    cluster.set_up_by_hand();
    let shop = cluster.project("sidecar");
    shop.apply(deployment(injected("web", &json!({})), 2));
    shop.apply(plain("plain"));
    for pod in shop.wait_for_app("web", 2) {
        assert_eq!(shop.answers(&pod), DIVERTED, "{}", pod.name);
        let said = shop.kubectl(&["logs", &pod.name, "-c", "istio-validation"]);
        assert!(said.contains("validated"), "{said}");
    }
    let plain = shop.wait_for_pod("plain");
    assert_eq!(shop.answers(&plain), PLAIN);

    // The page's last step: what is to be seen of it on the node.
    let seen = cluster.do_step(7);
    assert!(seen.contains(r#""decision":"intercepted""#) || seen.contains(r#""decision":"left alone""#), "{seen}");
}

/// A pod whose manifest lies on the node has another UID in the API server than on the node:
/// there it is only mirrored.
#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_static_pod_with_a_sidecar_is_intercepted() {
    let cluster = shared();
    cluster.set_up_by_hand();
    let shop = cluster.project("static");
    let mut pod = injected("web", &json!({}));
    pod["metadata"]["namespace"] = "static".into();
    let manifest = cluster.machine().folder().join("manifests/web.json");
    std::fs::write(&manifest, pod.to_string()).unwrap();
    let pod = shop.wait_for_pod("web-node1");
    let answers = shop.answers(&pod);
    std::fs::remove_file(manifest).unwrap();
    assert_eq!(answers, DIVERTED);
}

/// The page's way back: running pods keep their rules, new ones start without.
#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn removing_it_as_the_page_says_disturbs_no_pod() {
    let cluster = alone();
    cluster.set_up_by_hand();
    let shop = cluster.project("removed");
    shop.apply(injected("before", &json!({})));
    let before = shop.wait_for_pod("before");
    cluster.take_down_by_hand();
    shop.apply(plain("after"));
    assert_eq!(shop.answers(&shop.wait_for_pod("after")), PLAIN);
    assert_eq!(shop.answers(&before), DIVERTED);
    // Whatever ends, ends: nobody asks for a plugin that is not there.
    shop.kubectl(&["delete", "pod", "before", "--timeout=60s"]);
    let files = cluster.output("ls", &["/opt/cni/bin", "/var/lib"], "").unwrap();
    assert!(!files.lines().any(|name| name == "podweir"), "{files}");
}
