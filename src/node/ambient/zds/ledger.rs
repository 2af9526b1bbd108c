//! What one ztunnel has been told, and the next request for it. Pure: nothing is sent here.
//!
//! ```text
//! hello ──► Add or Keep for every pod ──► SnapshotSent ──► Add and Del as they happen
//! ```
//!
//! At SnapshotSent, a ztunnel drops every pod that it knows and that was neither added nor kept, so this
//! is sent only when every pod is known here. A Keep or a second SnapshotSent afterwards would make the
//! ztunnel end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::tell::{Identity, Pods, Tell, Uid};

/// The pauses between two tries to have a pod taken: the first, and the longest.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(5));

/// The pause after so many failures in a row.
pub fn pause(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest)
}

/// What a connection is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Tell(Tell),
    /// Wait until something changes, or until this time.
    Wait(Option<Instant>),
}

/// What a ztunnel has been told last of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastSent {
    Added(Identity),
    Kept,
    /// An Add or Del was sent and is not confirmed; a pod that the ztunnel could not add, it keeps
    /// trying by itself.
    Unsure,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    again: Instant,
}

/// The state of one connection. At most one request is in flight: it is [`Ledger::acknowledged`] before
/// the next is asked for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    told: HashMap<Uid, LastSent>,
    /// The pods of which something may have to be sent, each once.
    queue: VecDeque<Uid>,
    queued: HashSet<Uid>,
    failed: HashMap<Uid, Failed>,
    snapshot_sent: bool,
}

impl Ledger {
    /// The state for a ztunnel that has been told nothing yet.
    pub(super) fn new<'a>(pods: impl IntoIterator<Item = &'a Uid>) -> Self {
        let mut ledger = Self::default();
        pods.into_iter().for_each(|uid| ledger.changed(uid));
        ledger
    }

    /// Whether the ztunnel has had a complete snapshot.
    pub(super) fn snapshot_sent(&self) -> bool {
        self.snapshot_sent
    }

    /// Whether the ztunnel may know a pod, by what it was told.
    pub(super) fn knows(&self, uid: &Uid) -> bool {
        self.told.contains_key(uid)
    }

    /// Whether the ztunnel has confirmed a pod in this namespace, and was told nothing else of it since.
    pub(super) fn has(&self, uid: &Uid, identity: Identity) -> bool {
        self.told.get(uid) == Some(&LastSent::Added(identity))
    }

    /// Queues a pod of which something has changed.
    pub(super) fn changed(&mut self, uid: &Uid) {
        if self.queued.insert(uid.clone()) {
            self.queue.push_back(uid.clone());
        }
    }

    /// The next request, or how long to wait.
    pub(super) fn next(&mut self, pods: &impl Pods, now: Instant) -> Next {
        self.take_up_again(now);
        while let Some(uid) = self.queue.pop_front() {
            self.queued.remove(&uid);
            if let Some(tell) = self.about(&uid, pods, now) {
                if matches!(tell, Tell::Add(..) | Tell::Del(_)) {
                    self.told.insert(uid, LastSent::Unsure);
                }
                return Next::Tell(tell);
            }
        }
        if !self.snapshot_sent && pods.is_complete() {
            return Next::Tell(Tell::SnapshotSent);
        }
        Next::Wait(self.failed.values().map(|failed| failed.again).min())
    }

    /// Queues the pods whose pause is over.
    fn take_up_again(&mut self, now: Instant) {
        let due: Vec<Uid> =
            self.failed.iter().filter(|(_, failed)| failed.again <= now).map(|(uid, _)| uid.clone()).collect();
        due.iter().for_each(|uid| self.changed(uid));
    }

    fn about(&mut self, uid: &Uid, pods: &impl Pods, now: Instant) -> Option<Tell> {
        let told = self.told.get(uid).copied();
        let Some(pod) = pods.get(uid) else {
            self.failed.remove(uid);
            return told.map(|_| Tell::Del(uid.clone()));
        };
        let can_keep = !self.snapshot_sent && told.is_none();
        let Some(identity) = pod.identity else {
            // What is being looked for may be found in a moment; until then there is nothing to try again.
            self.failed.remove(uid);
            return (can_keep && pod.searched).then(|| Tell::Keep(uid.clone()));
        };
        if told == Some(LastSent::Added(identity)) {
            self.failed.remove(uid);
            return None;
        }
        let again = self.failed.get(uid).map(|failed| failed.again).max(pod.not_before);
        match again {
            Some(again) if again > now => {
                let times = self.failed.get(uid).map_or(0, |failed| failed.times);
                self.failed.insert(uid.clone(), Failed { times, again });
                // The others do not wait for it, and what the ztunnel has of it stays.
                can_keep.then(|| Tell::Keep(uid.clone()))
            }
            _ => Some(Tell::Add(uid.clone(), identity)),
        }
    }

    /// Records the answer to a request: whether it was carried out.
    pub(super) fn acknowledged(&mut self, tell: &Tell, done: bool, now: Instant) {
        match tell {
            Tell::Add(uid, identity) if done => {
                self.told.insert(uid.clone(), LastSent::Added(*identity));
                self.failed.remove(uid);
            }
            Tell::Add(uid, _) => {
                let times = self.failed.get(uid).map_or(0, |failed| failed.times).saturating_add(1);
                self.failed.insert(uid.clone(), Failed { times, again: now + pause(times) });
            }
            Tell::Keep(uid) => {
                self.told.insert(uid.clone(), LastSent::Kept);
                // It may have been found meanwhile.
                self.changed(uid);
            }
            Tell::Del(uid) => {
                self.told.remove(uid);
                // It may have come back meanwhile.
                self.changed(uid);
            }
            Tell::SnapshotSent => self.snapshot_sent = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::tell::ToldPod;
    use super::*;

    #[derive(Default)]
    struct Fixed {
        pods: BTreeMap<Uid, ToldPod>,
        complete: bool,
    }

    impl Pods for Fixed {
        fn get(&self, uid: &Uid) -> Option<ToldPod> {
            self.pods.get(uid).copied()
        }

        fn is_complete(&self) -> bool {
            self.complete && self.pods.values().all(|pod| pod.searched)
        }
    }

    fn pod(inode: u64) -> ToldPod {
        ToldPod { identity: Some((1, inode)), searched: true, not_before: None }
    }

    fn looked_for(searched: bool) -> ToldPod {
        ToldPod { identity: None, searched, not_before: None }
    }

    /// All requests until there is none, as words, each acknowledged as `done` says.
    fn all(ledger: &mut Ledger, pods: &Fixed, now: Instant, done: impl Fn(&Tell) -> bool) -> Vec<String> {
        let mut told = Vec::new();
        while let Next::Tell(tell) = ledger.next(pods, now) {
            assert!(told.len() < 100, "{told:?}");
            told.push(format!("{} {}", tell.word(), tell.uid().map_or("", |uid| uid)));
            ledger.acknowledged(&tell, done(&tell), now);
        }
        told
    }

    #[test]
    fn a_snapshot_comes_first_and_is_complete() {
        let now = Instant::now();
        let (a, b, c): (Uid, Uid, Uid) = ("a".into(), "b".into(), "c".into());
        let pods = [(a.clone(), pod(1)), (b.clone(), looked_for(true)), (c.clone(), looked_for(false))];
        let mut pods = Fixed { pods: pods.into(), complete: false };
        let mut ledger = Ledger::new(pods.pods.keys());
        let yes = |_: &Tell| true;
        // The third is still being looked for: nothing is said of it, nor that this was all.
        assert_eq!(all(&mut ledger, &pods, now, yes), ["add a", "keep b"]);
        pods.complete = true;
        assert_eq!(all(&mut ledger, &pods, now, yes), [""; 0]);
        pods.pods.insert(c.clone(), pod(3));
        ledger.changed(&c);
        assert_eq!(all(&mut ledger, &pods, now, yes), ["add c", "snapshot-sent "]);
        // What was kept is found; what was added moves; one is new, one goes.
        pods.pods.insert(b.clone(), pod(2));
        pods.pods.insert(a.clone(), pod(9));
        pods.pods.insert("d".into(), looked_for(true));
        pods.pods.remove(&c);
        for uid in [&a, &b, &c, &"d".into()] {
            ledger.changed(uid);
            ledger.changed(uid);
        }
        assert_eq!(all(&mut ledger, &pods, now, yes), ["add a", "add b", "del c"]);
        assert_eq!(ledger.next(&pods, now), Next::Wait(None));
        // A pod that came and went before anything was told of it is nobody's business.
        ledger.changed(&"e".into());
        assert_eq!(all(&mut ledger, &pods, now, yes), [""; 0]);
    }

    #[test]
    fn what_was_not_taken_is_tried_again_with_growing_pauses() {
        let now = Instant::now();
        let uid: Uid = "a".into();
        let pods = Fixed { pods: [(uid.clone(), pod(1)), ("b".into(), pod(2))].into(), complete: true };
        let mut ledger = Ledger::new(pods.pods.keys());
        let not_a = |tell: &Tell| !matches!(tell, Tell::Add(uid, _) if &**uid == "a");
        assert_eq!(all(&mut ledger, &pods, now, not_a), ["add a", "add b", "snapshot-sent "]);
        let mut at = now;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let Next::Wait(Some(again)) = ledger.next(&pods, at) else { panic!() };
            pauses.push((again - at).as_millis());
            at = again;
            assert_eq!(all(&mut ledger, &pods, at, not_a), ["add a"]);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000]);
        let Next::Wait(Some(again)) = ledger.next(&pods, at) else { panic!() };
        assert_eq!(all(&mut ledger, &pods, again, |_| true), ["add a"]);
        assert_eq!(ledger.next(&pods, again), Next::Wait(None));
        // A ztunnel that could not add a pod keeps trying: it has to be told when it leaves.
        let mut ledger = Ledger::new(pods.pods.keys());
        all(&mut ledger, &pods, now, not_a);
        ledger.changed(&uid);
        assert_eq!(all(&mut ledger, &Fixed::default(), now, |_| true), ["del a"]);
    }

    #[test]
    fn a_pod_over_which_connections_were_lost_waits_and_the_others_do_not() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let bad = ToldPod { not_before: Some(later), ..pod(1) };
        let pods = Fixed { pods: [("a".into(), bad), ("b".into(), pod(2))].into(), complete: true };
        let mut ledger = Ledger::new(pods.pods.keys());
        assert_eq!(all(&mut ledger, &pods, now, |_| true), ["keep a", "add b", "snapshot-sent "]);
        assert_eq!(ledger.next(&pods, now), Next::Wait(Some(later)));
        assert_eq!(all(&mut ledger, &pods, later, |_| true), ["add a"]);
    }

    #[test]
    fn a_pod_that_comes_back_is_told_of_as_it_is_by_then() {
        let now = Instant::now();
        let (a, gone): (Uid, Fixed) = ("a".into(), Fixed { pods: BTreeMap::new(), complete: true });
        let there = Fixed { pods: [(a.clone(), pod(1))].into(), complete: true };
        let expected = Fixed { pods: [(a.clone(), looked_for(true))].into(), complete: true };
        let mut ledger = Ledger::new(there.pods.keys());
        assert_eq!(all(&mut ledger, &there, now, |_| true), ["add a", "snapshot-sent "]);
        assert!(ledger.has(&a, (1, 1)) && !ledger.has(&a, (1, 2)));
        // Before it was let go of: it has it still.
        ledger.changed(&a);
        assert_eq!(ledger.next(&expected, now), Next::Wait(None));
        assert!(ledger.has(&a, (1, 1)));
        // While it is let go of: it has it no more, and does not know nothing of it.
        ledger.changed(&a);
        let Next::Tell(del) = ledger.next(&gone, now) else { panic!() };
        assert!(!ledger.has(&a, (1, 1)) && ledger.knows(&a));
        ledger.acknowledged(&del, true, now);
        assert!(!ledger.knows(&a));
        assert_eq!(all(&mut ledger, &there, now, |_| true), ["add a"]);
        // One that was refused and has no namespace is not tried again, nor waited for.
        let mut ledger = Ledger::new(there.pods.keys());
        assert_eq!(all(&mut ledger, &there, now, |tell| !matches!(tell, Tell::Add(..))), ["add a", "snapshot-sent "]);
        let Next::Wait(Some(again)) = ledger.next(&there, now) else { panic!() };
        assert_eq!(ledger.next(&expected, again), Next::Wait(None));
        ledger.changed(&a);
        assert_eq!(all(&mut ledger, &there, again, |_| true), ["add a"]);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Set(u8, Option<u64>, bool),
        Remove(u8),
        Complete,
        Step(bool),
        Time,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u8..4, proptest::option::of(0u64..3), any::<bool>())
                .prop_map(|(uid, inode, searched)| Event::Set(uid, inode, searched)),
            (0u8..4).prop_map(Event::Remove),
            Just(Event::Complete),
            any::<bool>().prop_map(Event::Step),
            Just(Event::Time),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, a ztunnel that does what it is told, and
        /// refuses now and then, ends up with exactly the pods there are; and nothing is
        /// ever said that would end it.
        #[test]
        fn a_ztunnel_ends_up_with_exactly_the_pods_there_are(
            before in proptest::collection::btree_map(0u8..4, 0u64..3, 0..4),
            events in proptest::collection::vec(event(), 0..40),
        ) {
            let uid = |n: u8| -> Uid { n.to_string().into() };
            let mut now = Instant::now();
            let mut pods = Fixed::default();
            // What it has of an earlier connection.
            let mut ztunnel: BTreeMap<Uid, Identity> = before.iter().map(|(n, inode)| (uid(*n), (1, *inode))).collect();
            let (mut named, mut snapshot): (HashSet<Uid>, bool) = (HashSet::new(), false);
            let mut ledger = Ledger::default();
            let mut step = |ledger: &mut Ledger, pods: &Fixed, now: Instant, done: bool| -> bool {
                let Next::Tell(tell) = ledger.next(pods, now) else { return false };
                let done = done || !matches!(tell, Tell::Add(..));
                match &tell {
                    Tell::Add(uid, identity) => {
                        named.insert(uid.clone());
                        if done {
                            ztunnel.insert(uid.clone(), *identity);
                        } else {
                            ztunnel.remove(uid);
                        }
                    }
                    Tell::Keep(uid) => {
                        assert!(!snapshot);
                        named.insert(uid.clone());
                    }
                    Tell::Del(uid) => drop(ztunnel.remove(uid)),
                    Tell::SnapshotSent => {
                        assert!(!snapshot);
                        snapshot = true;
                        ztunnel.retain(|uid, _| named.contains(uid));
                    }
                }
                ledger.acknowledged(&tell, done, now);
                true
            };
            for event in events {
                match event {
                    Event::Set(n, inode, searched) => {
                        let identity = inode.map(|inode| (1, inode));
                        pods.pods.insert(uid(n), ToldPod { identity, searched: searched || identity.is_some(), not_before: None });
                        ledger.changed(&uid(n));
                    }
                    Event::Remove(n) => {
                        pods.pods.remove(&uid(n));
                        ledger.changed(&uid(n));
                    }
                    Event::Complete => pods.complete = true,
                    Event::Step(done) => drop(step(&mut ledger, &pods, now, done)),
                    Event::Time => now += Duration::from_secs(6),
                }
            }
            pods.complete = true;
            let names: Vec<Uid> = pods.pods.keys().cloned().collect();
            for (n, name) in names.iter().enumerate() {
                pods.pods.insert(name.clone(), pod(n as u64));
                ledger.changed(name);
            }
            for _ in 0..100 {
                now += Duration::from_secs(6);
                step(&mut ledger, &pods, now, true);
            }
            prop_assert!(snapshot);
            let wanted: BTreeMap<Uid, Identity> =
                pods.pods.iter().map(|(uid, pod)| (uid.clone(), pod.identity.unwrap())).collect();
            prop_assert_eq!(ztunnel, wanted);
        }
    }
}
