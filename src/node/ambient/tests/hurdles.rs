//! Pods that come back before they have gone, ztunnels that take their time or change their
//! mind, an API server that does not answer, rules that cannot be removed.

use super::*;

fn set_of(world: &Fake) -> Vec<String> {
    world.with(|played| played.sets.keys().map(ToString::to_string).collect())
}

fn state_of(world: &Fake, uid: &str) -> String {
    world.with(|played| played.states.get(uid).cloned().unwrap_or_default())
}

/// A small generator of numbers that look random, the same ones every time.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[tokio::test(flavor = "current_thread")]
async fn pods_that_come_back_before_they_have_gone_are_enrolled() {
    let world = Fake::default();
    let pods: Vec<usize> = (0..24).collect();
    pods.iter().for_each(|n| run(&world, *n));
    let agent = start(&world, false, &[]).await;
    // While it answers one request, pods that are to be let go of wait for theirs, and come back.
    let ztunnel = Ztunnel::slow(&agent, 2, Duration::from_millis(2));
    let mut seed = 7;
    let mut is_in = vec![false; pods.len()];
    for round in 0..6 {
        for _ in 0..120 {
            let n = next(&mut seed) as usize % pods.len();
            // All of them, as by the label of their namespace, or one.
            let some = if next(&mut seed).is_multiple_of(8) { 0..pods.len() } else { n..n + 1 };
            for n in some {
                is_in[n] = !is_in[n];
                agent.consider(&known(&world, n, is_in[n].then_some(AMBIENT)));
            }
            match next(&mut seed) % 4 {
                0 => tokio::time::sleep(Duration::from_millis(next(&mut seed) % 12)).await,
                often => {
                    for _ in 0..often * 3 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        let wanted: Vec<usize> = pods.iter().copied().filter(|n| is_in[*n]).collect();
        until(&format!("{wanted:?} after round {round}"), &agent, || exactly(&agent, &ztunnel, &wanted)).await;
        let differs = |n: &&usize| (state_of(&world, &format!("uid-{n}")) == "enrolled") != is_in[**n];
        assert_eq!(pods.iter().find(differs), None, "after round {round}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_ztunnel_that_refuses_takes_the_place_of_one_that_had_it() {
    let world = Fake::default();
    run(&world, 1);
    let agent = start(&world, false, &[known(&world, 1, Some(AMBIENT))]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    ztunnel.end().await;
    let ztunnel = Ztunnel::start(&agent, usize::MAX);
    let says = |value: &str| world.with(|played| played.annotations.get("uid-1").is_some_and(|v| v == value));
    until("pending", &agent, || says(PENDING) && state_of(&world, "uid-1") == "pending").await;
    ztunnel.end().await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("enrolled again", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    until("shown", &agent, || state_of(&world, "uid-1") == "enrolled").await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_api_server_that_does_not_answer_holds_no_start_up() {
    let world = Fake::default();
    let agent = start(&world, true, &[]).await;
    let silent = world.api.clone().lock_owned().await;
    let pods: Vec<usize> = (0..20).collect();
    let joins: Vec<_> = pods
        .iter()
        .map(|n| {
            run(&world, *n);
            world.with(|played| played.addresses.insert(1000 + *n as u64, [10, 0, 0, *n as u8].into()));
            let (agent, known, place) = (agent.clone(), known(&world, *n, None), place(1000 + *n as u64));
            tokio::spawn(async move { agent.join(&known, place, LONG).await })
        })
        .collect();
    // There is no ztunnel yet, which is to be written on all of them.
    until("being written", &agent, || world.with(|played| played.writing.0 == 1)).await;
    until("pending", &agent, || pods.iter().all(|n| state_of(&world, &format!("uid-{n}")) == "pending")).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    for join in joins {
        assert_eq!(join.await.unwrap(), Ok(Joined::Enrolled));
    }
    // Nor does it hold up repairs, and leaving.
    world.with(|played| played.rules.remove(&1003));
    world.changes.notify_waiters();
    until("repaired", &agent, || world.with(|played| played.rules.contains_key(&1003))).await;
    agent.consider(&known(&world, 4, Some("none")));
    until("out", &agent, || !ztunnel.uids().contains(&"uid-4".into())).await;
    agent.gone("uid-5");
    until("gone", &agent, || !ztunnel.uids().contains(&"uid-5".into())).await;
    assert_eq!(world.with(|played| (played.annotations.len(), played.writing)), (0, (1, 1)));
    drop(silent);
    stop(&world, 5);
    let enrolled: Vec<usize> = pods.iter().copied().filter(|n| ![4, 5].contains(n)).collect();
    until("written", &agent, || exactly(&agent, &ztunnel, &enrolled)).await;
    let done = world.with(|played| std::mem::take(&mut played.done));
    let count = |what: &str| done.iter().filter(|line| *line == what).count();
    // Of what was ordered one after the other, the newest is written, and nothing on a pod that is gone.
    assert_eq!((count("annotate pending"), count("annotate enabled")), (1, enrolled.len()), "{done:?}");
    assert_eq!(world.with(|played| played.writing), (0, 1), "one at a time");
}

#[tokio::test(flavor = "current_thread")]
async fn a_pod_that_leaves_is_never_said_to_be_enrolled() {
    let world = Fake::default();
    let agent = start(&world, false, &[]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    let silent = world.api.clone().lock_owned().await;
    (1..=3).for_each(|n| run(&world, n));
    agent.consider(&known(&world, 1, Some(AMBIENT)));
    until("being written", &agent, || world.with(|played| played.writing.0 == 1)).await;
    // The second one's turn comes when it has begun to leave, and is not done with that.
    agent.consider(&known(&world, 2, Some(AMBIENT)));
    until("enrolled", &agent, || state_of(&world, "uid-2") == "enrolled").await;
    world.with(|played| played.fail.insert("unprogram", usize::MAX));
    agent.consider(&known(&world, 2, Some("none")));
    until("leaving", &agent, || state_of(&world, "uid-2") == "failed").await;
    agent.consider(&known(&world, 3, Some(AMBIENT)));
    until("enrolled", &agent, || state_of(&world, "uid-3") == "enrolled").await;
    drop(silent);
    let says = |uid: &str| world.with(|played| played.annotations.contains_key(uid));
    until("written", &agent, || says("uid-1") && says("uid-3")).await;
    world.with(|played| played.fail.clear());
    until("exact", &agent, || exactly(&agent, &ztunnel, &[1, 3]) && agent.len() == 2).await;
    let done = world.with(|played| std::mem::take(&mut played.done));
    assert_eq!(done.iter().filter(|line| *line == "annotate enabled").count(), 2, "{done:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_namespace_that_is_gone_is_kept_by_nobody() {
    let world = Fake::default();
    (1..=2).for_each(|n| run(&world, n));
    let agent = start(&world, false, &[1, 2].map(|n| known(&world, n, Some(AMBIENT)))).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1, 2])).await;
    // No DEL is heard of.
    stop(&world, 2);
    world.changes.notify_waiters();
    until("missed", &agent, || state_of(&world, "uid-2") == "no-namespace").await;
    until("closed", &agent, || agent.open_namespaces() == 1 && set_of(&world) == ["10.0.0.1"]).await;
    assert_eq!(agent.book.namespaces().len(), 1);
    ztunnel.end().await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("told everything", &agent, || agent.book.ztunnels() == (1, 1)).await;
    assert_eq!(lock(&ztunnel.has).get("uid-2"), Some(&None), "it is kept, and not added");
    // It is made anew, and found by its processes.
    world.with(|played| played.places.insert("uid-2".into(), 1002));
    until("back", &agent, || exactly(&agent, &ztunnel, &[1, 2])).await;
}

#[tokio::test(flavor = "current_thread")]
async fn rules_that_cannot_be_removed_keep_the_probes_that_they_need() {
    let world = Fake::default();
    run(&world, 1);
    let agent = start(&world, false, &[known(&world, 1, Some(AMBIENT))]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    world.with(|played| {
        played.done.clear();
        played.fail.insert("unprogram", usize::MAX);
    });
    agent.consider(&known(&world, 1, None));
    let tries = || world.with(|played| played.done.iter().filter(|line| line.starts_with("unprogram")).count());
    until("tried again and again", &agent, || tries() > 3).await;
    assert_eq!((set_of(&world), ztunnel.uids()), (vec!["10.0.0.1".to_owned()], vec!["uid-1".to_owned()]));
    // Only the first try took the address out.
    let sets =
        world.with(|played| played.done.iter().filter(|line| line.starts_with("sets")).cloned().collect::<Vec<_>>());
    assert_eq!(sets, ["sets +0 -1", "sets +1 -0"]);
    world.with(|played| played.fail.clear());
    until("out", &agent, || exactly(&agent, &ztunnel, &[]) && agent.is_empty()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_made_anew_is_probed_at_its_own_address() {
    let world = Fake::default();
    run(&world, 1);
    // The status is of a sandbox before.
    let pod = known(&world, 1, Some(AMBIENT));
    let agent = start(&world, false, &[]).await;
    let ztunnel = Ztunnel::start(&agent, 0);
    agent.consider(&pod);
    until("enrolled", &agent, || exactly(&agent, &ztunnel, &[1])).await;
    assert_eq!(set_of(&world), ["10.0.0.1"]);
    for inode in [1001, 77] {
        world.with(|played| played.places.insert("uid-1".into(), inode));
        assert_eq!(agent.join(&pod, place(inode), LONG).await, Ok(Joined::Enrolled));
        assert_eq!(set_of(&world), ["10.9.9.9"], "in {inode}");
        // News of the pod that say nothing of its address change nothing.
        agent.consider(&known(&world, 1, Some(AMBIENT)));
    }
    let mut told = json!({ "metadata": { "namespace": "shop", "name": "web-1", "uid": "uid-1", "labels": { MODE: AMBIENT },
            "annotations": { REDIRECTION: ENABLED } },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.7" }] } });
    agent.consider(&Arc::new(Known::of(serde_json::from_value(told.clone()).unwrap()).unwrap()));
    until("told", &agent, || set_of(&world) == ["10.0.0.7"]).await;
    // What the status tells after that is believed, whatever it was before.
    told["status"]["podIPs"] = json!([{ "ip": "10.0.0.1" }]);
    agent.consider(&Arc::new(Known::of(serde_json::from_value(told).unwrap()).unwrap()));
    until("told again", &agent, || set_of(&world) == ["10.0.0.1"]).await;
}
