//! Ambient mode in the real world: namespaces of pods, the API server, and what the agent
//! tells people.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::warn;

use crate::backend::ambient::Namespace;
use crate::backend::conditions::Conditions;
use crate::backend::install::{Action, InstallError};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::routing;
use crate::config::ambient::AmbientOptions;
use crate::config::facts;
use crate::config::given::process_environment;
use crate::config::settings::BackendChoice;
use crate::config::types::Families;
use crate::plan;
use crate::sys::netlink::Netlink;
use crate::sys::netns::Netns;

use super::super::cache::{Known, WatchedPod};
use super::super::ears::Ears;
use super::super::events::{Happened, Kind};
use super::super::inventory::{Place, State};
use super::super::settings::AmbientFlags;
use super::super::shared::Shared;
use super::super::worker::Urgency;
use super::claims::EntryChanges;
use super::host::Host;
use super::standing::{Options, REDIRECTION};
use super::world::{Programmed, World};

/// How long to wait for the lock of another program that changes the node's rules.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the lock of another program that changes a pod's rules. A container of the pod
/// with CAP_NET_ADMIN can hold that lock for ever, and while it is waited for, one of the few threads
/// for work in namespaces is taken.
fn lock_timeout(urgency: Urgency) -> Duration {
    Duration::from_millis(match urgency {
        Urgency::Start => 1000,
        // Later it is tried again.
        Urgency::Background => 100,
    })
}

/// How long writing one annotation may take: other pods' annotations wait for it.
const PATCH_PATIENCE: Duration = Duration::from_secs(10);

/// The real kernel and API server.
pub struct Real {
    shared: Arc<Shared>,
    host: Arc<Host>,
    backend: BackendChoice,
    families: Families,
}

/// The environment of iptables' programs in pods' namespaces.
fn programs() -> ProgramEnvironment {
    ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        variables: [("XTABLES_LOCKFILE", NO_LOCK.into())].into(),
        ..ProgramEnvironment::default()
    }
}

fn options(families: Families, options: &Options) -> AmbientOptions {
    AmbientOptions {
        families,
        dns: options.dns,
        ingress: options.ingress,
        virtual_interfaces: options.virtual_interfaces.clone(),
    }
}

/// How rules are made and read in a pod's namespace.
fn namespace(netns: &Netns, choice: BackendChoice, urgency: Urgency) -> Result<Namespace, String> {
    let owner = netns.foreign_owner().map_err(|e| format!("cannot tell who owns the network namespace: {e}"))?;
    let programs = ProgramEnvironment { user_namespace: owner.map(Arc::new), ..programs() };
    let conditions = Conditions { rule_comments: false, lock_timeout: lock_timeout(urgency), programs };
    Ok(Namespace { choice, conditions, reconcile: true })
}

/// The message about rules that cannot be changed; `MADE_ANEW` says what helps.
const BY_IPTABLES: &str = "another agent made its rules with iptables, whose programs are not here";
const MADE_ANEW: &str = "delete the pod, so that it is made anew, or run the agent in an image that has iptables";

/// Why work on rules was not done, in words.
fn told(error: &InstallError) -> String {
    if error.lacks_program() { format!("{BY_IPTABLES}; {MADE_ANEW}") } else { error.to_string() }
}

impl Real {
    /// The world of an agent, with the rules of its node.
    pub(super) fn new(shared: Arc<Shared>, host: Arc<Host>, given: &AmbientFlags) -> Self {
        let AmbientFlags { backend, families, .. } = *given;
        Self { shared, host, backend, families }
    }

    /// The rules of the agent's node.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Runs `work` on the rules of a pod's namespace.
    async fn inside<T: Send + 'static>(
        &self,
        urgency: Urgency,
        place: &Place,
        work: impl FnOnce(Namespace) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (netns, choice) = (place.netns.clone(), self.backend);
        let work = move || work(namespace(&netns, choice, urgency)?);
        self.shared.workers.run(urgency, place.netns.clone(), work).await.map_err(|e| e.to_string())?
    }
}

impl Real {
    /// Runs `work`, whatever it is, in a pod's namespace.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or the work did not come to an end.
    pub async fn inside_of<T: Send + 'static>(
        &self,
        place: &Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        self.shared.workers.run(Urgency::Background, place.netns.clone(), work).await.map_err(|e| e.to_string())
    }
}

impl World for Real {
    type Ears = Ears;

    async fn find(&self, uid: &str) -> Option<Place> {
        self.shared.place_by_uid(uid).await
    }

    fn is_there(&self, place: &Place) -> bool {
        place.netns.is_where_it_was()
    }

    async fn program(&self, urgency: Urgency, place: &Place, wanted: &Options) -> Result<Programmed, String> {
        let plan = plan::build::ambient(&options(self.families, wanted));
        self.inside(urgency, place, move |namespace| {
            let outcome = namespace.apply(&plan).map_err(|e| told(&e))?;
            Ok(Programmed {
                backend: outcome.backend.name().into(),
                changed: outcome.action != Action::Unchanged,
                warnings: outcome.warnings,
            })
        })
        .await
    }

    async fn verify(&self, place: &Place, wanted: &Options) -> Result<Vec<String>, String> {
        let plan = plan::build::ambient(&options(self.families, wanted));
        let verify = move |namespace: Namespace| namespace.verify(&plan).map_err(|e| e.to_string());
        let verified = self.inside(Urgency::Background, place, verify).await;
        let result = match &verified {
            Ok(differences) if differences.is_empty() => "same",
            Ok(_) => "different",
            Err(_) => "unknown",
        };
        self.shared.metrics.verified(result);
        verified
    }

    async fn unprogram(&self, place: &Place) -> Result<bool, String> {
        self.inside(Urgency::Background, place, |namespace| {
            namespace.remove().map(|outcome| outcome.action != Action::Nothing).map_err(|e| told(&e))
        })
        .await
    }

    async fn addresses(&self, urgency: Urgency, place: &Place) -> Vec<IpAddr> {
        let listed = self.shared.workers.run(urgency, place.netns.clone(), || {
            let mut netlink = Netlink::open(Netlink::ROUTE)?;
            routing::addresses(&mut netlink)
        });
        let all = listed.await.map_err(|e| e.to_string()).and_then(|listed| listed.map_err(|e| e.to_string()));
        let all = all.inspect_err(|e| warn!("the addresses of a pod cannot be listed: {e}")).unwrap_or_default();
        all.into_iter().map(|(_, address)| address).filter(facts::is_global).collect()
    }

    async fn listen(&self, urgency: Urgency, place: &Place) -> Option<Ears> {
        Ears::open(&self.shared.workers, urgency, place, "of ambient mode").await
    }

    fn hear_all_of(ears: &Ears, backend: &str) -> bool {
        ears.hear_all_of(backend)
    }

    async fn heard(ears: &Ears) {
        ears.heard().await;
    }

    async fn change_sets(&self, difference: EntryChanges) -> Result<(), String> {
        self.host.change(difference).await
    }

    async fn annotate(&self, known: &Known, value: Option<&'static str>) -> Result<(), String> {
        let pods: Api<WatchedPod> = Api::namespaced(self.shared.client.clone(), &known.namespace);
        let mut patch = json!({ "metadata": { "annotations": { REDIRECTION: value } } });
        if !known.mirror {
            // A pod of the same name that has come meanwhile is not meant.
            patch["metadata"]["uid"] = known.uid.clone().into();
        }
        let params = PatchParams::default();
        let patch = Patch::Merge(&patch);
        match tokio::time::timeout(PATCH_PATIENCE, pods.patch_status(&known.name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // It is gone, or another one has its name.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(crate::cni::client::chain(&error)),
            Err(_) => Err("the API server does not answer".into()),
        }
    }

    fn show(&self, uid: &str, state: State) -> bool {
        self.shared.inventory.get(uid).is_some_and(|tracked| tracked.set(state))
    }

    fn note(&self, uid: &str, what: String) {
        if let Some(tracked) = self.shared.inventory.get(uid) {
            tracked.note(what);
        }
    }

    fn tell(&self, known: &Arc<Known>, kind: Kind, cause: String, text: String) {
        self.shared.events.tell(Happened { pod: known.clone(), kind, cause, note: text });
    }
}
