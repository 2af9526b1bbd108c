//! What podweir may still do while it waits for, or reads, what others have: seen from
//! outside, in proc(5), and by what is refused.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Answer, Api, TOKEN};
use crate::fixture::{Namespace, PODWEIR};
use crate::plugin::{Cluster, sidecar};

// capability.h.
const CHOWN: u64 = 1 << 0;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_MODULE: u64 = 1 << 16;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// A line of a thread's status.
fn status(thread: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(thread.join("status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}

fn capabilities(thread: &Path, name: &str) -> Option<u64> {
    u64::from_str_radix(&status(thread, name)?, 16).ok()
}

/// What each thread of a process has: `no_new_privs`, and all capabilities that it could use.
fn seen(pid: u32) -> Vec<(Option<String>, Option<u64>)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap().path());
    let all = |thread: &Path| {
        let sets = ["CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| capabilities(thread, name));
        sets.into_iter().try_fold(0, |all, set| Some(all | set?))
    };
    threads.map(|thread| (status(&thread, "NoNewPrivs"), all(&thread))).collect()
}

/// Waits until every thread of a process has exactly these capabilities, of those that there
/// are to have here, and no way to others.
fn has_only(pid: u32, wanted: u64) {
    let there = capabilities(Path::new("/proc/thread-self"), "CapPrm").unwrap();
    let wanted = (Some("1".to_owned()), Some(wanted & there));
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = seen(pid);
        if !seen.is_empty() && seen.iter().all(|thread| *thread == wanted) {
            return;
        }
        assert!(Instant::now() < until, "{seen:x?}, not {wanted:x?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// podweir in a namespace, waiting for its standard input.
fn start(namespace: &Namespace, arguments: &[&str]) -> Child {
    namespace.run(|| {
        let mut command = Command::new(PODWEIR);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    })
}

/// Feeds it, and gives its status and what it said.
fn end(mut child: Child, input: &str) -> (Option<i32>, String) {
    // One that has enough of it closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_init_container_keeps_what_programming_takes() {
    let namespace = Namespace::new();
    for (backend, more) in [("auto", 0), ("nftables", 0), ("iptables-legacy", SYS_MODULE)] {
        for command in [&["init", "--backend", backend][..], &["clean"]] {
            let more = if command[0] == "init" { more } else { 0 };
            let held = namespace.lock();
            let child = start(&namespace, &[command, &["--lock-timeout", "60s"]].concat());
            has_only(child.id(), NET_ADMIN | NET_RAW | SYS_PTRACE | DAC_READ_SEARCH | more);
            drop(held);
            let (status, log) = end(child, "");
            assert_eq!(status, Some(0), "{command:?}: {log}");
        }
    }
}

/// In the namespace that they are in, be it that it is named.
#[test]
fn ambient_commands_keep_what_programming_takes() {
    let namespace = Namespace::new();
    let commands: [&[&str]; 4] = [
        &["ambient"],
        &["ambient", "--remove"],
        &["ambient-host", "--add", "10.244.0.6=uid"],
        &["ambient-host", "--remove"],
    ];
    for (backend, more) in [("auto", 0), ("nftables", 0), ("iptables-nft", 0), ("iptables-legacy", SYS_MODULE)] {
        for command in commands {
            for named in [&[][..], &["--network-namespace", "/proc/self/ns/net"]] {
                let held = namespace.lock();
                let common = ["--backend", backend, "--lock-timeout", "60s"];
                let child = start(&namespace, &[command, &common, named].concat());
                has_only(child.id(), NET_ADMIN | NET_RAW | SYS_PTRACE | DAC_READ_SEARCH | more);
                drop(held);
                let (status, log) = end(child, "");
                assert_eq!(status, Some(0), "{command:?} --backend {backend}: {log}");
            }
        }
    }
}

/// It listens as the proxy does, and sends as others do.
#[test]
fn validation_has_what_every_path_takes() {
    let namespace = Namespace::new();
    let held = namespace.lock();
    let child = start(&namespace, &["init", "--run-validation", "--lock-timeout", "60s"]);
    has_only(child.id(), NET_ADMIN | NET_RAW | SYS_PTRACE | DAC_READ_SEARCH | NET_BIND_SERVICE | SETUID | SETGID);
    drop(held);
    let (status, log) = end(child, "");
    assert!(status == Some(0) && log.contains("IPv4 proxy to its own pod, IPv4 inbound"), "{log}");
    assert!(!log.contains("CAP_SETUID"), "{log}");
}

/// An API server that answers when it is told to.
fn waiting_api(answer: Answer) -> (Api, Sender<()>) {
    let (go, told) = channel();
    let told = Arc::new(Mutex::new(told));
    let api = Api::start(move |_| {
        let _ = told.lock().unwrap().recv_timeout(Duration::from_secs(60));
        answer.clone()
    });
    (api, go)
}

#[test]
fn the_plugin_keeps_what_entering_and_programming_a_pod_take_while_it_looks_it_up() {
    for (backend, more) in [(json!(null), 0), (json!("iptables-legacy"), SYS_MODULE)] {
        let (api, go) = waiting_api(Answer::Pod(sidecar(json!({}))));
        let cluster = Cluster::with(api);
        let plugin = cluster.add().key("backend", backend);
        let child = plugin.spawn(&plugin.input());
        let until = Instant::now() + Duration::from_secs(60);
        while cluster.api.requests() == 0 {
            assert!(Instant::now() < until, "the API server is not asked");
            std::thread::sleep(Duration::from_millis(5));
        }
        has_only(child.id(), NET_ADMIN | NET_RAW | SYS_ADMIN | more);
        go.send(()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            cluster.namespace.rules().contains("ISTIO_INBOUND") || cluster.namespace.rules().contains("istio-inbound")
        );
    }
}

/// A kubeconfig that names its authority by a path.
fn kubeconfig_naming(cluster: &Cluster, authority: &Path) {
    let server = format!("https://{}", cluster.api.address);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "local", "cluster": { "server": server, "certificate-authority": authority } }],
        "users": [{ "name": "plugin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "c", "context": { "cluster": "local", "user": "plugin" } }],
    });
    let (path, new) = (cluster.run_dir.path().join("kubeconfig"), cluster.run_dir.path().join("kubeconfig.new"));
    std::fs::write(&new, config.to_string()).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// What the kubeconfig names is read, wherever it is; once the API server is talked to,
/// nothing else is, not even by way of another kubeconfig.
#[test]
fn the_plugin_reads_what_the_kubeconfig_names_and_nothing_else() {
    let pod = sidecar(json!({}));
    let elsewhere = Namespace::bare("");
    let write = |name: &str| {
        let path = elsewhere.directory().join(name);
        std::fs::write(&path, Api::authority()).unwrap();
        path
    };
    let (named, other) = (write("named.crt"), write("other.crt"));
    // The first answer is none, so that the plugin begins anew.
    let (go, told) = channel::<()>();
    let told = Arc::new(Mutex::new(told));
    let cluster = Cluster::with(Api::start(move |n| match n {
        0 | 2 => {
            let _ = told.lock().unwrap().recv_timeout(Duration::from_secs(60));
            Answer::Refuse(500, "InternalError")
        }
        _ => Answer::Pod(pod.clone()),
    }));
    let ask = |then: &Path, request: usize| {
        kubeconfig_naming(&cluster, &named);
        let plugin = cluster.add().key("timeout", json!(20));
        let child = plugin.spawn(&plugin.input());
        let until = Instant::now() + Duration::from_secs(60);
        while cluster.api.requests() < request {
            assert!(Instant::now() < until, "the API server is not asked");
            std::thread::sleep(Duration::from_millis(5));
        }
        kubeconfig_naming(&cluster, then);
        go.send(()).unwrap();
        child
    };
    let output = ask(&named, 1).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut child = ask(&other, 3);
    let until = Instant::now() + Duration::from_secs(60);
    while !cluster.run_dir.log().contains("certificate-authority names a file that cannot be read: Permission denied") {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "{}", cluster.run_dir.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Nobody else is asked by what could not be read; what is named again is.
    assert_eq!(cluster.api.requests(), 3);
    kubeconfig_naming(&cluster, &named);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

const DUMP: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

/// While a dump or a manifest is read and understood.
#[test]
fn whoever_reads_a_dump_has_nothing_left_to_do_harm_with() {
    let namespace = Namespace::new();
    let second = namespace.directory().join("second.txt");
    let (named, pod) = (format!("ipv6={}", second.display()), namespace.directory().join("pod.yaml"));
    std::fs::write(&pod, sidecar(json!({})).to_string()).unwrap();
    let dump = ["--dump", "ipv4=-", &named];
    let flow = ["--direction", "outbound", "--destination", "203.0.113.1", "--port", "80"];
    let pod = pod.to_str().unwrap();
    for (arguments, success) in [
        ([&["audit"][..], &dump].concat(), 0),
        ([&["audit", "--pod-manifest", pod][..], &dump].concat(), 0),
        ([&["explain"][..], &flow, &dump].concat(), 0),
        ([&["render"][..], &dump].concat(), 0),
        ([&["verify"][..], &dump, &["--", "-b", "*"]].concat(), 1),
    ] {
        std::fs::write(&second, DUMP).unwrap();
        let child = start(&namespace, &arguments);
        has_only(child.id(), DAC_READ_SEARCH);
        let (status, log) = end(child, DUMP);
        assert_eq!(status, Some(success), "{arguments:?}: {log}");
        assert!(!log.contains("denied"), "{log}");
        // The file that it was told of may be read, and no other, be it by the same name.
        let child = start(&namespace, &arguments);
        has_only(child.id(), DAC_READ_SEARCH);
        // What the kernel has of it comes a moment after the capabilities.
        std::thread::sleep(Duration::from_millis(200));
        let other = namespace.directory().join("other.txt");
        std::fs::write(&other, DUMP).unwrap();
        std::fs::rename(&other, &second).unwrap();
        let (status, log) = end(child, DUMP);
        assert!(status == Some(1) && log.contains("Permission denied"), "{arguments:?}: {status:?} {log}");
    }
}

/// A shell's `<(…)` is a path as well.
#[test]
fn a_dump_may_come_from_a_pipe_that_is_named() {
    let namespace = Namespace::new();
    let manifest = sidecar(json!({})).to_string();
    let script = format!(
        "{PODWEIR} audit --dump ipv4=<(printf '{DUMP}') ipv6=<(printf '{DUMP}') --pod-manifest <(cat) --accept <(echo 'accept: []')"
    );
    let output = namespace.feed("bash", &["-c", &script.replace('\n', "\\n")], &[], &manifest);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn whoever_looks_at_a_kernel_has_what_that_takes_and_then_less() {
    let namespace = Namespace::new();
    namespace.ok(&["init"]);
    let child = start(&namespace, &["audit", "--live", "--pod-manifest", "-"]);
    // The rules are read; the manifest is waited for.
    has_only(child.id(), DAC_READ_SEARCH);
    let (status, log) = end(child, &sidecar(json!({})).to_string());
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn the_agent_of_a_node_has_what_its_container_gets() {
    let namespace = Namespace::new();
    let api = Api::start(|_| Answer::Refuse(500, "InternalError"));
    let folder = namespace.directory();
    api.write_kubeconfig(folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for name in ["run", "bin", "net.d"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let (run, bin, conf, config) = (path("run"), path("bin"), path("net.d"), path("kubeconfig"));
    let mut agent = Command::new(PODWEIR);
    agent.args(["node", "run", "--node-name", "n", "--listen", "none", "--run-dir", &run, "--cni-bin-dir", &bin]);
    agent.args(["--cni-conf-dir", &conf, "--kubeconfig", &config]);
    let mut agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !Path::new(&run).join("node.sock").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let checked = std::panic::catch_unwind(|| {
        has_only(agent.id(), NET_ADMIN | NET_RAW | SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH | CHOWN)
    });
    let status = namespace.podweir(&["node", "status", "--json", "--run-dir", &run]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    checked.unwrap();
    let report: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(report["node"], "n");
}
