//! Faults: a clear error, exit status 1, and the state before the call.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
const RICH: &[&str] = &["-m", "TPROXY", "-b", "*", "-i", "*", "--redirect-dns", "--ip-families", "both"];

fn dual() -> Namespace {
    Namespace::with(&[V4, V6], RESOLV)
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn init<'a>(backend: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    ["init", "--backend", backend].iter().chain(RICH).chain(more).copied().collect()
}

/// Expects exit status 1, some words, and an unchanged namespace.
fn fails(namespace: &Namespace, before: &str, output: &Output, words: &[&str]) {
    let log = log(output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "no '{word}' in {log}");
    }
    assert_eq!(before, namespace.everything(), "{log}");
}

#[test]
fn without_the_capability_it_says_so_and_how_to_grant_it() {
    for backend in BACKENDS {
        let namespace = dual();
        let before = namespace.everything();
        let mut all = vec!["--bounding-set=-net_admin", "--inh-caps=-net_admin", PODWEIR];
        let arguments = init(backend, &[]);
        all.extend(&arguments);
        let output = namespace.command("setpriv", &all, &[]);
        fails(&namespace, &before, &output, &["CAP_NET_ADMIN", "securityContext", "add: [NET_ADMIN]"]);
    }
}

/// The files of proc(5) that list iptables-legacy's tables are root's, whatever else may be done.
#[test]
fn who_has_the_capability_and_is_another_user_is_told_to_be_user_0() {
    let namespace = dual();
    namespace.ok(&init("iptables-legacy", &[]));
    let before = namespace.everything();
    let user = ["--reuid", "1000", "--regid", "1000", "--clear-groups", "--bounding-set=-all,+net_admin"];
    let start = [&user[..], &["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", PODWEIR]].concat();
    for command in [&["init"][..], &["clean"], &["audit", "--live"], &["verify", "--live", "--"], &["ambient"]] {
        let output = namespace.command("setpriv", &[&start, command].concat(), &[]);
        fails(&namespace, &before, &output, &["net/ip_tables_names", "has CAP_NET_ADMIN: run it as user 0"]);
    }
}

/// What the init container of docs/init-container.md is granted.
#[test]
fn net_admin_is_enough_but_for_iptables_legacy() {
    for backend in BACKENDS {
        let namespace = dual();
        let before = namespace.everything();
        let bare = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,+net_admin", PODWEIR];
        let output = namespace.command("setpriv", &[&bare[..], &init(backend, &[])].concat(), &[]);
        if backend == "iptables-legacy" {
            fails(&namespace, &before, &output, &["CAP_NET_RAW", "add: [NET_ADMIN, NET_RAW]", "--backend nftables"]);
            let enough = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,+net_admin,+net_raw", PODWEIR];
            let output = namespace.command("setpriv", &[&enough[..], &init(backend, &[])].concat(), &[]);
            assert!(output.status.success(), "{}", log(&output));
        } else {
            assert!(output.status.success(), "{backend}: {}", log(&output));
        }
    }
}

#[test]
fn a_kernel_without_nf_tables() {
    // The first socket is for routing, those behind it are for netfilter.
    let without = |namespace: &Namespace, arguments: &[&str]| {
        let inject = "inject=socket:error=EPROTONOSUPPORT:when=2+";
        let all: Vec<&str> = ["-qq", "-o", "/dev/null", "-e", "trace=socket", "-e", inject, PODWEIR]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        namespace.command("strace", &all, &[])
    };
    let namespace = dual();
    let before = namespace.everything();
    let output = without(&namespace, &init("nftables", &[]));
    fails(&namespace, &before, &output, &["no nf_tables", "iptables-legacy"]);
    // iptables-legacy does without, guard included.
    let output = without(&namespace, &init("iptables-legacy", &[]));
    assert!(output.status.success(), "{}", log(&output));
    let installed = namespace.everything();
    assert!(!installed.contains("PODWEIR_GUARD"), "{installed}");
    let output = without(&namespace, &["init"]);
    assert!(log(&output).contains("iptables-legacy"), "{}", log(&output));
    namespace.ok(&["clean"]);
    assert_eq!(before, namespace.everything());
}

/// A PATH with nothing in it but the programs given: name and script.
fn path_with(namespace: &Namespace, programs: &[(&str, &str)]) -> String {
    let directory = namespace.directory().join("bin");
    std::fs::create_dir_all(&directory).unwrap();
    for (name, script) in programs {
        let file = directory.join(name);
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    directory.display().to_string()
}

#[test]
fn without_an_iptables_program() {
    let namespace = dual();
    let before = namespace.everything();
    let path = path_with(&namespace, &[]);
    for variant in ["nft", "legacy"] {
        let arguments = ["istio-iptables", "-b", "*", "--force-iptables-binary", variant];
        let output = namespace.command(PODWEIR, &arguments, &[("PATH", &path)]);
        fails(&namespace, &before, &output, &[&format!("iptables-{variant}-restore"), &path, "package iptables"]);
    }
    // Not asked for by name: native nftables, and a word about it.
    let output = namespace.command(PODWEIR, &["istio-iptables", "-b", "*", "-i", "*"], &[("PATH", &path)]);
    assert!(output.status.success() && log(&output).contains("no iptables program here"), "{}", log(&output));
    assert!(log(&output).contains("\"nftables\""));
}

#[test]
fn a_program_that_fails_halfway_is_undone() {
    for variant in ["legacy", "nft"] {
        // IPv4 goes through, IPv6 does not: as with a module that is missing for it.
        let broken = concat!(
            "#!/bin/sh\n",
            "line=$(grep -n -m1 -e '-m owner' | cut -d: -f1)\n",
            "echo \"ip6tables-restore: line $line failed: No chain/target/match by that name.\" >&2\n",
            "exit 1\n"
        );
        let real = |name: &str| format!("#!/bin/sh\nexec /usr/sbin/{name} \"$@\"\n");
        let names = ["iptables-VARIANT-restore", "iptables-VARIANT-save", "ip6tables-VARIANT-save"]
            .map(|n| n.replace("VARIANT", variant));
        let scripts: Vec<String> = names.iter().map(|name| real(name)).collect();
        let six = format!("ip6tables-{variant}-restore");
        let mut programs: Vec<(&str, &str)> =
            names.iter().zip(&scripts).map(|(n, s)| (n.as_str(), s.as_str())).collect();
        programs.push((&six, broken));
        let backend = format!("iptables-{variant}");

        let namespace = dual();
        let path = path_with(&namespace, &programs);
        let path = format!("{path}:/bin:/usr/bin");
        let before = namespace.everything();
        let output = namespace.command(PODWEIR, &init(&backend, &[]), &[("PATH", &path)]);
        fails(&namespace, &before, &output, &[&six, "No chain/target/match", "modprobe", "xt_owner"]);

        // Over another plan: that one is back, with foreign rules where they were.
        namespace.ok(&["init", "--backend", &backend, "-b", "80", "-i", "10.0.0.0/8"]);
        namespace.print(
            &format!("iptables-{variant}"),
            &["-t", "nat", "-I", "OUTPUT", "1", "-d", "8.8.8.8", "-j", "ACCEPT"],
        );
        let before = namespace.everything();
        let output = namespace.command(PODWEIR, &init(&backend, &["--reconcile"]), &[("PATH", &path)]);
        fails(&namespace, &before, &output, &[&six]);
    }
}

#[test]
fn routing_that_cannot_be_added_leaves_nothing() {
    for backend in BACKENDS {
        let namespace = dual();
        namespace.print("ip", &["link", "set", "lo", "down"]);
        let before = namespace.everything();
        fails(&namespace, &before, &namespace.podweir(&init(backend, &[])), &["lo is down", "ip link set lo up"]);

        let namespace = dual();
        namespace.run(|| {
            for device in ["all", "lo"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
            }
        });
        let before = namespace.everything();
        fails(
            &namespace,
            &before,
            &namespace.podweir(&init(backend, &[])),
            &["::6", "IPv6 is disabled", "--ip-families ipv4"],
        );
    }
}

#[test]
fn a_lock_held_past_the_deadline_names_its_holder() {
    let namespace = dual();
    let before = namespace.everything();
    let holder = format!("(pid {})", std::process::id());
    {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(namespace.lock_file()).unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap();
        let output = namespace.podweir(&init("iptables-legacy", &["--lock-timeout", "1s"]));
        fails(&namespace, &before, &output, &["lock", &holder, "--lock-timeout"]);
    }
    for backend in BACKENDS {
        // The thread that holds it stays in the namespace, as a run of podweir does: whoever
        // may not trace a process (no CAP_SYS_PTRACE) knows the holder by that.
        namespace.run(|| {
            let _held = namespace.lock();
            let arguments = init(backend, &["--lock-timeout", "200ms"]);
            let mut confined = vec!["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", PODWEIR];
            confined.extend(&arguments);
            for output in [namespace.podweir(&arguments), namespace.command("setpriv", &confined, &[])] {
                fails(&namespace, &before, &output, &["network namespace is locked", &holder]);
            }
        });
    }
}

#[test]
fn a_log_that_cannot_be_written_takes_everything_back() {
    for backend in BACKENDS {
        let namespace = dual();
        namespace.ok(&["init", "--backend", backend, "-b", "80", "-i", "10.0.0.0/8"]);
        for (old, namespace) in [("nothing", dual()), ("another plan", namespace)] {
            let before = namespace.everything();
            let arguments = init(backend, &["--reconcile"]);
            let lock = namespace.lock_file();
            let status = namespace.run(|| {
                let full = File::options().write(true).open("/dev/full").unwrap();
                Command::new(PODWEIR)
                    .args(&arguments)
                    .env("XTABLES_LOCKFILE", &lock)
                    .stderr(full)
                    .stdout(Stdio::null())
                    .status()
                    .unwrap()
            });
            assert_eq!(status.code(), Some(1), "{backend} over {old}");
            assert_eq!(before, namespace.everything(), "{backend} over {old}");
        }
    }
}

#[test]
fn closed_outputs_are_noticed_before_anything_changes() {
    let namespace = dual();
    let before = namespace.everything();
    for redirection in [">&-", "2>&-"] {
        let script = format!("exec {PODWEIR} init {redirection}");
        let output = namespace.command("sh", &["-c", &script], &[]);
        fails(&namespace, &before, &output, &[]);
    }
    for arguments in ["init --dry-run", "init --print-config", "--help", "init --help"] {
        for redirection in [">&-", ">/dev/full"] {
            let script = format!("exec {PODWEIR} {arguments} {redirection}");
            let output = namespace.command("sh", &["-c", &script], &[]);
            fails(&namespace, &before, &output, &[]);
        }
    }
}

#[test]
fn other_namespaces_by_path() {
    let namespace = dual();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(namespace.net()));
    let run = |path: &str| Command::new(PODWEIR).args(["init", "--network-namespace", path]).output().unwrap();
    let output = run(&path);
    assert!(output.status.success(), "{}", log(&output));
    assert!(namespace.rules().contains("istio-proxy-nat"));
    for (path, word) in [("/nonexistent", "cannot open"), ("/etc/passwd", "is no network namespace")] {
        let output = run(path);
        assert_eq!(output.status.code(), Some(1));
        assert!(log(&output).contains(word) && log(&output).contains(path), "{}", log(&output));
    }
}

/// A table with nft's flag owner may be changed by nobody else, whatever they are allowed.
#[test]
fn a_refusal_is_not_put_down_to_a_capability_that_is_there() {
    let namespace = dual();
    let mut owner = namespace.run(|| Command::new("nft").arg("-i").stdin(Stdio::piped()).spawn().unwrap());
    let mut commands = owner.stdin.take().unwrap();
    commands.write_all(b"add table inet istio-proxy-nat { flags owner; }\n").unwrap();
    commands.flush().unwrap();
    while !namespace.print("nft", &["list", "tables"]).contains("istio-proxy-nat") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = namespace.podweir(&init("nftables", &[]));
    fails(&namespace, &namespace.everything(), &output, &["istio-proxy-nat", "flag owner"]);
    assert!(!log(&output).contains("lacks CAP_NET_ADMIN"), "{}", log(&output));
    drop(commands);
    owner.wait().unwrap();
}
