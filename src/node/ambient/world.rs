//! The operations of ambient mode on the kernel and the API server, and its reports to people, behind a
//! trait. Unit tests simulate all three.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::cache::Known;
use super::super::events::Kind;
use super::super::inventory::{Place, State};
use super::super::worker::Urgency;
use super::claims::EntryChanges;
use super::standing::Options;

/// The result of making the rules of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programmed {
    pub backend: String,
    /// Whether rules were written.
    pub changed: bool,
    pub warnings: Vec<String>,
}

/// The kernel, the API server and the people, as ambient mode uses them.
pub trait World: Send + Sync + 'static {
    /// A subscription to changes in a namespace.
    type Ears: Send + Sync;

    /// Looks for a pod's namespace.
    fn find(&self, uid: &str) -> impl Future<Output = Option<Place>> + Send;
    /// Whether the path at which a namespace was found still leads to it.
    fn is_there(&self, place: &Place) -> bool;
    /// Makes the rules of a namespace; if that fails, the namespace has the rules that it had before.
    fn program(
        &self,
        urgency: Urgency,
        place: &Place,
        options: &Options,
    ) -> impl Future<Output = Result<Programmed, String>> + Send;
    /// How the rules of a namespace differ from what they should be; empty if they do not.
    fn verify(&self, place: &Place, options: &Options) -> impl Future<Output = Result<Vec<String>, String>> + Send;
    /// Takes every trace of the rules away; whether there was any.
    fn unprogram(&self, place: &Place) -> impl Future<Output = Result<bool, String>> + Send;
    /// The addresses that a namespace is reached at.
    fn addresses(&self, urgency: Urgency, place: &Place) -> impl Future<Output = Vec<IpAddr>> + Send;
    /// Subscribes to changes in a namespace.
    fn listen(&self, urgency: Urgency, place: &Place) -> impl Future<Output = Option<Self::Ears>> + Send;
    /// Whether the kernel reports every change of rules that this backend made.
    fn hear_all_of(ears: &Self::Ears, backend: &str) -> bool;
    /// Waits until the kernel reports a change.
    fn heard(ears: &Self::Ears) -> impl Future<Output = ()> + Send;
    /// Changes the node's sets of probed addresses.
    fn change_sets(&self, difference: EntryChanges) -> impl Future<Output = Result<(), String>> + Send;
    /// Writes the pod's annotation, or removes it. A pod that is gone is no error.
    fn annotate(&self, known: &Known, value: Option<&'static str>) -> impl Future<Output = Result<(), String>> + Send;
    /// Shows the state of a pod; whether that state is new.
    fn show(&self, uid: &str, state: State) -> bool;
    /// Adds what happened to a pod to its history, which `podweir node why` shows.
    fn note(&self, uid: &str, what: String);
    /// Tells of a pod in an event; `cause` is the text without what differs each time.
    fn tell(&self, known: &Arc<Known>, kind: Kind, cause: String, text: String);
}
