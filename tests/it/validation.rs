//! `--run-validation`: a token through the rules, and what is said when it does not come back.

use std::fs;
use std::process::Output;

use nix::mount::{MsFlags, mount};

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::pod::{Pod, Proxy};

const BACKENDS: [&str; 3] = ["nftables", "iptables-legacy", "iptables-nft"];

fn pod() -> Namespace {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    namespace.batch("route add default via 10.244.0.1 dev eth0\nroute add default via fd00:10:244::1 dev eth0\n");
    namespace
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_works_is_validated_on_every_backend() {
    for backend in BACKENDS {
        for options in [&["-b", "*", "-i", "*"][..], &["-m", "TPROXY", "-b", "*", "-i", "*"], &["--redirect-dns"]] {
            let namespace = pod();
            let output = namespace.podweir(&[&["init", "--run-validation", "--backend", backend], options].concat());
            let log = log(&output);
            assert!(output.status.success(), "{backend} {options:?}: {log}");
            for path in ["IPv4 outbound", "IPv6 outbound", "IPv4 inbound", "IPv6 inbound"] {
                assert!(log.contains("validated") && log.contains(path), "{backend} {options:?} {path}: {log}");
            }
            if options.contains(&"--redirect-dns") {
                assert!(log.contains("IPv4 DNS over UDP") && log.contains("IPv4 DNS over TCP"), "{log}");
            }
        }
    }
}

/// The injector's validation container: the proxy's user, no capability at all.
#[test]
fn the_proxys_user_validates_what_another_container_made() {
    for backend in BACKENDS {
        let namespace = pod();
        namespace.ok(&["init", "--backend", backend]);
        let validate = |namespace: &Namespace| {
            let arguments = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "--bounding-set=-all", PODWEIR];
            let run = ["init", "--run-validation", "--skip-rule-apply", "--probe-timeout", "2s"];
            namespace.command("setpriv", &[&arguments[..], &run].concat(), &[])
        };
        let output = validate(&namespace);
        assert!(output.status.success() && log(&output).contains("validated"), "{backend}: {}", log(&output));
        namespace.ok(&["clean"]);
        let output = validate(&namespace);
        assert_eq!(output.status.code(), Some(126), "{backend}: {}", log(&output));
        let log = log(&output);
        // What is the case and what to do, not a capability that would change nothing.
        for words in ["validation failed", "CNI plugin on this node", "did not program this pod", "delete the pod"] {
            assert!(log.contains(words), "{words}: {log}");
        }
        assert!(!log.contains("grant it"), "{log}");
    }
}

/// Gives a namespace a /dev of its own with nothing but null and a termination log.
fn with_termination_log(namespace: &Namespace) -> std::path::PathBuf {
    let dev = namespace.directory().join("dev");
    fs::create_dir(&dev).unwrap();
    fs::write(dev.join("null"), "").unwrap();
    let file = dev.join("termination-log");
    fs::write(&file, "what was there before, and longer than what will be").unwrap();
    namespace.run(|| {
        let none: Option<&str> = None;
        mount(Some("/dev/null"), &dev.join("null"), none, MsFlags::MS_BIND, none).unwrap();
        mount(Some(&dev), "/dev", none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
    });
    file
}

#[test]
fn a_missing_rule_is_named_and_the_words_reach_the_termination_log() {
    // What is taken away, and what must be said.
    let outbound = ["IPv4 outbound", "missing", "redirect to port 15001"];
    let inbound = ["IPv4 inbound", "missing", "ISTIO_INBOUND"];
    for (backend, table, chain, words) in [
        ("iptables-legacy", "nat", "ISTIO_REDIRECT", outbound),
        ("iptables-nft", "nat", "ISTIO_REDIRECT", outbound),
        ("iptables-legacy", "nat", "ISTIO_INBOUND", inbound),
    ] {
        let namespace = pod();
        let init = ["init", "--backend", backend];
        namespace.ok(&init);
        let before = namespace.everything();
        namespace.print(backend, &["-t", table, "-F", chain]);
        assert_ne!(before, namespace.everything());
        let file = with_termination_log(&namespace);
        let validate = ["--run-validation", "--skip-rule-apply", "--probe-timeout", "1s"];
        let output = namespace.podweir(&[&init[..], &validate].concat());
        let log = log(&output);
        assert_eq!(output.status.code(), Some(126), "{log}");
        assert!(words.iter().all(|word| log.contains(word)), "{backend} {chain}: {log}");
        let last_words = fs::read_to_string(&file).unwrap();
        assert!(log.contains(last_words.trim_end()) && last_words.starts_with("validation failed"), "{last_words}");
    }
}

#[test]
fn a_rule_of_somebody_else_in_front_is_found_out() {
    for backend in ["iptables-legacy", "iptables-nft", "nftables"] {
        let namespace = pod();
        let init = ["init", "--backend", backend];
        namespace.ok(&init);
        if backend == "nftables" {
            let rule = "add table ip other\nadd chain ip other c { type nat hook output priority -150; }\nadd rule ip other c tcp dport 1-65535 accept\nadd chain ip other d { type filter hook output priority -200; }\nadd rule ip other d tcp dport 1-65535 drop\n";
            assert!(namespace.feed("nft", &["-f", "-"], &[], rule).status.success());
        } else {
            namespace.print(backend, &["-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"]);
        }
        let validate = ["--run-validation", "--skip-rule-apply", "--probe-timeout", "1s"];
        let output = namespace.podweir(&[&init[..], &validate].concat());
        let log = log(&output);
        assert_eq!(output.status.code(), Some(126), "{backend}: {log}");
        assert!(log.contains("outbound"), "{backend}: {log}");
    }
}

#[test]
fn too_little_time_is_named() {
    let namespace = pod();
    let output = namespace.podweir(&["init", "--run-validation", "--probe-timeout", "1ms"]);
    let log = log(&output);
    assert_eq!(output.status.code(), Some(126), "{log}");
    assert!(log.contains("--probe-timeout"), "{log}");
}

const PROXY: Proxy = Proxy { outbound: 15001, inbound: 15006, uid: 1337, gid: 1337 };
const VALIDATE: [&str; 4] = ["--run-validation", "--skip-rule-apply", "--probe-timeout", "3s"];

#[test]
fn what_the_proxy_has_already_is_validated_by_its_connections() {
    for backend in BACKENDS {
        for (mode, uid) in [("REDIRECT", 1337), ("TPROXY", 0)] {
            let pod = Pod::new(&[V4, V6], RESOLV, Proxy { uid, ..PROXY });
            // Each port leads to the app where a rule is missing.
            let init = ["init", "--backend", backend, "-m", mode, "-b", "8080,9000", "-i", "*", "--redirect-dns"];
            let output = pod.namespace.podweir(&[&init[..], &["--run-validation"]].concat());
            let log = log(&output);
            assert!(output.status.success(), "{backend} {mode}: {log}");
            for words in [
                "the proxy listens on port 15001 already",
                "validated",
                "IPv4 outbound",
                "IPv6 outbound",
                "IPv4 inbound",
                "IPv6 inbound",
                "IPv4 proxy to its own pod",
                "IPv4 DNS over TCP",
                "IPv4 DNS over UDP is not tested",
            ] {
                assert!(log.contains(words), "{backend} {mode}: no '{words}' in {log}");
            }
            assert!(!log.contains("is not the proxy's"), "{log}");
            // As the proxy's user without any capability.
            let setpriv = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "--bounding-set=-all", PODWEIR];
            let output = pod.namespace.command("setpriv", &[&setpriv[..], &init, &VALIDATE].concat(), &[]);
            assert!(output.status.success(), "{backend} {mode}: {}", self::log(&output));
        }
    }
}

#[test]
fn rules_that_do_not_work_are_told_from_a_port_that_is_taken() {
    for backend in ["iptables-legacy", "iptables-nft", "nftables"] {
        for (table, chain, path) in
            [("nat", "ISTIO_REDIRECT", "IPv4 outbound"), ("nat", "ISTIO_INBOUND", "IPv4 inbound")]
        {
            let pod = Pod::new(&[V4], RESOLV, PROXY);
            let init = ["init", "--backend", backend, "-b", "8080", "-i", "*"];
            pod.namespace.ok(&init);
            match backend {
                "nftables" => {
                    let chain = chain.to_lowercase().replace('_', "-");
                    pod.namespace.print("nft", &["flush", "chain", "inet", "istio-proxy-nat", &chain]);
                }
                _ => drop(pod.namespace.print(backend, &["-t", table, "-F", chain])),
            }
            let output = pod.namespace.podweir(&[&init[..], &VALIDATE].concat());
            let log = log(&output);
            assert_eq!(output.status.code(), Some(126), "{backend}: {log}");
            assert!(log.contains(path) && log.contains("taken by somebody else"), "{backend} {chain}: {log}");
            assert!(log.contains("missing"), "{backend}: {log}");
        }
    }
}

#[test]
fn somebody_elses_port_is_named_with_its_user() {
    let pod = Pod::new(&[V4], RESOLV, Proxy { uid: 1000, ..PROXY });
    let output = pod.namespace.podweir(&["init", "--run-validation"]);
    let log = log(&output);
    assert!(output.status.success(), "{log}");
    for port in [15001, 15006] {
        assert!(log.contains(&format!("port {port} is taken by user 1000, who is not the proxy's")), "{log}");
    }
}
