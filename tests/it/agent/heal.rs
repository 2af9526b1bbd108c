//! Finding pods, looking at their rules and mending them.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::server::What;
use super::{Node, Pod, uid};
use crate::cni_namespace::UserPod;
use crate::fixture::{Namespace, RESOLV, V4};
use crate::plugin::{self, Plugin, sidecar};
use crate::pod::{serve, wire};

fn flush(pod: &Pod) {
    pod.namespace.print("nft", &["flush", "ruleset"]);
}

/// What the API server was told of pods in events.
fn events(node: &Node) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = node.server.asked(What::Event).into_iter();
    all.map(|asked| (text(&asked.body["reason"]), text(&asked.body["note"]))).collect()
}

fn event(node: &Node, reason: &str) -> String {
    let note = |all: Vec<(String, String)>| all.into_iter().find(|(found, _)| found == reason).map(|(_, note)| note);
    node.wait(reason, || note(events(node)))
}

/// Where the state of a pod's attachment is kept.
fn kept(node: &Node, pod: &Pod) -> PathBuf {
    let uid = pod.manifest["metadata"]["uid"].as_str().unwrap();
    node.run_dir().join("attachments").join(format!("c-{uid}:eth0.json"))
}

#[test]
fn attachments_kept_on_disk_lead_an_agent_to_pods_that_started_before_it() {
    let (pod, other) = (Pod::new("web", 1), Pod::new("other", 2));
    let mut node = Node::running(&[&pod, &other]);
    // No process of theirs is to be seen.
    for pod in [&pod, &other] {
        node.add(pod).call().ok();
        node.wait_for_state(pod, "intercepted");
    }
    node.kill();
    [&pod, &other].into_iter().for_each(flush);
    // The path of the second one leads to another namespace by now.
    let mut state: Value = serde_json::from_slice(&std::fs::read(kept(&node, &other)).unwrap()).unwrap();
    assert_eq!(state["netns"]["path"], plugin::path(&other.namespace), "{state}");
    state["netns"]["identity"][1] = json!(1);
    std::fs::write(kept(&node, &other), state.to_string()).unwrap();
    node.start(&[]);
    node.wait_for_state(&pod, "intercepted");
    assert!(pod.has_rules());
    node.wait_for_state(&other, "no-namespace");
    assert!(!other.has_rules(), "it may be anybody's");
    // A process tells of it.
    node.process(4711, &other, &node.path("proc"));
    node.server.set(&other.manifest);
    node.wait_for_state(&other, "intercepted");
}

fn init_container(name: &str, number: u32) -> Pod {
    let mut manifest = sidecar(json!({}));
    manifest["spec"]["initContainers"] = json!([{ "name": "istio-init", "args": INIT }]);
    Pod::of(name, number, manifest)
}

const INIT: [&str; 15] = [
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-b",
    "*",
    "--redirect-dns",
    "--native-nftables",
];

#[test]
fn rules_of_an_init_container_are_held_against_the_name_servers_of_the_pod() {
    let (pod, other) = (init_container("web", 1), init_container("other", 2));
    for pod in [&pod, &other] {
        pod.namespace.ok(&INIT);
    }
    let node = Node::new();
    for (pid, name, pod, resolv_conf) in
        [(21, "same", &pod, RESOLV), (22, "differs", &other, "nameserver 10.96.0.99\n")]
    {
        let files = node.path(name);
        std::fs::create_dir_all(files.join("etc")).unwrap();
        std::fs::write(files.join("etc/resolv.conf"), resolv_conf).unwrap();
        node.process(pid, pod, &files);
        node.server.set(&pod.manifest);
    }
    let mut node = node;
    node.start(&[]);
    node.wait_for_state(&pod, "intercepted");
    assert!(pod.namespace.print("nft", &["list", "ruleset"]).contains("10.96.0.10"));
    // What this one's container captured is not what it asks today.
    let note = event(&node, "InterceptionDrifted");
    assert!(note.contains("10.96.0.99"), "{note}");
    node.wait_for_state(&other, "intercepted");
    let rules = other.namespace.print("nft", &["list", "ruleset"]);
    assert!(rules.contains("10.96.0.99") && !rules.contains("192.0.2.53"), "{rules}");
    assert_eq!(events(&node).len(), 1, "{:?}", events(&node));
}

#[test]
fn pods_with_a_user_namespace_of_their_own_are_looked_at_and_mended_on_every_backend() {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let inside = UserPod::new();
        let pod = Pod::new("web", 1);
        let mut node = Node::new();
        node.server.set(&pod.manifest);
        let interception = format!("--interception={}", json!({ "backend": backend }));
        node.start(&[&interception, "--verify-interval=1s"]);
        node.wait_until_ready();
        let add: Plugin = node.add(&pod).variable("CNI_NETNS", &inside.netns());
        add.call().ok();
        node.wait_for_state(&pod, "intercepted");
        match backend {
            "iptables-legacy" => {
                // As root of the node, who has a lock file to write.
                let netns = format!("--net={}", inside.netns());
                let arguments = [&netns, "iptables-legacy", "-t", "nat", "-F", "ISTIO_OUTPUT"];
                drop(node.namespace.print("nsenter", &arguments));
            }
            _ => drop(inside.print("nft", &["flush", "ruleset"])),
        }
        let mended = || (node.metric("podweir_heals_total{result=\"mended\"}") >= 1.0).then_some(());
        node.wait(&format!("{backend} to be mended"), mended);
        node.wait_for_state(&pod, "intercepted");
        let rules = match backend {
            "nftables" => inside.print("nft", &["list", "ruleset"]),
            program => inside.print(&format!("{program}-save"), &[]),
        };
        assert!(rules.contains("1337"), "{backend}: {rules}");
    }
}

#[test]
fn what_is_mended_is_probed_where_the_proxy_listens_and_nothing_listens_in_its_place() {
    let (with, without) = (Pod::new("with", 1), Pod::new("without", 2));
    for pod in [&with, &without] {
        pod.namespace.batch("route add default via 10.244.0.1 dev eth0\n");
    }
    let _proxy = with.namespace.run(|| serve(&[("out-proxy", 15001), ("in-proxy", 15006)], 1337, 1337));
    let node = Node::running(&[&with, &without]);
    for (pod, told) in [
        (&with, "probed: the proxy gets connections (IPv4 outbound)"),
        (&without, "not probed: nobody listens on the proxy's port 15001"),
    ] {
        node.add(pod).call().ok();
        node.wait_for_state(pod, "intercepted");
        flush(pod);
        let said = || node.person(&["why", &pod.full_name()]).1;
        node.wait(told, || said().contains(told).then_some(()));
        assert!(pod.has_rules());
        let sockets = pod.namespace.print("ss", &["-ltnH"]);
        assert_eq!(sockets.contains(":15001"), std::ptr::eq(pod, &with), "{sockets}");
    }
}

#[test]
fn more_pods_than_a_process_may_have_files_open_at_first_are_looked_after() {
    let pods: Vec<Pod> = (1..=30).map(|number| Pod::new(&format!("web-{number}"), number)).collect();
    let mut node = Node::new();
    for (pid, pod) in (20..).zip(&pods) {
        node.process(pid, pod, &node.path("proc"));
        node.server.set(&pod.manifest);
    }
    // Three a pod; containers begin with 1,024, and a node may have 500 pods.
    node.start_by(&["prlimit", "--nofile=64:4096"], &[]);
    node.wait("every pod to have its rules", || pods.iter().all(Pod::has_rules).then_some(()));
    pods.iter().for_each(|pod| node.wait_for_state(pod, "intercepted"));
    assert!(!node.log().contains("Too many open files"), "{}", node.log());
}

#[test]
fn a_pod_that_takes_its_own_rules_away_in_a_loop_starves_no_other() {
    let (hostile, victim) = (Pod::new("hostile", 1), Pod::new("victim", 2));
    let node = Node::running(&[&hostile, &victim]);
    for pod in [&hostile, &victim] {
        node.add(pod).call().ok();
        node.wait_for_state(pod, "intercepted");
    }
    let stop = AtomicBool::new(false);
    let mended = || node.metric("podweir_heals_total{result=\"mended\"}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                flush(&hostile);
            }
        });
        node.wait_for_log("so often that repairs wait");
        let begun = std::time::Instant::now();
        let before = mended();
        for _ in 0..3 {
            flush(&victim);
            node.wait("the victim's rules", || victim.has_rules().then_some(()));
        }
        // Five at once and one in ten seconds, whatever the pod does.
        let of_hostile = mended() - before - 3.0;
        assert!(of_hostile <= 1.0 + begun.elapsed().as_secs_f64() / 10.0, "{of_hostile} repairs");
        stop.store(true, Ordering::Relaxed);
    });
    // A repair that the pod takes away before it is read back is one of another cause.
    let says_so =
        |(reason, note): &(String, String)| reason == "InterceptionFailed" && note.contains("this happens so often");
    node.wait("the event that says so", || events(&node).iter().any(says_so).then_some(()));
    // Events are few, and the hostile pod has its rules in the end.
    assert!(events(&node).len() <= 8, "{:?}", events(&node));
    node.wait("the hostile pod's rules", || hostile.has_rules().then_some(()));
    assert_eq!(uid(1), hostile.manifest["metadata"]["uid"]);
}

#[test]
fn each_cause_of_a_drift_has_an_event_of_its_own_that_says_when_it_was_noticed() {
    let pod = Pod::new("web", 1);
    let node = Node::running(&[&pod]);
    node.add(&pod).call().ok();
    node.wait_for_state(&pod, "intercepted");
    let drifts = || -> Vec<Value> {
        let events = node.server.asked(What::Event).into_iter().map(|asked| asked.body);
        events.filter(|event| event["reason"] == "InterceptionDrifted").collect()
    };
    for (count, chain) in [(1, "istio-redirect"), (2, "istio-in-redirect")] {
        pod.namespace.print("nft", &["flush", "chain", "inet", "istio-proxy-nat", chain]);
        node.wait("an event", || (drifts().len() == count).then_some(()));
        node.wait_for_state(&pod, "intercepted");
    }
    let drifts = drifts();
    // What the recorder puts together has the name of the first one.
    assert_ne!(drifts[0]["metadata"]["name"], drifts[1]["metadata"]["name"], "{drifts:?}");
    let note = |at: usize| drifts[at]["note"].as_str().unwrap().to_owned();
    assert!(note(0).contains("15001") && note(1).contains("15006"), "{drifts:?}");
    flush(&pod);
    let repaired = event(&node, "InterceptionRepaired");
    for note in [note(0), note(1), repaired] {
        let (_, said) = note.split_once(" after it was noticed at ").unwrap_or_else(|| panic!("{note}"));
        assert!(said.starts_with("20") && said.contains('Z'), "{note}");
    }
}

#[test]
fn older_connections_are_waited_for_without_a_failure() {
    let outside = Namespace::bare("");
    let mut pod = Pod::new("web", 1);
    pod.namespace = Namespace::bare(RESOLV);
    wire(&pod.namespace, &outside, &[V4]);
    let listener = outside.run(|| TcpListener::bind("10.244.0.1:5432").unwrap());
    let near = pod.namespace.run(|| TcpStream::connect("10.244.0.1:5432").unwrap());
    let far = listener.accept().unwrap();
    let mut node = Node::new();
    node.process(21, &pod, &node.path("proc"));
    node.server.set(&pod.manifest);
    node.start(&["--heal-established=wait"]);
    node.wait_for_state(&pod, "waiting");
    // More looks than a pod may have repairs at once.
    let looks = || node.metric("podweir_verifications_total{result=\"nothing\"}");
    node.wait("more looks", || (looks() >= 8.0).then_some(()));
    assert_eq!(node.state(&pod), "waiting");
    assert!(!pod.has_rules() && events(&node).is_empty(), "{:?}", events(&node));
    let (_, why) = node.person(&["why", "shop/web"]);
    assert_eq!(why.matches("older connections (1) are open").count(), 1, "{why}");
    drop((near, far));
    // The end of a connection is remembered for a minute, and is no connection any more.
    let note = event(&node, "InterceptionRepaired");
    assert!(note.contains("its rules were missing"), "{note}");
    assert!(pod.has_rules() && !node.log().contains("so often"), "{}", node.log());
    assert_eq!(node.metric("podweir_heals_total{result=\"failed\"}"), 0.0);
    assert_eq!(events(&node).len(), 1, "{:?}", events(&node));
}
