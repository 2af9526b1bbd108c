//! `podweir audit --cluster`: agents are asked what their nodes' kernels have, 50 at once, and
//! then the pods are gone through page by page. What cannot be had is named, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::ArgMatches;
use serde_json::Value;

use crate::audit::fleet::facts::{ClusterFacts, Telling};
use crate::audit::fleet::shapes::Shapes;
use crate::audit::fleet::{Collected, Missed};
use crate::config::pod::NodeOptions;
use crate::config::pod::documents::Documents;
use crate::config::pod::injector::Injector;

use super::kubectl::{Kubectl, KubectlRefusal, again};
use super::pods::Eye;
use crate::cli::error::CliError;
use crate::sys::mutex::lock;

/// How many agents are asked at once.
const AT_ONCE: usize = 50;
/// The labels that the chart gives to an agent's pod.
const AGENTS: &str = "app.kubernetes.io/name=podweir,app.kubernetes.io/component=node";
const ASK: [&str; 3] = ["/usr/local/bin/podweir", "node", "audit"];
/// How many nodes are named in a note.
const NAMED: usize = 5;

/// An agent's pod.
#[derive(Clone)]
struct AgentPod {
    node: String,
    namespace: String,
    name: String,
}

/// Collects the pods that the arguments choose, with what agents know of them.
///
/// # Errors
/// When not even the pods can be listed.
pub(super) fn collect(
    matches: &ArgMatches,
    injector: &Injector,
    node: &NodeOptions,
    shapes: &mut Shapes,
) -> Result<Collected, CliError> {
    let kubectl = Kubectl::new(matches);
    let timeout = Duration::from_secs(matches.get_one::<u64>("node-timeout").copied().unwrap_or(30));
    let failed = |what: &str, refusal: KubectlRefusal| CliError::Failed(format!("cannot list {what}: {}", refusal.why));
    let mut agents = Vec::new();
    let mut collected = Collected { about: "the cluster".into(), live: true, ..Collected::default() };
    let listed = kubectl.list("/api/v1/pods", &[("labelSelector", AGENTS)], &mut |pod| agents.extend(agent(pod)));
    if let Err(refusal) = listed {
        // Who may see some namespaces only gets what the manifests of these say.
        collected.missed.push(Missed { what: "the agents".into(), why: refusal.why });
    }
    let chosen: Vec<&String> = matches.get_many::<String>("namespace").into_iter().flatten().collect();
    let paths: Vec<String> = match chosen.is_empty() {
        true => vec!["/api/v1/pods".into()],
        false => chosen.iter().map(|name| format!("/api/v1/namespaces/{name}/pods")).collect(),
    };
    let selector = matches.get_one::<String>("selector").map(String::as_str);
    if !chosen.is_empty() {
        let names: Vec<&str> = chosen.iter().map(|name| name.as_str()).collect();
        collected.about = format!("the cluster's namespaces {}", names.join(", "));
    }
    let selectors: Vec<(&str, &str)> = selector.map(|selector| ("labelSelector", selector)).into_iter().collect();
    if let Some(selector) = selector {
        collected.about += &format!(" ({selector})");
    }
    let with_agent: BTreeSet<String> = agents.iter().map(|agent| agent.node.clone()).collect();
    let has_agents = !agents.is_empty();
    if !chosen.is_empty() || !selectors.is_empty() {
        // Of some pods only the nodes are asked.
        let mut nodes = BTreeSet::new();
        for path in &paths {
            let each = &mut |pod: &Value| {
                nodes.extend(pod.pointer("/spec/nodeName").and_then(Value::as_str).map(str::to_owned));
            };
            kubectl.list(path, &selectors, each).map_err(|refusal| failed("pods", refusal))?;
        }
        agents.retain(|agent| nodes.contains(&agent.node));
    }
    let facts = ask_all(&kubectl, &agents, timeout);
    let mut namespaces = Documents::default();
    let listed = kubectl.list("/api/v1/namespaces", &[], &mut |namespace| namespaces.add_namespace(namespace));
    if let Err(refusal) = listed {
        collected.notices.push(format!(
            "what namespaces are labelled is not known, so pods without a sidecar are taken for left alone: {}",
            refusal.why
        ));
    }
    let eye = Eye { injector, node, facts: &facts };
    let mut without: BTreeMap<String, usize> = BTreeMap::new();
    for path in &paths {
        let mut problem = None;
        let each = &mut |pod: &Value| {
            let mut documents = Documents::default();
            // One at a time, so that no more than a page of them is held.
            if documents.add_object("the API server", pod, "default").is_err() {
                problem = Some("too many objects in one".to_owned());
            }
            let broken = documents.broken.into_iter();
            let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("-").to_owned();
            collected.missed.extend(broken.map(|broken| Missed { what: format!("pod {name}"), why: broken.problem }));
            for template in documents.templates {
                if let Some(node) = template.node.as_deref().filter(|node| !with_agent.contains(*node)) {
                    *without.entry(node.to_owned()).or_default() += 1;
                }
                let labels = namespaces.namespaces.get(&template.workload.namespace);
                let standing = injector.decide(&template.pod, labels);
                collected.add(eye.look(template, standing, shapes));
            }
        };
        kubectl.list(path, &selectors, each).map_err(|refusal| failed("pods", refusal))?;
        collected.missed.extend(problem.map(|why| Missed { what: path.clone(), why }));
    }
    if collected.workloads.is_empty() {
        // A gate that looks at nothing must not pass.
        return Err(CliError::Usage(format!("{}: no pod is there to be looked at", collected.about)));
    }
    if !without.is_empty() {
        let names: Vec<&str> = without.keys().take(NAMED).map(String::as_str).collect();
        let more = if without.len() > NAMED { format!(" and {} more", without.len() - NAMED) } else { String::new() };
        let what = match has_agents {
            false => "no agent is in the cluster".to_owned(),
            true => {
                format!("{} of the nodes have no agent that is running ({}{more})", without.len(), names.join(", "))
            }
        };
        let pods: usize = without.values().sum();
        collected
            .notices
            .push(format!("{what}: of {pods} pods it is known what they ask for, not what their kernels have"));
    }
    collected.missed.extend(facts.missed);
    Ok(collected)
}

/// An agent that can be asked: one that runs.
fn agent(pod: &Value) -> Option<AgentPod> {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
    let is_ending = pod.pointer("/metadata/deletionTimestamp").is_some();
    let runs = text("/status/phase") == Some("Running") && !is_ending;
    runs.then_some(())?;
    Some(AgentPod {
        node: text("/spec/nodeName")?.into(),
        namespace: text("/metadata/namespace")?.into(),
        name: text("/metadata/name")?.into(),
    })
}

/// Asks every agent what its node's kernel has.
fn ask_all(kubectl: &Kubectl, agents: &[AgentPod], timeout: Duration) -> ClusterFacts {
    let facts = Mutex::new(ClusterFacts::default());
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let shows = std::io::stderr().is_terminal();
    let work = || {
        while let Some(agent) = agents.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut agent = agent.clone();
            let asked = again(|| ask_latest(kubectl, &mut agent, timeout, &facts));
            if let Err(refusal) = asked {
                let AgentPod { node, namespace, name } = &agent;
                lock(&facts).missed.push(Missed {
                    what: format!("node {node}"),
                    why: format!(
                        "its agent {namespace}/{name} gives no answer, so its pods are told by their manifests: {}",
                        refusal.why
                    ),
                });
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if shows {
                // A line that cannot be shown is not missed.
                let _ = write!(std::io::stderr(), "\rasking agents: {done} of {}", agents.len());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(agents.len()) {
            // Fewer at once, if no more threads are to be had.
            let _ = std::thread::Builder::new().name("ask".into()).spawn_scoped(scope, work);
        }
    });
    // What no thread was there for.
    work();
    if shows && !agents.is_empty() {
        let _ = writeln!(std::io::stderr());
    }
    let mut facts = facts.into_inner().unwrap_or_else(PoisonError::into_inner);
    facts.missed.sort();
    facts
}

/// Asks an agent, or its successor on the node, if it is gone, as in an upgrade.
fn ask_latest(
    kubectl: &Kubectl,
    agent: &mut AgentPod,
    timeout: Duration,
    facts: &Mutex<ClusterFacts>,
) -> Result<(), KubectlRefusal> {
    let refusal = match ask(kubectl, agent, timeout, facts) {
        Err(refusal) if refusal.is_gone => refusal,
        asked => return asked,
    };
    let path = format!("/api/v1/namespaces/{}/pods", agent.namespace);
    let on_node = format!("spec.nodeName={}", agent.node);
    let mut others = Vec::new();
    let selectors = [("labelSelector", AGENTS), ("fieldSelector", on_node.as_str())];
    kubectl.list(&path, &selectors, &mut |pod| others.extend(self::agent(pod)))?;
    match others.into_iter().find(|other| other.name != agent.name) {
        Some(other) => {
            *agent = other;
            ask(kubectl, agent, timeout, facts)
        }
        None => {
            Err(KubectlRefusal { why: format!("{}; no other agent runs on this node by now", refusal.why), ..refusal })
        }
    }
}

fn ask(
    kubectl: &Kubectl,
    agent: &AgentPod,
    timeout: Duration,
    facts: &Mutex<ClusterFacts>,
) -> Result<(), KubectlRefusal> {
    let mut telling = Telling::default();
    let mut lines = 0;
    let mut each = |line: &str| {
        lines += 1;
        lock(facts).line(&mut telling, line)
    };
    kubectl.exec((&agent.namespace, &agent.name), &ASK, timeout, &mut each)?;
    match telling.is_over() && lines > 0 {
        true => Ok(()),
        false => Err(KubectlRefusal::new("its answer ends before its last line")),
    }
}
