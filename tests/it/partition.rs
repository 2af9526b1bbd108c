//! All flows at once, against one flow at a time: the parts of the space of flows share
//! nothing, leave nothing out, and each has the fate that `explain` gives its flows.

use std::net::IpAddr;

use podweir::audit::explain::{Explanation, NoTrace, explain};
use podweir::audit::flow::{Direction, Flow, Surroundings, Taker};
use podweir::audit::partition::Part;
use podweir::audit::routes::{Route, Routes};
use podweir::audit::ruleset::{Base, FoundChain, Hook, Ruleset, TableId};
use podweir::audit::space::Space;
use podweir::audit::space::cube::{Cube, NOBODY, Point};
use podweir::backend::hook::ChainKind;
use podweir::backend::nftables::names;
use podweir::config::ranges::{Discrete, RangeList};
use podweir::config::types::{Families, Family, Interface, Networks, Port};
use podweir::plan::build;
use podweir::plan::canon::address;
use podweir::plan::effect::{Effect, Unmodelled};
use podweir::plan::model::{ChainName, Cond, CtStates, Masked, Matches, Plan, Rule, Verdict};
use podweir::plan::why::Why;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::arbitrary::interceptions;

/// Rules of somebody else: base chains anywhere, a chain to jump to, conditions and
/// verdicts of every kind.
pub fn foreign() -> impl Strategy<Value = Vec<FoundChain>> {
    let hooks = select(vec![Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]);
    let base = (hooks, -400..400i32, any::<bool>(), weighted(0.2, Just(())));
    let rules = || vec((matches(), verdict()), 0..6);
    // Packets without an owner are another thing to nftables itself.
    let source = select(vec!["other", "nftables"]);
    (source, vec((base, rules()), 0..3), rules()).prop_map(|(source, bases, more)| {
        let chain = |name: String, base, rules: Vec<(Matches, Verdict)>| FoundChain {
            table: TableId { source: source.into(), name: "t".into() },
            name: ChainName::Other(name.into()),
            base,
            families: Families::BOTH,
            rules: rules.into_iter().map(|(m, v)| rule(m, v)).collect(),
        };
        let more = more.into_iter().map(|(m, v)| (m, if v == jump() { Verdict::Return } else { v })).collect();
        let bases = bases.into_iter().enumerate().map(|(at, ((hook, priority, nat, drops), rules))| {
            let base = Base { drops: drops.is_some(), ..Base::accepting(kind(nat), hook, priority) };
            chain(format!("base{at}"), Some(base), rules)
        });
        bases.collect::<Vec<_>>().into_iter().chain([chain("more".into(), None, more)]).collect()
    })
}

pub fn rule(matches: Matches, verdict: Verdict) -> Rule {
    Rule { families: Families::BOTH, matches, verdict, why: Why::Foreign("".into()), counters: None, origin: None }
}

fn jump() -> Verdict {
    Verdict::Jump(ChainName::Other("more".into()))
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let mark = |value| Verdict::SetMark(Masked { value, mask: 0xff });
    select(vec![
        Verdict::Continue,
        Verdict::Return,
        Verdict::Accept,
        Verdict::Drop,
        jump(),
        jump(),
        Verdict::Goto(ChainName::Other("more".into())),
        Verdict::Goto(ChainName::Other("nowhere".into())),
        Verdict::Redirect(Port::literal(15001)),
        mark(1),
        mark(2),
        Verdict::SaveMark,
        Verdict::SetConnectionMark(Masked { value: 1, mask: 3 }),
        Verdict::RestoreMark,
        Verdict::CtZone(3),
        Verdict::Unknown(Unmodelled::new("something", Effect::Unknown)),
    ])
}

fn cond<T: Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Option<Cond<T>>> {
    weighted(0.25, (any::<bool>(), select(values)).prop_map(|(negated, value)| Cond { negated, value }))
}

fn matches() -> impl Strategy<Value = Matches> {
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Networks>();
    let networks = vec![nets(&["10.0.0.0/30", "fd00::/16"]), nets(&["127.0.0.0/8", "::1/128"]), nets(&["0.0.0.0/1"])];
    let ports = vec![RangeList::of([53, 80]), RangeList::new([(1, 1023)]), RangeList::of([15001])];
    let ids = vec![RangeList::of([0]), RangeList::new([(1000, 2000)]), RangeList::of([1337])];
    let names = vec![vec![Interface::lo()], vec![Interface::new("eth", true)], vec![Interface::new("veth0", false)]];
    let marks = vec![Masked { value: 1, mask: 0xff }, Masked { value: 0, mask: 1 }];
    let states = vec![CtStates::NEW, CtStates::ESTABLISHED];
    let addresses = (cond(networks.clone()), cond(networks));
    let owners = (cond(ids.clone()), cond(ids));
    let interfaces = (cond(names.clone()), cond(names));
    let numbers = (cond(vec![RangeList::of([6]), RangeList::of([6, 17])]), cond(ports.clone()), cond(ports));
    let rest = (cond(marks.clone()), cond(marks), cond(states), weighted(0.05, Just("odd".to_owned())));
    (addresses, owners, interfaces, numbers, rest).prop_map(|(addresses, owners, interfaces, numbers, rest)| Matches {
        source: addresses.0,
        destination: addresses.1,
        uid: owners.0,
        gid: owners.1,
        in_interface: interfaces.0,
        out_interface: interfaces.1,
        protocol: numbers.0,
        source_port: numbers.1,
        destination_port: numbers.2,
        mark: rest.0,
        connection_mark: rest.1,
        connection_state: rest.2,
        destination_set: None,
        unknown: rest.3.into_iter().collect(),
    })
}

fn kind(is_nat: bool) -> ChainKind {
    if is_nat { ChainKind::Nat } else { ChainKind::Filter }
}

/// A plan's chains as they would be found in a kernel.
fn chains(plan: &Plan) -> Vec<FoundChain> {
    let chain = |chain: &podweir::plan::model::Chain| FoundChain {
        table: TableId { source: "plan".into(), name: chain.table.name().into() },
        name: chain.name.clone(),
        base: names::base(chain.table, &chain.name),
        families: plan.families,
        rules: chain.rules.clone(),
    };
    plan.chains.iter().map(chain).collect()
}

pub fn rulesets() -> impl Strategy<Value = Ruleset> {
    (interceptions(), prop_oneof![2 => Just(Vec::new()), 1 => foreign()]).prop_map(|(interception, mut foreign)| {
        foreign.extend(chains(&build(&interception)));
        Ruleset::new(foreign)
    })
}

pub fn surroundings() -> impl Strategy<Value = Surroundings> {
    let addresses = vec!["10.244.0.6", "10.0.0.1", "fd00:10:244::6", "fe80::1", "200.1.2.3"];
    let addresses = vec(select(addresses), 0..4);
    let networks = vec!["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.244.0.6/32", "::/0", "fd00::/16", "2001::1/128"];
    let routes = vec((select(networks), select(vec!["eth0", "veth0", "net7"]), any::<bool>()), 0..6);
    (addresses, routes).prop_map(|(addresses, routes)| {
        let routes = routes.into_iter().map(|(to, interface, own)| Route {
            to: to.parse().unwrap(),
            interface: interface.into(),
            own,
        });
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Surroundings { routes: Routes::new(routes), ..Surroundings::of(addresses) }
    })
}

/// A number in a set: one of its ends or next to one, or anything.
fn pick<T: Discrete>(set: &RangeList<T>, index: &Index, near: bool) -> T {
    let ends: Vec<T> = set.iter().flat_map(|(a, b)| [a, b]).collect();
    let at = *index.get(&ends);
    if near && index.index(3) == 0 { at.next().unwrap_or(at) } else { at }
}

/// A corner of a set of flows; with `near` also a flow just outside.
pub fn corner(flows: &Cube, ways: &[Index], near: bool) -> Point {
    let mut ways = ways.iter().cycle();
    let mut way = || ways.next().unwrap();
    Point {
        protocol: pick(&flows.protocol, way(), near),
        in_interface: pick(&flows.in_interface, way(), false),
        out_interface: pick(&flows.out_interface, way(), false),
        uid: pick(&flows.uid, way(), near).min(NOBODY),
        gid: pick(&flows.gid, way(), near).min(NOBODY),
        destination: pick(&flows.destination, way(), near),
        port: pick(&flows.port, way(), near),
        source: pick(&flows.source, way(), near),
        source_port: pick(&flows.source_port, way(), near),
        state: pick(&flows.state, way(), false),
    }
}

fn same(part: &Part, answer: &Explanation) -> bool {
    let decider = match (&part.decider, &answer.decider) {
        (None, None) => true,
        (Some((a, _)), Some(b)) => std::ptr::eq(a.rule, b.rule),
        _ => false,
    };
    part.taker == answer.taker && decider
}

/// The parts that a flow is in.
fn homes<'p, 'a>(space: &Space, parts: &'p [Part<'a>], flow: &Flow) -> Vec<&'p Part<'a>> {
    let (scope, point) = space.point(flow);
    let family = flow.family();
    parts.iter().filter(|p| p.family == family && p.scope == scope && p.flows.holds(&point)).collect()
}

/// Random flows as people ask about them: most of it left to routing.
pub fn flows() -> impl Strategy<Value = Flow> {
    // What has no user has no group.
    let outbound = weighted(0.9, (0..3000u32, 0..3000u32));
    let address = |v4: Vec<&'static str>| select(v4).prop_map(|a| a.parse::<IpAddr>().unwrap());
    let destination = prop_oneof![
        address(vec!["10.244.0.6", "127.0.0.1", "10.0.0.1", "10.0.0.9", "8.8.8.8", "fd00:10:244::6", "::1", "2001::1"]),
        any::<u32>().prop_map(|n| address_of(Family::V4, n.into())),
        any::<u128>().prop_map(|n| address_of(Family::V6, n)),
    ];
    let ports = (weighted(0.1, any::<u16>()), prop_oneof![select(vec![53, 80, 443, 15001, 15006]), any::<u16>()]);
    let protocol = prop_oneof![4 => Just(6u8), 2 => Just(17), 1 => any::<u8>()];
    (any::<bool>(), outbound, destination, ports, protocol).prop_map(
        |(inbound, owner, destination, ports, protocol)| {
            // Nothing comes in for a loopback address.
            let inbound = inbound && !destination.is_loopback();
            Flow {
                direction: if inbound { Direction::Inbound } else { Direction::Outbound },
                protocol,
                uid: owner.filter(|_| !inbound).map(|(uid, _)| uid),
                gid: owner.filter(|_| !inbound).map(|(_, gid)| gid),
                source: None,
                source_port: ports.0,
                destination,
                port: ports.1,
                interface: None,
                mark: 0,
            }
        },
    )
}

fn address_of(family: Family, number: u128) -> IpAddr {
    address(family, number)
}

/// Chains so long that not every rule is held against every flow: rules for a few
/// addresses and ports each, some of which share some.
fn long_rulesets() -> impl Strategy<Value = Ruleset> {
    let range = |most: u32| (0..most, 0..3u32).prop_map(|(first, more)| (first, first + more));
    let addresses = move || {
        range(40).prop_map(|(first, last)| {
            let all = (first..=last).map(|n| format!("10.0.0.{n}/32").parse().unwrap());
            Cond::is(all.collect::<Networks>())
        })
    };
    let ports = range(40).prop_map(|(a, b)| Cond::is(RangeList::new([(a as u16, b as u16)])));
    let tcp = Just(Cond::is(RangeList::of([6])));
    let odd = weighted(0.03, Just("odd".to_owned()));
    let matches = (weighted(0.8, addresses()), weighted(0.5, addresses()), weighted(0.6, ports), tcp, odd);
    let matches = matches.prop_map(|(destination, source, destination_port, protocol, odd)| Matches {
        destination,
        source,
        destination_port,
        protocol: Some(protocol),
        destination_set: None,
        unknown: odd.into_iter().collect(),
        ..Matches::default()
    });
    let rules = move |verdicts| vec((matches.clone(), verdicts), 20..60);
    let inner = select(vec![Verdict::Return, Verdict::Accept, Verdict::Drop, Verdict::Continue]);
    let hook = select(vec![(Hook::Prerouting, -100), (Hook::Output, -100), (Hook::Input, 0)]);
    (interceptions(), hook, rules(verdict().boxed()), rules(inner.boxed())).prop_map(
        |(interception, (hook, priority), rules, more)| {
            let chain = |name: &str, base, rules: Vec<(Matches, Verdict)>| FoundChain {
                table: TableId { source: "other".into(), name: "t".into() },
                name: ChainName::Other(name.into()),
                base,
                families: Families::BOTH,
                rules: rules.into_iter().map(|(m, v)| rule(m, v)).collect(),
            };
            let base = Base::accepting(kind(priority != 0), hook, priority - 1);
            let mut all = vec![chain("long", Some(base), rules), chain("more", None, more)];
            all.extend(chains(&build(&interception)));
            Ruleset::new(all)
        },
    )
}

/// Every flow is in one part and has its fate, also those at the corners of parts.
fn parts_are_as_explained(
    ruleset: &Ruleset,
    pod: &Surroundings,
    flows: &[Flow],
    ways: &[Index],
) -> Result<(), TestCaseError> {
    let space = Space::of(&[ruleset], pod);
    let mut parts = Vec::new();
    for family in Family::BOTH {
        parts.extend(space.parts(ruleset, family).map_err(|e| TestCaseError::fail(e.to_string()))?);
    }
    for flow in flows {
        let answer = explain(ruleset, pod, flow, &mut NoTrace);
        let homes = homes(&space, &parts, flow);
        prop_assert_eq!(homes.len(), 1, "{:?}", flow);
        prop_assert!(same(homes[0], &answer), "{:?}: {:?}, in a part of {}", flow, answer, homes[0].taker);
    }
    // Thousands of parts would take as long as all others together.
    let step = 1 + parts.len() / 300;
    for (at, part) in parts.iter().enumerate().step_by(step) {
        for near in [false, false, true] {
            let point = corner(&part.flows, &ways[at % 48..], near);
            // A step outside may leave the space: an IPv4 address has 32 bits. So may a corner: what
            // has no user has no group.
            let whole = space.whole(part.family, part.scope);
            if !whole.holds(&point) || (point.uid == NOBODY) != (point.gid == NOBODY) {
                prop_assert!(near || whole.holds(&point));
                continue;
            }
            let flow = space.flow(part.family, part.scope, &point);
            let answer = explain(ruleset, pod, &flow, &mut NoTrace);
            let homes = homes(&space, &parts, &flow);
            prop_assert_eq!(homes.len(), 1, "{:?}", flow);
            prop_assert!(near || std::ptr::eq(homes[0], part));
            prop_assert!(same(homes[0], &answer), "{:?}: {:?}, in a part of {}", flow, answer, homes[0].taker);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(300)))]

    #[test]
    fn a_flow_is_in_one_part_and_shares_its_fate(
        ruleset in rulesets(), pod in surroundings(), flows in vec(flows(), 30), ways in vec(any::<Index>(), 64)
    ) {
        parts_are_as_explained(&ruleset, &pod, &flows, &ways)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::cases(25)))]

    #[test]
    fn so_it_is_in_long_chains(
        ruleset in long_rulesets(), pod in surroundings(), flows in vec(flows(), 30), ways in vec(any::<Index>(), 64)
    ) {
        parts_are_as_explained(&ruleset, &pod, &flows, &ways)?;
    }
}

/// 5,000 ranges and 5,000 ports are cut with little work, into few parts.
#[test]
fn long_lists_cost_one_set() {
    let networks: Networks =
        (0..5000u32).map(|n| format!("10.{}.{}.0/25", n / 250, n % 250).parse().unwrap()).collect();
    let ports = RangeList::of((0..5000).map(|n| 2 * n + 1));
    let tcp = || Some(Cond::is(RangeList::of([6u8])));
    let rules = vec![
        rule(Matches { destination: Some(Cond::is(networks)), ..Matches::default() }, Verdict::Return),
        rule(
            Matches { protocol: tcp(), destination_port: Some(Cond::is(ports)), ..Matches::default() },
            Verdict::Return,
        ),
        rule(Matches { protocol: tcp(), ..Matches::default() }, Verdict::Redirect(Port::literal(15001))),
    ];
    let base = Some(Base::accepting(ChainKind::Nat, Hook::Output, -100));
    let table = TableId { source: "test".into(), name: "nat".into() };
    let ruleset = Ruleset::new([FoundChain { table, name: ChainName::Output, base, families: Families::BOTH, rules }]);
    let pod = Surroundings::of(vec!["10.244.0.6".parse().unwrap()]);
    let space = Space::of(&[&ruleset], &pod);
    /// About twice what it takes.
    const WORK: usize = 40_000;
    // Every rule is held against few sets, and none against each of a list.
    let parts = space.parts_within(&ruleset, Family::V4, WORK).unwrap();
    assert!(parts.len() < 30, "{}", parts.len());
    assert!(parts.iter().any(|p| p.flows.destination.len() == 5000 && p.taker == Taker::Direct));
}
