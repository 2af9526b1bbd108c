//! Reports that stay: `PolicyReport` objects (wgpolicyk8s.io/v1alpha2), which policy tools of the
//! ecosystem show, with what was found of the pods of this node.
//!
//! There is one object for this node in each namespace that has pods of it, by the name
//! `podweir-NODE`. `results` is a list that the format's CRD does not merge, so several agents could not
//! keep one object together, by server-side apply or otherwise, without overwriting each other; and
//! one object with all pods of a large namespace would be larger than etcd takes. The Node owns its
//! objects: with it they go. An object goes as well when its namespace has no pod on the node that
//! there is anything to tell of.
//!
//! Only what changed is written, at most once a minute and object. What stands there already is
//! known after a start by one list of metadata, since each object carries the digest of what it tells.
//! Rules are not looked at for it: that a pod holds exactly what it asks for is what the agent
//! verifies all the time, and what passes the proxy by follows from what it asks for.
//!
//! | file | what it owns |
//! |---|---|
//! | `view` | from a pod and its state to what was found of it; pure |
//! | `object` | from that to objects; pure |
//! | `cost` | what it costs a large cluster: a calculation, by one of the unit tests |
//!
//! # The cost for 5,000 nodes and 150,000 pods
//!
//! 30 pods a node in 10 namespaces, each with the findings that a typical sidecar has and one port
//! more that it leaves out, by calculation:
//!
//! | what | |
//! |---|---:|
//! | objects | 50,000 |
//! | bytes of one, as JSON with the API server's own fields | 4.8 KiB |
//! | bytes of all, in etcd | 236 MiB |
//! | writes an hour, where a pod lives for a day (it comes, and it goes): at most | 12,500 |
//! | of these a second | 3.5 |
//! | bytes written an hour | 59 MiB |
//! | an agent's start: one list of metadata by name, 10 objects | 9 KiB |
//!
//! A rollout writes an object at most once a minute. One node with 250 pods of one namespace has an
//! object of 183 KiB; etcd takes 1.5 MiB. At most 1,000 pods stand in one result.

#[cfg(test)]
mod cost;
mod object;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use tracing::{info, warn};

use super::cache::Known;
use super::decide::Policy;
use super::inventory::State;
use super::shared::Shared;
use object::{DIGEST, NodeReference, ReportObject, object_name, reports};
use view::View;

/// The pause between two looks whether the objects have to change.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The shortest time between two writes of one object.
const BETWEEN_WRITES: Duration = Duration::from_secs(60);
/// The pause after a refusal.
const AFTER_REFUSAL: Duration = Duration::from_secs(300);
/// How long the start waits for pods that were not looked at yet.
const FIRST_LOOKS: Duration = Duration::from_secs(60);
/// How long a request to the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
const MANAGER: &str = "podweir-node";

/// The kind of the objects, for requests to the API server.
fn resource() -> ApiResource {
    ApiResource {
        group: "wgpolicyk8s.io".into(),
        version: "v1alpha2".into(),
        api_version: "wgpolicyk8s.io/v1alpha2".into(),
        kind: "PolicyReport".into(),
        plural: "policyreports".into(),
    }
}

/// A pod of this node, and its state.
type Looked = (Arc<Known>, State);

/// Keeps this node's objects, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    let started = Instant::now();
    let mut keeper = ReportKeeper {
        shared,
        owner: None,
        there: HashMap::new(),
        refused: HashMap::new(),
        view: View::default(),
        told: Vec::new(),
        said: None,
    };
    loop {
        let pause = match keeper.round(started.elapsed() < FIRST_LOOKS).await {
            Ok(()) => LOOK_EVERY,
            Err(problem) => {
                keeper.say(problem);
                AFTER_REFUSAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}

struct ReportKeeper {
    shared: Arc<Shared>,
    /// The Node that owns the objects, once the API server was asked for it.
    owner: Option<NodeReference>,
    /// By namespace: the digest of the object that is there, and when it was written.
    there: HashMap<String, (String, Option<Instant>)>,
    /// Namespaces whose object could not be written or removed, and when; those of others are written
    /// all the same.
    refused: HashMap<String, Instant>,
    view: View,
    /// The pods of the last round after which every object was as it should be.
    told: Vec<Looked>,
    /// The problem that was last written to the log.
    said: Option<String>,
}

impl ReportKeeper {
    /// Writes the objects that have changed, and removes those that are not needed any more.
    async fn round(&mut self, is_starting: bool) -> Result<(), String> {
        if !self.shared.cache.is_synced() {
            return Ok(());
        }
        let pods: Vec<Looked> = self
            .shared
            .inventory
            .all()
            .iter()
            .map(|tracked| (tracked.known(), tracked.inner().state.clone()))
            .collect();
        if is_starting && pods.iter().any(|(_, state)| *state == State::New) || is_same(&pods, &self.told) {
            return Ok(());
        }
        let owner = match &self.owner {
            Some(owner) => owner.clone(),
            None => self.begin().await?,
        };
        let wanted = self.wanted(pods.clone(), owner).await?;
        let now = Instant::now();
        self.refused.retain(|_, at| now.duration_since(*at) < AFTER_REFUSAL);
        let mut is_whole = self.refused.is_empty();
        for (namespace, report) in &wanted {
            match self.there.get(namespace) {
                Some((digest, _)) if *digest == report.digest => continue,
                Some((_, Some(at))) if now.duration_since(*at) < BETWEEN_WRITES => {
                    is_whole = false;
                    continue;
                }
                _ if self.refused.contains_key(namespace) => continue,
                _ => {}
            }
            match self.write(namespace, report).await {
                Ok(()) => drop(self.there.insert(namespace.clone(), (report.digest.clone(), Some(now)))),
                Err(problem) => self.refuse(namespace, problem),
            }
        }
        let gone = self.there.keys().filter(|name| !wanted.contains_key(*name) && !self.refused.contains_key(*name));
        for namespace in gone.cloned().collect::<Vec<String>>() {
            match self.remove(&namespace).await {
                Ok(()) => drop(self.there.remove(&namespace)),
                Err(problem) => self.refuse(&namespace, problem),
            }
        }
        if is_whole && self.refused.is_empty() {
            self.told = pods;
        }
        Ok(())
    }

    fn refuse(&mut self, namespace: &str, problem: String) {
        self.refused.insert(namespace.to_owned(), Instant::now());
        self.say(problem);
    }

    /// Writes a problem to the log, unless it is the same as the last one.
    fn say(&mut self, problem: String) {
        self.shared.metrics.error("reports", &problem);
        if self.said.as_ref() != Some(&problem) {
            warn!("{problem}");
        }
        self.said = Some(problem);
    }

    /// Finds out which Node owns the objects, and which objects there are already.
    async fn begin(&mut self) -> Result<NodeReference, String> {
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let name = self.shared.settings.node.clone();
        let node = answer("read its own Node", nodes.get(&name)).await?;
        let owner = NodeReference { uid: node.metadata.uid.unwrap_or_default(), node: name };
        let all: Api<DynamicObject> = Api::all_with(self.shared.client.clone(), &resource());
        // From the API server's memory, and without what they tell.
        let params = ListParams::default().fields(&format!("metadata.name={}", object_name(&owner.node))).at("0");
        let params = params.match_any();
        let list = answer("list PolicyReports", all.list_metadata(&params)).await?;
        for object in list.items {
            let digest = object.metadata.annotations.and_then(|mut all| all.remove(DIGEST)).unwrap_or_default();
            self.there.insert(object.metadata.namespace.unwrap_or_default(), (digest, None));
        }
        info!(objects = self.there.len(), "this node's PolicyReports are kept");
        self.owner = Some(owner.clone());
        Ok(owner)
    }

    /// The objects that there should be, by namespace. Auditing is work for another thread.
    async fn wanted(
        &mut self,
        pods: Vec<Looked>,
        owner: NodeReference,
    ) -> Result<BTreeMap<String, ReportObject>, String> {
        let mut view = std::mem::take(&mut self.view);
        let policy: Policy = self.shared.settings.policy.clone();
        let work = move || {
            let told = view.of(&pods, &policy);
            (reports(&owner, &told), view)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (wanted, view) = done.map_err(|e| format!("what PolicyReports should tell cannot be found out: {e}"))?;
        self.view = view;
        Ok(wanted)
    }

    fn objects(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.shared.client.clone(), namespace, &resource())
    }

    async fn write(&self, namespace: &str, report: &ReportObject) -> Result<(), String> {
        let name = object_name(&self.shared.settings.node);
        // One request, whether it is there or not.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&report.object);
        match tokio::time::timeout(PATIENCE, self.objects(namespace).patch(&name, &params, &patch)).await {
            // A namespace that is being deleted takes no more objects, and needs none.
            Ok(Err(kube::Error::Api(status))) if is_of_going_namespace(&status) => Ok(()),
            asked => answered(&format!("write the PolicyReport {namespace}/{name}"), asked).map(drop),
        }
    }

    async fn remove(&self, namespace: &str) -> Result<(), String> {
        let name = object_name(&self.shared.settings.node);
        match tokio::time::timeout(PATIENCE, self.objects(namespace).delete(&name, &DeleteParams::default())).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            asked => answered(&format!("delete the PolicyReport {namespace}/{name}"), asked).map(drop),
        }
    }
}

/// Whether pods and states are the same as in the last complete round.
fn is_same(pods: &[Looked], told: &[Looked]) -> bool {
    let same = |((pod, state), (other, before)): (&Looked, &Looked)| Arc::ptr_eq(pod, other) && state == before;
    !told.is_empty() && pods.len() == told.len() && pods.iter().zip(told).all(same)
}

/// Whether an answer says that the namespace is being deleted, or gone: `NamespaceTerminating` among its
/// causes (apimachinery's `NamespaceTerminatingCause`), or "not found" of a namespace.
fn is_of_going_namespace(status: &kube::core::Status) -> bool {
    let Some(details) = &status.details else { return false };
    let terminating = details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
    terminating || status.code == 404 && details.kind == "namespaces"
}

async fn answer<T>(what: &str, asked: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    answered(what, tokio::time::timeout(PATIENCE, asked).await)
}

/// An answer, or in words why there is none and what helps.
fn answered<T>(what: &str, asked: Result<kube::Result<T>, tokio::time::error::Elapsed>) -> Result<T, String> {
    let (problem, cure) = match asked {
        Ok(Ok(done)) => return Ok(done),
        Err(_) => ("the API server does not answer".into(), ""),
        Ok(Err(error)) => {
            let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
            let cure = match code {
                404 => {
                    "; is the CRD policyreports.wgpolicyk8s.io there, in version v1alpha2? Policy tools bring it, or sigs.k8s.io/wg-policy-prototypes"
                }
                403 => "; apply the chart's ClusterRole podweir-node again, with policyReports on",
                _ => "",
            };
            (crate::cni::client::chain(&error), cure)
        }
    };
    Err(format!("cannot {what}: {problem}{cure}; it is tried again in {} s", AFTER_REFUSAL.as_secs()))
}
