//! Connections while the rules are replaced again and again: none escapes, none fails, and
//! those that are open go on. Escapes outbound are counted outside, by packets that come
//! from the app's address; inbound they are what the app accepted and Envoy did not send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::config::{Family, V4, V6};
use super::functional::OPTIONS;
use super::place::{PATIENCE, Place, ask, open};
use crate::fixture::Namespace;

const APP: (u32, u32) = (1000, 1000);
const PORT: u16 = 9000;
/// Streams that stay open, of each direction and family.
const STREAMS: usize = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// How many connections each loop opens between two changes of the rules, at least.
const BETWEEN: u64 = 5;
const FAMILIES: [Family; 2] = [V4, V6];

/// What came of the traffic.
#[derive(Debug, Default)]
pub struct Outcome {
    pub opened: u64,
    pub failed: Vec<String>,
    pub broken: Vec<String>,
    pub escaped_out: u64,
    pub escaped_in: u64,
}

/// Counts what opens a connection outside from the app's addresses.
fn count_escapes(outside: &Namespace) {
    let rules = format!(
        "table inet count {{ counter escaped {{ }}; chain c {{ type filter hook input priority -300; \
         tcp flags & (syn|ack) == syn tcp dport {PORT} jump from; }}; chain from {{ \
         ip saddr {} counter name escaped; ip6 saddr {} counter name escaped; }}; }}",
        V4.pod, V6.pod
    );
    let output = outside.feed("nft", &["-f", "-"], &[], &rules);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn escaped(outside: &Namespace) -> u64 {
    let text = outside.print("nft", &["list", "counter", "inet", "count", "escaped"]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// Opens connections until told to stop, one after the other; those that are not answered
/// by whom they should be are told.
fn loops(who: &str, user: (u32, u32), to: &str, answer: &str, stop: &AtomicBool, opened: &AtomicU64) -> Vec<String> {
    let mut wrong = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let line = ask(user, to, PORT, None);
        opened.fetch_add(1, Ordering::Relaxed);
        if !line.starts_with(answer) {
            wrong.push(format!("{who}: {line}"));
        }
        std::thread::sleep(PAUSE);
    }
    wrong
}

/// Sends on an open connection and reads the same back, until told to stop.
fn stream(who: &str, user: (u32, u32), to: &str, stop: &AtomicBool, turns: &AtomicU64) -> Option<String> {
    let mut stream: TcpStream = open(user, to, PORT).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    let mut count = 0u32;
    loop {
        if stop.load(Ordering::Relaxed) {
            break None;
        }
        count += 1;
        let mut back = [0; 4];
        let turn = stream.write_all(&count.to_be_bytes()).and_then(|()| reader.read_exact(&mut back));
        match turn {
            Ok(()) if back == count.to_be_bytes() => {
                turns.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            Ok(()) => break Some(format!("{who}: {back:?} came back after {count} turns")),
            Err(e) => break Some(format!("{who}: {e} after {count} turns")),
        }
    }
}

/// How far the traffic is: of each loop the connections that it has opened, of each stream
/// the turns that it has made.
struct Progress {
    opened: [AtomicU64; 4],
    turns: Vec<AtomicU64>,
}

impl Progress {
    /// Waits until every loop has opened so many connections more and every stream has gone
    /// on: what the rules held back has been sent again by then, and only what is broken is not.
    fn wait(&self) {
        let begin = Instant::now();
        let opened = self.opened.iter().map(|count| (count, BETWEEN));
        let all = opened.chain(self.turns.iter().map(|count| (count, 1)));
        let goals: Vec<(&AtomicU64, u64)> =
            all.map(|(count, more)| (count, count.load(Ordering::Relaxed) + more)).collect();
        for (count, goal) in goals {
            while count.load(Ordering::Relaxed) < goal && begin.elapsed() < 2 * PATIENCE {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Runs traffic in both directions and families while `change` changes the rules as often
/// as it is told to.
fn traffic(place: &Place, streams: usize, rounds: usize, change: impl Fn(usize, &Progress)) -> Outcome {
    count_escapes(&place.outside);
    let inbound = |counts: &std::collections::BTreeMap<String, u64>| {
        FAMILIES.iter().filter_map(|family| counts.get(family.inbound_passthrough())).sum::<u64>()
    };
    let (accepted, sent_on) = (place.app.accepted(), inbound(&place.envoy.counts()));
    let turns = (0..4 * streams).map(|_| AtomicU64::new(0)).collect();
    let (stop, progress) = (AtomicBool::new(false), Progress { opened: Default::default(), turns });
    let (stop, progress) = (&stop, &progress);
    let mut outcome = Outcome::default();
    std::thread::scope(|scope| {
        let (mut loopers, mut streamers) = (Vec::new(), Vec::new());
        let (mut counts, mut turns) = (progress.opened.iter(), progress.turns.iter());
        for family in FAMILIES {
            let ways =
                [("out", &place.pod, APP, family.server, "outside"), ("in", &place.outside, (0, 0), family.pod, "app")];
            for (way, namespace, user, to, answer) in ways {
                let who = format!("{way} to {to}");
                for _ in 0..streams {
                    let who = format!("stream {who}");
                    let turns = turns.next().unwrap();
                    streamers.push(scope.spawn(move || namespace.run(|| stream(&who, user, to, stop, turns))));
                }
                let count = counts.next().unwrap();
                loopers.push(scope.spawn(move || namespace.run(|| loops(&who, user, to, answer, stop, count))));
            }
        }
        for round in 1..=rounds {
            change(round, progress);
            progress.wait();
        }
        stop.store(true, Ordering::Relaxed);
        outcome.failed.extend(loopers.into_iter().flat_map(|thread| thread.join().unwrap()));
        outcome.broken.extend(streamers.into_iter().filter_map(|thread| thread.join().unwrap()));
    });
    outcome.opened = progress.opened.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    outcome.escaped_out = escaped(&place.outside);
    place.outside.print("nft", &["delete", "table", "inet", "count"]);
    let begin = Instant::now();
    // Envoy counts when it sends, the app when it accepts.
    loop {
        let (accepted, sent_on) = (place.app.accepted() - accepted, inbound(&place.envoy.counts()) - sent_on);
        outcome.escaped_in = accepted.saturating_sub(sent_on);
        if accepted == sent_on || begin.elapsed() > Duration::from_secs(1) {
            return outcome;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Replaces the rules by others and these by the first, on a backend or from one to another.
pub fn replace(place: &Place, backends: [&str; 2], mode: &str, rounds: usize) -> Outcome {
    let init = |turn: usize| {
        let more: &[&str] = if turn.is_multiple_of(2) { &[] } else { &["--exclude-outbound-uids", "4242"] };
        let options = [OPTIONS, &["-m", mode, "--reconcile", "--backend", backends[turn % 2]], more].concat();
        place.pod.ok(&[&["init"], &options[..]].concat());
    };
    init(0);
    traffic(place, STREAMS, rounds, |turn, _| init(turn))
}

/// What must show that escapes are seen: rules that are away for a while.
pub fn clean_and_install(place: &Place, mode: &str, rounds: usize) -> Outcome {
    let init = || place.pod.ok(&[&["init", "-m", mode], OPTIONS].concat());
    init();
    traffic(place, 0, rounds, |_, progress| {
        place.pod.ok(&["clean"]);
        progress.wait();
        init();
    })
}
