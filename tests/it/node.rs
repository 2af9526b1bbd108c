//! A node of a cluster: containerd and runc with namespaces, folders and cgroups of their
//! own, driven as a kubelet drives them. Whatever runs on it ends with the test, however
//! the test ends.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::cri::{
    AskSandboxStatus, AskStatus, Cri, DnsConfig, Empty, LinuxSandboxConfig, NamespaceOption, PID_PER_CONTAINER,
    PortMapping, RunSandbox, SandboxConfig, SandboxId, SandboxMetadata, SandboxSecurity, SandboxStatusResponse,
    StatusResponse,
};
use crate::fixture::{self, Namespace, PODWEIR};
use crate::plugin::UID;
use crate::pod::{Probe, Server, ask, serve};
use crate::{busybox, image};

pub const PODWEIR_IMAGE: &str = "localhost/podweir:test";
pub const BUSYBOX_IMAGE: &str = "localhost/busybox:test";
/// Debian's folder of CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
const PACKAGES: &str = "binutils containerd runc busybox-static containernetworking-plugins iptables";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The first process of the node's own process namespace: when it ends, the kernel ends all
/// others. It ends when its standard input does, which is a pipe from the test. What the
/// runtime and its plugins write stays in the test's folder, at the paths they have on a node.
const FIRST_PROCESS: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir /run/containerd /run/etc /run/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
mount -t tmpfs tmpfs /opt
mount --bind "$1/var-lib" /var/lib
mkdir -p /etc/cni/net.d /opt/cni/bin
mount --bind "$1/net.d" /etc/cni/net.d
mount --bind "$1/bin" /opt/cni/bin
containerd --config "$1/containerd.toml" >"$1/containerd.log" 2>&1 </dev/null &
read -r _
"#;

pub struct Node {
    cri: Option<Cri>,
    machine: Child,
    outside: Option<Server>,
    namespace: Namespace,
    cgroup: String,
}

/// A pod that has its network.
pub struct Sandbox {
    pub id: String,
    pub ip: String,
    /// Where the runtime keeps its network namespace, on the node.
    pub netns: String,
    pub config: SandboxConfig,
}

impl Node {
    /// Starts containerd with a chain of plugins. The node takes what pods send to anywhere
    /// and answers "outside".
    pub fn start(chain: &Value) -> Self {
        need_programs();
        let namespace = Namespace::bare("nameserver 10.96.0.10\n");
        let folder = namespace.directory().to_owned();
        for name in ["net.d", "bin", "logs", "var-lib"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            symlink(Path::new(PLUGINS).join(plugin), folder.join("bin").join(plugin)).unwrap();
        }
        std::fs::write(folder.join("net.d/10-pods.conflist"), chain.to_string()).unwrap();
        std::fs::write(folder.join("containerd.toml"), configuration(&folder)).unwrap();

        let mut machine = Command::new("unshare");
        machine.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private"]);
        machine.args(["sh", "-c", FIRST_PROCESS, "sh"]).arg(&folder);
        machine.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let machine = namespace.run(|| machine.spawn().unwrap());
        let cgroup = format!("/{}", folder.file_name().unwrap().to_str().unwrap());
        // From here on a panic ends what was started.
        let mut node = Self { cri: None, machine, outside: None, namespace, cgroup };
        node.outside = Some(node.answer_for_everyone());
        node.cri = Some(node.connect());
        node.import();
        node
    }

    pub fn folder(&self) -> &Path {
        self.namespace.directory()
    }

    /// Waits until the runtime answers.
    fn connect(&mut self) -> Cri {
        let socket = self.folder().join("containerd.sock");
        let begin = Instant::now();
        loop {
            let error = match Cri::connect(&socket) {
                Ok(cri) => match cri.call("Status", AskStatus { verbose: false }) {
                    Ok(StatusResponse { .. }) => return cri,
                    Err(e) => e,
                },
                Err(e) => e,
            };
            let ended = self.machine.try_wait().unwrap();
            if ended.is_some() || begin.elapsed() > PATIENCE {
                panic!("containerd does not answer ({error}); it logged:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last that containerd said.
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder().join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn answer_for_everyone(&self) -> Server {
        let rules = "table inet anyone { chain prerouting { type nat hook prerouting priority -100; iifname \"cni*\" meta l4proto { tcp, udp } fib daddr type != local redirect to :9; }; }";
        let output = self.namespace.feed("nft", &["-f", "-"], &[], rules);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.namespace.run(|| serve(&[("outside", 9)], 0, 0))
    }

    /// Brings both images in.
    fn import(&self) {
        // Without what debuggers want of it, as it is released, it is a third of the size.
        let [program, podweir] = ["podweir", "podweir.tar"].map(|name| self.folder().join(name));
        let strip = Command::new("strip").arg("-o").arg(&program).arg(PODWEIR).status().unwrap();
        assert!(strip.success(), "strip: {strip}");
        image::build(&program, &podweir, PODWEIR_IMAGE);
        for archive in [podweir, busybox::image(&self.folder().join("busybox"), BUSYBOX_IMAGE)] {
            let archive = archive.to_str().unwrap();
            let socket = self.folder().join("containerd.sock");
            // The runtime's own tool, as an engineer without a registry uses it.
            let import = [
                "-a",
                socket.to_str().unwrap(),
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
                archive,
            ];
            let output = Command::new("ctr").args(import).output().unwrap();
            assert!(output.status.success(), "{archive}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, String>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.cri.as_ref().expect("connected").call(method, request)
    }

    /// A call that must succeed.
    pub fn must<Q, A>(&self, method: &str, request: Q) -> A
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call(method, request).unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.log()))
    }

    /// Waits until the runtime has noticed that a plugin is in its chain.
    pub fn wait_for_plugin(&self, name: &str) {
        let begin = Instant::now();
        loop {
            let status: StatusResponse = self.must("Status", AskStatus { verbose: true });
            let networks = &status.info["cniconfig"];
            if networks.contains(&format!("\"{name}\"")) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{name} is not in {networks}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a container that belongs to no pod, and gives its process id.
    pub fn run_without_kubernetes(&self, name: &str) -> u32 {
        let socket = self.folder().join("containerd.sock");
        let runtime = ["-a", socket.to_str().unwrap(), "-n", "k8s.io"];
        let cgroup = format!("{}/{name}", self.cgroup);
        let run = ["run", "--detach", "--cni", "--snapshotter", "native", "--cgroup", &cgroup, BUSYBOX_IMAGE, name];
        self.print("ctr", &[&runtime[..], &run].concat());
        let tasks = self.print("ctr", &[&runtime[..], &["tasks", "ls"]].concat());
        let line = tasks.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// RunPodSandbox as a kubelet calls it. `host_port`: a port of the node that leads to the
    /// pod's port 8080.
    pub fn run_sandbox(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, &str)],
        host_port: Option<i32>,
    ) -> Result<Sandbox, String> {
        // The stub of an API server knows pods by this.
        let uid = UID.to_owned();
        let labels = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", &uid),
        ];
        let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let namespaces = NamespaceOption { pid: PID_PER_CONTAINER };
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata { name: name.into(), uid: uid.clone(), namespace: namespace.into() }),
            hostname: name.into(),
            log_directory: self.folder().join("logs").join(name).to_str().unwrap().into(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
            }),
            port_mappings: host_port
                .map(|host_port| PortMapping { container_port: 8080, host_port })
                .into_iter()
                .collect(),
            labels: owned(&labels),
            annotations: owned(&[&[("kubernetes.io/config.source", "api")], annotations].concat()),
            linux: Some(LinuxSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(SandboxSecurity { namespaces: Some(namespaces) }),
            }),
        };
        std::fs::create_dir_all(&config.log_directory).unwrap();
        let SandboxId { id } = self.call("RunPodSandbox", RunSandbox { config: Some(config.clone()) })?;
        let status: SandboxStatusResponse =
            self.must("PodSandboxStatus", AskSandboxStatus { id: id.clone(), verbose: true });
        let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        let netns = namespaces.iter().find(|namespace| namespace["type"] == "network").unwrap();
        Ok(Sandbox {
            id,
            ip: status.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default(),
            netns: netns["path"].as_str().unwrap().to_owned(),
            config,
        })
    }

    pub fn stop(&self, sandbox: &Sandbox) -> Result<(), String> {
        self.call("StopPodSandbox", SandboxId { id: sandbox.id.clone() }).map(|Empty {}| ())
    }

    pub fn remove(&self, sandbox: &Sandbox) -> Result<(), String> {
        self.call("RemovePodSandbox", SandboxId { id: sandbox.id.clone() }).map(|Empty {}| ())
    }

    /// Who answers a connection from the node.
    pub fn connect_to(&self, address: &str, port: u16) -> String {
        let probe = Probe::parse(&format!("in tcp to {address} {port}"));
        self.namespace.run(|| ask(&probe)).trim().to_owned()
    }

    /// Runs a closure in the node's network.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// Runs a closure in the network namespace that has this path on the node.
    pub fn run_in<T: Send>(&self, netns: &str, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(format!("/proc/{}/root{netns}", self.first_process())).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn first_process(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.machine.id());
        std::fs::read_to_string(children).unwrap().trim().to_owned()
    }

    /// Runs a program on the node, which must succeed, and gives what it printed.
    pub fn print(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments, &[], "");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program where containerd runs: in its network, mounts and processes.
    pub fn command(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
        let first = self.first_process();
        let enter = ["--target", &first, "--mount", "--net", "--pid", "--", program];
        self.namespace.feed("nsenter", &[&enter[..], arguments].concat(), variables, input)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cri = None;
        self.outside = None;
        // The end of its input ends the first process; `unshare` waits until all are gone.
        drop(self.machine.stdin.take());
        let _ = self.machine.wait();
        let Ok(roots) = std::fs::read_dir("/sys/fs/cgroup") else { return };
        for root in roots.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            remove_cgroups(&root.join(&self.cgroup[1..]));
        }
    }
}

/// Removes a folder of cgroups, whose files are not removed but go with it.
fn remove_cgroups(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).for_each(|e| remove_cgroups(&e.path()));
    let _ = std::fs::remove_dir(folder);
}

/// There is no skipping: a node without a runtime proves nothing.
fn need_programs() {
    let mut missing: Vec<&str> =
        ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox", "unshare", "strip"]
            .into_iter()
            .filter(|name| fixture::program(name).is_none())
            .collect();
    missing.extend(["bridge", "portmap"].into_iter().filter(|name| !Path::new(PLUGINS).join(name).exists()));
    assert!(missing.is_empty(), "{} not found: run ./scripts/packages {PACKAGES}", missing.join(", "));
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.restart"]
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}
