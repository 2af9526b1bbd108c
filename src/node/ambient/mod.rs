//! Ambient mode: pods without a proxy of their own, whose traffic the node's ztunnel takes. The agent
//! makes the rules in their namespaces, hands the namespaces to ztunnel, lets the kubelet's probes pass,
//! and keeps all of this so.
//!
//! ```text
//! watch of pods ─┐
//! watch of       ├─► standing ─► what is wanted ─┐
//! namespaces ────┘                               ├─► step ─► member: find, program, announce, let probes by, annotate
//! kernel, ztunnel, plugin ─► what is ────────────┘
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `standing` | whether a pod is to be in ambient mode, and with which options: pure |
//! | `step` | the next step from what is there to what is wanted: pure |
//! | `claims`, `annotation` | which pod has which address; which value the annotation has: pure |
//! | `member`, `care` | a pod as other tasks see it; looking after the pod |
//! | `writer` | writes annotations, in a task of its own |
//! | `world` | what is done to the kernel and the API server, behind a trait |
//! | `start` | makes all of these parts, and leaves the node |
//! | `real`, `host`, `namespaces` | the real world; the node's own rules; the watch of namespaces |
//! | `probe` | whether probes reach pods |
//! | `zds` | telling ztunnels which pods to take |
//! | `kubelet` | which user the kubelet runs as |
//! | `figures` | metrics |

mod annotation;
mod care;
mod claims;
pub mod figures;
mod host;
pub mod kubelet;
mod member;
mod namespaces;
mod probe;
mod real;
pub mod standing;
mod start;
mod step;
#[cfg(test)]
mod tests;
pub mod world;
mod writer;
pub mod zds;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::types::Families;
use crate::sys::mutex::lock;

use super::cache::{Known, Phase};
use super::inventory::Place;

pub use claims::{Entries, EntryChanges};
use figures::Figures;
use member::{Member, Where};
pub use real::Real;
use standing::{EnrolmentPolicy, Standing};
pub(super) use start::prepare;
pub use start::{leave_node, leave_node_by_hand};
use world::World;
use zds::Identity;
use zds::book::Book;
use zds::message::WorkloadInfo;

/// How long searching for pods' namespaces may delay a ztunnel's first snapshot.
const LOOKING: Duration = Duration::from_secs(10);

/// The settings of ambient mode.
#[derive(Debug, Clone)]
pub struct AmbientSettings {
    pub policy: EnrolmentPolicy,
    /// The families for which rules are made.
    pub families: Families,
    /// Whether rules that differ from what they should be are repaired.
    pub heal: bool,
    /// How often the rules of pods are verified where the kernel does not report every change.
    pub verify_interval: Duration,
}

/// The namespaces of Kubernetes that have the label of ambient mode.
#[derive(Debug, Default)]
struct Namespaces {
    labelled: HashSet<String>,
    known: bool,
    /// Whether every pod of the node is known, too.
    pods_known: bool,
}

/// What the synthetic probe found, in sentences, and whether that is as it should be; `None` if no probe
/// was tried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probed {
    pub found: Vec<String>,
    pub good: Option<bool>,
}

/// The result of waiting for a pod that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// A ztunnel takes the pod's traffic.
    Enrolled,
    /// The pod is not in ambient mode.
    Out,
}

/// Ambient mode: the pods of the node, what ztunnels are told of them, and the node's sets.
pub struct Ambient<W: World> {
    pub world: W,
    pub settings: AmbientSettings,
    pub book: Arc<Book>,
    pub figures: Arc<Figures>,
    namespaces: Mutex<Namespaces>,
    members: Mutex<HashMap<String, Arc<Member>>>,
    claims: Mutex<claims::Claims>,
    probed: Mutex<Option<Probed>>,
    writer: writer::Writer,
}

/// What ztunnels are told of a pod.
fn info(known: &Known) -> WorkloadInfo {
    WorkloadInfo {
        name: known.name.clone(),
        namespace: known.namespace.clone(),
        service_account: known.service_account.clone(),
    }
}

impl<W: World> Ambient<W> {
    pub fn new(world: W, settings: AmbientSettings, figures: Arc<Figures>) -> Self {
        Self {
            world,
            settings,
            book: Arc::default(),
            figures,
            namespaces: Mutex::default(),
            members: Mutex::default(),
            claims: Mutex::default(),
            probed: Mutex::default(),
            writer: writer::Writer::default(),
        }
    }

    /// Whether a pod is to be in ambient mode; `None` if it is not known yet which namespaces have the
    /// label.
    pub fn standing(&self, known: &Known) -> Option<Standing> {
        let namespaces = lock(&self.namespaces);
        namespaces
            .known
            .then(|| standing::standing(known, namespaces.labelled.contains(&known.namespace), &self.settings.policy))
    }

    /// Takes over which namespaces have the label, all of them; gives those for which that is new.
    pub fn namespaces_are(&self, labelled: HashSet<String>) -> Vec<String> {
        let mut namespaces = lock(&self.namespaces);
        namespaces.known = true;
        let before = std::mem::replace(&mut namespaces.labelled, labelled);
        before.symmetric_difference(&namespaces.labelled).cloned().collect()
    }

    /// Takes over whether one namespace has the label; gives whether that is new.
    pub fn namespace_is(&self, name: &str, labelled: bool) -> bool {
        let mut namespaces = lock(&self.namespaces);
        match labelled {
            true => namespaces.labelled.insert(name.to_owned()),
            false => namespaces.labelled.remove(name),
        }
    }

    /// Whether it is known which namespaces have the label.
    pub fn knows_namespaces(&self) -> bool {
        lock(&self.namespaces).known
    }

    /// Whether [`Ambient::complete`] was said.
    pub fn is_complete(&self) -> bool {
        lock(&self.namespaces).pods_known
    }

    /// Reacts to a pod that is new or has changed, or whose namespace got or lost the label.
    pub fn consider(self: &Arc<Self>, known: &Arc<Known>) {
        let standing = self.standing(known);
        if standing.as_ref().is_some_and(Standing::is_in) {
            // Before anybody could say that the snapshot is complete without it.
            self.book.expect(&known.uid.as_str().into(), info(known));
        }
        let mut members = lock(&self.members);
        if let Some(member) = members.get(&known.uid) {
            return member.changed(known);
        }
        // An agent before this one may have left something in pods that are there already.
        let is_old = !lock(&self.namespaces).pods_known;
        let is_marked = known.pod.annotation(standing::REDIRECTION).is_some();
        let is_none_of_ours = match standing {
            Some(Standing::Out { .. }) => (!is_old || known.host_network || known.phase == Phase::Ended) && !is_marked,
            None => known.host_network || known.phase == Phase::Ended,
            Some(Standing::In { .. }) => false,
        };
        if !is_none_of_ours {
            self.start(&mut members, known);
        }
    }

    fn start(self: &Arc<Self>, members: &mut HashMap<String, Arc<Member>>, known: &Arc<Known>) -> Arc<Member> {
        let member = Arc::new(Member::new(known.clone()));
        members.insert(known.uid.clone(), member.clone());
        let task = tokio::spawn(care::look_after(self.clone(), member.clone()));
        member.has_task(task.abort_handle());
        member
    }

    /// Reacts to a pod that is gone from the API server.
    pub fn gone(&self, uid: &str) {
        if let Some(member) = lock(&self.members).get(uid) {
            member.gone();
        }
    }

    /// Reacts to the plugin being called to take a pod's sandbox down.
    pub fn sandbox_gone(&self, uid: &str) {
        if let Some(member) = lock(&self.members).get(uid) {
            member.sandbox_gone();
        }
    }

    /// Records that every pod of the node is known, and which namespaces have the label: from now on a
    /// snapshot for ztunnels may be complete.
    pub fn complete(self: &Arc<Self>) {
        lock(&self.namespaces).pods_known = true;
        self.book.complete();
        let book = self.book.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOOKING).await;
            book.search_is_over();
        });
    }

    /// Waits until a ztunnel takes the traffic of a pod that starts in this namespace.
    ///
    /// # Errors
    /// Why the traffic is not taken, with what helps.
    pub async fn join(
        self: &Arc<Self>,
        known: &Arc<Known>,
        place: Place,
        patience: Duration,
    ) -> Result<Joined, String> {
        let identity = place.identity;
        let mut start = {
            let mut members = lock(&self.members);
            let member = match members.get(&known.uid) {
                Some(member) => member.clone(),
                None => self.start(&mut members, known),
            };
            member.sandbox_made(place)
        };
        let whereabouts = &mut start.whereabouts;
        let decided = |now: &Where| match now {
            Where::Enrolled(at) | Where::Failed(at, _) => *at == identity,
            Where::Out(_) => true,
            Where::Joining | Where::Pending(..) => false,
        };
        let waited = tokio::time::timeout(patience, async {
            loop {
                if whereabouts.changed().await.is_err() || decided(&whereabouts.borrow()) {
                    return whereabouts.borrow().clone();
                }
            }
        });
        match waited.await {
            Ok(Where::Enrolled(_)) => Ok(Joined::Enrolled),
            Ok(Where::Out(_)) => Ok(Joined::Out),
            Ok(Where::Failed(_, why)) => Err(why),
            Ok(Where::Joining | Where::Pending(..)) => Err("the agent ends".into()),
            Err(_) => Err(match &*whereabouts.borrow() {
                Where::Pending(_, why) => why.clone(),
                _ if self.standing(known).is_none() => {
                    "the API server has not told yet which namespaces are in ambient mode".into()
                }
                _ => format!("it was not done within {:.1} s", patience.as_secs_f64()),
            }),
        }
    }

    /// The addresses that a pod claims in the node's sets.
    fn claimed(&self, uid: &str) -> BTreeSet<IpAddr> {
        lock(&self.claims).of(uid)
    }

    /// Gives a pod exactly these addresses in the node's sets.
    async fn claim(&self, known: &Known, addresses: BTreeSet<IpAddr>) -> Result<(), String> {
        let before = self.claimed(&known.uid);
        let difference = lock(&self.claims).set(&known.uid, known.created, addresses);
        if difference.is_empty() {
            return Ok(());
        }
        let changed = self.world.change_sets(difference).await;
        self.figures.host_set(if changed.is_ok() { "changed" } else { "failed" });
        if changed.is_err() {
            // It is claimed when it is there. What is there too much goes with the next look.
            lock(&self.claims).set(&known.uid, known.created, before);
        }
        changed
    }

    /// The entries that the node's sets should have.
    pub fn entries(&self) -> Entries {
        lock(&self.claims).entries().clone()
    }

    /// Whether a pod has addresses in the node's sets.
    fn has_claims(&self, uid: &str) -> bool {
        !self.claimed(uid).is_empty()
    }

    /// How many network namespaces of pods are kept open.
    pub fn open_namespaces(&self) -> usize {
        let mut open: HashSet<Identity> = self.book.namespaces().into_iter().collect();
        open.extend(lock(&self.members).values().filter_map(|member| member.place()).map(|place| place.identity));
        open.len()
    }

    /// For each family an enrolled pod that has an address of it in the node's sets.
    fn one_of_each_family(&self) -> Vec<(Place, IpAddr)> {
        let mut found: Vec<(Place, IpAddr)> = Vec::new();
        for (address, uid) in self.entries() {
            if found.iter().any(|(_, other)| other.is_ipv4() == address.is_ipv4()) {
                continue;
            }
            let member = lock(&self.members).get(&uid).cloned();
            let enrolled = member.filter(|member| matches!(member.whereabouts(), Where::Enrolled(_)));
            found.extend(enrolled.and_then(|member| member.place()).map(|place| (place, address)));
        }
        found
    }

    fn set_probed(&self, probed: Probed) {
        *lock(&self.probed) = Some(probed);
    }

    /// What the synthetic probe found; `None`: there was no pod to be probed yet.
    pub fn probed(&self) -> Option<Probed> {
        lock(&self.probed).clone()
    }

    /// The state of ambient mode, for `podweir node status`.
    pub fn report(&self) -> serde_json::Value {
        let (connected, complete) = self.book.ztunnels();
        let probed = self.probed();
        serde_json::json!({
            "ztunnels": connected,
            "ztunnelsWithEveryPod": complete,
            "pods": self.book.len(),
            "probedAddresses": lock(&self.claims).entries().len(),
            "openNamespaces": self.open_namespaces(),
            "namespaces": lock(&self.namespaces).labelled.len(),
            "probe": probed.as_ref().map(|probed| probed.found.join("; ")),
            "probeArrives": probed.as_ref().and_then(|probed| probed.good),
        })
    }

    /// How many pods are looked after.
    pub fn len(&self) -> usize {
        lock(&self.members).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets a pod that is out of ambient mode, unless there is news of its sandbox; whether it did.
    fn let_go(&self, member: &Arc<Member>) -> bool {
        let mut members = lock(&self.members);
        let is_out = !self.standing(&member.known()).is_some_and(|s| s.is_in()) || member.is_gone();
        if is_out && member.is_idle() {
            members.remove(&*member.uid);
            return true;
        }
        false
    }
}
