//! A real chain: the bridge and portmap plugins of the distribution, then podweir, with
//! traffic through what they made.

use serde_json::{Value, json};

use crate::api::Api;
use crate::fixture::{Namespace, PODWEIR, RESOLV};
use crate::plugin::{KUBERNETES, RunDir, path, sidecar};
use crate::pod::{Pod, Probe, Proxy, be_everyone};

/// Where the distribution keeps its plugins.
const PLUGINS: &str = "/usr/lib/cni";
const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };

/// A chain on a node, executed as a runtime does it.
struct Chain {
    plugins: Vec<Value>,
    netns: String,
}

impl Chain {
    fn new(netns: String, run_dir: &RunDir) -> Self {
        let data = run_dir.path().join("ipam");
        let plugins = vec![
            json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": { "type": "host-local",
                "dataDir": data, "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true,
                "runtimeConfig": { "portMappings": [{ "hostPort": 18080, "containerPort": 80, "protocol": "tcp" }] } }),
            json!({ "type": "podweir", "cni_agent_run_dir": run_dir.path(), "pod_namespace": "istio-system" }),
        ];
        Self { plugins, netns }
    }

    fn call(&self, node: &Namespace, at: usize, verb: &str, result: Option<&Value>) -> Result<String, String> {
        let mut netconf = self.plugins[at].clone();
        netconf["cniVersion"] = json!("1.0.0");
        netconf["name"] = json!("pods");
        if let Some(result) = result {
            netconf["prevResult"] = result.clone();
        }
        let name = netconf["type"].as_str().unwrap();
        let program = if name == "podweir" { PODWEIR.to_owned() } else { format!("{PLUGINS}/{name}") };
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "0123abcd"),
            ("CNI_NETNS", self.netns.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", PLUGINS),
            ("CNI_ARGS", KUBERNETES),
        ];
        let output = node.feed(&program, &[], &variables, &netconf.to_string());
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { Ok(text) } else { Err(format!("{name} {verb}: {text}")) }
    }

    /// ADD, one plugin after the other.
    fn add(&self, node: &Namespace) -> Value {
        let mut result = None;
        for at in 0..self.plugins.len() {
            let text = self.call(node, at, "ADD", result.as_ref()).unwrap();
            result = Some(serde_json::from_str(&text).unwrap());
        }
        result.unwrap()
    }

    fn check(&self, node: &Namespace, result: &Value) -> Result<(), String> {
        // Not portmap's: some versions look for IPv6 rules where the pod has no IPv6.
        [0, 2].into_iter().try_for_each(|at| self.call(node, at, "CHECK", Some(result)).map(|_| ()))
    }

    /// DEL, in the opposite order.
    fn del(&self, node: &Namespace, result: &Value) {
        for at in (0..self.plugins.len()).rev() {
            self.call(node, at, "DEL", Some(result)).unwrap();
        }
    }
}

#[test]
fn traffic_through_bridge_portmap_and_podweir() {
    let (node, namespace, run_dir) = (Namespace::bare(""), Namespace::bare(RESOLV), RunDir::new());
    let annotations = json!({
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
    });
    let api = node.run(|| Api::with_pod(&sidecar(annotations)));
    api.write_kubeconfig(run_dir.path());
    let chain = Chain::new(path(&namespace), &run_dir);
    let result = chain.add(&node);
    let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    let gateway = result["ips"][0]["gateway"].as_str().unwrap().to_owned();
    chain.check(&node, &result).unwrap();
    be_everyone(&node, "cni0");
    let pod = Pod::between(namespace, node, PROXY);
    let app = "out tcp uid=1000 gid=1000 to";
    let proxy = "out tcp uid=1337 gid=1337 to";
    for (probe, want) in [
        // From outside: what is taken, what the proxy owns, what is excluded.
        (format!("in tcp to {address} 80"), "in-proxy"),
        (format!("in tcp to {address} 8080"), "in-proxy"),
        (format!("in tcp to {address} 9000"), "app"),
        (format!("in tcp to {address} 15021"), "app"),
        // By the node's port, which portmap leads to the pod's.
        (format!("in tcp to {gateway} 18080"), "in-proxy"),
        // To the outside.
        (format!("{app} 93.184.216.34 443"), "out-proxy"),
        (format!("{app} 93.184.216.34 3306"), "outside"),
        (format!("{proxy} 93.184.216.34 443"), "outside"),
        ("out udp uid=1000 gid=1000 to 93.184.216.34 443".to_owned(), "outside"),
        // The app by its own address, and by localhost.
        (format!("{app} 127.0.0.1 80"), "app"),
        (format!("{proxy} {address} 80"), "in-proxy"),
    ] {
        assert_eq!(pod.probe(&[Probe::parse(&probe)]), [want], "{probe}");
    }
    let node = &pod.outside;
    pod.namespace.print("nft", &["flush", "chain", "inet", "istio-proxy-nat", "istio-inbound"]);
    let problem = chain.check(node, &result).unwrap_err();
    assert!(problem.contains("podweir CHECK") && problem.contains("ISTIO_INBOUND"), "{problem}");
    chain.del(node, &result);
    chain.del(node, &result);
    assert!(run_dir.states().is_empty());
    assert!(!pod.namespace.print("ip", &["link"]).contains("eth0"));
}
