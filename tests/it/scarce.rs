//! Descriptors that are scarce: whatever cannot be opened is named with the kernel's own reason,
//! and is no mistake of podweir's.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::fixture::{Namespace, PODWEIR};
use crate::plugin::{Cluster, sidecar};

/// Standard input, output and error are open already.
const LIMITS: std::ops::Range<u32> = 4..30;

/// Exit status and all that was said; one that is no mistake of ours.
fn judged(what: &str, limit: u32, output: &Output) -> bool {
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    for word in ["mistake", "panick", "report it"] {
        assert!(!said.contains(word), "{what} with {limit} descriptors: {said}");
    }
    if !output.status.success() {
        assert!(said.contains("Too many open files"), "{what} with {limit} descriptors: {}: {said}", output.status);
    }
    output.status.success()
}

/// Whether it fails with few descriptors and works with more, all or nothing.
fn with_each_limit(what: &str, run: impl Fn(u32) -> Output) {
    let worked: Vec<bool> = LIMITS.map(|limit| judged(what, limit, &run(limit))).collect();
    assert!(!worked[0] && worked[worked.len() - 1], "{what}: {worked:?}");
}

#[test]
fn too_few_descriptors_for_an_init_container_are_named_as_that() {
    for backend in ["nftables", "iptables-nft"] {
        with_each_limit(backend, |limit| {
            let namespace = Namespace::new();
            let before = namespace.everything();
            let limited = format!("--nofile={limit}:{limit}");
            let output = namespace.command("prlimit", &[&limited, PODWEIR, "init", "--backend", backend], &[]);
            assert!(output.status.success() || namespace.everything() == before, "{backend}, {limit}");
            output
        });
    }
}

#[test]
fn too_few_descriptors_for_the_plugin_are_named_as_that() {
    let pod = sidecar(json!({}));
    with_each_limit("ADD", |limit| {
        let cluster = Cluster::new(&pod);
        let add = cluster.add().key("timeout", json!("3s"));
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(PODWEIR).env_clear();
        command.envs(add.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&add.input());
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let error: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(error["code"].as_u64().is_some_and(|code| code != 999), "{error}");
        }
        output
    });
}

#[test]
fn too_few_descriptors_for_an_audit_are_named_as_that() {
    let namespace = Namespace::new();
    namespace.ok(&["init", "--backend", "nftables"]);
    with_each_limit("audit", |limit| {
        let limited = format!("--nofile={limit}:{limit}");
        namespace.command("prlimit", &[&limited, PODWEIR, "audit", "--live"], &[])
    });
}
