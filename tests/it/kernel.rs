//! The real kernel: what is applied is what is read, on every backend.

use std::time::Duration;

use podweir::backend::BackendKind;
use podweir::backend::conditions::Conditions;
use podweir::backend::install::{Action, InstallRequest, Outcome, Session};
use podweir::backend::iptables::programs::ProgramEnvironment;
use podweir::backend::routing;
use podweir::config::interception::Interception;
use podweir::config::settings::BackendChoice;
use podweir::plan::build;
use podweir::plan::canon::Canon;
use podweir::plan::model::Plan;
use podweir::sys::netlink::Netlink;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::arbitrary::interceptions;
use crate::fixture::{Namespace, RESOLV, V4, V6};
use crate::properties::same;

const CHOICES: [(BackendKind, BackendChoice); 3] = [
    (BackendKind::Nftables, BackendChoice::Nftables),
    (BackendKind::IptablesNft, BackendChoice::IptablesNft),
    (BackendKind::IptablesLegacy, BackendChoice::IptablesLegacy),
];

pub fn conditions(namespace: &Namespace) -> Conditions {
    Conditions {
        rule_comments: false,
        lock_timeout: Duration::from_secs(10),
        programs: ProgramEnvironment {
            path: std::env::var_os("PATH").unwrap_or_default(),
            variables: [("XTABLES_LOCKFILE", namespace.lock_file().into())].into(),
            ..ProgramEnvironment::default()
        },
    }
}

/// Installs a plan in a namespace, replacing whatever is there.
fn install(namespace: &Namespace, plan: &Plan, choice: BackendChoice) -> Outcome {
    install_and(namespace, plan, choice, |_| ())
}

/// Installs a plan, and does something more before the session ends.
fn install_and(
    namespace: &Namespace,
    plan: &Plan,
    choice: BackendChoice,
    then: impl FnOnce(&mut Session) + Send,
) -> Outcome {
    let conditions = conditions(namespace);
    namespace.run(|| {
        let mut route = Netlink::open(Netlink::ROUTE).unwrap();
        let mesh = routing::has_mesh_address(&routing::addresses(&mut route).unwrap());
        let mut session = Session::open(conditions, route).unwrap();
        let request = InstallRequest { plan, choice, reconcile: true, force: false, strict: false };
        let outcome = session.install(&request, mesh).unwrap_or_else(|e| panic!("{e}"));
        then(&mut session);
        outcome
    })
}

/// What the kernel holds, read by the backend.
fn read(namespace: &Namespace, kind: BackendKind, wanted: &Plan) -> Plan {
    let conditions = conditions(namespace);
    namespace.run(|| {
        let route = Netlink::open(Netlink::ROUTE).unwrap();
        let mut session = Session::open(conditions, route).unwrap();
        let found = session.read(&wanted.routing).unwrap();
        let (_, reading) = found.into_iter().find(|(k, _)| *k == kind).expect("the backend holds something");
        assert!(reading.strange.is_empty(), "{:?}", reading.strange);
        reading.plan
    })
}

fn check(interception: &Interception, kind: BackendKind, choice: BackendChoice) -> Result<(), TestCaseError> {
    let plan = build(interception);
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    prop_assert_eq!(install(&namespace, &plan, choice).action, Action::Installed);
    same(&Canon::of(&plan), &Canon::of(&read(&namespace, kind, &plan)))?;
    let before = namespace.everything();
    prop_assert_eq!(install(&namespace, &plan, choice).action, Action::Unchanged);
    prop_assert_eq!(before, namespace.everything());
    Ok(())
}

/// One plan put in the place of another is what it is alone; taken back it has never been.
fn check_replacing(first: &Interception, second: &Interception, choice: BackendChoice) -> Result<(), TestCaseError> {
    let (first, second) = (build(first), build(second));
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    install(&namespace, &first, choice);
    let before = namespace.everything();
    install_and(&namespace, &second, choice, |session| session.undo().unwrap());
    prop_assert_eq!(before, namespace.everything());
    install(&namespace, &second, choice);
    let alone = Namespace::with(&[V4, V6], RESOLV);
    install(&alone, &second, choice);
    prop_assert_eq!(alone.everything(), namespace.everything());
    Ok(())
}

fn run(kind: BackendKind, cases: u32, test: impl Fn(&Interception) -> Result<(), TestCaseError>) {
    run_with(kind, cases, &interceptions(), |interception| test(&interception));
}

fn run_with<S: Strategy>(kind: BackendKind, cases: u32, of: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(crate::cases(cases)) };
    if let Err(error) = TestRunner::new(config).run(of, test) {
        panic!("{kind}: {error}");
    }
}

#[test]
fn what_is_applied_is_read_by_nftables() {
    run(BackendKind::Nftables, 150, |i| check(i, CHOICES[0].0, CHOICES[0].1));
}

#[test]
fn what_is_applied_is_read_by_iptables_nft() {
    run(BackendKind::IptablesNft, 30, |i| check(i, CHOICES[1].0, CHOICES[1].1));
}

#[test]
fn what_is_applied_is_read_by_iptables_legacy() {
    run(BackendKind::IptablesLegacy, 30, |i| check(i, CHOICES[2].0, CHOICES[2].1));
}

#[test]
fn what_is_replaced_is_what_it_is_alone() {
    let two = (interceptions(), interceptions());
    for ((kind, choice), cases) in [(CHOICES[0], 60), (CHOICES[2], 10)] {
        run_with(kind, cases, &two, |(first, second)| check_replacing(&first, &second, choice));
    }
}
