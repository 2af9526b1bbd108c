//! Killed at every system call in turn, and every system call failing in turn (strace's
//! injection): the kernel holds the old state or the new one, or everything is dropped;
//! nothing escapes that either of the two would have taken. The next run succeeds.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};

const RICH: &[&str] = &["-m", "TPROXY", "-b", "*", "-i", "*", "--redirect-dns", "--ip-families", "both"];
const PLAIN: &[&str] = &["-b", "*", "-i", "*", "-u", "1337", "--ip-families", "ipv4"];

const AMBIENT: &[&str] = &["ambient", "--virtual-interfaces", "tap0"];
const AMBIENT_INGRESS: &[&str] = &["ambient", "--ingress-mode", "--dns-capture=false"];

#[derive(Clone, Copy, PartialEq)]
enum Inject {
    Kill,
    Fail,
}

/// Every which system call is tried: all of them with `scripts/test-long`, and otherwise so many
/// that these tests are not half of the time of all tests.
fn step() -> usize {
    if std::env::var_os("PODWEIR_EVERY_SYSCALL").is_some() { 1 } else { 5 }
}

/// `ambient` in front of the options means that command, otherwise it is `init`.
fn init(backend: &str, arguments: &[&str]) -> Vec<String> {
    let (command, options) = match arguments.split_first() {
        Some((&"ambient", options)) => ("ambient", options),
        _ => ("init", arguments),
    };
    [command, "--backend", backend, "--reconcile"].iter().chain(options).map(|s| s.to_string()).collect()
}

/// Runs podweir with something injected at the `n`th call of one kind.
fn inject(namespace: &Namespace, what: Inject, (call, n): &(String, usize), arguments: &[String]) -> Output {
    let how = if what == Inject::Kill { "signal=KILL" } else { "error=EPERM" };
    let (inject, trace) = (format!("inject={call}:{how}:when={n}"), format!("trace={call}"));
    let mut all = vec!["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, PODWEIR];
    all.extend(arguments.iter().map(String::as_str));
    namespace.command("strace", &all, &[])
}

/// The system calls that a run makes, in order: which one, and the how manieth of its kind.
fn calls(namespace: &Namespace, arguments: &[String]) -> Vec<(String, usize)> {
    let mut all = vec!["-qq", "-e", "trace=all", "-e", "signal=none", PODWEIR];
    all.extend(arguments.iter().map(String::as_str));
    let output = namespace.command("strace", &all, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut out = Vec::new();
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            continue;
        }
        let count = counts.entry(name.to_owned()).and_modify(|n| *n += 1).or_insert(1);
        out.push((name.to_owned(), *count));
    }
    out
}

fn guarded(rules: &str) -> bool {
    rules.contains("podweir-guard") || rules.contains("PODWEIR_GUARD")
}

/// Whether a state has all rules of another. What is redirected by the rules of one backend
/// is redirected while those of another stand next to them.
fn holds(rules: &str, others: &str) -> bool {
    let mut left: Vec<&str> = rules.lines().collect();
    others.lines().all(|line| left.iter().position(|have| *have == line).map(|at| left.swap_remove(at)).is_some())
}

fn check(backend: &str, from: Option<&[&str]>, to: &[&str], what: Inject) {
    check_move(from.map(|from| (backend, from)), (backend, to), what);
}

fn check_move(from: Option<(&str, &[&str])>, (backend, to): (&str, &[&str]), what: Inject) {
    let fresh = || {
        let namespace = Namespace::with(&[V4, V6], RESOLV);
        if let Some((backend, from)) = from {
            let arguments = init(backend, from);
            namespace.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        }
        namespace
    };
    let arguments = init(backend, to);
    // The states to compare with, and the number of calls.
    let reference = fresh();
    let (old_rules, old_routing) = (reference.rules(), reference.routing());
    let calls = calls(&reference, &arguments);
    let (new_rules, new_routing) = (reference.rules(), reference.routing());
    assert_ne!(old_rules, new_rules);
    assert!(calls.len() > 40, "{calls:?}");
    let mut done = 0;
    // The first call is the exec itself.
    for call in calls.iter().skip(1).step_by(step()) {
        let namespace = fresh();
        let output = inject(&namespace, what, call, &arguments);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let about = format!("{backend}, {call:?}: {}\n{log}", output.status);
        let (rules, routing) = (namespace.rules(), namespace.routing());
        let died = output.status.signal().is_some();
        if output.status.success() {
            assert_eq!(rules, new_rules, "{about}");
            assert_eq!(routing, new_routing, "{about}");
        } else if died || what == Inject::Kill {
            // Routing without rules for it does nothing.
            let both = holds(&rules, &old_rules) && holds(&rules, &new_rules);
            assert!(rules == old_rules || rules == new_rules || guarded(&rules) || both, "{about}\n{rules}");
            if rules == new_rules {
                assert_eq!(routing, new_routing, "{about}");
            }
        } else {
            assert_eq!(rules, old_rules, "{about}");
            assert_eq!(routing, old_routing, "{about}");
        }
        done += 1;
        // Without --reconcile: an interrupted run or move is finished, a whole state is recognised.
        if rules == old_rules && from.is_some() {
            continue;
        }
        let again = |a: &&str| *a != "--reconcile";
        let plain: Vec<&str> = arguments.iter().map(String::as_str).filter(again).collect();
        namespace.ok(&plain);
        assert_eq!(namespace.rules(), new_rules, "{about}");
        assert_eq!(namespace.routing(), new_routing, "{about}");
    }
    assert!(done > 10);
}

#[test]
fn killed_while_installing_natively() {
    check("nftables", None, RICH, Inject::Kill);
    check("nftables", None, PLAIN, Inject::Kill);
}

#[test]
fn killed_while_replacing_natively() {
    check("nftables", Some(RICH), PLAIN, Inject::Kill);
}

#[test]
fn killed_while_installing_by_iptables_legacy() {
    check("iptables-legacy", None, RICH, Inject::Kill);
    check("iptables-legacy", None, PLAIN, Inject::Kill);
}

#[test]
fn killed_while_replacing_by_iptables_legacy() {
    check("iptables-legacy", Some(PLAIN), RICH, Inject::Kill);
}

#[test]
fn killed_while_installing_by_iptables_nft() {
    check("iptables-nft", None, RICH, Inject::Kill);
}

#[test]
fn killed_while_replacing_by_iptables_nft() {
    check("iptables-nft", Some(RICH), PLAIN, Inject::Kill);
}

#[test]
fn failing_while_installing_natively() {
    check("nftables", None, RICH, Inject::Fail);
    check("nftables", None, PLAIN, Inject::Fail);
}

#[test]
fn failing_while_replacing_natively() {
    check("nftables", Some(RICH), PLAIN, Inject::Fail);
}

#[test]
fn failing_while_installing_by_iptables_legacy() {
    check("iptables-legacy", None, RICH, Inject::Fail);
    check("iptables-legacy", None, PLAIN, Inject::Fail);
}

#[test]
fn failing_while_replacing_by_iptables_legacy() {
    check("iptables-legacy", Some(PLAIN), RICH, Inject::Fail);
}

#[test]
fn failing_while_installing_by_iptables_nft() {
    check("iptables-nft", None, RICH, Inject::Fail);
}

#[test]
fn failing_while_replacing_by_iptables_nft() {
    check("iptables-nft", Some(RICH), PLAIN, Inject::Fail);
}

#[test]
fn killed_while_moving_from_iptables_nft_to_native() {
    check_move(Some(("iptables-nft", RICH)), ("nftables", RICH), Inject::Kill);
}

#[test]
fn killed_while_moving_from_native_to_iptables_legacy() {
    check_move(Some(("nftables", RICH)), ("iptables-legacy", RICH), Inject::Kill);
}

#[test]
fn killed_while_moving_what_is_redirected() {
    check_move(Some(("iptables-legacy", PLAIN)), ("nftables", PLAIN), Inject::Kill);
}

/// Without a guard, as iptables takes this plan in one step.
#[test]
fn killed_while_moving_what_is_redirected_to_iptables() {
    check_move(Some(("nftables", PLAIN)), ("iptables-legacy", PLAIN), Inject::Kill);
    check_move(Some(("iptables-legacy", PLAIN)), ("iptables-nft", PLAIN), Inject::Kill);
}

#[test]
fn failing_while_moving_from_iptables_legacy_to_native() {
    check_move(Some(("iptables-legacy", RICH)), ("nftables", RICH), Inject::Fail);
}

#[test]
fn killed_while_installing_ambient_rules() {
    check("nftables", None, AMBIENT, Inject::Kill);
    check("iptables-legacy", None, AMBIENT, Inject::Kill);
}

#[test]
fn killed_while_replacing_ambient_rules() {
    check("nftables", Some(AMBIENT), AMBIENT_INGRESS, Inject::Kill);
    check("iptables-nft", Some(AMBIENT_INGRESS), AMBIENT, Inject::Kill);
}

#[test]
fn failing_while_installing_ambient_rules() {
    check("nftables", None, AMBIENT, Inject::Fail);
    check("iptables-nft", None, AMBIENT, Inject::Fail);
}

#[test]
fn failing_while_replacing_ambient_rules() {
    check("nftables", Some(AMBIENT_INGRESS), AMBIENT, Inject::Fail);
    check("iptables-legacy", Some(AMBIENT), AMBIENT_INGRESS, Inject::Fail);
}

#[test]
fn killed_while_moving_ambient_rules() {
    check_move(Some(("iptables-nft", AMBIENT)), ("nftables", AMBIENT), Inject::Kill);
}
