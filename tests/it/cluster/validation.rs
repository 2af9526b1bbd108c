//! The injector's validation container in a pod that the plugin did not program.

use super::pods::{injected, validation};
use super::shared;

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_pod_that_the_plugin_missed_says_so_in_its_log() {
    let cluster = shared();
    cluster.set_up_by_hand();
    // The entry of the page leaves this namespace's pods alone.
    let name = "missed";
    let mut pod = injected(name, &serde_json::json!({}));
    pod["metadata"]["namespace"] = "kube-system".into();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["initContainers"] = serde_json::json!([validation()]);
    cluster.apply(&pod);
    let get = ["-n", "kube-system", "pod", name];
    let ended = cluster.wait("the validation's end", || {
        let state = cluster.get(&get)["status"]["initContainerStatuses"][0]["state"]["terminated"].clone();
        state.is_object().then_some(state)
    });
    let said = cluster.kubectl(&["-n", "kube-system", "logs", name, "-c", "istio-validation"]);
    cluster.kubectl(&["-n", "kube-system", "delete", "pod", name, "--wait=false"]);
    let state = ended.unwrap();
    assert_eq!(state["exitCode"], 126, "{said}");
    // It is not this container that lacks a right, and `kubectl describe` says the same.
    for (from, text) in [("log", said.as_str()), ("message", state["message"].as_str().unwrap_or_default())] {
        assert!(text.contains("plugin on this node"), "{from}: {text}");
        assert!(!text.contains("grant"), "{from}: {text}");
    }
}
