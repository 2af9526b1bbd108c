//! The findings of each pod, from its options and its state.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::civil::Date;

use crate::audit::accept::{Accepted, Subject};
use crate::audit::escapes::kind::Severity;
use crate::audit::fleet::shapes::{Asked, Shapes};
use crate::config::facts::families_of;
use crate::node::cache::{Known, Phase};
use crate::node::decide::{PodDecision, Policy, decide};
use crate::node::inventory::State;

use super::Looked;

/// The rule of a result that says that a pod is as it should be.
pub(super) const PASSES: &str = "intercepted";

/// A finding of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodFinding {
    pub(super) severity: Severity,
    pub(super) rule: String,
    /// What distinguishes the finding from others of its class.
    pub(super) items: Vec<String>,
    pub(super) message: String,
    /// Whether the finding is that the pod could not be examined.
    pub(super) is_error: bool,
}

/// A pod with its findings; it is as it should be if there are none.
#[derive(Debug, Clone)]
pub(super) struct PodFindings {
    pub(super) pod: Arc<Known>,
    pub(super) found: Arc<[PodFinding]>,
}

/// The findings of each interception that pods ask for, each audited once.
#[derive(Default)]
pub(super) struct View {
    known: HashMap<String, Arc<[PodFinding]>>,
}

impl View {
    /// The findings of pods. Pods that are left alone on purpose, that have no namespace or ztunnel yet,
    /// that are not looked at yet, or that are ending or have ended are left out.
    pub(super) fn of(&mut self, pods: &[Looked], policy: &Policy) -> Vec<PodFindings> {
        let mut used = HashMap::new();
        let mut out = Vec::new();
        for (pod, state) in pods.iter().filter(|(pod, _)| pod.phase != Phase::Ended && !pod.ending) {
            if let Some(found) = self.pod(pod, state, policy, &mut used) {
                out.push(PodFindings { pod: pod.clone(), found });
            }
        }
        // Of what no pod asks for any more nothing is kept.
        self.known = used;
        out
    }

    fn pod(
        &mut self,
        pod: &Known,
        state: &State,
        policy: &Policy,
        used: &mut HashMap<String, Arc<[PodFinding]>>,
    ) -> Option<Arc<[PodFinding]>> {
        let one = |severity, rule: &str, message: String, is_error| {
            let found = PodFinding { severity, rule: rule.into(), items: Vec::new(), message, is_error };
            Some(Arc::from([found]))
        };
        match state {
            State::New | State::NoNamespace | State::LeftAlone { .. } | State::Pending { .. } => None,
            State::Enrolled => Some(Arc::from([])),
            State::Intercepted { .. } => self.asked_for(pod, policy, used),
            State::Unguarded | State::Waiting => one(Severity::High, "not-intercepted", state.sentence(), false),
            State::Drifted { escapes: true, .. } => one(Severity::High, "drift", state.sentence(), false),
            State::Drifted { .. } => one(Severity::Medium, "drift", state.sentence(), false),
            State::Failed { .. } => one(Severity::High, "not-looked-at", state.sentence(), true),
        }
    }

    /// The traffic that passes by the proxy of a pod with exactly the rules that it asks for, as
    /// findings.
    fn asked_for(
        &mut self,
        pod: &Known,
        policy: &Policy,
        used: &mut HashMap<String, Arc<[PodFinding]>>,
    ) -> Option<Arc<[PodFinding]>> {
        let PodDecision::Intercept { options, face, .. } = decide(pod, policy) else { return None };
        let proxy_user = pod.pod.proxy().and_then(|proxy| pod.pod.user_of(proxy));
        let asked = Asked::of_options(&options, face, families_of(&pod.ips), None, proxy_user, Vec::new());
        let key = format!("{:?} {}", asked.proxy_user, asked.key);
        if let Some(found) = used.get(&key) {
            return Some(found.clone());
        }
        let found = self.known.remove(&key).unwrap_or_else(|| audited(asked));
        used.insert(key, found.clone());
        Some(found)
    }
}

/// Audits an interception. What takes intent or a special program, and every pod has alike,
/// is left to `podweir audit`.
fn audited(asked: Asked) -> Arc<[PodFinding]> {
    let accepted = Accepted::default();
    let mut shapes = Shapes::new(&accepted, Date::default());
    let nobody = Subject { namespace: "", workload: ("", ""), labels: &Default::default() };
    let findings = match shapes.find(&nobody, asked) {
        Ok(number) => shapes.all.swap_remove(number).findings,
        Err(message) => {
            let rule = "not-looked-at".into();
            return [PodFinding { severity: Severity::High, rule, items: Vec::new(), message, is_error: true }].into();
        }
    };
    let counts = findings.into_iter().filter(|found| found.severity >= Severity::Medium);
    let found = counts.map(|found| PodFinding {
        severity: found.severity,
        rule: found.id.clone(),
        items: found.items.clone(),
        message: format!("{}. To close it: {}", found.title, found.closes),
        is_error: false,
    });
    found.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::given::Given;
    use crate::node::cache::WatchedPod;
    use serde_json::json;

    /// A pod with a sidecar.
    pub(crate) fn pod(namespace: &str, name: &str, ports: &str) -> Arc<Known> {
        let uid = format!("01234567-89ab-cdef-0123-{:0>12}", name.len());
        let value = json!({
            "metadata": { "namespace": namespace, "name": name, "uid": uid, "annotations":
                { "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeOutboundPorts": ports } },
            "spec": { "containers": [{ "name": "istio-proxy", "args": ["proxy", "sidecar"], "securityContext": { "runAsUser": 1337 } }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.6" }] } });
        let watched: WatchedPod = serde_json::from_value(value).unwrap();
        Arc::new(Known::of(watched).unwrap())
    }

    pub(crate) fn policy() -> Policy {
        let read_init = |_: &[String], _: &_| Err(String::new());
        Policy { exclude_namespaces: Vec::new(), defaults: Given::default(), read_init }
    }

    pub(crate) fn intercepted() -> State {
        State::Intercepted { backend: "nftables".into() }
    }

    #[test]
    fn each_state_is_told_as_it_is_and_the_same_interception_is_audited_once() {
        let mut view = View::default();
        let (one, two) = (pod("a", "one", "3306"), pod("a", "two", "3306"));
        let told = view.of(&[(one.clone(), intercepted()), (two.clone(), intercepted())], &policy());
        assert!(Arc::ptr_eq(&told[0].found, &told[1].found), "{told:?}");
        let port = told[0].found.iter().find(|found| found.rule == "outbound-excluded-port").unwrap();
        assert_eq!((&port.items[..], port.severity), (&["3306".to_owned()][..], Severity::Medium));
        assert!(told[0].found.iter().all(|found| found.severity >= Severity::Medium && !found.is_error));
        let rule = |state: State| {
            let told = View::default().of(&[(one.clone(), state)], &policy());
            told.first().map(|told| told.found.first().map(|found| (found.rule.clone(), found.severity)))
        };
        let drift = |escapes| State::Drifted { first: "x".into(), escapes };
        for bare in [State::Unguarded, State::Waiting] {
            assert_eq!(rule(bare), Some(Some(("not-intercepted".into(), Severity::High))));
        }
        assert_eq!(rule(drift(true)), Some(Some(("drift".into(), Severity::High))));
        assert_eq!(rule(drift(false)), Some(Some(("drift".into(), Severity::Medium))));
        assert_eq!(rule(State::Enrolled), Some(None));
        for nothing in [State::New, State::NoNamespace, State::LeftAlone { why: String::new() }] {
            assert_eq!(rule(nothing), None);
        }
        // What nobody asks for any more is forgotten.
        drop(view.of(&[], &policy()));
        assert!(view.known.is_empty());
    }
}
