//! Lints say what is so, and nothing about what is as it should be.

use std::collections::HashSet;

use podweir::audit::explain::{Trace, explain};
use podweir::audit::flow::Surroundings;
use podweir::audit::lints::{Lint, foreign, options, shadow};
use podweir::audit::partition::Space;
use podweir::audit::partition::interfaces::Interfaces;
use podweir::audit::ruleset::{ChainRules, Ruleset};
use podweir::config::facts::Facts;
use podweir::config::options::Opt;
use podweir::config::settings::{Face, Settings};
use podweir::config::types::Family;
use podweir::plan::canon::CanonRule;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::escapes::{Pod, given, ruleset};
use crate::partition::{corner, rulesets, surroundings};

/// Notes which rules packets meet.
#[derive(Default)]
struct Met(HashSet<*const CanonRule>);

impl<'a> Trace<'a> for Met {
    fn rule(&mut self, _: &'a ChainRules, rule: &'a CanonRule) {
        self.0.insert(rule);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(150)))]

    #[test]
    fn no_packet_meets_a_rule_that_never_matches(
        ruleset in rulesets(), pod in surroundings(), ways in vec(any::<Index>(), 64)
    ) {
        let space = Space::of(&[&ruleset], &pod);
        let mut met = Met::default();
        for family in Family::BOTH {
            let parts = space.parts(&ruleset, family).map_err(|e| TestCaseError::fail(e.to_string()))?;
            for (at, part) in parts.iter().enumerate() {
                let flow = space.flow(family, part.scope, &corner(&part.flows, &ways[at % 48..], false));
                explain(&ruleset, &pod, &flow, &mut met);
            }
        }
        for family in Family::BOTH {
            for (chain, at) in shadow::never(&ruleset, &space.interfaces, family) {
                let rule = &chain.rules[at];
                prop_assert!(!met.0.contains(&std::ptr::from_ref(rule)), "{} is met", shadow::place(chain, rule, family));
            }
        }
    }
}

fn of_rules(ruleset: &Ruleset) -> Vec<String> {
    let interfaces = Interfaces::of(&[ruleset], &Surroundings::of(Pod.addresses().unwrap()), &[]);
    let lints = shadow::lints(ruleset, &interfaces).into_iter().chain(foreign::lints(ruleset));
    lints.map(|lint| format!("{} {} {}", lint.severity, lint.id, lint.subject)).collect()
}

#[test]
fn rules_of_the_proxys_group_add_nothing_on_lo() {
    // What goes over lo has been decided for the proxy's user, and for everybody else.
    let both = "(IPv4 and IPv6)";
    let usual = [
        "tcp to not 127.0.0.1/32 port not 15008 out by lo of group 1337: jump ISTIO_IN_REDIRECT",
        "out by lo not of group 1337: return",
    ]
    .map(|rule| format!("info rule-never-matches nat ISTIO_OUTPUT: {rule} {both}"));
    assert_eq!(of_rules(&ruleset(&[])), usual);
}

#[test]
fn a_second_proxy_users_loop_rule_is_shadowed() {
    let found = of_rules(&ruleset(&[(Opt::ProxyUid, "1337,1338"), (Opt::ProxyGid, "1337")]));
    let loops: Vec<&String> = found.iter().filter(|lint| lint.contains("rule-loop-shadowed")).collect();
    assert_eq!(
        loops,
        [
            "low rule-loop-shadowed nat ISTIO_OUTPUT: tcp to not 127.0.0.1/32 port not 15008 out by lo of user 1338: jump ISTIO_IN_REDIRECT (IPv4 and IPv6)"
        ],
        "{found:?}"
    );
}

#[test]
fn a_chain_without_an_entry_is_named() {
    let found = of_rules(&ruleset(&[(Opt::InboundPorts, "")]));
    assert!(found.contains(&"info chain-never-entered nat ISTIO_INBOUND (IPv4 and IPv6)".into()), "{found:?}");
}

fn of_options(options: &[(Opt, &str)]) -> Vec<String> {
    let given = given(options);
    let settings = Settings::resolve(&given, Face::Init, &Pod).unwrap();
    let line = |lint: &Lint| format!("{} {}", lint.id, lint.subject);
    options::lints(&given, &settings.interception).iter().map(line).collect()
}

#[test]
fn options_without_effect_and_contradictions() {
    let nothing = |name| ("option-without-effect", name);
    let against = |name| ("options-contradict", name);
    type Case<'a> = (&'a [(Opt, &'a str)], (&'a str, &'a str));
    let cases: &[Case] = &[
        (&[(Opt::InboundPorts, "80"), (Opt::InboundPortsExclude, "90")], nothing("--istio-local-exclude-ports")),
        (&[(Opt::OutboundPorts, "80")], nothing("--istio-outbound-ports")),
        (
            &[(Opt::OutboundRanges, "10.0.0.0/8"), (Opt::OutboundRangesExclude, "192.168.0.0/16")],
            nothing("--istio-service-exclude-cidr"),
        ),
        (
            &[(Opt::IpFamilies, "ipv4"), (Opt::OutboundRangesExclude, "10.0.0.0/8,fd00::/8")],
            nothing("--istio-service-exclude-cidr"),
        ),
        (&[(Opt::TproxyMark, "7")], nothing("--istio-inbound-tproxy-mark")),
        (&[(Opt::CaptureAllDns, "true")], nothing("--capture-all-dns")),
        (&[(Opt::OutboundUidsExclude, "1337")], nothing("--exclude-outbound-uids")),
        (&[(Opt::InboundPorts, "80,15008"), (Opt::InboundPortsExclude, "")], against("--istio-inbound-ports")),
        (&[(Opt::InboundPort, "15001")], against("--inbound-capture-port")),
        (
            &[
                (Opt::OutboundRangesExclude, "10.0.0.0/8"),
                (Opt::OutboundPorts, "80"),
                (Opt::OutboundPortsExclude, "80"),
            ],
            against("--istio-outbound-ports"),
        ),
        (
            &[
                (Opt::IpFamilies, "ipv4"),
                (Opt::OutboundRanges, "10.1.0.0/16"),
                (Opt::OutboundRangesExclude, "10.0.0.0/8"),
            ],
            against("--istio-service-cidr"),
        ),
        (
            &[(Opt::RedirectDns, "true"), (Opt::OutboundPortsExclude, "1-100")],
            against("--istio-local-outbound-ports-exclude"),
        ),
        (&[(Opt::ProxyUid, "0")], against("--proxy-uid")),
        (&[(Opt::ExcludeInterfaces, "a"), (Opt::VirtualInterfaces, "a")], against("--istio-exclude-interfaces")),
    ];
    for (options, expected) in cases {
        let (found, (id, name)) = (of_options(options), expected);
        let is_it = |line: &String| line.starts_with(id) && line.ends_with(name);
        assert!(found.iter().any(is_it), "{options:?}: {found:?}, not {expected:?}");
        assert_eq!(found.len(), 1, "{options:?}: {found:?}");
    }
    assert_eq!(of_options(&[]), [""; 0]);
    // What an injector writes.
    let origin = [(Opt::TproxyMark, "1337"), (Opt::TproxyTable, "133"), (Opt::OutboundRangesExclude, "")];
    assert_eq!(of_options(&origin), [""; 0]);
}
