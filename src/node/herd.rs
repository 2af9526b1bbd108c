//! What the agents of a large cluster ask of the API server: a calculation, and a simulation with the
//! pauses that the agent really makes. The result is in the documentation of `node`.

use std::time::{Duration, Instant};

use kube::runtime::watcher::Event;

use super::backoff::ServerBackoff;
use super::transport::Watches;

const NODES: usize = 5_000;

/// What a watch tells.
type Told = Result<Event<()>, ()>;

/// A generator that gives the same numbers in every run (xorshift32).
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

/// All watches are cut off at once, and nobody answers for a while: how many requests there are
/// in each second until the last watch goes on.
fn after_a_restart(away: Duration) -> Vec<usize> {
    let start = Instant::now();
    let mut random = Random(2_463_534_242);
    let mut seconds = Vec::new();
    for _ in 0..NODES {
        let mut watches = Watches::default();
        watches.next(start, 0);
        watches.began = Some(start);
        // It had gone on for a minute.
        let mut at = watches.next(start + Duration::from_secs(60), random.next());
        let mut backoff = ServerBackoff::default();
        loop {
            count(&mut seconds, at);
            if at >= away {
                break;
            }
            at += backoff.after(&Told::Err(())) + watches.next(start, random.next());
        }
    }
    seconds
}

fn count(seconds: &mut Vec<usize>, at: Duration) {
    let second = at.as_secs() as usize;
    seconds.resize(seconds.len().max(second + 1), 0);
    seconds[second] += 1;
}

/// Has all agents list again, spread over 5 s, with every list refused: how many lists there are in each
/// second.
fn lists_that_are_refused(until: Duration) -> Vec<usize> {
    let mut seconds = Vec::new();
    for node in 0..NODES {
        let mut at = Duration::from_secs(5) * node as u32 / NODES as u32;
        let mut backoff = ServerBackoff::default();
        while at < until {
            count(&mut seconds, at);
            at += backoff.after(&Told::Ok(Event::Init)) + backoff.after(&Told::Err(()));
        }
    }
    seconds
}

#[test]
fn five_thousand_agents_whose_lists_are_refused_ask_ever_more_seldom() {
    let seconds = lists_that_are_refused(Duration::from_secs(300));
    // Each asks every 45 s on the average, when the pauses have grown.
    let busiest = seconds[150..].iter().max().copied().unwrap_or_default();
    println!("busiest second: {:?} at first, {busiest} at last", seconds.iter().max());
    assert!(busiest <= 200, "{busiest} lists in a second: {seconds:?}");
}

#[test]
fn five_thousand_agents_come_back_one_after_the_other() {
    let mut table = String::new();
    // Another server takes over at once; one that restarts; one that is away for long.
    for (away, most, longest) in [(0, 1_200, 6), (15, 3_500, 60), (120, 3_500, 200)] {
        let seconds = after_a_restart(Duration::from_secs(away));
        let peak = seconds.iter().max().copied().unwrap_or_default();
        let back = &seconds[away as usize..];
        let peak_back = back.iter().max().copied().unwrap_or_default();
        table += &format!(
            "away {away} s: {} requests, {peak} in the busiest second, {peak_back} in the busiest after its return, the last after {} s\n",
            seconds.iter().sum::<usize>(),
            seconds.len()
        );
        // While nobody is there these are connections refused; what counts is who answers.
        assert!(peak <= most && peak_back <= 1_200, "{table}");
        assert!(seconds.len() as u64 <= longest, "{table}");
    }
    println!("{table}");
}
