//! Pods as an injector makes them, with stand-ins for the proxy and the app, and who answers
//! their connections.

use std::fs::File;
use std::net::IpAddr;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::images::{BUSYBOX, PODWEIR_IMAGE};
use super::kubectl::Project;
use super::machine::OUTSIDE;
use crate::pod::{Probe, ask};

/// Somebody who answers on ports with a word.
fn answering(answers: &[(u16, &str)]) -> String {
    let listen = |(port, word): &(u16, &str)| format!("busybox nc -ll -p {port} -e busybox echo {word} &\n");
    answers.iter().map(listen).collect::<String>()
        + "trap 'exit 0' TERM\nwhile :; do busybox sleep 1000 & wait $!; done"
}

fn container(name: &str, user: u32, script: &str) -> Value {
    json!({
        "name": name, "image": BUSYBOX, "command": ["/bin/busybox", "sh", "-c", script],
        "securityContext": {
            "runAsUser": user, "runAsGroup": user, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        },
    })
}

fn app() -> Value {
    container("app", 1000, &answering(&[(8080, "app"), (15021, "app")]))
}

fn proxy() -> Value {
    let mut proxy = container("istio-proxy", 1337, &answering(&[(15001, "out-proxy"), (15006, "in-proxy")]));
    proxy["args"] = json!(["proxy", "sidecar"]);
    proxy
}

/// What an injector adds where a plugin programs the pod: it fails in a pod that was missed.
pub fn validation() -> Value {
    json!({
        "name": "istio-validation", "image": PODWEIR_IMAGE,
        "args": ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*",
            "-d", "15090,15021,15020", "--run-validation", "--skip-rule-apply"],
        "securityContext": {
            "runAsUser": 1337, "runAsGroup": 1337, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "capabilities": { "drop": ["ALL"] },
        },
    })
}

fn pod(name: &str, annotations: &Value, init: Vec<Value>, containers: Vec<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name }, "annotations": annotations },
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
            "initContainers": init, "containers": containers,
        },
    })
}

/// An app alone.
pub fn plain(name: &str) -> Value {
    pod(name, &json!({}), vec![], vec![app()])
}

/// An app with an injected sidecar, and annotations besides.
pub fn injected(name: &str, annotations: &Value) -> Value {
    let mut all =
        json!({ "sidecar.istio.io/status": r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"# });
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    pod(name, &all, vec![validation()], vec![app(), proxy()])
}

/// A Deployment of such pods.
pub fn deployment(pod: Value, replicas: u32) -> Value {
    let name = pod["metadata"]["name"].clone();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": pod["metadata"]["labels"], "annotations": pod["metadata"]["annotations"] }, "spec": pod["spec"] },
        },
    })
}

/// A running pod: its network is where the test can look and connect from.
pub struct Running {
    pub name: String,
    pub address: IpAddr,
    network: File,
}

impl Running {
    /// Runs a closure in the pod's network namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ask(&self, from: &str, to: &str, port: u16) -> String {
        let probe = Probe::parse(&format!("out tcp {from} to {to} {port}"));
        self.run(|| ask(&probe)).trim().to_owned()
    }
}

impl Project<'_> {
    /// Waits until a pod runs and is ready.
    pub fn wait_for_pod(&self, name: &str) -> Running {
        let waited = self.cluster.wait(&format!("pod {name}"), || {
            let pod = self.get(&["pod", name]);
            let conditions = pod["status"]["conditions"].as_array()?;
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(pod)
        });
        let pod = waited.unwrap_or_else(|e| panic!("{e}\nevents of {name}: {:#?}", self.events(name)));
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
        let id = id.strip_prefix("containerd://").unwrap();
        let tasks = self.cluster.output("ctr", &["-n", "k8s.io", "tasks", "ls"], "").unwrap();
        let line = tasks.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("no {id} in {tasks}"));
        let process = line.split_whitespace().nth(1).unwrap();
        let network = File::open(self.cluster.machine().path(&format!("/proc/{process}/ns/net"))).unwrap();
        // As on any node, a process is known to be a pod's by its cgroups.
        let cgroups = std::fs::read_to_string(self.cluster.machine().path(&format!("/proc/{process}/cgroup"))).unwrap();
        let uid = pod["metadata"]["annotations"]["kubernetes.io/config.hash"].as_str();
        let uid = uid.unwrap_or(pod["metadata"]["uid"].as_str().unwrap());
        assert!(cgroups.contains(&format!("/pod{uid}/")), "{uid}: {cgroups}");
        let address = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        Running { name: name.to_owned(), address, network }
    }

    /// The pods of an app, when so many of them run.
    pub fn wait_for_app(&self, app: &str, replicas: usize) -> Vec<Running> {
        let rollout = ["rollout", "status", &format!("deployment/{app}"), "--timeout=240s"].map(str::to_owned);
        let arguments: Vec<&str> = rollout.iter().map(String::as_str).collect();
        let all = [&["-n", self.name], &arguments[..]].concat();
        self.cluster.output("kubectl", &all, "").unwrap_or_else(|e| panic!("{e}"));
        let pods = self.get(&["pods", "-l", &format!("app={app}")]);
        let names = pods["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap());
        let pods: Vec<Running> = names.map(|name| self.wait_for_pod(name)).collect();
        assert_eq!(pods.len(), replicas);
        pods
    }

    /// Who answers a pod's connections and those to it: see [`PLAIN`] and [`DIVERTED`].
    pub fn answers(&self, pod: &Running) -> [String; 7] {
        let (app, proxy) = ("uid=1000 gid=1000", "uid=1337 gid=1337");
        let own = pod.address.to_string();
        let inbound = |port: u16| {
            let probe = Probe::parse(&format!("in tcp to {own} {port}"));
            self.cluster.machine().network().run(|| ask(&probe)).trim().to_owned()
        };
        [
            pod.ask(app, OUTSIDE, 80),
            pod.ask(app, &own, 8080),
            pod.ask(app, "127.0.0.1", 8080),
            pod.ask(proxy, OUTSIDE, 80),
            pod.ask(proxy, "127.0.0.1", 8080),
            inbound(8080),
            inbound(15021),
        ]
    }
}

/// The app to the outside, to itself by its address and by localhost; the proxy to the
/// outside and to the app; the node to the app, and to a port that is left alone.
pub const PLAIN: [&str; 7] = ["outside", "app", "app", "outside", "app", "app", "app"];
pub const DIVERTED: [&str; 7] = ["out-proxy", "app", "app", "outside", "app", "in-proxy", "app"];
