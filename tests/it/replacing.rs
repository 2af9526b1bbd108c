//! Rules replaced under live connections through a proxy that really relays: from backend
//! to backend, and from one plan to another. Nobody's connection breaks, none gets a mark
//! that is not its own, and no packet of the app gets outside past the proxy.

use std::time::Duration;

use crate::busy::{AWAY, Asker, Busy, NAME_SERVER};
use crate::fixture::PODWEIR;
use crate::relay::Mode;

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];
/// What a plan may be replaced by.
const PLANS: [&[&str]; 7] = [
    &[],
    &["-x", "10.1.0.0/16,10.3.0.0/16,2001:db8:1::/48"],
    &["-d", "15020,15021,15090,9999", "-o", "25,26"],
    &["--redirect-dns", "--capture-all-dns"],
    &["--drop-invalid"],
    &["-b", "8080,9000-9100", "-i", "198.51.100.0/24,2001:db8::/32"],
    &["-c", "net1", "-k", "tap0"],
];
/// How long a busy stream rests.
const PAUSE: Duration = Duration::from_millis(10);

/// How many of something where there are to be more cases than usual.
fn more(usual: u32, most: usize) -> usize {
    (crate::cases(usual) as usize).min(most)
}

fn init(busy: &Busy, backend: &str, mode: Mode, more: &[&str]) {
    let all = ["init", "--reconcile", "--backend", backend, "-m", mode.name()];
    busy.pod.ok(&all.iter().chain(more).copied().collect::<Vec<_>>());
}

/// Changes rules under streams and under new connections.
fn unharmed(busy: &Busy, each_way: usize, about: &str, change: impl FnOnce()) {
    let streams = busy.streams(each_way, PAUSE);
    let openers = busy.openers(2);
    openers.opened(8);
    change();
    openers.opened(8);
    streams.rounds(4 * each_way);
    let marked = busy.wrongly_marked();
    let (broken, not_opened) = (streams.finish(), openers.finish());
    let found = [
        (broken.len(), format!("of {} streams broken: {broken:?}", 2 * each_way)),
        (not_opened.len(), format!("connections not opened: {not_opened:?}")),
        (marked.len(), format!("wrongly marked: {marked:?}")),
        (busy.escaped() as usize, "packets outside".to_owned()),
    ];
    let harm: Vec<String> =
        found.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    assert!(harm.is_empty(), "{about}: {}", harm.join("\n"));
}

#[test]
fn from_one_backend_to_another() {
    for mode in Mode::BOTH {
        for first in BACKENDS {
            for second in BACKENDS.into_iter().filter(|second| *second != first) {
                let busy = Busy::new(mode);
                init(&busy, first, mode, &[]);
                let about = format!("{} from {first} to {second}", mode.name());
                unharmed(&busy, more(20, 100), &about, || init(&busy, second, mode, &[]));
            }
        }
    }
}

/// Natively in one transaction, by iptables behind the guard.
#[test]
fn from_one_plan_to_another() {
    for mode in Mode::BOTH {
        for (backend, turns) in [("nftables", 80), ("iptables-nft", 7), ("iptables-legacy", 7)] {
            let busy = Busy::new(mode);
            init(&busy, backend, mode, PLANS[0]);
            unharmed(&busy, more(40, 40), &format!("{} by {backend}", mode.name()), || {
                for turn in 1..=more(turns, 400) {
                    init(&busy, backend, mode, PLANS[turn % PLANS.len()]);
                }
            });
        }
    }
}

/// Taking a change back is a change as well.
#[test]
fn back_to_what_was_there_before() {
    for first in BACKENDS {
        let busy = Busy::new(Mode::Tproxy);
        init(&busy, first, Mode::Tproxy, &[]);
        unharmed(&busy, more(20, 100), first, || {
            for second in BACKENDS {
                // Nobody hears that it is done.
                let script =
                    format!("{PODWEIR} init --reconcile --backend {second} -m TPROXY --drop-invalid 2>/dev/full");
                for _ in 0..more(4, 20) {
                    let output = busy.pod.command("sh", &["-c", &script], &[]);
                    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
                }
            }
        });
    }
}

#[test]
fn from_redirection_to_tproxy() {
    for backend in BACKENDS {
        let busy = Busy::new(Mode::Tproxy);
        init(&busy, backend, Mode::Redirect, &[]);
        unharmed(&busy, more(20, 100), backend, || init(&busy, backend, Mode::Tproxy, &[]));
    }
}

/// The streams to the app, which are over at once: nobody waits for an answer in vain.
fn are_over(broken: &[String], count: usize) {
    let is_over = |b: &&String| b.contains("8080: ") && (b.contains("end of file") || b.contains("reset"));
    assert_eq!(broken.iter().filter(is_over).count(), count, "{broken:?}");
    assert_eq!(broken.len(), count, "{broken:?}");
}

/// What the proxy has with the app by the client's address finds no way back under rules
/// without a mark. Such a connection ends, rather than that it goes on outside.
#[test]
fn from_tproxy_to_redirection() {
    for backend in BACKENDS {
        let busy = Busy::new(Mode::Tproxy);
        init(&busy, backend, Mode::Tproxy, &[]);
        let each_way = more(20, 100);
        let streams = busy.streams(each_way, PAUSE);
        let openers = busy.openers(2);
        openers.opened(8);
        let log = busy.pod.ok(&["init", "--reconcile", "--backend", backend]);
        let ended: usize = log.split_once("ended ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
        // Those that just begin or end may be among them.
        assert!((each_way..=each_way + 4).contains(&ended), "{log}");
        openers.opened(8);
        let marked = busy.wrongly_marked();
        let (broken, not_opened) = (streams.finish(), openers.finish());
        assert_eq!((busy.escaped(), marked.len()), (0, 0), "{backend}: {marked:?}");
        are_over(&broken, each_way);
        assert!(not_opened.len() <= 2, "{backend}: {not_opened:?}");
    }
}

/// Whichever call of the kernel it gets to: what lost its mark ends before the guard goes.
#[test]
fn a_change_of_mode_that_was_killed_is_finished_by_the_next_run() {
    let each_way = 2;
    let mut guarded = 0;
    for call in 1.. {
        let busy = Busy::new(Mode::Tproxy);
        init(&busy, "nftables", Mode::Tproxy, &[]);
        let streams = busy.streams(each_way, PAUSE);
        let kill = format!("inject=sendto:signal=KILL:when={}", 3 * call);
        let run = ["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", &kill, PODWEIR, "init"];
        if busy.pod.command("strace", &run, &[]).status.success() {
            break;
        }
        let is_guarded = busy.pod.rules().contains("podweir-guard");
        guarded += usize::from(is_guarded);
        if is_guarded {
            busy.pod.ok(&["init"]);
            are_over(&streams.finish(), each_way);
        }
        assert_eq!(busy.escaped(), 0, "{call}");
    }
    assert!(guarded > 5, "{guarded}");
}

/// Taken back, it takes the mark from those that began meanwhile.
#[test]
fn from_redirection_to_tproxy_and_back() {
    let busy = Busy::new(Mode::Tproxy);
    init(&busy, "nftables", Mode::Redirect, &[]);
    let (before, meanwhile) = std::thread::scope(|scope| {
        let before = busy.streams(2, PAUSE);
        let changed = scope.spawn(|| {
            // Slow to hear that nobody reads what it says.
            let slow = "strace -qq -o /dev/null -e trace=write -e inject=write:delay_enter=1500000";
            let script = format!("{slow} {PODWEIR} init -m TPROXY 2>/dev/full");
            assert_eq!(busy.pod.command("sh", &["-c", &script], &[]).status.code(), Some(1));
        });
        while !busy.pod.rules().contains("tproxy") || busy.pod.rules().contains("podweir-guard") {
            assert!(!changed.is_finished());
        }
        let meanwhile = busy.streams(2, PAUSE);
        assert!(!changed.is_finished());
        (before, meanwhile)
    });
    assert_eq!(before.finish(), [""; 0]);
    are_over(&meanwhile.finish(), 2);
    assert_eq!(busy.escaped(), 0);
}

#[test]
fn cleaning_ends_what_it_takes_the_mark_from() {
    for backend in BACKENDS {
        let busy = Busy::new(Mode::Tproxy);
        init(&busy, backend, Mode::Tproxy, &[]);
        // At rest meanwhile: what the app sends by them without rules is answered by a reset.
        let streams = busy.streams(4, Duration::from_secs(3));
        let log = busy.pod.ok(&["clean"]);
        assert!(log.contains("ended 4 connections of the proxy to the app"), "{backend}: {log}");
        let broken = streams.finish();
        are_over(&broken.into_iter().filter(|b| b.contains("8080: ")).collect::<Vec<_>>(), 4);
    }
}

/// What the others find nothing of is there to be found.
#[test]
fn a_pod_that_is_cleaned_before_it_is_set_up_again_lets_packets_out() {
    for mode in Mode::BOTH {
        let busy = Busy::new(mode);
        init(&busy, "nftables", mode, &[]);
        let openers = busy.openers(4);
        openers.opened(8);
        assert_eq!(busy.escaped(), 0);
        busy.pod.ok(&["clean"]);
        openers.opened(8);
        init(&busy, "nftables", mode, &[]);
        openers.opened(8);
        assert!(busy.escaped() > 0);
        openers.abandon();
    }
}

/// Programs hear of datagrams that are dropped: only those may be that the plan takes.
#[test]
fn datagrams_that_are_not_taken_are_left_alone() {
    let elsewhere = Asker { uid: 1000, hosts: AWAY, port: 443 };
    let other_server = Asker { port: 53, ..elsewhere };
    let of_the_proxy = Asker { uid: 1337, hosts: [NAME_SERVER, AWAY[1]], port: 53 };
    for backend in BACKENDS {
        for mode in Mode::BOTH {
            let busy = Busy::new(mode);
            init(&busy, backend, mode, &["--redirect-dns"]);
            let least = crate::cases(400) as usize;
            let asked = busy.ask(&[elsewhere, other_server, of_the_proxy], least, || {
                for turn in 0..10 {
                    let excluded = format!("10.{turn}.0.0/16");
                    init(&busy, backend, mode, &["--redirect-dns", "-x", &excluded]);
                }
            });
            for asked in asked {
                assert!(asked.refused == 0 && asked.unanswered == 0, "{backend}, {}: {asked:?}", mode.name());
            }
        }
    }
}
