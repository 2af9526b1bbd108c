//! Pods start while the agent dies, is replaced, loses its token or the API server, while
//! somebody takes rules away, and while another mesh's plugin comes and goes: each pod that
//! runs has its rules.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::agent::{ACCOUNT, NAMESPACE, flush, types};
use super::components::Component;
use super::machine::OUTSIDE;
use super::pods::{DIVERTED, PLAIN, deployment, injected, plain};
use super::{Cluster, alone};
use crate::pod::{Probe, ask};

/// How many pods start while the agent is replaced, and while it is killed.
const AT_ONCE: u32 = 50;
const WHILE_KILLED: u32 = 8;
/// Each time the kubelet lets it wait twice as long.
const MOST_KILLS: usize = 3;

/// Kills the agent as a crash does; whether there was one.
fn kill(cluster: &Cluster) -> bool {
    const KILL: &str = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline 2>/dev/null) in '/usr/local/bin/podweir node run '*) kill -9 ${p#/proc/} && echo killed ;; esac; done";
    cluster.output("sh", &["-c", KILL], "").is_ok_and(|said| said.contains("killed"))
}

/// How often the account has asked for a list of pods.
fn lists(cluster: &Cluster) -> usize {
    cluster
        .requests_of(ACCOUNT)
        .iter()
        .filter(|request| request.starts_with("list ") && request.contains("/pods"))
        .count()
}

/// Does something while the chain has the entry at every moment.
fn with_the_entry_all_the_time(cluster: &Cluster, what: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let (seen, without) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let has = types(&cluster.chain()).contains(&"podweir");
                (if has { &seen } else { &without }).fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // Or what fails in it would be waited for for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(seen.into_inner() > 10);
    assert_eq!(without.into_inner(), 0, "moments in which the chain was without the entry");
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn pods_that_start_while_the_agent_dies_or_is_replaced_have_their_rules() {
    let cluster = alone();
    cluster.install_agent();
    let shop = cluster.project("turmoil");

    // A rolling upgrade; the entry is in the chain at every moment.
    with_the_entry_all_the_time(&cluster, || {
        // Without a validation that would start a pod again until it has its rules.
        let mut pod = injected("upgraded", &json!({}));
        pod["spec"]["initContainers"] = json!([]);
        shop.apply(deployment(pod, AT_ONCE));
        cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/podweir-node"]);
        let pods = shop.wait_for_app("upgraded", AT_ONCE as usize);
        cluster.wait_for_agent();
        for pod in pods {
            assert_eq!(shop.answers(&pod), DIVERTED, "{}", pod.name);
        }
    });
    // Each had them from its start: nothing was repaired.
    let events = shop.get(&["events", "--field-selector", "reportingComponent=podweir"]);
    assert_eq!(events["items"], json!([]), "{events:#}");
    shop.kubectl(&["delete", "deployment", "upgraded", "--wait=false"]);

    // Killed again and again; the kubelet lets it wait longer each time.
    let (kills, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && kills.load(Ordering::Relaxed) < MOST_KILLS {
                if kill(&cluster) {
                    kills.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        shop.apply(deployment(injected("killed", &json!({})), WHILE_KILLED));
        let pods = shop.wait_for_app("killed", WHILE_KILLED as usize);
        stop.store(true, Ordering::Relaxed);
        for pod in pods {
            assert_eq!(shop.answers(&pod), DIVERTED, "{}", pod.name);
        }
    });
    assert!(kills.into_inner() > 0);
    cluster.wait_for_agent();
    cluster.remove_agent();
}

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn without_the_api_server_or_a_token_pods_are_looked_after() {
    let cluster = alone();
    cluster.install_agent();
    let shop = cluster.project("away");
    shop.apply(injected("web", &json!({})));
    let web = shop.wait_for_pod("web");
    assert_eq!(shop.answers(&web), DIVERTED);

    // A loop of connections while somebody takes the rules away: how many pass the proxy by.
    let (stop, past, diverted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut took = Vec::new();
    let gap = std::thread::scope(|scope| {
        let looping = scope.spawn(|| {
            let probe = Probe::parse(&format!("out tcp uid=1000 gid=1000 to {OUTSIDE} 80"));
            let (mut first, mut last) = (None, None);
            while !stop.load(Ordering::Relaxed) {
                match web.run(|| ask(&probe)).trim() {
                    "out-proxy" => diverted.fetch_add(1, Ordering::Relaxed),
                    "outside" => {
                        first.get_or_insert_with(Instant::now);
                        last = Some(Instant::now());
                        past.fetch_add(1, Ordering::Relaxed)
                    }
                    _ => 0,
                };
            }
            first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
        });
        let so_far = || diverted.load(Ordering::Relaxed);
        let more = |than: usize| cluster.wait("more connections", || (so_far() > than).then_some(())).unwrap();
        more(5);
        for _ in 0..5 {
            let before = so_far();
            flush(&web);
            let flushed = Instant::now();
            cluster.wait("the rules to be back", || web.run(has_rules).then(|| took.push(flushed.elapsed()))).unwrap();
            more(before + 5);
        }
        stop.store(true, Ordering::Relaxed);
        looping.join().unwrap()
    });
    let (past, diverted) = (past.into_inner(), diverted.into_inner());
    println!(
        "rules taken away 5 times: {past} of {} connections passed the proxy by (the first and the last of these {gap:?} apart)",
        past + diverted
    );
    took.sort();
    println!("from the flush to the return of the rules: {took:?}");
    assert!(took[2] < Duration::from_secs(1), "half of the times at least: {took:?}");
    assert_eq!(shop.answers(&web), DIVERTED);
    let told = || {
        let text = shop.kubectl(&["describe", "pod", "web"]);
        text.lines()
            .any(|line| line.contains("InterceptionRepaired") && line.contains("its rules were missing"))
            .then_some(())
    };
    cluster.wait("the event in kubectl describe", told).unwrap_or_else(|e| panic!("{e}"));

    // The API server dies: rules come back all the same.
    let listed = lists(&cluster);
    cluster.end(Component::ApiServer, Signal::SIGKILL);
    flush(&web);
    let back = || web.run(has_rules).then_some(());
    cluster.wait("the rules to be back", back).unwrap_or_else(|e| panic!("{e}"));
    cluster.start(Component::ApiServer).unwrap();
    cluster.wait_for_api_server().unwrap();
    shop.apply(injected("after", &json!({})));
    assert_eq!(shop.answers(&shop.wait_for_pod("after")), DIVERTED);
    // An API server that restarts has forgotten what was before its start: what was heard last is
    // older than that, or it is not, and there is one list, or none.
    let again = lists(&cluster) - listed;
    assert!(again <= 1, "{again} lists after the API server's restart");

    // The account is made anew: its tokens are worth nothing any more.
    cluster.kubectl(&["-n", NAMESPACE, "delete", "serviceaccount", "podweir-node"]);
    cluster.with_manifests("apply");
    // It asks for little by itself, and an API server believes a token for some seconds more: what it
    // has to tell again and again are repairs.
    let says = || {
        flush(&web);
        std::thread::sleep(Duration::from_secs(2));
        let log = cluster.try_kubectl(&["-n", NAMESPACE, "logs", "daemonset/podweir-node", "--tail=50"]).ok()?;
        (log.contains("Unauthorized") || log.contains("not accepted")).then_some(())
    };
    cluster.wait("the agent to say that its token is revoked", says).unwrap_or_else(|e| panic!("{e}"));
    cluster.wait("the rules to be back", back).unwrap_or_else(|e| panic!("{e}"));
    // Such an agent cannot find out whether it is being removed, and takes nothing away.
    with_the_entry_all_the_time(&cluster, || {
        cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=node"]);
        cluster.wait_for_agent();
    });
    shop.apply(injected("renewed", &json!({})));
    assert_eq!(shop.answers(&shop.wait_for_pod("renewed")), DIVERTED);
    cluster.remove_agent();
}

/// Whether the network namespace of the thread has rules.
fn has_rules() -> bool {
    let output = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("istio-proxy-nat")
}

/// Another mesh's plugin, which passes on what it gets and does nothing.
const STAND_IN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) jq -c '.prevResult // {"cniVersion": .cniVersion}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
esac
"#;

#[test]
#[ignore = "needs Kubernetes: set KUBEBUILDER_ASSETS, and run ./scripts/test"]
fn a_node_moves_over_from_istio_cni_and_back_while_pods_start() {
    let cluster = alone();
    if cluster.chain().to_string().contains("podweir") {
        cluster.take_down_by_hand();
    }
    let bare = cluster.chain();
    let program = cluster.machine().folder().join("bin/istio-cni");
    std::fs::write(&program, STAND_IN).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let with_istio = |chain: &serde_json::Value| {
        let mut chain = chain.clone();
        chain["plugins"].as_array_mut().unwrap().push(json!({ "type": "istio-cni", "log_level": "info" }));
        chain
    };
    let without = |kind: &str| {
        let mut chain = cluster.chain();
        chain["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != kind);
        chain
    };
    cluster.write_chain(&with_istio(&bare));
    let shop = cluster.project("moving");
    let start = |name: &'static str, wanted: [&str; 7]| {
        shop.apply(if wanted == PLAIN { plain(name) } else { injected(name, &json!({})) });
        assert_eq!(shop.answers(&shop.wait_for_pod(name)), wanted, "{name}");
    };
    start("before", PLAIN);
    cluster.install_agent();
    assert_eq!(types(&cluster.chain())[2..], ["istio-cni", "podweir"]);
    start("both", DIVERTED);
    // istio-cni's own uninstaller takes its entry out, and its program away.
    cluster.write_chain(&without("istio-cni"));
    std::fs::remove_file(&program).unwrap();
    start("moved", DIVERTED);
    assert_eq!(types(&cluster.chain())[2..], ["podweir"]);

    // And back: istio-cni's installer appends its entry; then podweir goes.
    std::fs::write(&program, STAND_IN).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    cluster.write_chain(&with_istio(&cluster.chain()));
    start("back", DIVERTED);
    cluster.remove_agent();
    assert_eq!(types(&cluster.chain())[2..], ["istio-cni"]);
    start("after", PLAIN);
    // Installed again, it is as it was.
    cluster.install_agent();
    start("again", DIVERTED);
    cluster.remove_agent();
    cluster.write_chain(&bare);
    std::fs::remove_file(&program).unwrap();
}
