//! The node's agent with a node full of pods: memory, CPU at rest, how soon it answers the
//! plugin, how soon it mends, and how soon one that was killed is back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Api, TOKEN, kubeconfig};
use crate::median;
use crate::namespace::{execute, fresh, run, spawn, wait, within};
use crate::server::Server;

/// How many pods with a sidecar the node has, and how long the manifest of each is.
const PODS: usize = 500;
const MANIFEST: usize = 20 << 10;
const AT_REST: Duration = Duration::from_secs(60);
const RUNS: usize = 200;
const DELETIONS: usize = 100;
const KILLS: usize = 20;
const AT_ONCE: usize = 50;
const ROUNDS: usize = 5;

pub struct Agent {
    pub child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Node<'a> {
    podweir: &'a str,
    pub folder: PathBuf,
    pub server: Server,
}

pub fn uid(number: usize) -> String {
    format!("0a1b2c3d-1111-2222-3333-{number:012x}")
}

/// A pod's manifest as an injector leaves it: long, and most of it of no interest.
pub fn manifest(number: usize) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("web-{number}"), "namespace": "shop", "uid": uid(number),
            "labels": { "app": "web", "security.istio.io/tlsMode": "istio" },
            "annotations": { "sidecar.istio.io/status": "s".repeat(600), "kubectl.kubernetes.io/last-applied-configuration": "" },
            "managedFields": [] },
        "spec": { "containers": [
            { "name": "app", "image": "localhost/app", "env": [] },
            { "name": "istio-proxy", "image": "localhost/proxy", "args": ["proxy", "sidecar", "--domain", "x"],
              "env": [{ "name": "PROXY_CONFIG", "value": "p".repeat(2000) }, { "name": "ISTIO_META_DNS_CAPTURE", "value": "true" }],
              "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 } } ] },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.6" }],
            "conditions": [{ "type": "Initialized", "status": "True" }] },
    });
    let rest = MANIFEST.saturating_sub(pod.to_string().len());
    pod["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "x".repeat(rest / 2).into();
    pod["metadata"]["managedFields"] =
        json!([{ "manager": "kubelet", "fieldsV1": { "f:status": "y".repeat(rest / 2) } }]);
    pod
}

pub fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

impl<'a> Node<'a> {
    pub fn new(podweir: &'a str) -> Self {
        let folder = Path::new("/dev/shm").join(format!("podweir-bench-node-{}", std::process::id()));
        for name in ["bin", "net.d", "run", "proc/1/ns"] {
            std::fs::create_dir_all(folder.join(name)).expect("folder");
        }
        let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
        std::fs::write(folder.join("net.d/10-pods.conflist"), list).expect("list");
        symlink("/proc/self/ns/net", folder.join("proc/1/ns/net")).expect("link");
        let server = Server::start("node1");
        let config = kubeconfig(&format!("https://{}", server.address), Api::authority(), TOKEN);
        std::fs::write(folder.join("kubeconfig"), config).expect("kubeconfig");
        std::fs::set_permissions(folder.join("kubeconfig"), PermissionsExt::from_mode(0o600)).expect("mode");
        Self { podweir, folder, server }
    }

    pub fn at(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Starts the agent; what it says of folders that are no node's is of no interest here.
    pub fn start(&self, more: &[&str]) -> Agent {
        let mut command = Command::new(self.podweir);
        command
            .args(["node", "run", "--node-name=node1", "--listen=none", "--log_output_level=default:none"])
            // As the chart has it: it costs a watch, and a connection.
            .arg("--daemon-set=podweir-system/podweir-node")
            .args(more);
        for (flag, name) in [
            ("cni-bin-dir", "bin"),
            ("cni-conf-dir", "net.d"),
            ("run-dir", "run"),
            ("host-proc", "proc"),
            ("kubeconfig", "kubeconfig"),
        ] {
            command.arg(format!("--{flag}={}", self.at(name)));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Agent { child: command.spawn().expect("agent") }
    }

    /// A process of a pod, as the node's /proc shows it.
    pub fn runs(&self, number: usize, namespace: &File) {
        let process = self.folder.join(format!("proc/{}", number + 100));
        std::fs::create_dir_all(process.join("ns")).expect("process");
        std::fs::write(process.join("cgroup"), format!("0::/kubepods/pod{}/c\n", uid(number))).expect("cgroup");
        symlink(path(namespace), process.join("ns/net")).expect("link");
    }

    /// What `podweir node status` says.
    pub fn status(&self) -> Value {
        let output =
            Command::new(self.podweir).args(["node", "status", "--json", "--run-dir", &self.at("run")]).output();
        serde_json::from_slice(&output.expect("status").stdout).unwrap_or_default()
    }

    /// Waits until so many pods have their rules.
    fn wait_for(&self, intercepted: usize) -> Duration {
        self.wait_for_state("intercepted", intercepted)
    }

    /// Waits until so many pods are in a state.
    pub fn wait_for_state(&self, state: &str, count: usize) -> Duration {
        let begun = Instant::now();
        while self.status()["pods"][state] != count {
            assert!(begun.elapsed() < Duration::from_secs(300), "{}", self.status());
            std::thread::sleep(Duration::from_millis(100));
        }
        begun.elapsed()
    }

    /// A pod of the node, as its runtime names it.
    pub fn add(&self, number: usize, id: &str, namespace: &File) -> Command {
        let mut command = Command::new(self.podweir);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", "/opt/cni/bin").env("CNI_NETNS", path(namespace));
        command
            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-{number};K8S_POD_UID={}", uid(number)));
        command
    }

    pub fn netconf(&self, run_dir: &str) -> String {
        let result = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }],
            "ips": [{ "address": "10.244.0.6/24", "interface": 0 }], "dns": {} });
        json!({ "cniVersion": "1.0.0", "name": "pods", "type": "podweir", "cni_agent_run_dir": run_dir,
            "prevResult": result })
        .to_string()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.server.behave();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A line of a process's status, in KiB.
pub fn kib(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("line");
    line.trim_matches([':', ' ', '\t', 'k', 'B']).trim().parse().expect("number")
}

/// The processor time that a process has had.
fn cpu(pid: u32) -> Duration {
    // In nanoseconds (proc(5), schedstat), of all its threads that are there and have been.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("name").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    // USER_HZ is 100 on every architecture that this runs on.
    Duration::from_millis(ticks * 10)
}

pub fn measure(podweir: &str) {
    let node = Node::new(podweir);
    let namespaces: Vec<File> = (0..PODS).map(|_| fresh()).collect();
    for (number, namespace) in namespaces.iter().enumerate() {
        node.server.set(&manifest(number));
        node.runs(number, namespace);
    }
    println!("| the agent, {PODS} pods with sidecars, {} KiB of YAML each | | at most |", MANIFEST >> 10);
    println!("|---|---:|---:|");
    let agent = node.start(&[]);
    let all = node.wait_for(PODS);
    let pid = agent.child.id();
    println!("| until all {PODS}, which had no rules, have them | {:.1} s | |", all.as_secs_f64());
    println!(
        "| RSS; at its highest | {:.1} MiB; {:.1} MiB | 16 MiB |",
        kib(pid, "VmRSS") / 1024.0,
        kib(pid, "VmHWM") / 1024.0
    );
    // What was just made is looked at once more.
    std::thread::sleep(Duration::from_secs(10));
    let before = cpu(pid);
    std::thread::sleep(AT_REST);
    let rest = (cpu(pid) - before).as_secs_f64() / AT_REST.as_secs_f64() * 100.0;
    println!("| CPU at rest, of a core | {rest:.2} % | 0.2 % |");
    println!("| RSS afterwards | {:.1} MiB | |", kib(pid, "VmRSS") / 1024.0);
    deletions(&namespaces[PODS - DELETIONS..]);
    adds(&node);
    at_once(&node);
    kills(&node, agent);
}

/// From a rule's deletion to its return.
fn deletions(namespaces: &[File]) {
    let count = || {
        let output = Command::new("nft").args(["list", "chain", "inet", "istio-proxy-nat", "istio-output"]).output();
        String::from_utf8_lossy(&output.expect("nft").stdout).matches("comment").count()
    };
    let mut times = Vec::new();
    // Each pod once: how often one may have its rules mended is limited.
    for namespace in namespaces {
        let took = within(namespace, || {
            let whole = count();
            run(namespace, &["nft", "flush", "chain", "inet", "istio-proxy-nat", "istio-output"], "");
            let begun = Instant::now();
            while count() < whole {
                assert!(begun.elapsed() < Duration::from_secs(60), "the rules do not come back");
            }
            begun.elapsed()
        });
        times.push(took.as_secs_f64() * 1e3);
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    println!(
        "| from a rule's deletion to its return, seen by `nft list`: median; worst of {DELETIONS} | {:.0} ms; {worst:.0} ms | 50 ms; 1 s |",
        median(times)
    );
}

/// ADD answered by the agent, beside /bin/true and the look-up over TLS.
fn adds(node: &Node) {
    let by_api = node.at("by-api");
    std::fs::create_dir_all(&by_api).expect("folder");
    std::fs::copy(node.at("kubeconfig"), format!("{by_api}/kubeconfig")).expect("kubeconfig");
    std::fs::set_permissions(format!("{by_api}/kubeconfig"), PermissionsExt::from_mode(0o600)).expect("mode");
    let (agent, api) = (node.netconf(&node.at("run")), node.netconf(&by_api));
    let mut times = [const { Vec::new() }; 3];
    for run in 0..RUNS {
        let namespaces = [fresh(), fresh()];
        let took = [
            execute(Command::new("/bin/true"), ""),
            execute(node.add(1, &format!("a{run}"), &namespaces[0]), &agent),
            execute(node.add(1, &format!("b{run}"), &namespaces[1]), &api),
        ];
        times.iter_mut().zip(took).for_each(|(times, (took, _))| times.push(took.as_secs_f64() * 1e3));
    }
    let [nothing, agent, api] = times.map(median);
    println!("| /bin/true | {nothing:.2} ms | |");
    println!("| ADD answered by the agent; × /bin/true | {agent:.2} ms; {:.1} | 1.2 ms; 3.0 |", agent / nothing);
    println!("| ADD looked up over TLS; that by the agent × this | {api:.2} ms; {:.2} | 0.5 |", agent / api);
}

/// Many pods at once, by the agent and without.
fn at_once(node: &Node) {
    let mut medians = Vec::new();
    for run_dir in [node.at("run"), node.at("by-api")] {
        let netconf = node.netconf(&run_dir);
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let namespaces: Vec<File> = (0..AT_ONCE).map(|_| fresh()).collect();
            let begun = Instant::now();
            let children: Vec<Child> = namespaces
                .iter()
                .enumerate()
                .map(|(n, namespace)| spawn(&mut node.add(n, &format!("r{round}n{n}"), namespace), &netconf))
                .collect();
            for child in children {
                wait(child);
            }
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        medians.push(median(times));
    }
    println!(
        "| {AT_ONCE} ADDs at once by the agent; without | {:.0} ms; {:.0} ms | not slower |",
        medians[0], medians[1]
    );
}

/// A pod starts at the moment at which the agent is killed; another agent is started at once.
fn kills(node: &Node, mut agent: Agent) {
    let netconf = node.netconf(&node.at("run"));
    let mut times = Vec::new();
    for run in 0..KILLS {
        let namespace = fresh();
        agent.child.kill().expect("kill");
        agent.child.wait().expect("wait");
        let begun = Instant::now();
        agent = node.start(&[]);
        wait(spawn(&mut node.add(1, &format!("k{run}"), &namespace), &netconf));
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        let tables = within(&namespace, || Command::new("nft").args(["list", "tables"]).output().expect("nft").stdout);
        assert!(String::from_utf8_lossy(&tables).contains("istio-proxy-nat"), "a pod without its rules");
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    println!(
        "| from `kill -9`, the next agent started at once, to the next ADD answered: median; worst of {KILLS} | {:.0} ms; {worst:.0} ms | |",
        median(times)
    );
}
