//! The node's agent, from the plain manifests of `cni-conf`: it puts the plugin in place,
//! answers it, mends what somebody breaks, and goes with its DaemonSet.

use std::process::Command;

use serde_json::{Value, json};

use super::images::PODWEIR_IMAGE;
use super::pods::{DIVERTED, PLAIN, Running, injected, plain};
use super::{Cluster, alone};

pub const MANIFESTS: &str = include_str!("../../../cni-conf/node.yaml");
pub const NAMESPACE: &str = "podweir-system";
/// Whom the agent is to the API server.
pub const ACCOUNT: &str = "system:serviceaccount:podweir-system:podweir-node";

/// Manifests with the image that the cluster has, and some texts replaced by others.
fn of_cluster(manifests: &str, changes: &[(&str, &str)]) -> String {
    let image = manifests.lines().find_map(|line| line.trim().strip_prefix("image: ")).unwrap();
    changes.iter().fold(manifests.replace(image, PODWEIR_IMAGE), |text, (before, after)| {
        assert!(text.contains(before), "no {before} in the manifests");
        text.replace(before, after)
    })
}

impl Cluster {
    /// Installs the agent, and waits until it works.
    pub fn install_agent(&self) {
        self.install_agent_with(&[]);
    }

    /// Installs the agent from manifests in which texts are replaced by others, and waits until it works.
    pub fn install_agent_with(&self, changes: &[(&str, &str)]) {
        self.install_agent_by(MANIFESTS, changes);
    }

    /// Installs the agent by these manifests, with texts replaced by others, and waits until it works.
    pub fn install_agent_by(&self, manifests: &str, changes: &[(&str, &str)]) {
        if self.chain().to_string().contains("podweir") {
            self.take_down_by_hand();
        }
        // The namespace of a test before may still be going.
        self.wait("the namespace", || self.try_kubectl(&["create", "namespace", NAMESPACE]).ok()).unwrap();
        self.with("apply", manifests, changes);
        self.wait_for_agent();
        let works = || (types(&self.chain()).contains(&"podweir")).then_some(());
        self.wait("the entry in the chain", works).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Takes the agent away, and waits until nothing of it is left.
    pub fn remove_agent(&self) {
        self.with_manifests("delete");
        let gone = || {
            let files = self.output("ls", &["/opt/cni/bin"], "").ok()?;
            let has_entry = types(&self.chain()).contains(&"podweir");
            (!has_entry && !files.lines().any(|name| name == "podweir")).then_some(())
        };
        self.wait("the agent to be gone", gone).unwrap_or_else(|e| panic!("{e}"));
        self.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    }

    pub fn with_manifests(&self, verb: &str) {
        self.with_changed_manifests(verb, &[]);
    }

    /// Has kubectl do this with the agent's manifests, in which texts are replaced by others.
    pub fn with_changed_manifests(&self, verb: &str, changes: &[(&str, &str)]) {
        self.with(verb, MANIFESTS, changes);
    }

    fn with(&self, verb: &str, manifests: &str, changes: &[(&str, &str)]) {
        let text = of_cluster(manifests, changes);
        self.output("kubectl", &["-n", NAMESPACE, verb, "-f", "-"], &text).unwrap_or_else(|e| panic!("{e}"));
    }

    pub fn wait_for_agent(&self) {
        let rollout = ["-n", NAMESPACE, "rollout", "status", "daemonset/podweir-node", "--timeout=90s"];
        self.output("kubectl", &rollout, "").unwrap_or_else(|e| {
            let logs = self.try_kubectl(&["-n", NAMESPACE, "logs", "daemonset/podweir-node", "--tail=20"]);
            panic!("{e}\n{logs:?}")
        });
    }

    /// What the agent answers a person; its exit status decides.
    pub fn ask_agent(&self, words: &[&str]) -> Result<String, String> {
        let exec = ["-n", NAMESPACE, "exec", "daemonset/podweir-node", "--", "/usr/local/bin/podweir", "node"];
        self.output("kubectl", &[&exec[..], words].concat(), "")
    }

    /// The condition of the node that the agent tells.
    pub fn intercepting(&self) -> Option<Value> {
        let node = self.get(&["node", "node1"]);
        let conditions = node["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == "podweir.dev/Intercepting")
    }
}

pub fn types(chain: &Value) -> Vec<&str> {
    chain["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap()).collect()
}

/// Takes every rule out of a pod.
pub fn flush(pod: &Running) {
    pod.run(|| assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success()));
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn the_agent_installs_answers_mends_and_goes_with_its_daemon_set() {
    let cluster = alone();
    if cluster.chain().to_string().contains("podweir") {
        cluster.take_down_by_hand();
    }
    let before = cluster.chain();
    // A pod that was there before the plugin, and has a sidecar.
    let shop = cluster.project("agent");
    let mut early = injected("early", &json!({}));
    early["spec"]["initContainers"] = json!([]);
    shop.apply(early);
    let early = shop.wait_for_pod("early");
    assert_eq!(shop.answers(&early), PLAIN);

    // The namespace of a test before may still be going.
    cluster.wait("the namespace", || cluster.try_kubectl(&["create", "namespace", NAMESPACE]).ok()).unwrap();
    cluster.with_manifests("apply");
    cluster.wait_for_agent();
    assert_eq!(types(&cluster.chain()).last(), Some(&"podweir"));
    let holds = || cluster.intercepting().filter(|condition| condition["status"] == "True");
    cluster.wait("the node's condition", holds).unwrap_or_else(|e| panic!("{e}: {:?}", cluster.intercepting()));
    let status = cluster.ask_agent(&["status"]).unwrap_or_else(|e| panic!("{e}"));
    assert!(status.contains("ready    yes"), "{status}");

    // The early pod is programmed in place, and it is told.
    let mended = || (shop.answers(&early) == DIVERTED).then_some(());
    cluster.wait("the early pod's rules", mended).unwrap_or_else(|e| panic!("{e}"));
    let told = |pod: &str, reason: &str| shop.events(pod).into_iter().find(|event| event.starts_with(reason));
    let event = cluster.wait("the early pod's event", || told("early", "InterceptionRepaired"));
    assert!(event.as_ref().is_ok_and(|event| event.contains("its rules were missing")), "{event:?}");

    // A pod that starts is answered from the watch.
    shop.apply(injected("web", &json!({ "traffic.sidecar.istio.io/includeInboundPorts": "8080" })));
    shop.apply(plain("plain"));
    let web = shop.wait_for_pod("web");
    assert_eq!(shop.answers(&web), DIVERTED);
    assert_eq!(shop.answers(&shop.wait_for_pod("plain")), PLAIN);
    let requests = cluster.requests_of(ACCOUNT);
    let of_pods: Vec<&String> = requests.iter().filter(|request| request.contains("/pods")).collect();
    assert!(of_pods.iter().any(|request| request.starts_with("watch ")), "{requests:#?}");
    assert!(!of_pods.iter().any(|request| request.starts_with("get ")), "{requests:#?}");
    let why = cluster.ask_agent(&["why", "agent/web"]).unwrap_or_else(|e| panic!("{e}"));
    for words in ["includeInboundPorts", "intercepted: a sidecar was injected", "the plugin made"] {
        assert!(why.contains(words), "{words}: {why}");
    }

    // Rules that somebody takes away come back, and others' changes are told.
    for pod in [&web, &early] {
        flush(pod);
        let back = || (shop.answers(pod) == DIVERTED).then_some(());
        cluster.wait("the rules to be back", back).unwrap_or_else(|e| panic!("{e}"));
    }
    cluster.wait("the event", || told("web", "InterceptionRepaired")).unwrap_or_else(|e| panic!("{e}"));

    // Another program writes the chain anew.
    cluster.write_chain(&before);
    let again = || (types(&cluster.chain()).last() == Some(&"podweir")).then_some(());
    cluster.wait("the entry to be back", again).unwrap_or_else(|e| panic!("{e}"));

    // While the agent is replaced, pods that start wait for it.
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=node", "--wait=false"]);
    let names = ["w1", "w2", "w3", "w4"];
    names.iter().for_each(|name| shop.apply(injected(name, &json!({}))));
    for name in names {
        assert_eq!(shop.answers(&shop.wait_for_pod(name)), DIVERTED, "{name}");
    }
    assert_eq!(types(&cluster.chain()).last(), Some(&"podweir"), "nothing was removed");
    cluster.wait_for_agent();

    // With the DaemonSet everything goes but the rules of pods that run.
    cluster.with_manifests("delete");
    cluster.wait("the chain as it was", || (cluster.chain() == before).then_some(())).unwrap_or_else(|e| panic!("{e}"));
    let gone = || {
        let files = cluster.output("ls", &["/opt/cni/bin"], "").ok()?;
        (!files.lines().any(|name| name == "podweir")).then_some(())
    };
    cluster.wait("the binary to be gone", gone).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shop.answers(&web), DIVERTED);
    shop.apply(plain("after"));
    assert_eq!(shop.answers(&shop.wait_for_pod("after")), PLAIN);
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
}
