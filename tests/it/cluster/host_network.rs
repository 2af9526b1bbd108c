//! A pod in the node's own network with an injector's init container: it would divert the
//! node and, by what the node forwards, every other pod.

use serde_json::{Value, json};

use super::images::PODWEIR_IMAGE;
use super::shared;
use crate::typical::TYPICAL;

fn pod(name: &str, face: &str) -> Value {
    let arguments = [&[face], TYPICAL].concat();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "hostNetwork": true, "automountServiceAccountToken": false, "restartPolicy": "Never",
            "containers": [{
                "name": "istio-init", "image": PODWEIR_IMAGE, "args": arguments,
                "securityContext": {
                    "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                },
            }],
        },
    })
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn an_init_container_in_the_nodes_network_is_refused() {
    let cluster = shared();
    let shop = cluster.project("host-network");
    for (name, face) in [("compatible", "istio-iptables"), ("native", "init")] {
        shop.apply(pod(name, face));
        let ended = cluster.wait("the container's end", || {
            let pod = shop.get(&["pod", name]);
            pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object().then(|| pod["status"].clone())
        });
        let said = shop.kubectl(&["logs", name]);
        let state = &ended.unwrap()["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(state["exitCode"], 1, "{name}: {said}");
        for word in ["node's own network namespace", "--host-network"] {
            assert!(said.contains(word), "{name}: no {word:?} in {said}");
        }
        let rules = cluster.machine().network().print("nft", &["list", "ruleset"]);
        assert!(!rules.to_lowercase().contains("istio"), "{name}: {rules}");
    }
}
