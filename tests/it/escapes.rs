//! Escapes are complete and exact, and read well for the pods people have.

use podweir::audit::escapes::kind::Severity;
use podweir::audit::escapes::{self, Escape, families, words};
use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::flow::{Flow, Surroundings, Taker};
use podweir::audit::ruleset::Ruleset;
use podweir::audit::space::Space;
use podweir::audit::space::cube::NOBODY;
use podweir::config::facts::Facts;
use podweir::config::given::{Given, Origin};
use podweir::config::options::Opt;
use podweir::config::settings::{Face, Settings};
use podweir::plan::build;
use podweir::plan::model::Plan;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::partition::{corner, flows, rulesets, surroundings};

/// The classes that a flow is in.
fn homes<'e, 'a>(space: &Space, found: &'e [Escape<'a>], flow: &Flow) -> Vec<&'e Escape<'a>> {
    let (scope, point) = space.point(flow);
    let family = flow.family();
    let holds = |escape: &&Escape| {
        let parts = escape.parts.iter().filter(|p| p.family == family && p.flows.holds(&point)).count();
        assert!(parts <= 1, "{flow:?} is in {parts} parts of {}", escape.id());
        escape.scope == scope && parts == 1
    };
    found.iter().filter(holds).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(200)))]

    #[test]
    fn a_direct_flow_is_in_one_class_and_others_in_none(
        ruleset in rulesets(), pod in surroundings(), flows in vec(flows(), 30), ways in vec(any::<Index>(), 64)
    ) {
        let space = Space::of(&[&ruleset], &pod);
        let found = escapes::find(&ruleset, &space).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let looked_at = families(&ruleset, &pod);
        let mut all = flows;
        for (at, escape) in found.iter().enumerate() {
            let taker = explain(&ruleset, &pod, &escape.example, &mut NoTrace).taker;
            let wanted = if escape.is_undecided() { Taker::Unknown } else { Taker::Direct };
            prop_assert_eq!(taker, wanted, "{}: {:?}", escape.id(), escape.example);
            all.push(escape.example.clone());
            for part in &escape.parts {
                for near in [false, true] {
                    let point = corner(&part.flows, &ways[at % 48..], near);
                    // What has no user has no group.
                    let occurs = (point.uid == NOBODY) == (point.gid == NOBODY);
                    if occurs && space.whole(part.family, part.scope).holds(&point) {
                        all.push(space.flow(part.family, part.scope, &point));
                    }
                }
            }
        }
        for flow in all.iter().filter(|flow| looked_at.has(flow.family())) {
            let answer = explain(&ruleset, &pod, flow, &mut NoTrace);
            let homes: Vec<String> = homes(&space, &found, flow).iter().map(|e| e.id()).collect();
            let undecided = homes.iter().any(|id| id.ends_with("undecided"));
            match answer.taker {
                Taker::Direct => prop_assert!(homes.len() == 1 && !undecided, "{:?}: {:?}", flow, homes),
                Taker::Unknown => prop_assert!(homes.len() == 1 && undecided, "{:?}: {:?}", flow, homes),
                taker => prop_assert!(homes.is_empty(), "{:?}: {}, {:?}", flow, taker, homes),
            }
        }
    }
}

/// A pod with one address of each family.
pub struct Pod;

impl Facts for Pod {
    fn addresses(&self) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(vec!["10.244.0.6".parse().unwrap(), "fd00:10:244::6".parse().unwrap()])
    }

    fn resolv_conf(&self) -> std::io::Result<String> {
        Ok("nameserver 10.96.0.10\n".into())
    }

    fn passwd(&self) -> std::io::Result<String> {
        Ok(String::new())
    }

    fn group(&self) -> std::io::Result<String> {
        Ok(String::new())
    }
}

/// What the native face does of itself, said outright: an option more changes just itself.
const TYPICAL: [(Opt, &str); 3] =
    [(Opt::InboundPorts, "*"), (Opt::OutboundRanges, "*"), (Opt::InboundPortsExclude, "15020,15021,15090")];

pub fn given(options: &[(Opt, &str)]) -> Given {
    let mut given = Given::from_environment(&|_| None);
    TYPICAL.iter().chain(options).for_each(|(opt, text)| given.set(*opt, Origin::Flag, *text));
    given
}

pub fn plan(options: &[(Opt, &str)]) -> Plan {
    build(&Settings::resolve(&given(options), Face::Init, &Pod).unwrap().interception)
}

pub fn ruleset(options: &[(Opt, &str)]) -> Ruleset {
    Ruleset::of_plan(&plan(options))
}

fn ids(options: &[(Opt, &str)]) -> Vec<String> {
    let ruleset = ruleset(options);
    let pod = Surroundings::of(Pod.addresses().unwrap());
    let space = Space::of(&[&ruleset], &pod);
    escapes::find(&ruleset, &space).unwrap().iter().map(Escape::id).collect()
}

/// A class as a reader sees it: severity, name, an example and all of it.
fn read(escape: &Escape, space: &Space) -> String {
    let flows = words::flows(escape, space).join("; ");
    format!("{} {} [{}] {flows}", escape.severity, escape.id(), escape.example)
}

#[test]
fn the_typical_pod() {
    let ruleset = ruleset(&[]);
    let pod = Surroundings::of(Pod.addresses().unwrap());
    let space = Space::of(&[&ruleset], &pod);
    let found = escapes::find(&ruleset, &space).unwrap();
    let lines: Vec<String> =
        found.iter().filter(|e| e.severity > Severity::Info).map(|escape| read(escape, &space)).collect();
    #[rustfmt::skip]
    let expected = [
        "medium inbound-excluded-port [inbound TCP to 10.244.0.6:15020] IPv4 and IPv6: TCP port 15020-15021,15090",
        "medium outbound-proxy-own [TCP to 203.0.113.10:443 from uid 1337 gid 1000] IPv4 and IPv6: TCP of user 1337; IPv4 and IPv6: TCP not of user 1337 of group 1337",
        "medium outbound-quic [UDP to 203.0.113.10:443 from uid 1000] IPv4 and IPv6: UDP port 443",
        "low inbound-tunnel-port [inbound TCP to 10.244.0.6:15008] IPv4 and IPv6: TCP port 15008",
        "low outbound-dns [UDP to 203.0.113.10:53 from uid 1000] IPv4 and IPv6: UDP port 53",
        "low outbound-udp [UDP to 203.0.113.10:80 from uid 1000] IPv4 and IPv6: UDP to any port but 53,443",
        "low inbound-udp [inbound UDP to 10.244.0.6:8080] IPv4 and IPv6: UDP",
        "low outbound-icmp [ICMP to 203.0.113.10 from uid 1000] IPv4: ICMP; IPv6: ICMPv6",
        "low inbound-icmp [inbound ICMP to 10.244.0.6] IPv4: ICMP; IPv6: ICMPv6",
        "low outbound-other-protocols [SCTP to 203.0.113.10:443 from uid 1000] IPv4: any protocol but ICMP,TCP,UDP; IPv6: any protocol but TCP,UDP,ICMPv6",
        "low inbound-other-protocols [inbound SCTP to 10.244.0.6:8080] IPv4: any protocol but ICMP,TCP,UDP; IPv6: any protocol but TCP,UDP,ICMPv6",
        "low transit-forwarded [inbound TCP to 203.0.113.10:15008] IPv4 and IPv6: TCP port 15008,15020-15021,15090; IPv4 and IPv6: any protocol but TCP",
    ];
    assert_eq!(lines, expected);
    let inside: Vec<String> = found.iter().filter(|e| e.severity == Severity::Info).map(Escape::id).collect();
    assert_eq!(inside, ["local-own-address", "local-loopback", "local-proxy-to-app"]);
}

/// What an option adds to, or takes from, the escapes of the typical pod.
#[test]
fn options_open_and_close() {
    let usual = ids(&[]);
    let change = |options: &[(Opt, &str)]| {
        let now = ids(options);
        let added: Vec<String> = now.iter().filter(|id| !usual.contains(id)).map(|id| format!("+{id}")).collect();
        let gone = usual.iter().filter(|id| !now.contains(id)).map(|id| format!("-{id}"));
        added.into_iter().chain(gone).collect::<Vec<_>>().join(" ")
    };
    let cases: &[(&[(Opt, &str)], &str)] = &[
        (&[(Opt::OutboundPortsExclude, "5432")], "+outbound-excluded-port"),
        (&[(Opt::OutboundRangesExclude, "10.0.0.0/8")], "+outbound-excluded-range"),
        (&[(Opt::ExcludeInterfaces, "net1")], "+outbound-excluded-interface +inbound-excluded-interface"),
        (&[(Opt::OutboundUidsExclude, "2000-2010")], "+outbound-excluded-user"),
        (&[(Opt::OwnerGroupsExclude, "3000")], "+outbound-excluded-group"),
        (&[(Opt::OwnerGroups, "3000")], "+outbound-not-included-group"),
        (&[(Opt::OutboundRanges, "10.0.0.0/8")], "+outbound-tcp-not-taken"),
        (&[(Opt::InboundPorts, "80,8080")], "+inbound-tcp-not-taken -inbound-excluded-port"),
        (&[(Opt::IpFamilies, "ipv4")], "+outbound-family-left-open +inbound-family-left-open"),
        (&[(Opt::RedirectDns, "true"), (Opt::CaptureAllDns, "true")], "-outbound-dns"),
    ];
    for (options, expected) in cases {
        assert_eq!(change(options), *expected, "{options:?}");
    }
}
