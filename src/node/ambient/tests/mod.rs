//! Ambient mode in a simulated world: pods that come, go and change their labels, ztunnels that end, an
//! agent that restarts. Each test ends with the same check: exactly the enrolled pods have rules, a
//! ztunnel, addresses in the node's sets, and the annotation.

mod hurdles;
mod world;
mod ztunnel;

use std::time::Instant;

use serde_json::json;

use super::standing::{AMBIENT, ENABLED, MODE, PENDING, REDIRECTION};
use super::*;
use crate::node::worker::Urgency;
use world::{Fake, place};
use ztunnel::Ztunnel;

const LONG: Duration = Duration::from_secs(30);

type Agent = Arc<Ambient<Fake>>;

fn agent(world: &Fake) -> Agent {
    let policy = EnrolmentPolicy { exclude_namespaces: Vec::new(), dns: true };
    let settings =
        AmbientSettings { policy, families: Families::BOTH, heal: true, verify_interval: Duration::from_secs(60) };
    let agent = Arc::new(Ambient::new(world.clone(), settings, Arc::default()));
    tokio::spawn(writer::write(agent.clone()));
    agent
}

fn known(world: &Fake, n: usize, label: Option<&str>) -> Arc<Known> {
    let uid = format!("uid-{n}");
    let mut pod = json!({
        "metadata": { "namespace": "shop", "name": format!("web-{n}"), "uid": uid, "labels": {}, "annotations": {},
            "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "containers": [{ "name": "app" }], "serviceAccountName": "account" },
        "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.0.{}.{}", n / 250, n % 250) }] } });
    if let Some(label) = label {
        pod["metadata"]["labels"][MODE] = label.into();
    }
    if let Some(value) = world.with(|played| played.annotations.get(&uid).cloned()) {
        pod["metadata"]["annotations"][REDIRECTION] = value.into();
    }
    Arc::new(Known::of(serde_json::from_value(pod).unwrap()).unwrap())
}

/// Starts a pod: its sandbox is there.
fn run(world: &Fake, n: usize) {
    world.with(|played| played.places.insert(format!("uid-{n}"), 1000 + n as u64));
}

/// Ends a pod's last process.
fn stop(world: &Fake, n: usize) {
    world.with(|played| {
        if let Some(inode) = played.places.remove(&format!("uid-{n}")) {
            played.rules.remove(&inode);
        }
    });
}

async fn until(what: &str, agent: &Agent, wanted: impl Fn() -> bool) {
    let started = Instant::now();
    while !wanted() {
        if started.elapsed() > LONG {
            let world = &agent.world;
            panic!(
                "not {what}: {}",
                world.with(|p| format!("{:?} {:?} {:?} {:?}", p.states, p.annotations, p.sets, p.done))
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether exactly these pods have rules, a ztunnel, addresses in the sets and the annotation.
fn exactly(agent: &Agent, ztunnel: &Ztunnel, pods: &[usize]) -> bool {
    let uids: Vec<String> = pods.iter().map(|n| format!("uid-{n}")).collect::<BTreeSet<_>>().into_iter().collect();
    agent.world.with(|played| {
        let rules: BTreeSet<u64> = played.rules.keys().copied().collect();
        let sets: BTreeSet<&String> = played.sets.values().collect();
        let enabled: Vec<&String> = played.annotations.iter().filter(|(_, v)| *v == ENABLED).map(|(k, _)| k).collect();
        rules == pods.iter().map(|n| 1000 + *n as u64).collect()
            && sets == uids.iter().collect()
            && enabled == uids.iter().collect::<Vec<_>>()
            && played.annotations.len() == uids.len()
    }) && ztunnel.uids() == uids
        && agent.open_namespaces() == pods.len()
}

async fn start(world: &Fake, labelled: bool, pods: &[Arc<Known>]) -> Agent {
    let agent = agent(world);
    agent.namespaces_are(labelled.then(|| "shop".to_owned()).into_iter().collect());
    pods.iter().for_each(|known| agent.consider(known));
    agent.complete();
    agent
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_joins_and_leaves_in_order() {
    let world = Fake::default();
    run(&world, 1);
    let agent = start(&world, false, &[]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    agent.consider(&known(&world, 1, Some(AMBIENT)));
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    assert_eq!(world.with(|played| played.urgencies.clone()), [Urgency::Background], "nobody waits for it");
    let done = world.with(|played| std::mem::take(&mut played.done));
    assert_eq!(done, ["program 1001", "sets +1 -0", "annotate enabled"]);
    assert_eq!(world.with(|played| played.states["uid-1"].clone()), "enrolled");
    agent.consider(&known(&world, 1, Some("none")));
    until("out", &agent, || exactly(&agent, &ztunnel, &[]) && agent.is_empty()).await;
    let done = world.with(|played| std::mem::take(&mut played.done));
    assert_eq!(done, ["sets +0 -1", "unprogram 1001", "annotate nothing"]);
    // A pod that never was in is nobody's business.
    agent.consider(&known(&world, 2, None));
    assert!(agent.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_start_does_not_wait_for_a_look_at_what_was_just_made() {
    let world = Fake::default();
    let agent = start(&world, true, &[]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    let pod = known(&world, 1, None);
    agent.consider(&pod);
    run(&world, 1);
    assert_eq!(agent.join(&pod, place(1001), LONG).await, Ok(Joined::Enrolled));
    assert_eq!(world.with(|played| played.looks.clone()), Vec::<String>::new());
    assert_eq!(world.with(|played| played.urgencies.clone()), [Urgency::Start], "it does not wait behind others");
    // But it is looked at, since somebody else may have changed something at the same time.
    until("looked at", &agent, || world.with(|played| !played.looks.is_empty())).await;
    assert!(
        world.with(|played| played.looks[0].contains("enrolled")),
        "{:?}",
        world.with(|played| played.looks.clone())
    );
    assert!(exactly(&agent, &ztunnel, &[1]));
}

#[tokio::test(flavor = "current_thread")]
async fn a_start_waits_for_the_ack_and_fails_closed() {
    let world = Fake::default();
    let agent = start(&world, true, &[]).await;
    // No ztunnel: the pod does not start, and why is said.
    let pod = known(&world, 1, None);
    agent.consider(&pod);
    run(&world, 1);
    let error = agent.join(&pod, place(1001), Duration::from_millis(50)).await.unwrap_err();
    assert!(error.contains("no ztunnel is connected"), "{error}");
    assert!(world.with(|played| played.sets.is_empty() && !played.annotations.values().any(|v| v == ENABLED)));
    // It connects while another start waits, and refuses at first.
    let waiting = {
        let (agent, pod) = (agent.clone(), pod.clone());
        tokio::spawn(async move { agent.join(&pod, place(1001), LONG).await })
    };
    tokio::task::yield_now().await;
    let ztunnel = Ztunnel::start(&agent, 3);
    assert_eq!(waiting.await.unwrap(), Ok(Joined::Enrolled));
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    // Again for the same sandbox; and for another one, the first having gone.
    assert_eq!(agent.join(&pod, place(1001), LONG).await, Ok(Joined::Enrolled));
    agent.sandbox_gone("uid-1");
    until("taken down", &agent, || ztunnel.uids().is_empty() && world.with(|p| p.sets.is_empty())).await;
    stop(&world, 1);
    world.with(|played| played.places.insert("uid-1".into(), 77));
    assert_eq!(agent.join(&pod, place(77), LONG).await, Ok(Joined::Enrolled));
    assert!(world.with(|played| played.rules.contains_key(&77)));
    // Rules that cannot be made: nothing is half done, and it is said at once.
    let other = known(&world, 2, None);
    run(&world, 2);
    world.with(|played| played.fail.insert("program", usize::MAX));
    let error = agent.join(&other, place(1002), LONG).await.unwrap_err();
    assert_eq!(error, "program fails");
    assert!(!ztunnel.uids().contains(&"uid-2".to_owned()));
    world.with(|played| played.fail.clear());
    // A pod that is none of ours starts without anything.
    let out = known(&world, 3, Some("none"));
    run(&world, 3);
    assert_eq!(agent.join(&out, place(1003), LONG).await, Ok(Joined::Out));
    assert!(world.with(|played| !played.rules.contains_key(&1003)));
}

#[tokio::test(flavor = "current_thread")]
async fn a_start_without_known_addresses_takes_those_of_the_namespace() {
    let world = Fake::default();
    let agent = start(&world, true, &[]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    let mut pod = json!({ "metadata": { "namespace": "shop", "name": "web-1", "uid": "uid-1" }, "status": { "phase": "Pending" } });
    let young = Arc::new(Known::of(serde_json::from_value(pod.clone()).unwrap()).unwrap());
    run(&world, 1);
    assert_eq!(agent.join(&young, place(1001), LONG).await, Ok(Joined::Enrolled));
    assert_eq!(world.with(|played| played.sets.keys().map(ToString::to_string).collect::<Vec<_>>()), ["10.9.9.9"]);
    pod["status"] = json!({ "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] });
    agent.consider(&Arc::new(Known::of(serde_json::from_value(pod).unwrap()).unwrap()));
    until("exact", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    assert_eq!(world.with(|played| played.sets.keys().map(ToString::to_string).collect::<Vec<_>>()), ["10.0.0.1"]);
}

#[tokio::test(flavor = "current_thread")]
async fn labels_that_flip_leave_nothing_half_done() {
    let world = Fake::default();
    let pods: Vec<usize> = (0..8).collect();
    pods.iter().for_each(|n| run(&world, *n));
    let all = |world: &Fake| -> Vec<Arc<Known>> {
        // One says no for itself.
        pods.iter().map(|n| known(world, *n, (*n == 3).then_some("none"))).collect()
    };
    let agent = start(&world, false, &all(&world)).await;
    let ztunnel = Ztunnel::start(&agent, 2);
    for flip in 0..40 {
        agent.namespace_is("shop", flip % 2 == 0);
        all(&world).iter().for_each(|known| agent.consider(known));
        // Each time at another point of what goes on.
        for _ in 0..flip {
            tokio::task::yield_now().await;
        }
        if flip % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // Off last.
    until("out", &agent, || exactly(&agent, &ztunnel, &[]) && agent.is_empty()).await;
    agent.namespace_is("shop", true);
    all(&world).iter().for_each(|known| agent.consider(known));
    let most: Vec<usize> = pods.iter().copied().filter(|n| *n != 3).collect();
    until("in", &agent, || exactly(&agent, &ztunnel, &most)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn agent_and_ztunnel_start_anew_in_any_order() {
    let world = Fake::default();
    (0..6).for_each(|n| run(&world, n));
    let ambient = |world: &Fake, n: usize| known(world, n, (n != 4).then_some(AMBIENT));
    let all = |world: &Fake| (0..6).map(|n| ambient(world, n)).collect::<Vec<_>>();
    let enrolled = [0, 1, 2, 3, 5];
    let first = start(&world, false, &all(&world)).await;
    let ztunnel = Ztunnel::start(&first, 0);
    until("enrolled", &first, || exactly(&first, &ztunnel, &enrolled)).await;
    // ztunnel alone; what was enabled stays so meanwhile.
    ztunnel.end().await;
    assert_eq!(world.with(|played| played.annotations.values().filter(|v| *v == ENABLED).count()), 5);
    let ztunnel = Ztunnel::start(&first, 0);
    until("enrolled again", &first, || exactly(&first, &ztunnel, &enrolled)).await;
    // The agent, which is killed: a pod leaves, one goes and one comes while it is away.
    ztunnel.end().await;
    for member in lock(&first.members).values() {
        member.abort();
    }
    drop(first);
    stop(&world, 1);
    world.with(|played| played.annotations.remove("uid-1"));
    run(&world, 6);
    let now = |world: &Fake| {
        let label = |n: usize| if n == 2 { None } else { Some(AMBIENT) };
        [0, 2, 3, 4, 5, 6].into_iter().map(|n| known(world, n, label(n))).collect::<Vec<_>>()
    };
    let pods = now(&world);
    let second = start(&world, false, &pods).await;
    // Addresses that nobody claims are the host's to drop; here the world does.
    world.with(|played| played.sets.clear());
    let ztunnel = Ztunnel::start(&second, 0);
    until("anew", &second, || exactly(&second, &ztunnel, &[0, 3, 4, 5, 6])).await;
    assert!(world.with(|played| !played.rules.contains_key(&1002)), "left while the agent was away");
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_whose_namespace_is_not_found_is_kept_and_looked_for() {
    let world = Fake::default();
    run(&world, 1);
    let pods = [known(&world, 1, Some(AMBIENT)), known(&world, 2, Some(AMBIENT))];
    let agent = start(&world, false, &pods).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("kept", &agent, || lock(&ztunnel.has).get("uid-2") == Some(&None)).await;
    assert_eq!(world.with(|played| played.states["uid-2"].clone()), "no-namespace");
    until("a snapshot", &agent, || agent.book.ztunnels() == (1, 1)).await;
    run(&world, 2);
    until("found", &agent, || exactly(&agent, &ztunnel, &[1, 2])).await;
    assert!(lock(&ztunnel.has)["uid-2"].is_some());
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_dies_in_the_middle_leaves_nothing() {
    let world = Fake::default();
    let agent = start(&world, true, &[]).await;
    // Between rules and Add: there is no ztunnel yet.
    run(&world, 1);
    let pod = known(&world, 1, None);
    agent.consider(&pod);
    until("programmed", &agent, || world.with(|played| played.rules.contains_key(&1001))).await;
    stop(&world, 1);
    agent.sandbox_gone("uid-1");
    agent.gone("uid-1");
    until("gone", &agent, || agent.is_empty()).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("nothing", &agent, || agent.book.ztunnels() == (1, 1)).await;
    world.with(|played| played.annotations.clear());
    assert!(exactly(&agent, &ztunnel, &[]));
    // Gone from the API server while it joins, at every point of that.
    for yields in 0..40 {
        run(&world, 1);
        agent.consider(&pod);
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        stop(&world, 1);
        agent.gone("uid-1");
        until("gone", &agent, || agent.is_empty()).await;
        world.with(|played| played.annotations.clear());
        assert!(exactly(&agent, &ztunnel, &[]), "after {yields}");
        assert!(agent.book.is_empty());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn rules_that_are_changed_are_put_back_and_failures_are_tried_again() {
    let world = Fake::default();
    run(&world, 1);
    world.with(|played| {
        played.fail = [("program", 2), ("sets", 2), ("annotate", 1)].into();
    });
    let agent = start(&world, false, &[known(&world, 1, Some(AMBIENT))]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    world.with(|played| played.rules.clear());
    world.changes.notify_waiters();
    until("repaired", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    let done = world.with(|played| played.done.join("\n"));
    assert!(done.contains("its rules differed: missing rule; repaired with nftables"), "{done}");
    // What a pod asks for changes: the rules follow, and ztunnel is not told again.
    let mut changed = json!({ "metadata": { "namespace": "shop", "name": "web-1", "uid": "uid-1", "labels": { MODE: AMBIENT },
            "annotations": { "ambient.istio.io/dns-capture": "false", REDIRECTION: ENABLED } },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }] } });
    agent.consider(&Arc::new(Known::of(serde_json::from_value(changed.clone()).unwrap()).unwrap()));
    until("changed", &agent, || world.with(|played| !played.rules[&1001].dns)).await;
    assert!(exactly(&agent, &ztunnel, &[1]));
    // It ends: its annotation goes, too.
    changed["status"]["phase"] = "Succeeded".into();
    stop(&world, 1);
    agent.consider(&Arc::new(Known::of(serde_json::from_value(changed).unwrap()).unwrap()));
    until("ended", &agent, || exactly(&agent, &ztunnel, &[]) && agent.is_empty()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_without_a_ztunnel_is_pending() {
    let world = Fake::default();
    run(&world, 1);
    let agent = start(&world, false, &[known(&world, 1, Some(AMBIENT))]).await;
    until("pending", &agent, || world.with(|p| p.annotations.get("uid-1").is_some_and(|v| v == PENDING))).await;
    assert_eq!(world.with(|played| played.states["uid-1"].clone()), "pending");
    let ztunnel = Ztunnel::start(&agent, 1);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
}
