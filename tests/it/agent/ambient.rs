//! Ambient mode with a real kernel, an API server of the test's own, and a ztunnel that does
//! what it is told: exactly the enrolled pods have rules, a ztunnel, addresses in the node's
//! sets, and the annotation.

mod flags;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{What, parameter};
use super::ztunnel::Ztunnel;
use super::{Node, Pod, uid};
use crate::plugin::{self, Plugin};

pub const MODE: &str = "istio.io/dataplane-mode";
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// A running pod without a sidecar; its address is made of its number.
pub fn pod(number: u32) -> Pod {
    let mut pod = Pod::of(
        &format!("web-{number}"),
        number,
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "labels": {}, "annotations": {},
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "serviceAccountName": "account", "containers": [{ "name": "app", "image": "x" }] } }),
    );
    pod.manifest["status"]["podIPs"] = json!([{ "ip": address(number) }]);
    pod.namespace.batch(&format!("addr add {}/16 dev eth0\n", address(number)));
    pod
}

fn address(number: u32) -> String {
    format!("10.244.{}.{}", number / 200, number % 200 + 1)
}

/// Where ztunnels connect to.
pub fn socket(node: &Node) -> PathBuf {
    node.path("z.sock")
}

/// Starts the agent in ambient mode.
pub fn start(node: &mut Node, more: &[&str]) {
    let path = format!("--ztunnel-socket={}", socket(node).display());
    node.start(&[&["--ambient", &path], more].concat());
}

/// A node with a kubelet and these pods, each with a process; without an agent.
pub fn node(pods: &[&Pod]) -> Node {
    let node = Node::new();
    let kubelet = node.path("proc/30");
    std::fs::create_dir_all(kubelet.join("ns")).unwrap();
    std::fs::write(kubelet.join("comm"), "kubelet\n").unwrap();
    std::fs::write(kubelet.join("cgroup"), "0::/system.slice/kubelet.service\n").unwrap();
    std::fs::write(kubelet.join("status"), "Name:\tkubelet\nUid:\t0\t0\t0\t0\n").unwrap();
    symlink(plugin::path(&node.namespace), kubelet.join("ns/net")).unwrap();
    for pod in pods {
        runs(&node, pod);
        node.server.set(&pod.manifest);
    }
    node
}

fn number(pod: &Pod) -> u32 {
    let name = pod.manifest["metadata"]["name"].as_str().unwrap();
    name.rsplit('-').next().unwrap().parse().unwrap()
}

fn runs(node: &Node, pod: &Pod) {
    node.process(1000 + number(pod), pod, &node.path("proc"));
}

fn ends(node: &Node, pod: &Pod) {
    std::fs::remove_dir_all(node.path("proc").join((1000 + number(pod)).to_string())).unwrap();
}

/// What the agent says of ambient mode.
pub fn status(node: &Node) -> Value {
    node.report()["ambient"].clone()
}

fn inode(pod: &Pod) -> u64 {
    pod.namespace.net().metadata().unwrap().ino()
}

fn has_rules(pod: &Pod) -> bool {
    !pod.namespace.print("nft", &["list", "ruleset"]).trim().is_empty()
        || pod.namespace.print("ip", &["rule"]).contains("fwmark")
}

/// The addresses in the node's sets.
fn probed(node: &Node) -> BTreeSet<String> {
    let text = node.namespace.print("nft", &["list", "ruleset"]);
    let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    words.filter(|word| word.starts_with("10.244.")).map(str::to_owned).collect()
}

/// How many descriptors of the agent lead to network namespaces, or belong to sockets there.
fn descriptors(node: &Node) -> (usize, usize) {
    let all = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().flatten();
    let links: Vec<String> =
        all.filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned())).collect();
    let count = |begin: &str| links.iter().filter(|link| link.starts_with(begin)).count();
    (count("net:"), count("socket:"))
}

/// What is not as it should be, if exactly these pods are to be enrolled.
fn differs(node: &Node, ztunnel: &Ztunnel, enrolled: &[&Pod], others: &[&Pod]) -> Option<String> {
    let wanted: super::ztunnel::Pods = enrolled.iter().map(|pod| (uid(number(pod)), Some(inode(pod)))).collect();
    if ztunnel.pods() != wanted {
        return Some(format!("ztunnel has {:?}, not {wanted:?}", ztunnel.pods()));
    }
    let addresses: BTreeSet<String> = enrolled.iter().map(|pod| address(number(pod))).collect();
    if probed(node) != addresses {
        return Some(format!("the node's sets have {:?}, not {addresses:?}", probed(node)));
    }
    for (pods, there) in [(enrolled, true), (others, false)] {
        for pod in pods {
            let name = pod.manifest["metadata"]["name"].as_str().unwrap();
            let annotation = node.server.annotation("shop", name, REDIRECTION);
            if has_rules(pod) != there
                || (annotation.as_deref() == Some("enabled")) != there
                || annotation.is_some() != there
            {
                return Some(format!("{name}: rules {}, annotation {annotation:?}, wanted {there}", has_rules(pod)));
            }
        }
    }
    let open = status(node)["openNamespaces"].clone();
    (open != json!(enrolled.len())).then(|| format!("{open} namespaces are open"))
}

fn wait_until_exact(node: &Node, ztunnel: &Ztunnel, enrolled: &[&Pod], others: &[&Pod]) {
    let begin = Instant::now();
    while let Some(difference) = differs(node, ztunnel, enrolled, others) {
        assert!(begin.elapsed() < super::PATIENCE, "{difference}; the agent said\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// ADD of a pod, as a runtime calls it where the agent is in ambient mode.
fn add(node: &Node, pod: &Pod) -> Plugin {
    node.add(pod).key("ambient", json!(true))
}

#[test]
fn pods_join_and_leave_with_their_labels_and_those_of_their_namespace() {
    let pods: Vec<Pod> = (0..3).map(pod).collect();
    let [a, b, c] = [&pods[0], &pods[1], &pods[2]];
    let before = pods.iter().map(|pod| pod.namespace.everything()).collect::<Vec<_>>();
    let mut node = node(&[a, b, c]);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    node.wait("a snapshot", || (ztunnel.snapshots() == 1).then_some(()));
    wait_until_exact(&node, &ztunnel, &[], &[a, b, c]);
    let list = node.server.asked(What::Namespaces)[0].uri.clone();
    assert_eq!((parameter(&list, "resourceVersion"), parameter(&list, "limit")), (Some("0"), None), "{list}");
    node.server.label("shop", "web-0", MODE, Some("ambient"));
    wait_until_exact(&node, &ztunnel, &[a], &[b, c]);
    assert_eq!(node.state(a), "enrolled");
    let (code, why) = node.person(&["why", "shop/web-0"]);
    assert!(code == Some(0) && why.contains("in ambient mode: its label"), "{why}");
    node.server.label("shop", "web-1", MODE, Some("none"));
    node.server.set_ambient("shop", true);
    wait_until_exact(&node, &ztunnel, &[a, c], &[b]);
    node.server.set_ambient("shop", false);
    node.server.label("shop", "web-0", MODE, None);
    wait_until_exact(&node, &ztunnel, &[], &[a, b, c]);
    for (pod, before) in pods.iter().zip(before) {
        assert_eq!(pod.namespace.everything(), before, "nothing is left");
    }
    let (nets, _) = descriptors(&node);
    assert_eq!(nets, 0, "no namespace is kept open");
}

#[test]
fn a_start_waits_for_ztunnel_and_fails_without() {
    let (one, other) = (pod(1), pod(2));
    let mut node = node(&[]);
    for pod in [&one, &other] {
        node.server.set(&pod.manifest);
    }
    node.server.label("shop", "web-1", MODE, Some("ambient"));
    start(&mut node, &[]);
    node.wait_until_ready();
    let (code, text) = add(&node, &one).call().error();
    assert_eq!(code, 11);
    assert!(text.contains("in ambient mode") && text.contains("no ztunnel is connected"), "{text}");
    // The runtime takes such a sandbox down.
    add(&node, &one).verb("DEL").call().ok();
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    add(&node, &one).call().ok();
    // When ADD comes back, ztunnel has it.
    assert_eq!(ztunnel.pods().get(&uid(1)), Some(&Some(inode(&one))));
    wait_until_exact(&node, &ztunnel, &[&one], &[]);
    // A pod whose rules cannot be made: somebody's sidecar is there.
    other.namespace.ok(&["init"]);
    node.server.label("shop", "web-2", MODE, Some("ambient"));
    node.wait_for_state(&other, "no-namespace");
    let (_, text) = add(&node, &other).call().error();
    assert!(text.contains("ztunnel does not take its traffic"), "{text}");
    assert!(text.contains("sidecar") || text.contains("interception"), "{text}");
    assert!(!ztunnel.pods().contains_key(&uid(2)));
    // The sandboxes go: that of the pod that failed at once, as a runtime has it.
    for pod in [&other, &one] {
        add(&node, pod).verb("DEL").call().ok();
    }
    node.wait("ztunnel to let go", || ztunnel.pods().is_empty().then_some(()));
    node.wait("no open namespace", || (status(&node)["openNamespaces"] == json!(0)).then_some(()));
}

#[test]
fn flips_of_a_label_leave_exactly_what_is_wanted() {
    let pods: Vec<Pod> = (0..6).map(pod).collect();
    let all: Vec<&Pod> = pods.iter().collect();
    let mut node = node(&all);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::from_millis(1));
    node.wait("a snapshot", || (ztunnel.snapshots() == 1).then_some(()));
    for flip in 0..31 {
        node.server.set_ambient("shop", flip % 2 == 0);
        std::thread::sleep(Duration::from_millis(33));
    }
    wait_until_exact(&node, &ztunnel, &all, &[]);
    for flip in 0..31 {
        node.server.set_ambient("shop", flip % 2 == 1);
        std::thread::sleep(Duration::from_millis(33));
    }
    wait_until_exact(&node, &ztunnel, &[], &all);
    let (nets, _) = descriptors(&node);
    assert_eq!(nets, 0, "no namespace is kept open");
}

#[test]
fn uninstalling_by_hand_leaves_the_nodes_rules_to_pods_in_ambient_mode_only() {
    let one = pod(1);
    let mut node = node(&[&one]);
    let before = node.namespace.everything();
    node.server.set_ambient("shop", true);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    wait_until_exact(&node, &ztunnel, &[&one], &[]);
    node.kill();
    let with_rules = node.namespace.everything();
    let folders = ["cni-bin-dir=bin", "cni-conf-dir=net.d"]
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(flag, name)| format!("--{flag}={}", node.path(name).display()));
    let uninstall = || node.person(&["uninstall", &folders[0], &folders[1]]);
    let (code, said) = uninstall();
    assert!(code == Some(0) && said.contains("stay, since there are pods in ambient mode"), "{said}");
    assert_eq!(node.namespace.everything(), with_rules, "probes of a pod in ambient mode go on");
    node.namespace.ok(&["ambient-host", "--flush"]);
    for _ in 0..2 {
        let (code, said) = uninstall();
        assert!(code == Some(0) && !said.contains("stay"), "{said}");
        assert_eq!(node.namespace.everything(), before, "nothing is left");
    }
}

#[test]
fn agent_and_ztunnel_end_during_fifty_starts() {
    let pods: Vec<Pod> = (0..50).map(pod).collect();
    let mut node = node(&[]);
    node.server.set_ambient("shop", true);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::from_millis(5));
    for pod in &pods {
        node.server.set(&pod.manifest);
        runs(&node, pod);
    }
    let calls: Vec<Plugin> = pods.iter().map(|pod| add(&node, pod)).collect();
    let ztunnel = std::thread::scope(|scope| {
        let waiting: Vec<_> = calls
            .iter()
            .map(|call| {
                scope.spawn(move || {
                    // As the kubelet does: a sandbox that fails is taken down and tried again.
                    (0..60).find(|_| {
                        let came = call.call();
                        if !came.status.success() {
                            call.clone().verb("DEL").call();
                            std::thread::sleep(Duration::from_millis(200));
                        }
                        came.status.success()
                    })
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60));
        node.kill();
        drop(ztunnel);
        start(&mut node, &[]);
        std::thread::sleep(Duration::from_millis(40));
        let ztunnel = Ztunnel::start(&socket(&node), Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(60));
        node.kill();
        start(&mut node, &[]);
        for call in waiting {
            assert!(call.join().unwrap().is_some(), "a pod does not start; the agent said\n{}", node.log());
        }
        ztunnel
    });
    let all: Vec<&Pod> = pods.iter().collect();
    wait_until_exact(&node, &ztunnel, &all, &[]);
    // Half of them go: processes, sandboxes, and at last the pods.
    let (gone, left) = all.split_at(25);
    for pod in gone {
        ends(&node, pod);
        add(&node, pod).verb("DEL").call().ok();
        node.server.delete("shop", pod.manifest["metadata"]["name"].as_str().unwrap());
    }
    wait_until_exact(&node, &ztunnel, left, &[]);
    assert_eq!(descriptors(&node).0, left.len());
}

#[test]
fn what_somebody_takes_away_comes_back() {
    let pods: Vec<Pod> = (0..2).map(pod).collect();
    let [a, b] = [&pods[0], &pods[1]];
    let mut node = node(&[a, b]);
    node.server.set_ambient("shop", true);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    wait_until_exact(&node, &ztunnel, &[a, b], &[]);
    let (in_pod, on_node) = (a.namespace.rules(), node.namespace.rules());
    a.namespace.print("nft", &["flush", "ruleset"]);
    node.wait("the pod's rules", || (a.namespace.rules() == in_pod).then_some(()));
    a.namespace.print("ip", &["rule", "del", "pref", "32764"]);
    node.wait("the pod's routing", || a.namespace.print("ip", &["rule"]).contains("fwmark").then_some(()));
    node.namespace.print("nft", &["flush", "ruleset"]);
    node.wait("the node's rules", || (node.namespace.rules() == on_node).then_some(()));
    wait_until_exact(&node, &ztunnel, &[a, b], &[]);
    // Pods in which nobody probes say nothing of it; the two here have no way to the node.
    let (_, text) = node.person(&["status"]);
    assert!(text.contains("1 ztunnels connected, 1 know of every pod; 2 pods"), "{text}");
}

/// Of changes of ipset and of iptables-legacy the kernel tells nobody. With a longer interval, as where
/// it tells of everything, patience would end before.
fn what_the_kernel_does_not_tell_of_comes_back_within_an_interval(backend: &str) {
    let one = pod(1);
    let mut node = node(&[&one]);
    node.server.set_ambient("shop", true);
    start(&mut node, &[&format!("--ambient-backend={backend}"), "--verify-interval=20s"]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    node.wait_for_state(&one, "enrolled");
    let is_in_set = || node.namespace.print("ipset", &["save"]).contains(&format!("{} ", address(1)));
    node.wait("the pod in the node's set", || is_in_set().then_some(()));
    // What is known of pods before this agent is settled by then: the next look is one of the usual ones.
    let same = || node.metric("podweir_ambient_host_sets_total{result=\"same\"}");
    node.wait("a look that finds nothing", || (same() >= 1.0).then_some(()));
    let redirects = || one.namespace.print("iptables-legacy-save", &["-t", "nat"]).contains("--to-ports 15001");
    if backend == "iptables-legacy" {
        assert!(redirects());
        one.namespace.print("iptables-legacy", &["-t", "nat", "-F", "ISTIO_OUTPUT"]);
    }
    node.namespace.print("ipset", &["flush"]);
    node.wait("the pod in the node's set again", || is_in_set().then_some(()));
    if backend == "iptables-legacy" {
        node.wait("the pod's rules", || redirects().then_some(()));
    }
    assert_eq!(ztunnel.pods().len(), 1);
}

#[test]
fn iptables_legacy_and_its_sets_are_looked_at_in_every_interval() {
    what_the_kernel_does_not_tell_of_comes_back_within_an_interval("iptables-legacy");
}

#[test]
fn sets_of_iptables_nft_are_looked_at_in_every_interval() {
    what_the_kernel_does_not_tell_of_comes_back_within_an_interval("iptables-nft");
}

/// The rules and sets of one backend are those of another once an agent says so, and the pods in
/// them stay.
#[test]
fn an_agent_with_another_backend_takes_the_nodes_rules_along() {
    let pods = [pod(0)];
    let mut node = node(&[&pods[0]]);
    node.server.set_ambient("shop", true);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    // iptables' rules and sets, and podweir's own, of the node.
    let held = |node: &Node| {
        let rules = node.namespace.print("nft", &["list", "ruleset"]);
        let legacy = node.namespace.print("iptables-legacy-save", &["-t", "nat"]);
        [
            rules.contains("table inet istio-ambient-nat"),
            rules.contains("ISTIO_POSTRT"),
            legacy.contains("ISTIO_POSTRT"),
            node.namespace.print("ipset", &["save"]).contains(&format!("{} ", address(0))),
        ]
    };
    for (backend, wanted) in [
        ("iptables-nft", [false, true, false, true]),
        ("iptables-legacy", [false, false, true, true]),
        ("nftables", [true, false, false, false]),
        ("iptables-nft", [false, true, false, true]),
    ] {
        // Pods keep the backend that they have.
        start(&mut node, &[&format!("--ambient-backend={backend}")]);
        node.wait_for_state(&pods[0], "enrolled");
        node.wait(&format!("the node's rules in {backend}"), || (held(&node) == wanted).then_some(()));
        // Somebody else's flush is mended, at once or with the next look.
        assert_eq!(ztunnel.pods().len(), 1);
        node.kill();
    }
}

/// A pod whose labels change while it runs is found by what its ADD said, also where no process tells
/// of it: not everywhere do the cgroups of containers carry the pod's UID.
#[test]
fn a_running_pod_without_telling_processes_joins_where_its_start_said_it_is() {
    let one = pod(1);
    let mut node = node(&[]);
    node.server.set(&one.manifest);
    start(&mut node, &[]);
    node.wait_until_ready();
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    add(&node, &one).call().ok();
    node.wait_for_state(&one, "left-alone");
    for _ in 0..2 {
        node.server.label("shop", "web-1", MODE, Some("ambient"));
        wait_until_exact(&node, &ztunnel, &[&one], &[]);
        node.server.label("shop", "web-1", MODE, None);
        wait_until_exact(&node, &ztunnel, &[], &[&one]);
    }
    add(&node, &one).verb("DEL").call().ok();
    node.server.delete("shop", "web-1");
    node.wait("no open namespace", || (status(&node)["openNamespaces"] == json!(0)).then_some(()));
}

/// What a container with CAP_NET_ADMIN can do in its own pod keeps no other pod from starting.
#[test]
fn pods_that_hold_the_lock_of_their_namespaces_keep_no_other_from_starting() {
    let hostile: Vec<Pod> = (0..4).map(pod).collect();
    let starting: Vec<Pod> = (10..18).map(pod).collect();
    let all: Vec<&Pod> = hostile.iter().collect();
    let mut node = node(&all);
    node.server.set_ambient("shop", true);
    start(&mut node, &[]);
    let ztunnel = Ztunnel::start(&socket(&node), Duration::ZERO);
    wait_until_exact(&node, &ztunnel, &all, &[]);
    let locks: Vec<_> = hostile.iter().map(|pod| pod.namespace.lock()).collect();
    for pod in &hostile {
        // So that the agent wants to work there, and goes on wanting.
        pod.namespace.print("nft", &["flush", "ruleset"]);
    }
    for pod in &hostile {
        node.wait_for_state(pod, "failed");
    }
    for pod in &starting {
        node.server.set(&pod.manifest);
        runs(&node, pod);
        add(&node, pod).call().ok();
    }
    drop(locks);
    let all: Vec<&Pod> = hostile.iter().chain(&starting).collect();
    wait_until_exact(&node, &ztunnel, &all, &[]);
}
