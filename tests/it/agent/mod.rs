//! The node's agent as a process: with folders, a proc(5) and an API server of the test's
//! own, in a network namespace of its own, with pods that are network namespaces.

pub mod ambient;
mod beside;
mod chain;
mod failure;
mod figures;
mod heal;
mod input;
mod iptables;
mod kills;
mod removal;
pub mod server;
mod standing;
mod watch;
mod ztunnel;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Api, TOKEN, kubeconfig};
use crate::fixture::{Namespace, PODWEIR, RESOLV, V4};
use crate::plugin::{self, Plugin, sidecar};
use crate::schemas;
use server::Server;

pub const NODE: &str = "node1";
/// How long something may take that is going to happen.
pub const PATIENCE: Duration = Duration::from_secs(90);
const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","mtu":1450.0}]}"#;

/// A node with an API server; the agent is started, and ended, by the test.
pub struct Node {
    pub namespace: Namespace,
    pub server: Server,
    folder: PathBuf,
    agent: Option<Child>,
}

/// A pod: its namespace, and what the API server says of it.
pub struct Pod {
    pub namespace: Namespace,
    pub manifest: Value,
}

impl Node {
    pub fn new() -> Self {
        let namespace = Namespace::bare("nameserver 192.0.2.53\n");
        let server = namespace.run(|| Server::start(NODE));
        let folder = namespace.directory().join("node");
        for name in ["bin", "net.d", "run", "proc/1/ns"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("net.d/10-pods.conflist"), LIST).unwrap();
        symlink(plugin::path(&namespace), folder.join("proc/1/ns/net")).unwrap();
        let config = kubeconfig(&format!("https://{}", server.address), Api::authority(), TOKEN);
        std::fs::write(folder.join("kubeconfig"), config).unwrap();
        std::fs::set_permissions(folder.join("kubeconfig"), PermissionsExt::from_mode(0o600)).unwrap();
        Self { namespace, server, folder, agent: None }
    }

    /// A node whose agent runs and knows its pods.
    pub fn running(pods: &[&Pod]) -> Self {
        let mut node = Self::new();
        for pod in pods {
            node.server.set(&pod.manifest);
        }
        node.start(&[]);
        node.wait_until_ready();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The agent's command line, in which these arguments take the place of the usual ones.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(PODWEIR);
        command.args(["node", "run", "--log_output_level=default:debug"]);
        let given = |flag: &str| more.iter().any(|word| word.starts_with(&format!("--{flag}=")));
        if !given("listen") {
            command.arg("--listen=127.0.0.1:15014");
        }
        if !given("node-name") {
            command.arg(format!("--node-name={NODE}"));
        }
        for (flag, name) in [
            ("cni-bin-dir", "bin"),
            ("cni-conf-dir", "net.d"),
            ("run-dir", "run"),
            ("host-proc", "proc"),
            ("kubeconfig", "kubeconfig"),
        ] {
            if !given(flag) {
                command.arg(format!("--{flag}={}", self.path(name).display()));
            }
        }
        command.args(more).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts the agent. What it says is added to its log.
    pub fn start(&mut self, more: &[&str]) {
        assert!(self.agent.is_none(), "an agent runs");
        self.agent = Some(self.spawn(more));
    }

    /// Starts a program that becomes the agent.
    pub fn start_by(&mut self, program: &[&str], more: &[&str]) {
        let agent = self.command(more);
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(agent.get_program()).args(agent.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.agent = Some(self.spawn_command(command));
    }

    /// Starts an agent that the test looks after.
    pub fn spawn(&self, more: &[&str]) -> Child {
        self.spawn_command(self.command(more))
    }

    fn spawn_command(&self, mut command: Command) -> Child {
        let log = File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        command.stderr(log);
        self.namespace.run(|| command.spawn().unwrap())
    }

    /// Runs an agent that ends by itself.
    pub fn run_to_end(&self, more: &[&str]) -> Output {
        let mut command = self.command(more);
        command.stderr(Stdio::piped());
        self.namespace.run(|| command.spawn().unwrap().wait_with_output().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Whether the agent still runs.
    pub fn runs(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().unwrap().is_none())
    }

    /// Ends the agent as a crash does.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().expect("an agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Ends the agent as the kubelet does, and gives its exit status.
    pub fn end(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().expect("an agent runs");
        let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        agent.wait().unwrap().code()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Waits until there is something; fails with what the agent said.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "no waiting any longer for {what}; the agent said\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_for_log(&self, words: &str) {
        self.wait(words, || self.log().contains(words).then_some(()));
    }

    /// What the port answers: status and text.
    pub fn ask(&self, path: &str) -> Option<(u16, String)> {
        let text = self.namespace.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:15014").ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok().map(|_| text)
        })?;
        Some((text.split(' ').nth(1)?.parse().ok()?, text))
    }

    pub fn wait_until_ready(&self) {
        self.wait("the agent to be ready", || self.ask("/readyz").filter(|(status, _)| *status == 200));
    }

    /// A metric's value.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ask("/metrics").expect("an agent that answers");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// What a person is answered, and the exit status.
    pub fn person(&self, words: &[&str]) -> (Option<i32>, String) {
        let run_dir = format!("--run-dir={}", self.run_dir().display());
        let output = self.namespace.command(PODWEIR, &[&["node"], words, &[&run_dir]].concat(), &[]);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code(), text)
    }

    /// What `podweir node status` says in JSON; null while no agent answers.
    pub fn report(&self) -> Value {
        let (_, text) = self.person(&["status", "--json"]);
        // Behind it may stand why the node is not ready.
        let end = text.rfind("\n}").map_or(0, |at| at + 2);
        let report: Value = serde_json::from_str(&text[..end]).unwrap_or_default();
        if !report.is_null() {
            schemas::hold("node-status", &report);
        }
        report
    }

    /// The state of a pod, as the agent has it.
    pub fn state(&self, pod: &Pod) -> String {
        let (_, text) = self.person(&["why", &pod.full_name(), "--json"]);
        let value: Value =
            text.split_inclusive("\n}\n").next().and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
        if !value.is_null() {
            schemas::hold("node-why", &value);
        }
        value["state"].as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for_state(&self, pod: &Pod, state: &str) {
        self.wait(&format!("{} to be {state}", pod.full_name()), || (self.state(pod) == state).then_some(()));
    }

    /// ADD of a pod, as a runtime calls it that hands no annotations over.
    pub fn add(&self, pod: &Pod) -> Plugin {
        let meta = &pod.manifest["metadata"];
        let text = |name: &str| meta[name].as_str().unwrap();
        let arguments = format!(
            "K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID={};IgnoreUnknown=1",
            text("namespace"),
            text("name"),
            text("uid")
        );
        Plugin::add(&plugin::path(&pod.namespace), &self.run_dir())
            .variable("CNI_ARGS", &arguments)
            .variable("CNI_CONTAINERID", &format!("c-{}", text("uid")))
            .key("agent_timeout", json!("30s"))
    }

    /// Makes a process of a pod be seen in the node's /proc, in a namespace and with files of its own.
    pub fn process(&self, pid: u32, pod: &Pod, files: &Path) {
        let folder = self.path("proc").join(pid.to_string());
        std::fs::create_dir_all(folder.join("ns")).unwrap();
        let uid = pod.manifest["metadata"]["uid"].as_str().unwrap();
        std::fs::write(folder.join("cgroup"), format!("0::/kubepods/besteffort/pod{uid}/abc\n")).unwrap();
        symlink(plugin::path(&pod.namespace), folder.join("ns/net")).unwrap();
        symlink(files, folder.join("root")).unwrap();
    }

    pub fn chain(&self) -> Value {
        let text = std::fs::read_to_string(self.path("net.d/10-pods.conflist")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn has_entry(&self) -> bool {
        let chain = self.chain();
        chain["plugins"].as_array().is_some_and(|plugins| plugins.last().is_some_and(|last| last["type"] == "podweir"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        self.server.behave();
    }
}

impl Pod {
    /// A running pod with a sidecar. `number` makes its UID.
    pub fn new(name: &str, number: u32) -> Self {
        Self::of(name, number, sidecar(json!({})))
    }

    pub fn of(name: &str, number: u32, mut manifest: Value) -> Self {
        manifest["metadata"]["name"] = name.into();
        manifest["metadata"]["namespace"] = "shop".into();
        manifest["metadata"]["uid"] = uid(number).into();
        manifest["status"] = json!({ "phase": "Running", "conditions": [{ "type": "Initialized", "status": "True" }] });
        Self { namespace: Namespace::with(&[V4], RESOLV), manifest }
    }

    pub fn full_name(&self) -> String {
        format!("shop/{}", self.manifest["metadata"]["name"].as_str().unwrap())
    }

    pub fn has_rules(&self) -> bool {
        self.namespace.print("nft", &["list", "tables"]).contains("istio-proxy-nat")
    }
}

pub fn uid(number: u32) -> String {
    format!("0a1b2c3d-1111-2222-3333-{number:012x}")
}
