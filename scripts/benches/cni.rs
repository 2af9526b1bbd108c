//! The plugin as a container runtime calls it: whole processes, with the pod looked up
//! over TLS.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::median;
use crate::namespace::{execute, fresh, spawn, wait};

const RUNS: usize = 200;
/// How many pods start at once, and how often that is measured.
const AT_ONCE: usize = 50;
const ROUNDS: usize = 10;
const BRIDGE: &str = "/usr/lib/cni/bridge";

/// The argument that makes this program the API server of another one.
pub const SERVER: &str = "cni-api-server";

/// Serves one pod until standard input ends. A process of its own, since a child's peak
/// memory is at least that of the process that started it.
pub fn serve(run_dir: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-0", "namespace": "shop", "annotations": { "sidecar.istio.io/status": "{}" } },
        "spec": { "containers": [
            { "name": "app", "image": "x" },
            { "name": "istio-proxy", "image": "x", "args": ["proxy", "sidecar"],
              "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 } } ] },
    });
    Api::with_pod(&pod).write_kubeconfig(Path::new(run_dir));
    println!("ready");
    let mut rest = String::new();
    std::io::stdin().read_to_string(&mut rest).expect("stdin");
}

/// The server's process; it ends with this.
struct Server(Child);

impl Server {
    fn start(run_dir: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.arg(SERVER).arg(run_dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("server");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("server");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A call of a plugin, for a namespace.
fn call(program: &str, verb: &str, id: &str, netns: Option<&File>) -> Command {
    let netns = netns.map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", "/opt/cni/bin").env("CNI_NETNS", netns.unwrap_or_default());
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0");
    command
}

struct Case<'a> {
    name: &'a str,
    program: &'a str,
    verb: &'a str,
    netconf: &'a str,
    /// In milliseconds.
    limit: Option<f64>,
}

pub fn measure(podweir: &str) {
    // In memory, as the run directory of a node is.
    let run_dir = Path::new("/dev/shm").join(format!("podweir-bench-{}", std::process::id()));
    std::fs::create_dir_all(&run_dir).expect("run directory");
    let _server = Server::start(&run_dir);
    let result = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }],
        "ips": [{ "address": "10.244.0.6/24", "interface": 0 }], "dns": {} });
    let netconf = |keys: Value| {
        let mut netconf = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "podweir",
            "cni_agent_run_dir": run_dir, "prevResult": result });
        netconf.as_object_mut().expect("object").extend(keys.as_object().expect("object").clone());
        netconf.to_string()
    };
    let (plain, excluded) = (netconf(json!({})), netconf(json!({ "exclude_namespaces": ["shop"] })));
    let case = |name, program, verb, netconf, limit| Case { name, program, verb, netconf, limit };
    let cases = [
        case("/bin/true", "/bin/true", "VERSION", "", None),
        case("VERSION of the bridge plugin", BRIDGE, "VERSION", plain.as_str(), None),
        case("VERSION", podweir, "VERSION", &plain, Some(1.5)),
        case("DEL", podweir, "DEL", &plain, Some(1.5)),
        case("ADD of a pod in an excluded namespace", podweir, "ADD", &excluded, Some(1.5)),
        case("ADD, pod looked up over TLS", podweir, "ADD", &plain, Some(8.0)),
        case("CHECK", podweir, "CHECK", &plain, None),
    ];
    let mut times = vec![Vec::new(); cases.len()];
    let mut memory = vec![0; cases.len()];
    for run in 0..RUNS {
        let namespace = fresh();
        for (at, case) in cases.iter().enumerate() {
            // DEL forgets what the run before has kept; CHECK finds what its own ADD made.
            let id = if case.verb == "DEL" { format!("c{}", run.wrapping_sub(1)) } else { format!("c{run}") };
            let (took, rss) = execute(call(case.program, case.verb, &id, Some(&namespace)), case.netconf);
            times[at].push(took.as_secs_f64() * 1e3);
            memory[at] = memory[at].max(rss);
        }
    }
    let at_once = at_once(podweir, &plain);
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("| medians of {RUNS} runs | ms | × /bin/true | × VERSION of bridge | at most, ms | peak RSS, MB |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (at, case) in cases.iter().enumerate() {
        let ratios = [medians[at] / medians[0], medians[at] / medians[1]];
        let limit = case.limit.map(|limit| limit.to_string()).unwrap_or_default();
        println!(
            "| {} | {:.2} | {:.1} | {:.2} | {limit} | {:.1} |",
            case.name,
            medians[at],
            ratios[0],
            ratios[1],
            memory[at] as f64 / 1024.0
        );
    }
    let took = at_once.as_secs_f64() * 1e3;
    println!(
        "| {AT_ONCE} ADDs at once, until the last is done | {took:.0} | {:.0} | {:.1} | 500 | |",
        took / medians[0],
        took / medians[1]
    );
    std::fs::remove_dir_all(&run_dir).expect("run directory");
}

/// Many pods at once, each in a namespace of its own: until the last is done.
fn at_once(podweir: &str, netconf: &str) -> Duration {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let namespaces: Vec<File> = (0..AT_ONCE).map(|_| fresh()).collect();
        let started = Instant::now();
        let children: Vec<Child> = namespaces
            .iter()
            .enumerate()
            .map(|(n, namespace)| spawn(&mut call(podweir, "ADD", &format!("r{round}n{n}"), Some(namespace)), netconf))
            .collect();
        for child in children {
            wait(child);
        }
        times.push(started.elapsed().as_secs_f64());
    }
    Duration::from_secs_f64(median(times))
}
