//! A pod that is deleted and made again under the same name while the runtime sets the first
//! one up: the second one's manifest says nothing about the first.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::kubectl::Project;
use super::pods::{injected, plain};
use super::{Cluster, shared};

/// A network namespace as a runtime has made it by the time the last plugin is called.
struct Attachment<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl<'a> Attachment<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        let make = format!(
            "ip netns add {name}; ip -n {name} link set lo up; ip -n {name} link add eth0 type veth peer name up0; \
             ip -n {name} addr add 10.244.250.6/24 dev eth0; ip -n {name} link set eth0 up"
        );
        cluster.output("sh", &["-ec", &make], "").unwrap();
        Self { cluster, name }
    }

    /// ADD as a runtime calls it for a pod: how it ended, and what it printed.
    fn add(&self, project: &Project, pod: &str, uid: &str) -> (Option<i32>, Value) {
        let chain = self.cluster.chain();
        let plugins = chain["plugins"].as_array().unwrap();
        let mut netconf = plugins.iter().find(|plugin| plugin["type"] == "podweir").unwrap().clone();
        netconf["cniVersion"] = chain["cniVersion"].clone();
        netconf["name"] = chain["name"].clone();
        netconf["prevResult"] = json!({ "cniVersion": chain["cniVersion"], "interfaces": [], "ips": [], "routes": [] });
        let (netns, namespace) = (format!("/run/netns/{}", self.name), project.name);
        let of_pod = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={0};K8S_POD_UID={uid}",
            self.name
        );
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", self.name),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &of_pod),
        ];
        let mut command = self.cluster.machine().command("/opt/cni/bin/podweir", &[], &variables);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(netconf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }

    fn tables(&self) -> String {
        self.cluster.output("ip", &["netns", "exec", self.name, "nft", "list", "tables"], "").unwrap()
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.output("ip", &["netns", "del", self.name], "");
    }
}

/// Makes a pod that no scheduler takes, so that no kubelet does, and gives its UID.
fn make(project: &Project, mut pod: Value) -> String {
    pod["spec"]["schedulerName"] = "nobody".into();
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    project.apply(pod);
    project.get(&["pod", &name])["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_pod_is_not_decided_by_another_pod_of_its_name() {
    let cluster = shared();
    cluster.set_up_by_hand();
    let shop = cluster.project("recreated");
    // Taken for the other, the first would start without its rules, the second with rules
    // and no proxy.
    for (name, first, second) in [
        ("sidecar-first", injected("web-0", &json!({})), plain("web-0")),
        ("plain-first", plain("web-0"), injected("web-0", &json!({}))),
    ] {
        let attachment = Attachment::new(&cluster, name);
        let old = make(&shop, first);
        shop.kubectl(&["delete", "pod", "web-0", "--force", "--grace-period=0"]);
        let new = make(&shop, second);
        assert_ne!(old, new);
        let (status, answer) = attachment.add(&shop, "web-0", &old);
        assert!(status.is_some_and(|status| status != 0), "{name}: {answer:#}");
        let told = answer.to_string();
        assert!(told.contains("no such pod any more"), "{name}: {told}");
        assert_eq!(attachment.tables(), "", "{name}");
        let (status, answer) = attachment.add(&shop, "web-0", &new);
        assert_eq!(status, Some(0), "{name}: {answer:#}");
        assert_eq!(attachment.tables().contains("istio-proxy"), name == "plain-first", "{name}");
        shop.kubectl(&["delete", "pod", "web-0", "--force", "--grace-period=0"]);
    }
}
