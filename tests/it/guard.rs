//! The guard: what it holds back while rules change, and what it does not.

use std::time::Duration;

use podweir::backend::BackendKind;
use podweir::backend::guard::Guard;
use podweir::backend::held::{Held, Tcp};
use podweir::config::options::Opt;
use podweir::config::types::Family;
use podweir::plan::canon::{CanonRule, canon_rules};
use podweir::plan::model::{ChainName, Plan};
use podweir::plan::words;
use podweir::sys::netlink::Netlink;

use crate::busy::{AWAY, Asker, Busy};
use crate::escapes::plan;
use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};
use crate::kernel::conditions;
use crate::relay::Mode;

fn held(held: &Held, chain: &ChainName) -> Vec<String> {
    let rules: Vec<CanonRule> = canon_rules(held.rules(chain), Family::V4);
    rules.iter().map(|rule| words::rule(rule, Family::V4)).collect()
}

#[test]
fn it_holds_back_what_the_plan_takes() {
    let redirect = Held::of(&plan(&[]), []);
    assert_eq!(redirect.tcp, Tcp::Openings);
    assert_eq!(held(&redirect, &ChainName::Prerouting), ["tcp in state NEW: drop"]);
    assert_eq!(held(&redirect, &ChainName::Output), ["tcp in state NEW: drop"]);
    // Every packet, whichever of the two plans marks.
    for (first, second) in [("TPROXY", "REDIRECT"), ("REDIRECT", "TPROXY")] {
        let both = Held::of(&plan(&[(Opt::Mode, first)]), [&plan(&[(Opt::Mode, second)])]);
        assert_eq!(held(&both, &ChainName::Prerouting), ["tcp: drop"]);
        assert_eq!(held(&both, &ChainName::Output), ["tcp: drop"]);
    }
    assert!(Held::of(&Plan::empty(), []).families.is_empty());
}

/// Of UDP only the queries that are taken: not those of the proxy and of excluded users, nor
/// those to other servers.
#[test]
fn of_dns_it_holds_back_what_is_captured() {
    let dns = plan(&[(Opt::RedirectDns, "true"), (Opt::OutboundUidsExclude, "2000")]);
    for of_both in [Held::of(&dns, []), Held::of(&plan(&[]), [&dns])] {
        let rules = held(&of_both, &ChainName::Output);
        let at =
            |words: &str| rules.iter().position(|rule| rule.contains(words)).unwrap_or_else(|| panic!("{rules:?}"));
        let query = at("udp to 10.96.0.10/32 port 53");
        assert!(rules[query].ends_with("drop"), "{rules:?}");
        for left_alone in ["of user 1337", "of group 1337", "of user 2000"] {
            let before = at(left_alone);
            assert!(rules[before].starts_with("udp") && rules[before].ends_with("return"), "{rules:?}");
            assert!(before < query, "{rules:?}");
        }
        assert_eq!(held(&of_both, &ChainName::Prerouting), ["tcp in state NEW: drop"]);
    }
}

#[test]
fn what_comes_by_interfaces_that_are_left_alone_goes_on() {
    let held_back = Held::of(&plan(&[(Opt::ExcludeInterfaces, "net1")]), []);
    for chain in [ChainName::Prerouting, ChainName::Output] {
        let rules = held(&held_back, &chain);
        assert!(rules[0].contains("net1") && rules[0].ends_with("return"), "{rules:?}");
    }
}

/// As the kernel does it, with nf_tables and without.
#[test]
fn connections_outlive_it() {
    for mode in Mode::BOTH {
        for (kind, with_nf_tables) in [(BackendKind::Nftables, true), (BackendKind::IptablesLegacy, false)] {
            let busy = Busy::new(mode);
            let about = format!("{} in {kind}", mode.name());
            busy.pod.ok(&["init", "--backend", kind.name(), "-m", mode.name()]);
            let streams = busy.streams(10, Duration::from_millis(5));
            let openers = busy.openers(2);
            openers.opened(8);
            let held = Held::of(&plan(&[(Opt::Mode, mode.name())]), []);
            let conditions = conditions(&busy.pod);
            let open = || with_nf_tables.then(|| Netlink::open(Netlink::NETFILTER).unwrap());
            let guard = busy.pod.run(|| Guard::raise(open().as_mut(), &conditions, kind, &held, None).unwrap());
            // What is under way gets to its end.
            std::thread::sleep(Duration::from_millis(100));
            let (opened, rounds) = (openers.tally.opened.get(), streams.tally.rounds.get());
            let asked = busy.ask(&[Asker { uid: 1000, hosts: AWAY, port: 443 }], 100, || match held.tcp {
                Tcp::Openings => streams.rounds(200),
                Tcp::All => std::thread::sleep(Duration::from_millis(100)),
            });
            assert_eq!(openers.tally.opened.get(), opened, "{about}");
            assert_eq!(streams.tally.rounds.get() == rounds, held.tcp == Tcp::All, "{about}");
            assert!(asked.iter().all(|a| a.refused == 0 && a.unanswered == 0), "{about}: {asked:?}");
            busy.pod.run(|| guard.lower(open().as_mut(), &conditions).unwrap());
            openers.opened(8);
            streams.rounds(200);
            assert_eq!(streams.finish(), [""; 0], "{about}");
            assert_eq!(openers.finish(), [""; 0], "{about}");
        }
    }
}

/// Of iptables alone: a run that is killed leaves it, and the next one, whose plan takes
/// more, puts its own in that place.
#[test]
fn without_nf_tables_a_killed_run_leaves_it_to_the_next() {
    // The first socket is for routing, those behind it are for netfilter.
    let without = |namespace: &Namespace, more: &[&str], arguments: &[&str]| {
        let base = [
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=socket,memfd_create",
            "-e",
            "inject=socket:error=EPROTONOSUPPORT:when=2+",
        ];
        namespace.command("strace", &[&base, more, &[PODWEIR], arguments].concat(), &[])
    };
    let plain = ["init", "--backend", "iptables-legacy", "--ip-families", "both"];
    let rich = [&plain[..], &["-m", "TPROXY", "--redirect-dns"]].concat();
    let alone = Namespace::with(&[V4, V6], RESOLV);
    assert!(without(&alone, &[], &rich).status.success());
    let mut left = 0;
    for when in 1..12 {
        let namespace = Namespace::with(&[V4, V6], RESOLV);
        let kill = format!("inject=memfd_create:signal=KILL:when={when}");
        let killed = without(&namespace, &["-e", &kill], &plain);
        if killed.status.success() {
            break;
        }
        left += usize::from(namespace.rules().contains("PODWEIR_GUARD"));
        let output = without(&namespace, &[], &rich);
        let interrupted = output.status.success();
        assert!(interrupted, "{when}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(namespace.everything(), alone.everything(), "{when}");
    }
    assert!(left > 1, "{left}");
}

/// A run that fails leaves what it found, which the guard is part of.
#[test]
fn one_that_was_left_stays_where_the_next_run_fails() {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for (left, wanted) in [("REDIRECT", "REDIRECT"), ("REDIRECT", "TPROXY"), ("TPROXY", "REDIRECT")] {
            let namespace = Namespace::with(&[V4, V6], RESOLV);
            namespace.ok(&["init", "--backend", backend, "-m", left]);
            let held = Held::of(&plan(&[(Opt::Mode, left)]), []);
            let conditions = conditions(&namespace);
            namespace.run(|| {
                let mut netlink = Netlink::open(Netlink::NETFILTER).unwrap();
                Guard::raise(Some(&mut netlink), &conditions, BackendKind::Nftables, &held, None).unwrap();
            });
            let script = format!("{PODWEIR} init --backend {backend} -m {wanted} 2>/dev/full");
            let output = namespace.command("sh", &["-c", &script], &[]);
            assert_eq!(output.status.code(), Some(1), "{backend} {left} {wanted}");
            assert!(namespace.rules().contains("podweir-guard"), "{backend} {left} {wanted}");
            namespace.ok(&["init", "--backend", backend, "-m", wanted]);
            assert!(!namespace.rules().contains("podweir-guard"), "{backend} {left} {wanted}");
        }
    }
}

/// A set of ranges is empty for a moment after the rules that ask it are there
/// (`replacing::from_one_plan_to_another` found connections that got past them).
#[test]
fn sets_of_ranges_are_filled_behind_it() {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    let held = |more: &[&str]| {
        let init = ["init", "--backend", "nftables", "--log_output_level", "all:debug"];
        namespace.ok(&[&init[..], more].concat()).contains("traffic is held back meanwhile")
    };
    for (options, expected) in [
        // Nothing is taken yet that could get past.
        (&["-b", "8080,9000-9100"][..], false),
        (&["-b", "8080,9000-9100", "-u", "1338"], true),
        (&["-b", "8080,9090"], false),
        (&["-i", "10.1.0.0/16,10.3.0.0/16"], true),
        (&["-i", "10.1.0.0/16,10.3.0.0/16"], false),
    ] {
        assert_eq!(held(options), expected, "{options:?}");
    }
}
