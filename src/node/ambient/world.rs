//! What ambient mode does to the world, behind a trait: the kernel, the API server, and
//! what people are told. Unit tests play all three.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::cache::Known;
use super::super::events::Kind;
use super::super::inventory::{Place, State};
use super::super::worker::Urgency;
use super::claims::EntryChanges;
use super::standing::Options;

/// What programming a namespace did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programmed {
    pub backend: String,
    /// Something was written.
    pub changed: bool,
    pub warnings: Vec<String>,
}

/// The world.
pub trait World: Send + Sync + 'static {
    /// What tells of changes in a namespace.
    type Ears: Send + Sync;

    /// Looks for a pod's namespace.
    fn find(&self, uid: &str) -> impl Future<Output = Option<Place>> + Send;
    /// Whether a namespace is still where it was found.
    fn is_there(&self, place: &Place) -> bool;
    /// Makes a namespace hold the rules, all of them or, where that fails, what it held before.
    fn program(
        &self,
        urgency: Urgency,
        place: &Place,
        options: &Options,
    ) -> impl Future<Output = Result<Programmed, String>> + Send;
    /// How what a namespace holds differs from the rules; empty where it does not.
    fn verify(&self, place: &Place, options: &Options) -> impl Future<Output = Result<Vec<String>, String>> + Send;
    /// Takes every trace of the rules away; whether there was any.
    fn unprogram(&self, place: &Place) -> impl Future<Output = Result<bool, String>> + Send;
    /// The addresses that a namespace is reached at.
    fn addresses(&self, urgency: Urgency, place: &Place) -> impl Future<Output = Vec<IpAddr>> + Send;
    /// Begins to listen to a namespace.
    fn listen(&self, urgency: Urgency, place: &Place) -> impl Future<Output = Option<Self::Ears>> + Send;
    /// Whether every change of what this backend holds is heard.
    fn hear_all_of(ears: &Self::Ears, backend: &str) -> bool;
    /// Waits for a change.
    fn heard(ears: &Self::Ears) -> impl Future<Output = ()> + Send;
    /// Changes the node's sets of probed addresses.
    fn change_sets(&self, difference: EntryChanges) -> impl Future<Output = Result<(), String>> + Send;
    /// Writes the pod's annotation, or removes it. A pod that is gone is no error.
    fn annotate(&self, known: &Known, value: Option<&'static str>) -> impl Future<Output = Result<(), String>> + Send;
    /// Shows how a pod is; whether that is news.
    fn show(&self, uid: &str, state: State) -> bool;
    /// Keeps what happened to a pod, for who asks why.
    fn note(&self, uid: &str, what: String);
    /// Tells of a pod in an event; `cause` is the text without what differs each time.
    fn tell(&self, known: &Arc<Known>, kind: Kind, cause: String, text: String);
}
