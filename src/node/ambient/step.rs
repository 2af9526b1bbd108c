//! The next step from what is there to what is wanted of a pod: pure. The order of joining is chosen so
//! that a pod never has an open way past ztunnel that it did not have before, and that its annotation is
//! true: rules before ztunnel, ztunnel before probes, all of it before `enabled`. Leaving undoes it in
//! an order in which nothing is cut off: probes, rules, ztunnel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::standing::{ENABLED, Options, PENDING};

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// Ztunnel should take the pod's traffic, and the node's probes should reach it at these addresses.
    In { options: Options, addresses: BTreeSet<IpAddr> },
    /// Nothing of ambient mode should be left of the pod.
    Out {
        /// Whether the pod's namespace may be there, from which rules have to be removed.
        runs: bool,
        /// Whether the pod is there, so that its annotation has to be removed.
        exists: bool,
    },
}

/// What is known of the pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamespaceState {
    /// The namespace has not been looked for.
    Unknown,
    /// The namespace was looked for and not found.
    Missing,
    Open,
}

/// Which rules of ambient mode the pod's namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rules {
    /// Nobody has looked; an agent before this one may have left rules.
    Unknown,
    None,
    Held(Options),
    /// The rules were to be removed, and could not be.
    Stuck,
}

/// What ztunnels answered to the announcement of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// The pod is not announced to ztunnels.
    Nothing,
    /// The pod is announced, and no ztunnel has answered; `long`: for longer than usual.
    Waiting {
        long: bool,
    },
    Refused,
    Taken,
}

/// What is there of ambient mode for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Is {
    pub place: NamespaceState,
    pub rules: Rules,
    pub told: Acknowledged,
    /// The addresses that the node's sets have for the pod.
    pub probed: BTreeSet<IpAddr>,
    /// The value of the annotation that says whether ztunnel takes the pod's traffic.
    pub annotation: Option<String>,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Look for the namespace.
    Find,
    /// Make the rules in the namespace.
    Program(Options),
    /// Announce the pod to ztunnels.
    Announce,
    /// Make the node's sets have exactly these addresses for the pod, at which probes reach it.
    LetProbesBy(BTreeSet<IpAddr>),
    Annotate(Option<&'static str>),
    /// Remove the rules from the namespace.
    Unprogram,
    /// Have ztunnels drop the pod.
    Withdraw,
    /// Wait for ztunnels, or for the namespace.
    Wait,
    /// Nothing: what is there is what is wanted.
    Done,
}

/// The next step from what is there to what is wanted.
pub(super) fn step(want: &Want, is: &Is) -> Step {
    match want {
        Want::In { options, addresses } => join(options, addresses, is),
        Want::Out { runs, exists } => leave(*runs, *exists, is),
    }
}

fn join(options: &Options, addresses: &BTreeSet<IpAddr>, is: &Is) -> Step {
    match is.place {
        NamespaceState::Unknown => return Step::Find,
        // There is nobody who could be probed, and others may get its addresses.
        NamespaceState::Missing if !is.probed.is_empty() => return Step::LetProbesBy(BTreeSet::new()),
        // Whatever an agent before did is still done, as far as anybody knows.
        NamespaceState::Missing => return Step::Wait,
        NamespaceState::Open => {}
    }
    if is.rules != Rules::Held(options.clone()) {
        return Step::Program(options.clone());
    }
    let annotation = is.annotation.as_deref();
    match is.told {
        Acknowledged::Nothing => return Step::Announce,
        // While a ztunnel or the agent starts anew, what was enabled is.
        Acknowledged::Waiting { long } if annotation.is_none() && long => return Step::Annotate(Some(PENDING)),
        Acknowledged::Waiting { .. } => return Step::Wait,
        Acknowledged::Refused if annotation != Some(PENDING) => return Step::Annotate(Some(PENDING)),
        Acknowledged::Refused => return Step::Wait,
        Acknowledged::Taken => {}
    }
    if is.probed != *addresses {
        return Step::LetProbesBy(addresses.clone());
    }
    if annotation != Some(ENABLED) {
        return Step::Annotate(Some(ENABLED));
    }
    Step::Done
}

fn leave(runs: bool, exists: bool, is: &Is) -> Step {
    // Rules that stay need the node's probes to be let by, so this time they go first.
    let are_stuck = runs && is.place == NamespaceState::Open && is.rules == Rules::Stuck;
    if !is.probed.is_empty() && !are_stuck {
        return Step::LetProbesBy(BTreeSet::new());
    }
    if runs && is.rules != Rules::None {
        match is.place {
            NamespaceState::Unknown => return Step::Find,
            NamespaceState::Open => return Step::Unprogram,
            // What has no process has nobody who could be cut off.
            NamespaceState::Missing => {}
        }
    }
    if is.told != Acknowledged::Nothing {
        return Step::Withdraw;
    }
    if exists && is.annotation.is_some() {
        return Step::Annotate(None);
    }
    Step::Done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(n: u8) -> BTreeSet<IpAddr> {
        (0..n).map(|n| IpAddr::from([10, 0, 0, n])).collect()
    }

    fn options() -> impl Strategy<Value = Options> {
        (any::<bool>(), any::<bool>()).prop_map(|(dns, ingress)| Options {
            dns,
            ingress,
            virtual_interfaces: Vec::new(),
        })
    }

    fn want() -> impl Strategy<Value = Want> {
        prop_oneof![
            (options(), 0u8..3).prop_map(|(options, n)| Want::In { options, addresses: addresses(n) }),
            (any::<bool>(), any::<bool>()).prop_map(|(runs, exists)| Want::Out { runs, exists }),
        ]
    }

    fn is() -> impl Strategy<Value = Is> {
        let place =
            prop_oneof![Just(NamespaceState::Unknown), Just(NamespaceState::Missing), Just(NamespaceState::Open)];
        let rules =
            prop_oneof![Just(Rules::Unknown), Just(Rules::None), Just(Rules::Stuck), options().prop_map(Rules::Held)];
        let told = prop_oneof![
            Just(Acknowledged::Nothing),
            any::<bool>().prop_map(|long| Acknowledged::Waiting { long }),
            Just(Acknowledged::Refused),
            Just(Acknowledged::Taken)
        ];
        let annotation = prop_oneof![Just(None), Just(Some(ENABLED)), Just(Some(PENDING)), Just(Some("odd"))];
        (place, rules, told, 0u8..3, annotation).prop_map(|(place, rules, told, n, annotation)| Is {
            place,
            rules,
            told,
            probed: addresses(n),
            annotation: annotation.map(str::to_owned),
        })
    }

    /// Changes what is there as a step that succeeds does.
    fn done(step: &Step, is: &mut Is) {
        match step {
            Step::Find => is.place = NamespaceState::Open,
            Step::Program(options) => is.rules = Rules::Held(options.clone()),
            Step::Announce => is.told = Acknowledged::Waiting { long: false },
            Step::LetProbesBy(addresses) => is.probed = addresses.clone(),
            Step::Annotate(value) => is.annotation = value.map(str::to_owned),
            Step::Unprogram => is.rules = Rules::None,
            Step::Withdraw => is.told = Acknowledged::Nothing,
            Step::Wait if is.place == NamespaceState::Missing => is.place = NamespaceState::Open,
            Step::Wait => is.told = Acknowledged::Taken,
            Step::Done => {}
        }
    }

    proptest! {
        /// From anywhere, the steps lead to what is wanted, in an order that holds at every
        /// moment; and what is as it is wanted is left alone.
        #[test]
        fn the_steps_lead_to_what_is_wanted(want in want(), start in is()) {
            let mut is = start.clone();
            let mut steps = Vec::new();
            loop {
                let next = step(&want, &is);
                prop_assert!(steps.len() < 16, "{:?} for {:?} from {:?}", steps, want, start);
                match (&want, &next) {
                    (Want::In { .. }, Step::LetProbesBy(none)) if is.place == NamespaceState::Missing => {
                        prop_assert!(none.is_empty());
                    }
                    (Want::In { options, .. }, Step::Announce | Step::LetProbesBy(_)) => {
                        prop_assert_eq!(&is.rules, &Rules::Held(options.clone()));
                    }
                    (Want::In { options, addresses }, Step::Annotate(Some(ENABLED))) => {
                        prop_assert_eq!(&is.rules, &Rules::Held(options.clone()));
                        prop_assert_eq!(is.told, Acknowledged::Taken);
                        prop_assert_eq!(&is.probed, addresses);
                    }
                    (Want::In { .. }, Step::Unprogram | Step::Withdraw | Step::Annotate(None)) => {
                        prop_assert!(false, "a pod that is in is not thrown out: {:?}", next);
                    }
                    (Want::Out { .. }, Step::Program(_) | Step::Announce | Step::Annotate(Some(_)) | Step::Wait) => {
                        prop_assert!(false, "a pod that is out is not taken in: {:?}", next);
                    }
                    (Want::Out { runs, .. }, Step::Unprogram) => {
                        prop_assert!(*runs && is.place == NamespaceState::Open);
                        prop_assert!(is.probed.is_empty() || is.rules == Rules::Stuck);
                    }
                    (Want::Out { .. }, Step::Withdraw) => prop_assert!(is.probed.is_empty()),
                    (Want::Out { exists, .. }, Step::Annotate(None)) => {
                        prop_assert!(*exists);
                        prop_assert_eq!(is.told, Acknowledged::Nothing);
                    }
                    _ => {}
                }
                if next == Step::Done {
                    break;
                }
                done(&next, &mut is);
                steps.push(next);
            }
            match &want {
                Want::In { options, addresses } => {
                    prop_assert_eq!(&is.rules, &Rules::Held(options.clone()));
                    prop_assert_eq!((is.told, &is.probed), (Acknowledged::Taken, addresses));
                    prop_assert_eq!(is.annotation.as_deref(), Some(ENABLED));
                }
                Want::Out { runs, exists } => {
                    prop_assert!(!runs || is.place == NamespaceState::Missing || is.rules == Rules::None);
                    prop_assert_eq!((is.told, is.probed.is_empty()), (Acknowledged::Nothing, true));
                    prop_assert!(!exists || is.annotation.is_none());
                }
            }
        }
    }

    #[test]
    fn joining_and_leaving_have_the_order_that_they_must_have() {
        let words = |want: &Want, is: &mut Is| {
            let mut words = Vec::new();
            loop {
                let next = step(want, is);
                words.push(match &next {
                    Step::LetProbesBy(addresses) => format!("probes {}", addresses.len()),
                    Step::Annotate(value) => format!("annotate {}", value.unwrap_or("nothing")),
                    other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_lowercase(),
                });
                if next == Step::Done {
                    return words;
                }
                done(&next, is);
            }
        };
        let mut is = Is {
            place: NamespaceState::Unknown,
            rules: Rules::Unknown,
            told: Acknowledged::Nothing,
            probed: BTreeSet::new(),
            annotation: None,
        };
        let want = Want::In { options: Options::default(), addresses: addresses(1) };
        assert_eq!(
            words(&want, &mut is),
            ["find", "program", "announce", "wait", "probes 1", "annotate enabled", "done"]
        );
        assert_eq!(words(&want, &mut is), ["done"]);
        // Another option: the rules change, ztunnel has it already.
        let want = Want::In { options: Options { ingress: true, ..Options::default() }, addresses: addresses(1) };
        assert_eq!(words(&want, &mut is), ["program", "done"]);
        let want = Want::Out { runs: true, exists: true };
        assert_eq!(words(&want, &mut is), ["probes 0", "unprogram", "withdraw", "annotate nothing", "done"]);
    }

    #[test]
    fn probes_pass_for_as_long_as_rules_cannot_be_removed() {
        let want = Want::Out { runs: true, exists: true };
        let mut is = Is {
            place: NamespaceState::Open,
            rules: Rules::Stuck,
            told: Acknowledged::Taken,
            probed: addresses(1),
            annotation: Some(ENABLED.into()),
        };
        assert_eq!(step(&want, &is), Step::Unprogram);
        is.rules = Rules::None;
        assert_eq!(step(&want, &is), Step::LetProbesBy(BTreeSet::new()));
        // Its namespace is gone, and with it whoever could be probed.
        (is.place, is.rules) = (NamespaceState::Missing, Rules::Unknown);
        assert_eq!(step(&want, &is), Step::LetProbesBy(BTreeSet::new()));
    }

    #[test]
    fn what_was_enabled_stays_so_while_nobody_answers_and_not_when_refused() {
        let want = Want::In { options: Options::default(), addresses: addresses(1) };
        let is = |told, annotation: Option<&str>| Is {
            place: NamespaceState::Open,
            rules: Rules::Held(Options::default()),
            told,
            probed: BTreeSet::new(),
            annotation: annotation.map(str::to_owned),
        };
        let (soon, late) = (Acknowledged::Waiting { long: false }, Acknowledged::Waiting { long: true });
        assert_eq!(step(&want, &is(soon, None)), Step::Wait);
        assert_eq!(step(&want, &is(late, None)), Step::Annotate(Some(PENDING)));
        assert_eq!(step(&want, &is(late, Some(ENABLED))), Step::Wait);
        assert_eq!(step(&want, &is(late, Some(PENDING))), Step::Wait);
        assert_eq!(step(&want, &is(Acknowledged::Refused, Some(ENABLED))), Step::Annotate(Some(PENDING)));
        assert_eq!(step(&want, &is(Acknowledged::Refused, Some(PENDING))), Step::Wait);
    }
}
