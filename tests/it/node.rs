//! A node of a cluster: containerd and runc with namespaces, folders and cgroups of their
//! own, driven as a kubelet drives them. Whatever runs on it ends with the test, however
//! the test ends.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cri::{
    Capabilities, ContainerConfig, ContainerId, ContainerMetadata, ContainerSecurity, ContainerStatus,
    ContainerStatusResponse, CreateContainer, Cri, DnsConfig, EXITED, Empty, ExecSync, ExecSyncResponse, ImageSpec,
    Int64Value, LinuxContainerConfig, LinuxSandboxConfig, NamespaceOption, PID_PER_CONTAINER, RUNNING, RunSandbox,
    SandboxConfig, SandboxId, SandboxMetadata, SandboxSecurity, SandboxStatusResponse, StatusResponse,
};
use crate::fixture::{Namespace, PODWEIR};
use crate::image;
use crate::pod::{Probe, Server, ask, serve};

pub const PODWEIR_IMAGE: &str = "localhost/podweir:test";
const BUSYBOX_IMAGE: &str = "localhost/busybox:test";
/// Debian's folder of CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
const PACKAGES: &str = "containerd runc busybox-static containernetworking-plugins iptables";
const PATIENCE: Duration = Duration::from_secs(20);

/// The first process of the node's own process namespace: when it ends, the kernel ends all
/// others. It ends when its standard input does, which is a pipe from the test.
const FIRST_PROCESS: &str = "
mount -t tmpfs tmpfs /run || exit 1
mkdir -p /run/containerd
containerd --config \"$1/containerd.toml\" >\"$1/containerd.log\" 2>&1 </dev/null &
read -r _
";

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
    config: SandboxConfig,
}

/// Who a container runs as, and what it may do.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    pub user: Option<i64>,
    pub capabilities: &'static [&'static str],
}

impl Node {
    /// Starts containerd with the plugins of a chain. The node takes what pods send to
    /// anywhere and answers "outside".
    pub fn start(plugins: Value) -> Self {
        need_programs();
        let namespace = Namespace::bare("nameserver 10.96.0.10\n");
        let folder = namespace.directory().to_owned();
        for name in ["net.d", "bin", "logs"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            symlink(Path::new(PLUGINS).join(plugin), folder.join("bin").join(plugin)).unwrap();
        }
        symlink(PODWEIR, folder.join("bin/podweir")).unwrap();
        let chain = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins });
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
                Ok(cri) => match cri.call("Status", Empty {}) {
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
        let rules = "table inet anyone { chain prerouting { type nat hook prerouting priority -100; iifname \"cni0\" meta l4proto { tcp, udp } fib daddr type != local redirect to :9; }; }";
        let output = self.namespace.feed("nft", &["-f", "-"], &[], rules);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.namespace.run(|| serve(&[("outside", 9)], 0, 0))
    }

    /// Brings both images in.
    fn import(&self) {
        let podweir = self.folder().join("podweir.tar");
        image::build(&podweir, PODWEIR_IMAGE);
        for archive in [podweir, busybox_image(&self.folder().join("busybox"))] {
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
    fn must<Q, A>(&self, method: &str, request: Q) -> A
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call(method, request).unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.log()))
    }

    /// RunPodSandbox as a kubelet calls it.
    pub fn run_sandbox(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) -> Result<Sandbox, String> {
        let uid = format!("6f1b63a2-0000-4000-8000-{:012}", std::process::id());
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
            labels: owned(&labels),
            annotations: owned(annotations),
            linux: Some(LinuxSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(SandboxSecurity { namespaces: Some(namespaces) }),
            }),
        };
        std::fs::create_dir_all(&config.log_directory).unwrap();
        let SandboxId { id } = self.call("RunPodSandbox", RunSandbox { config: Some(config.clone()) })?;
        let status: SandboxStatusResponse = self.must("PodSandboxStatus", SandboxId { id: id.clone() });
        let ip = status.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        Ok(Sandbox { id, ip, config })
    }

    pub fn stop(&self, sandbox: &Sandbox) -> Result<(), String> {
        self.call("StopPodSandbox", SandboxId { id: sandbox.id.clone() }).map(|Empty {}| ())
    }

    pub fn remove(&self, sandbox: &Sandbox) -> Result<(), String> {
        self.call("RemovePodSandbox", SandboxId { id: sandbox.id.clone() }).map(|Empty {}| ())
    }

    /// Creates and starts a container whose root is read-only and which cannot gain rights.
    fn container(&self, sandbox: &Sandbox, name: &str, image: &str, words: &[&str], rights: Rights) -> String {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let id = rights.user.map(|value| Int64Value { value });
        let security = ContainerSecurity {
            capabilities: Some(Capabilities { add: owned(rights.capabilities), drop: vec!["ALL".into()] }),
            namespaces: Some(NamespaceOption { pid: PID_PER_CONTAINER }),
            run_as_user: id.clone(),
            run_as_group: id,
            readonly_rootfs: true,
            no_new_privs: true,
            seccomp: Some(Empty {}),
        };
        static ATTEMPT: AtomicU32 = AtomicU32::new(0);
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        // The arguments of the image's entry point, or of busybox, which has none.
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt }),
            image: Some(ImageSpec { image: image.into() }),
            args: owned(words),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig { security_context: Some(security) }),
            ..ContainerConfig::default()
        };
        let create = CreateContainer {
            sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let ContainerId { id } = self.must("CreateContainer", create);
        let _: Empty = self.must("StartContainer", ContainerId { id: id.clone() });
        id
    }

    /// Runs podweir's image to its end and gives the exit status and the log.
    pub fn init_container(&self, sandbox: &Sandbox, arguments: &[&str], rights: Rights) -> (i32, String) {
        let id = self.container(sandbox, "istio-init", PODWEIR_IMAGE, arguments, rights);
        let status = self.wait(&id, EXITED);
        let log = Path::new(&sandbox.config.log_directory).join("istio-init.log");
        (status.exit_code, std::fs::read_to_string(log).unwrap())
    }

    /// A container that answers on ports with its name, and can be asked to connect.
    pub fn server(&self, sandbox: &Sandbox, name: &'static str, user: i64, answers: &[(u16, &str)]) -> Container<'_> {
        let mut script = String::new();
        for (port, answer) in answers {
            script += &format!("busybox nc -ll -p {port} -e busybox echo {answer} &\n");
        }
        script += "busybox sleep 1000000";
        let rights = Rights { user: Some(user), capabilities: &[] };
        let words = ["/bin/busybox", "sh", "-c", &script];
        let server = Container { node: self, id: self.container(sandbox, name, BUSYBOX_IMAGE, &words, rights) };
        self.wait(&server.id, RUNNING);
        // It listens when every port stands in the kernel's list (state 0A).
        let begin = Instant::now();
        loop {
            let listing = server.exec(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]);
            let listens =
                |port: &u16| listing.lines().any(|l| l.contains(&format!(":{port:04X} ")) && l.contains(" 0A "));
            if answers.iter().all(|(port, _)| listens(port)) {
                return server;
            }
            assert!(begin.elapsed() < PATIENCE, "{name} does not listen:\n{listing}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait(&self, container: &str, state: i32) -> ContainerStatus {
        let begin = Instant::now();
        loop {
            let answer: ContainerStatusResponse =
                self.must("ContainerStatus", ContainerId { id: container.to_owned() });
            let status = answer.status.unwrap();
            if status.state == state {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "container {container} is in state {}, not {state}", status.state);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Who answers a connection from the node to a pod.
    pub fn connect_to(&self, sandbox: &Sandbox, port: u16) -> String {
        let probe = Probe::parse(&format!("in tcp to {} {port}", sandbox.ip));
        self.namespace.run(|| ask(&probe)).trim().to_owned()
    }

    /// Runs a program where containerd runs: in its network, mounts and processes.
    pub fn command(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
        let children = format!("/proc/{0}/task/{0}/children", self.machine.id());
        let first = std::fs::read_to_string(children).unwrap();
        let enter = ["--target", first.trim(), "--mount", "--net", "--pid", "--", program];
        self.namespace.feed("nsenter", &[&enter[..], arguments].concat(), variables, input)
    }
}

/// A running container.
pub struct Container<'a> {
    node: &'a Node,
    id: String,
}

impl Container<'_> {
    /// Runs an applet of busybox in the container and gives what it printed.
    pub fn exec(&self, words: &[&str]) -> String {
        let command = ["/bin/busybox"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let request = ExecSync { container_id: self.id.clone(), command, timeout: 10 };
        let answer: ExecSyncResponse = self.node.must("ExecSync", request);
        String::from_utf8(answer.stdout).unwrap()
    }

    /// Who answers a connection from the container, as its user.
    pub fn connect_to(&self, address: &str, port: u16) -> String {
        self.exec(&["nc", "-w", "2", address, &port.to_string()]).trim().to_owned()
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
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    let mut missing: Vec<&str> = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox", "unshare"]
        .into_iter()
        .filter(|name| !found(name))
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
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/bin"
conf_dir = "{folder}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

/// An image of one program, which sleeps if nothing else is asked of it: Docker's old
/// format, with the layer's digest where the configuration wants it.
fn busybox_image(folder: &Path) -> PathBuf {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::create_dir_all(folder.join("root/bin")).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&path).map(|p| p.join("busybox")).find(|p| p.exists()).unwrap();
    std::fs::copy(busybox, folder.join("root/bin/busybox")).unwrap();
    run("tar", &["-C", "root", "-cf", "layer.tar", "bin"]);
    let digest = run("sha256sum", &["layer.tar"]);
    let digest = digest.split_whitespace().next().unwrap();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [BUSYBOX_IMAGE], "Layers": ["layer.tar"] }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        serde_json::to_writer(File::create(folder.join(name)).unwrap(), &content).unwrap();
    }
    run("tar", &["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"]);
    folder.join("image.tar")
}
