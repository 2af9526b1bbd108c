//! The node as a machine: network, mount, process and cgroup namespaces of its own, with
//! folders of its own where programs write. Whatever runs on it ends with the test run,
//! however that ends, and nothing of it stays: a keeper outside waits for the end and
//! removes folders and cgroups.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::Namespace;
use crate::pod::{Server, be_everyone, serve};

/// The node's address, its gateway's, and somebody's outside who answers on every port.
pub const ADDRESS: &str = "10.0.0.10";
const GATEWAY: &str = "10.0.0.1";
pub const OUTSIDE: &str = "198.51.100.7";
/// The Service that every client in a cluster uses.
pub const API_SERVICE: &str = "10.96.0.1";
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the cgroups, starts the first process in them and, when that has ended and with it
/// all others, removes what is left: `sh -c KEEPER NAME FOLDER…`, the first of the folders
/// being the node's. It stays when the terminal's signals end the tests.
const KEEPER: &str = r#"
trap '' INT TERM HUP
name=$0
for at in /sys/fs/cgroup/*/; do
	mkdir "$at$name"
	for value in cpuset.cpus cpuset.mems; do
		[ ! -e "$at$value" ] || cat "$at$value" >"$at$name/$value"
	done
done
(
	for at in /sys/fs/cgroup/*/"$name"; do echo 0 >"$at/cgroup.procs"; done
	exec unshare --cgroup --mount --pid --fork --kill-child --propagation private --mount-proc sh "$1/first-process" "$1"
)
for turn in 1 2 3 4 5 6 7 8 9 10; do
	find /sys/fs/cgroup/*/"$name" -depth -type d -exec rmdir {} + 2>/dev/null
	ls -d /sys/fs/cgroup/*/"$name" >/dev/null 2>&1 || break
	sleep 0.2
done
rm -rf "$@"
"#;

/// The first process of the node: when it ends, the kernel ends all others. It ends when its
/// standard input does, which is a pipe from the tests.
const FIRST_PROCESS: &str = r#"
set -e
mount --make-rshared /
HIERARCHIES
mount -t tmpfs tmpfs /run
mkdir /run/overlay /run/overlay/upper /run/overlay/work /run/netns /run/lock
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/overlay/upper,workdir=/run/overlay/work /etc
mount -t tmpfs tmpfs /opt
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/var-log" /var/log
mkdir -p /etc/cni/net.d /opt/cni/bin /root
mount --bind "$1/net.d" /etc/cni/net.d
mount --bind "$1/bin" /opt/cni/bin
mount --bind "$1/home" /root
ip link set lo up
: >"$1/ready"
read -r _
"#;

/// Joins the node's cgroups, then its namespaces: `sh -c ENTER NAME PID PROGRAM…`.
const ENTER: &str = r#"
for at in /sys/fs/cgroup/*/"$0"; do echo 0 >"$at/cgroup.procs"; done
exec nsenter --target "$@"
"#;

pub struct Machine {
    /// The folder of everything that the node's programs write.
    folder: PathBuf,
    network: Namespace,
    _outside: Namespace,
    _answers: Server,
    /// The name of its cgroups.
    name: String,
    keeper: Mutex<Option<Child>>,
    first: u32,
}

impl Machine {
    pub fn start() -> Result<Self, String> {
        let network = Namespace::bare(&format!("nameserver {OUTSIDE}\n"));
        let outside = Namespace::bare("");
        let folder = network.directory().join("node");
        for name in ["var-lib", "var-log", "net.d", "bin", "home", "logs", "manifests"] {
            std::fs::create_dir_all(folder.join(name)).map_err(|e| e.to_string())?;
        }
        std::fs::write(folder.join("first-process"), FIRST_PROCESS.replace("HIERARCHIES", &mounts()?)).unwrap();
        connect(&network, &outside);
        let answers = outside.run(|| serve(&[("outside", 9)], 0, 0));

        let name = format!("podweir-cluster-{}", std::process::id());
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, &name]).arg(&folder).args([network.directory(), outside.directory()]);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log(&folder, "node")).process_group(0);
        let keeper = network.run(|| keeper.spawn()).map_err(|e| format!("sh: {e}"))?;
        let mut machine = Self {
            folder,
            network,
            _outside: outside,
            _answers: answers,
            name,
            keeper: Mutex::new(Some(keeper)),
            first: 0,
        };
        machine.first = machine.wait_for_first_process()?;
        Ok(machine)
    }

    fn wait_for_first_process(&self) -> Result<u32, String> {
        let begin = Instant::now();
        while !self.folder.join("ready").exists() {
            let ended = self.keeper.lock().unwrap().as_mut().and_then(|keeper| keeper.try_wait().unwrap());
            if ended.is_some() || begin.elapsed() > PATIENCE {
                let said = std::fs::read_to_string(self.folder.join("logs/node.log")).unwrap_or_default();
                return Err(format!("the node's first process does not start: {said}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let keeper = self.keeper.lock().unwrap().as_ref().map_or(0, Child::id);
        // The subshell became `unshare`, whose child is the first process.
        only_child(keeper).and_then(only_child).ok_or_else(|| "the node's first process has ended".to_owned())
    }

    /// Ends everything and waits until nothing is left.
    pub fn end(&self) {
        let Some(mut keeper) = self.keeper.lock().unwrap_or_else(|e| e.into_inner()).take() else { return };
        drop(keeper.stdin.take());
        let _ = keeper.wait();
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The node's network namespace, as a place where closures run.
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// A path of the node, as the tests see it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// A program on the node, not yet started, with these variables and no others but PATH,
    /// HOME and KUBECONFIG.
    pub fn command(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new("sh");
        let first = self.first.to_string();
        command.args(["-c", ENTER, &self.name, &first, "--net", "--mount", "--pid", "--cgroup", "--", program]);
        command.args(arguments).env_clear();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", super::components::programs().display()));
        command.env("HOME", "/root").env("KUBECONFIG", self.folder.join("admin.conf"));
        command.envs(variables.iter().copied());
        command
    }

    /// Runs a program on the node to its end.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(program, arguments, &[]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Starts a program that goes on; what it says goes to a file.
    pub fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> std::io::Result<Running> {
        let mut command = self.command(program, arguments, &[]);
        let file = log(&self.folder, name);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Running { enter: command.spawn()? })
    }

    /// The last lines of what a program said.
    pub fn log(&self, name: &str, lines: usize) -> String {
        let text = std::fs::read(self.folder.join("logs").join(format!("{name}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<String> = text.lines().map(|line| line.chars().take(400).collect()).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// A program that goes on, started through `nsenter`, which waits for it.
pub struct Running {
    enter: Child,
}

impl Running {
    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.enter.try_wait().unwrap().is_some()
    }

    /// Sends a signal to the program, and kills it when it does not end by that.
    pub fn end(mut self, signal: Signal) {
        let begin = Instant::now();
        let mut signal = Some(signal);
        while !self.ended() {
            if let (Some(pid), Some(signal)) = (only_child(self.enter.id()), signal.take()) {
                let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
            }
            if begin.elapsed() > PATIENCE {
                signal = Some(Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The one process that another has started.
fn only_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn log(folder: &Path, name: &str) -> File {
    let path = folder.join("logs").join(format!("{name}.log"));
    File::options().create(true).append(true).open(path).unwrap()
}

/// The commands that mount the cgroup hierarchies as the node's own.
fn mounts() -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
    let mut out = String::from("mount -t tmpfs tmpfs /sys/fs/cgroup\n");
    let mut found = 0;
    for line in mounts.lines() {
        let [_, at, kind, options] = line.split(' ').take(4).collect::<Vec<_>>()[..] else { continue };
        if !at.starts_with("/sys/fs/cgroup/") {
            continue;
        }
        let controllers: Vec<&str> = options
            .split(',')
            .filter(|option| !matches!(*option, "rw" | "relatime" | "nosuid" | "nodev" | "noexec"))
            .collect();
        let options = match controllers.join(",") {
            named if named.starts_with("name=") => format!("-o none,{named}"),
            none if none.is_empty() || kind == "cgroup2" => String::new(),
            controllers => format!("-o {controllers}"),
        };
        out += &format!("mkdir {at}\nmount -t {kind} {options} cgroup {at}\n");
        found += 1;
    }
    if found == 0 {
        return Err("the cluster needs a machine with cgroup v1 hierarchies below /sys/fs/cgroup".into());
    }
    Ok(out)
}

/// A veth pair between the node and an outside that has every address, and what would be
/// kube-proxy's for the API server's Service.
fn connect(node: &Namespace, outside: &Namespace) {
    let path = crate::plugin::path(outside);
    node.print("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "up0", "netns", &path]);
    node.batch(&format!("addr add {ADDRESS}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n"));
    let routes = format!("route add 10.244.0.0/16 via {ADDRESS}\n");
    outside.batch(&format!("addr add {GATEWAY}/24 dev up0\nlink set up0 up\n{routes}"));
    be_everyone(outside, "up0");
    let rules = format!(
        "table ip service {{ chain prerouting {{ type nat hook prerouting priority -100; ip daddr {API_SERVICE} tcp dport 443 dnat to {ADDRESS}:6443; }}; \
         chain output {{ type nat hook output priority -100; ip daddr {API_SERVICE} tcp dport 443 dnat to {ADDRESS}:6443; }}; }}"
    );
    let output = node.feed("nft", &["-f", "-"], &[], &rules);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
