//! What the agent answers on its socket: how a pod that starts is to be treated, and what people and
//! programs ask about pods.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cni::agent::message::{Answer, Decide, Request, Setting};
use crate::cni::netconf::option_name;
use crate::cni::protocol::{CniError, Code};
use crate::config::given::{Given, Origin};
use crate::config::options::Opt;
use crate::node::ambient::standing::{self, Standing};
use crate::node::ambient::{Ambient, Joined, Real};
use crate::node::api;
use crate::node::cache::{Found, Known};
use crate::node::decide::{PodDecision, Programmer, decide};
use crate::node::http::Metered;
use crate::node::inventory::{State, TrackedPod, timestamp};
use crate::node::socket::Answers;
use crate::sys::text::shortened;

use super::Agent;
use super::pages::{self, Position};

/// How long a request of the plugin waits for the watch to bring the pod, and then for the API server.
const WATCH_PATIENCE: Duration = Duration::from_secs(2);
const API_PATIENCE: Duration = Duration::from_millis(2500);
/// How long a pod's start waits for a ztunnel: less than the plugin waits for the agent.
const ZTUNNEL_PATIENCE: Duration = Duration::from_millis(4500);
/// The most characters of a reason in a list: a line holds some hundred pods.
const LONGEST_REASON: usize = 80;

impl Agent {
    /// Answers ADD, and counts the refusals; all other results are counted when the plugin reports them.
    async fn decide(self: &Arc<Self>, asked: Decide) -> Answer {
        let answer = self.decided(asked).await;
        if let Answer::Error { code, .. } = &answer {
            let later = *code == Code::TryAgainLater.number();
            self.shared.metrics.added("refused", if later { "later" } else { "failed" });
        }
        answer
    }

    async fn decided(self: &Arc<Self>, asked: Decide) -> Answer {
        let started = Instant::now();
        let known = match self.find(&asked).await {
            Ok(known) => known,
            Err(error) => return refusal(&error),
        };
        let decision = decide(&known, &self.shared.settings.policy);
        if let (PodDecision::LeaveAlone(_), Some(ambient)) = (&decision, self.ambient.as_ref())
            && let Some(answer) = self.join(ambient, &known, &asked, started).await
        {
            return answer;
        }
        match decision {
            PodDecision::LeaveAlone(why) => Answer::LeaveAlone { why },
            // Its own init container makes its rules.
            PodDecision::Intercept { by: Programmer::Init, why, .. } => Answer::LeaveAlone { why: why.into() },
            PodDecision::Intercept { options, why, warnings, .. } => {
                Answer::Intercept { why: why.into(), options: settings(&options), warnings }
            }
            PodDecision::Refuse(error) => refusal(&error),
        }
    }

    /// Waits until ztunnel takes the traffic of a pod of ambient mode that starts. `None` if the pod is
    /// not in ambient mode.
    async fn join(
        self: &Arc<Self>,
        ambient: &Arc<Ambient<Real>>,
        known: &Arc<Known>,
        asked: &Decide,
        started: Instant,
    ) -> Option<Answer> {
        let left = || ZTUNNEL_PATIENCE.saturating_sub(started.elapsed());
        while !ambient.knows_namespaces() && !left().is_zero() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match ambient.standing(known) {
            Some(Standing::Out { .. }) => return None,
            Some(Standing::In { .. }) | None => {}
        }
        let (tracked, _) = self.shared.inventory.track(known);
        tracked.inner().attachment = Some(asked.attachment.clone());
        let joined = match self.shared.places.open(Path::new(&asked.netns)) {
            Ok(place) => ambient.join(known, place, left()).await,
            Err(e) => Err(format!(
                "{e}; the agent's container needs the runtime's folder of network namespaces, such as /var/run/netns"
            )),
        };
        match joined {
            Ok(Joined::Out) => None,
            Ok(Joined::Enrolled) => {
                Some(Answer::LeaveAlone { why: "it is in ambient mode, and ztunnel takes its traffic".into() })
            }
            Err(why) => {
                let message = format!("pod {known} is in ambient mode, and ztunnel does not take its traffic: {why}");
                let error = CniError::new(Code::TryAgainLater, message).details(
                    "it must not start outside of the mesh; the runtime tries again by itself, and podweir node status says how ztunnel is",
                );
                Some(refusal(&error))
            }
        }
    }

    /// The pod that is asked for: from the watch, which may be a little behind, then from
    /// the API server.
    async fn find(&self, asked: &Decide) -> Result<Arc<Known>, CniError> {
        let Decide { namespace, name, uid, .. } = asked;
        let uid = uid.as_deref();
        if let Found::Pod(known) = self.shared.cache.wait_for(namespace, name, uid, WATCH_PATIENCE).await {
            return Ok(known);
        }
        let later = |problem: String| {
            CniError::new(
                Code::TryAgainLater,
                format!("podweir's agent does not know pod {namespace}/{name} yet: {problem}"),
            )
            .details("the runtime tries again by itself")
        };
        let gone = || {
            CniError::new(Code::LookUp, format!("there is no such pod any more: {namespace}/{name}"))
                .details("it was deleted meanwhile; the kubelet gives it up by itself")
        };
        match api::look_up(&self.shared.client, namespace, name, API_PATIENCE).await {
            Ok(Some(pod)) => match self.shared.cache.learn(pod) {
                Some(known) if uid.is_none_or(|uid| uid == known.uid) => Ok(known),
                Some(_) => Err(gone()),
                None => Err(later("the API server's answer makes no sense".into())),
            },
            Ok(None) => Err(gone()),
            Err(problem) => Err(later(problem)),
        }
    }

    fn status(&self) -> Value {
        let problems = self.not_ready();
        json!({
            "ready": problems.is_empty(),
            "problems": problems,
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.shared.settings.node,
            "chain": self.shared.installed.chain(),
            "chainSince": self.shared.installed.effective_since().map(timestamp),
            "watchAgeSeconds": self.watch_age().map(|age| age.as_secs()),
            "knownPods": self.shared.cache.len(),
            "pods": self.shared.inventory.counts(),
            "lastErrors": self.shared.metrics.last_errors().iter().map(|error| json!({
                "time": timestamp(error.at), "cause": error.cause, "what": error.what, "times": error.times,
            })).collect::<Vec<Value>>(),
            "ambient": self.ambient.as_ref().map(|ambient| ambient.report()),
        })
    }

    /// Every pod with its state, or, if `from` is given, one page of them that begins there.
    fn list(&self, from: Option<&str>) -> Value {
        let pods = self.shared.inventory.all();
        // A line holds some hundred pods; who wants more of one asks why.
        let short = |known: &Known, tracked: &TrackedPod| {
            let inner = tracked.inner();
            let (why, escapes) = match &inner.state {
                State::Drifted { first, escapes } => (Some(shortened(first, LONGEST_REASON)), *escapes),
                State::Failed { why } | State::Pending { why } => (Some(shortened(why, LONGEST_REASON)), false),
                _ => (None, false),
            };
            json!([known.namespace, known.name, inner.state.word(), known.uid, why, escapes])
        };
        let rows = pods.iter().map(|tracked| {
            let known = tracked.known();
            (Position::of(&known), short(&known, tracked))
        });
        match from {
            Some(from) => pages::page(rows, &Position::parse(from)),
            // Who does not know of pages would take the first for all.
            None => json!({ "pods": rows.map(|(_, row)| row).collect::<Vec<Value>>() }),
        }
    }

    fn why(&self, namespace: &str, name: &str) -> Answer {
        let Found::Pod(known) = self.shared.cache.find(namespace, name, None) else {
            let text = format!("no pod {namespace}/{name} is known on node {}", self.shared.settings.node);
            let details = "kubectl get pod -o wide tells the node it is on".into();
            return Answer::Error { code: Code::LookUp.number(), message: text, details };
        };
        let mut report = match self.shared.inventory.get(&known.uid) {
            Some(tracked) => tracked.report(),
            None => json!({ "namespace": known.namespace, "name": known.name, "uid": known.uid,
                "state": "ended", "sentence": "all its containers have ended" }),
        };
        let standing = self.ambient.as_ref().and_then(|ambient| ambient.standing(&known));
        report["decision"] = match decide(&known, &self.shared.settings.policy) {
            PodDecision::LeaveAlone(_) if let Some(Standing::In { why, options, warnings }) = &standing => json!({
                "intercept": false, "ambient": true, "why": why, "warnings": warnings,
                "options": ambient_options(options) }),
            PodDecision::LeaveAlone(why) => json!({ "intercept": false, "why": why }),
            PodDecision::Refuse(error) => json!({ "intercept": false, "why": error.to_string() }),
            PodDecision::Intercept { options, why, warnings, .. } => {
                json!({ "intercept": true, "why": why, "warnings": warnings, "options": settings(&options) })
            }
        };
        Answer::Report { report }
    }
}

/// Options by name, with their sources.
fn settings(options: &Given) -> BTreeMap<String, Setting> {
    let one = |(opt, origin, text): (Opt, &Origin, &str)| {
        (option_name(opt.spec()).to_owned(), Setting { value: text.into(), source: origin.to_string() })
    };
    options.iter().map(one).collect()
}

/// The options of a pod in ambient mode, by the names that `podweir ambient` gives them.
fn ambient_options(options: &standing::Options) -> Value {
    let interfaces: Vec<String> = options
        .virtual_interfaces
        .iter()
        .map(|i| format!("{}{}", i.name, if i.any_ending { "+" } else { "" }))
        .collect();
    let setting = |value: String| json!({ "value": value, "source": "annotations and the agent's default" });
    json!({ "dns": setting(options.dns.to_string()), "ingress": setting(options.ingress.to_string()),
        "virtual-interfaces": setting(interfaces.join(",")) })
}

fn refusal(error: &CniError) -> Answer {
    Answer::Error { code: error.code.number(), message: error.msg.clone(), details: error.details.clone() }
}

/// The agent, as what answers the requests on its socket.
pub(crate) struct OnSocket(pub Arc<Agent>);

impl Answers for OnSocket {
    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Decide(asked) => self.0.decide(asked).await,
            Request::Done(done) => {
                self.0.done(done);
                Answer::Heard {}
            }
            Request::Forget(attachment) => {
                self.0.forget(&attachment);
                Answer::Heard {}
            }
            Request::Status {} => Answer::Report { report: self.0.status() },
            Request::List { from } => Answer::Report { report: self.0.list(from.as_deref()) },
            Request::Why { namespace, name } => self.0.why(&namespace, &name),
        }
    }

    fn heard(&self, request: &'static str, result: &'static str) {
        self.0.shared.metrics.request(request, result);
    }
}
