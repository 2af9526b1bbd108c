//! Programming a pod's namespace from the node: again, at once, half killed, in a user
//! namespace of its own, and held against the plan.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Answer, Api};
use crate::fixture::Namespace;
use crate::plugin::{Cluster, Plugin, RunDir, path, sidecar};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

#[test]
fn add_twice_is_add_once_on_every_backend() {
    for backend in BACKENDS {
        let cluster = Cluster::new(&sidecar(json!({})));
        let add = cluster.add().key("backend", json!(backend));
        add.call().ok();
        let once = cluster.namespace.everything();
        add.call().ok();
        assert_eq!(cluster.namespace.everything(), once);
        assert!(cluster.run_dir.log().contains("\"action\":\"unchanged\""), "{}", cluster.run_dir.log());
        add.verb("CHECK").call().ok();
    }
}

#[test]
fn native_rules_that_differ_are_replaced_and_iptables_ones_are_refused() {
    let ports = |n| sidecar(json!({ "traffic.sidecar.istio.io/includeInboundPorts": n }));
    for backend in BACKENDS {
        let api = Api::start(move |n| Answer::Pod(ports(if n == 0 { "80" } else { "8081" })));
        let cluster = Cluster::with(api);
        let add = cluster.add().key("backend", json!(backend));
        add.call().ok();
        let first = cluster.namespace.everything();
        if backend == "nftables" {
            add.call().ok();
            assert!(cluster.namespace.rules().contains("8081"));
        } else {
            let (code, message) = add.call().error();
            assert!(code == 100 && message.contains("8081"), "{message}");
            assert_eq!(cluster.namespace.everything(), first);
            add.key("interception", json!({ "reconcile": true })).call().ok();
            assert!(cluster.namespace.rules().contains("8081"));
        }
    }
}

#[test]
fn check_names_the_first_rule_that_differs() {
    for (backend, tamper, texts) in [
        ("nftables", "nft delete table inet istio-proxy-nat", ["missing", "nat"]),
        ("nftables", "nft insert rule inet istio-proxy-nat istio-output tcp dport 4444 return", ["unexpected", "4444"]),
        ("nftables", "ip -6 addr add ::6/128 dev lo", ["unexpected", "::6"]),
        ("iptables-legacy", "iptables-legacy -t nat -D ISTIO_OUTPUT 1", ["missing", "15020"]),
        ("iptables-nft", "iptables-nft -t nat -I OUTPUT -j ACCEPT", ["OUTPUT", "ACCEPT"]),
        ("iptables-nft", "iptables-nft -t nat -F ISTIO_REDIRECT", ["missing", "15001"]),
    ] {
        let cluster = Cluster::new(&sidecar(json!({})));
        let add = cluster.add().key("backend", json!(backend));
        add.call().ok();
        let check = add.verb("CHECK");
        assert_eq!(check.call().ok().stdout, "");
        let words: Vec<&str> = tamper.split(' ').collect();
        cluster.namespace.print(words[0], &words[1..]);
        let (code, message) = check.call().error();
        assert!(code == 103 && texts.iter().all(|text| message.contains(text)), "{tamper}: {message}");
    }
}

#[test]
fn check_holds_the_kernel_against_what_add_decided() {
    let pod = |ports: &str| sidecar(json!({ "traffic.sidecar.istio.io/includeInboundPorts": ports }));
    let (first, later) = (pod("80"), pod("81"));
    let cluster = Cluster::with(Api::start(move |n| Answer::Pod(if n == 0 { first.clone() } else { later.clone() })));
    cluster.add().call().ok();
    cluster.add().verb("CHECK").call().ok();
    assert_eq!(cluster.api.requests(), 1);
    // What was decided is lost, and the pod has changed since.
    std::fs::remove_dir_all(cluster.run_dir.path().join("attachments")).unwrap();
    let (code, message) = cluster.add().verb("CHECK").call().error();
    assert!(code == 103 && message.contains("81") && cluster.api.requests() == 2, "{message}");
}

/// A user namespace with ids of its own, and in it a network namespace, as a runtime makes
/// them for a pod with `hostUsers: false`; a process each keeps them.
pub struct UserPod {
    users: Child,
    net: Child,
}

impl UserPod {
    pub fn new() -> Self {
        let users = Command::new("unshare").args(["--user", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        entered(&users, "user");
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", users.id()), "0 100000 65536").unwrap();
        }
        // Only now: some files of a network namespace belong to whom the mapping says.
        let arguments = ["-t", &users.id().to_string(), "-U", "-S", "0", "-G", "0", "unshare", "--net", "cat"];
        let net = Command::new("nsenter").args(arguments).stdin(Stdio::piped()).spawn().unwrap();
        entered(&net, "net");
        let pod = Self { users, net };
        pod.print("ip", &["link", "set", "lo", "up"]);
        pod.print("ip", &["addr", "add", "10.244.0.6/24", "dev", "lo"]);
        pod
    }

    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.net.id())
    }

    /// What a program prints that runs inside.
    pub fn print(&self, program: &str, arguments: &[&str]) -> String {
        let pid = self.net.id().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-U", "-n", "-S", "0", "-G", "0", program])
            .args(arguments)
            .env("XTABLES_LOCKFILE", "/proc/self/fd/1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Waits until a process is in a namespace other than ours.
fn entered(child: &Child, kind: &str) {
    let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while std::fs::read_link(format!("/proc/{}/ns/{kind}", child.id())).unwrap() == own {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for UserPod {
    fn drop(&mut self) {
        for child in [&mut self.net, &mut self.users] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn pods_with_a_user_namespace_of_their_own_work_on_every_backend() {
    for backend in BACKENDS {
        let (pod, run_dir, api) = (UserPod::new(), RunDir::new(), Api::with_pod(&sidecar(json!({}))));
        api.write_kubeconfig(run_dir.path());
        let add = Plugin::add(&pod.netns(), run_dir.path()).key("backend", json!(backend));
        add.call().ok();
        let rules = match backend {
            "nftables" => pod.print("nft", &["list", "ruleset"]),
            program => pod.print(&format!("{program}-save"), &[]),
        };
        let wanted = if backend == "nftables" { "skuid 1337" } else { "--uid-owner 1337" };
        assert!(rules.contains(wanted), "{backend}: {rules}");
        add.clone().verb("CHECK").call().ok();
        add.call().ok();
    }
}

#[test]
fn the_nodes_iptables_lock_is_not_the_pods() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let lock = File::options().create(true).truncate(false).write(true).open("/run/xtables.lock").unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap_or_else(|_| panic!("flock"));
    // Whoever asked for that lock would not get it, and fail.
    let add = cluster.add().key("backend", json!("iptables-legacy"));
    add.key("interception", json!({ "lock-timeout": "1s" })).call().ok();
    drop(held);
}

#[test]
fn the_option_cni_mode_leaves_the_lock_file_alone_as_well() {
    let namespace = Namespace::new();
    let mut options = File::options();
    let lock = options.create(true).truncate(false).write(true).mode(0o600).open(namespace.lock_file()).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap_or_else(|_| panic!("flock"));
    let init = ["init", "--backend", "iptables-legacy", "--lock-timeout", "1s"];
    assert_eq!(namespace.podweir(&init).status.code(), Some(1));
    namespace.ok(&[&init[..], &["--cni-mode"]].concat());
    drop(held);
}

#[test]
fn a_failed_add_leaves_the_namespace_as_it_was() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let before = cluster.namespace.everything();
    // No program; and a lock held by somebody else for longer than there is time.
    let add = cluster.add().key("backend", json!("iptables-legacy")).variable("PATH", "/nonexistent");
    let (code, message) = add.call().error();
    assert!(code == 100 && message.contains("iptables-legacy-restore"), "{message}");
    let held = cluster.namespace.lock();
    let (code, message) = cluster.add().key("timeout", json!("700ms")).call().error();
    assert_eq!(code, 11, "{message}");
    drop(held);
    assert_eq!(cluster.namespace.everything(), before);
    assert!(cluster.run_dir.states().is_empty());
}

#[test]
fn a_program_that_hangs_does_not_hang_the_pod() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::new(&sidecar(json!({})));
    let program = cluster.run_dir.path().join("iptables-legacy-restore");
    // It says when it has come to its end; nobody is to wait for that.
    std::fs::write(&program, "#!/bin/sh\n/bin/sleep 7\n: >\"$0.ended\"\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let add = cluster.add().key("backend", json!("iptables-legacy")).key("timeout", json!(1));
    let (code, message) = add.variable("PATH", cluster.run_dir.path().to_str().unwrap()).call().error();
    assert!(code == 11 && message.contains("not done within 1 s"), "{message}");
    assert!(
        !cluster.run_dir.path().join("iptables-legacy-restore.ended").exists(),
        "the answer came after the program's end"
    );
}

#[test]
fn an_answer_that_nobody_hears_takes_everything_back() {
    let cluster = Cluster::new(&sidecar(json!({})));
    let before = cluster.namespace.everything();
    let add = cluster.add();
    let input = add.input();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(crate::fixture::PODWEIR);
    command.env_clear().envs(add.variables.iter().map(|(n, v)| (n, v)));
    let mut child = command.stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &input).unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("cannot write the result"), "{log}");
    assert_eq!(cluster.namespace.everything(), before);
}

#[test]
fn input_that_never_ends_is_not_waited_for_for_ever() {
    let (namespace, run_dir) = (Namespace::new(), RunDir::new());
    let add = Plugin::add(&path(&namespace), run_dir.path());
    let mut command = Command::new(crate::fixture::PODWEIR);
    command.env_clear().envs(add.variables.iter().map(|(n, v)| (n, v)));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The deadline is a minute; here it only counts that the process waits in poll, and
    // goes on at once when the input ends.
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("\"code\":6"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn fifty_at_once_in_fifty_namespaces() {
    let (run_dir, api) = (RunDir::new(), Api::with_pod(&sidecar(json!({}))));
    api.write_kubeconfig(run_dir.path());
    let namespaces: Vec<Namespace> = (0..50).map(|_| Namespace::new()).collect();
    let children: Vec<Child> = namespaces
        .iter()
        .enumerate()
        .map(|(n, namespace)| {
            let add = Plugin::add(&path(namespace), run_dir.path()).variable("CNI_CONTAINERID", &format!("c{n}"));
            add.spawn(&add.input())
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let first = namespaces[0].rules();
    assert!(first.contains("istio-proxy-nat"));
    assert!(namespaces.iter().all(|namespace| namespace.rules() == first));
    assert_eq!((run_dir.states().len(), api.requests()), (50, 50));
    let log = run_dir.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Whatever else is said of a pod, such as its link-local addresses, each is intercepted once.
    assert_eq!(lines.iter().filter(|line| line["decision"] == "intercepted").count(), 50, "{log}");
}

#[test]
fn eight_at_once_in_one_namespace() {
    for backend in BACKENDS {
        let cluster = Cluster::new(&sidecar(json!({})));
        let add = cluster.add().key("backend", json!(backend));
        let children: Vec<Child> = (0..8).map(|_| add.spawn(&add.input())).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{backend}: {}", String::from_utf8_lossy(&output.stdout));
        }
        assert_eq!(cluster.run_dir.log().matches("\"action\":\"installed\"").count(), 1);
        assert_eq!(cluster.run_dir.log().matches("\"action\":\"unchanged\"").count(), 7);
        add.verb("CHECK").call().ok();
    }
}

/// System calls by which something changes that others see. How often they are made does not depend
/// on how threads take turns.
const CHANGING: &str = "trace=openat,write,sendto,sendmsg,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,setns,socket,bind,close";

/// An ADD under strace.
fn traced(add: &Plugin, options: &[&str]) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg(crate::fixture::PODWEIR);
    command.env_clear().envs(add.variables.iter().map(|(name, value)| (name, value)));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that is killed before has no use for its input.
    let _ = child.stdin.take().unwrap().write_all(&add.input());
    child.wait_with_output().unwrap()
}

/// The system calls of an ADD, in order: which one, and the how manieth of its kind on its thread.
fn calls(add: &Plugin, file: &Path) -> Vec<(String, usize)> {
    let output = traced(add, &["-o", file.to_str().unwrap(), "-e", CHANGING, "-e", "signal=none"]);
    assert!(output.status.success(), "{output:?}");
    let (mut counts, mut out) = (HashMap::<(String, String), usize>::new(), Vec::new());
    for line in String::from_utf8_lossy(&std::fs::read(file).unwrap()).lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        if name.contains(' ') {
            continue;
        }
        let count = counts.entry((thread.to_owned(), name.to_owned())).or_default();
        *count += 1;
        if !out.contains(&(name.to_owned(), *count)) {
            out.push((name.to_owned(), *count));
        }
    }
    out
}

/// How many of an ADD's system calls it is killed at, or a program that it has started.
const KILLED_AT: usize = 15;

#[test]
fn killed_at_any_instant_the_next_add_finishes() {
    for backend in BACKENDS {
        let fresh = || {
            let cluster = Cluster::new(&sidecar(json!({ "sidecar.istio.io/interceptionMode": "TPROXY" })));
            let add = cluster.add().key("backend", json!(backend));
            (cluster, add)
        };
        let (cluster, add) = fresh();
        let calls = calls(&add, &cluster.namespace.directory().join("calls"));
        assert!(calls.len() > 2 * KILLED_AT, "{calls:?}");
        let wanted = cluster.namespace.everything();
        let mut unfinished = 0;
        for n in 0..KILLED_AT {
            // Spread over the whole run, to its very end.
            let (call, n) = &calls[(n + 1) * calls.len() / KILLED_AT - 1];
            let (cluster, add) = fresh();
            let (inject, trace) = (format!("inject={call}:signal=KILL:when={n}"), format!("trace={call}"));
            let output = traced(&add, &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
            unfinished += usize::from(!output.status.success());
            add.call().ok();
            assert_eq!(cluster.namespace.everything(), wanted, "{backend}, killed at {call} {n}");
            add.verb("CHECK").call().ok();
        }
        assert!(unfinished > KILLED_AT / 2, "{backend}: only {unfinished} of {KILLED_AT} were killed");
    }
}

#[test]
fn the_thread_that_enters_leaves_the_process_where_it_was() {
    // Its own namespace is the node's to the plugin: named by another path it is refused.
    let run_dir = RunDir::new();
    let file = File::open("/proc/self/ns/net").unwrap();
    let own = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let (code, message) = Plugin::add(&own, run_dir.path()).call().error();
    assert!(code == 4 && message.contains("node's own network namespace"), "{message}");
}
