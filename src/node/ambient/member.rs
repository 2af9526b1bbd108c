//! A pod of ambient mode, as far as others see it: what they tell it, and how far it is.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::sys::mutex::lock;

use super::super::cache::Known;
use super::super::inventory::Place;
use super::super::worker::Urgency;
use super::annotation::Annotation;
use super::zds::Identity;
use super::zds::Uid;

/// How far a pod is, for who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    Joining,
    /// Not in a moment, and why; it is tried again.
    Pending(Identity, String),
    /// Nothing was done in this namespace, and why; it is tried again later.
    Failed(Identity, String),
    /// Its traffic is taken in this namespace.
    Enrolled(Identity),
    Out(String),
}

/// What is told of a pod's sandbox.
#[derive(Debug, Clone)]
pub(super) enum SandboxEvent {
    /// The plugin was called to set this namespace up.
    Made(Place),
    /// The plugin was called to take it down.
    Gone,
}

#[derive(Debug)]
struct MemberState {
    known: Arc<Known>,
    /// The pod is gone from the API server.
    gone: bool,
    sandbox: Option<SandboxEvent>,
    /// Its namespace, while that is open.
    place: Option<Place>,
    task: Option<AbortHandle>,
    /// How many starts wait for it.
    starts: usize,
}

/// A start that waits for a pod, for as long as it is kept.
pub(super) struct Start {
    member: Arc<Member>,
    pub whereabouts: watch::Receiver<Where>,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.member.lock().starts -= 1;
    }
}

/// A pod that is looked after.
#[derive(Debug)]
pub(super) struct Member {
    pub uid: Uid,
    pub annotation: Annotation,
    shared: Mutex<MemberState>,
    wake: Notify,
    whereabouts: watch::Sender<Where>,
}

impl Member {
    pub(super) fn new(known: Arc<Known>) -> Self {
        Self {
            uid: known.uid.as_str().into(),
            annotation: Annotation::default(),
            shared: Mutex::new(MemberState { known, gone: false, sandbox: None, place: None, task: None, starts: 0 }),
            wake: Notify::new(),
            whereabouts: watch::Sender::new(Where::Joining),
        }
    }

    fn lock(&self) -> MutexGuard<'_, MemberState> {
        lock(&self.shared)
    }

    pub(super) fn known(&self) -> Arc<Known> {
        self.lock().known.clone()
    }

    /// The pod is not as it was.
    pub(super) fn changed(&self, known: &Arc<Known>) {
        let mut shared = self.lock();
        shared.known = known.clone();
        shared.gone = false;
        drop(shared);
        self.wake();
    }

    /// There is something to look at.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The pod is gone.
    pub(super) fn gone(&self) {
        self.lock().gone = true;
        self.wake.notify_one();
    }

    /// The plugin sets this namespace up, and waits. Gives how far that is.
    pub(super) fn sandbox_made(self: &Arc<Self>, place: Place) -> Start {
        let start = Start { member: self.clone(), whereabouts: self.whereabouts.subscribe() };
        let mut shared = self.lock();
        shared.sandbox = Some(SandboxEvent::Made(place));
        shared.starts += 1;
        drop(shared);
        self.wake.notify_one();
        start
    }

    /// Whether somebody waits for what is done for it.
    pub(super) fn urgency(&self) -> Urgency {
        if self.lock().starts > 0 { Urgency::Start } else { Urgency::Background }
    }

    /// The plugin takes the namespace down.
    pub(super) fn sandbox_gone(&self) {
        self.lock().sandbox = Some(SandboxEvent::Gone);
        self.wake.notify_one();
    }

    pub(super) fn has_task(&self, task: AbortHandle) {
        self.lock().task = Some(task);
    }

    /// Ends looking after it, as the end of the agent does; everything stays as it is.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        if let Some(task) = self.lock().task.take() {
            task.abort();
        }
    }

    /// Whether nothing has been told that has not been taken up.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().sandbox.is_none()
    }

    /// Whether the pod is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.lock().gone
    }

    /// The pod's namespace, while it is open.
    pub(super) fn place(&self) -> Option<Place> {
        self.lock().place.clone()
    }

    pub(super) fn whereabouts(&self) -> Where {
        self.whereabouts.borrow().clone()
    }

    /// The pod's namespace is open from now on, or is not.
    pub(super) fn set_place(&self, place: Option<Place>) {
        self.lock().place = place;
    }

    /// What the plugin has told since this was last asked.
    pub(super) fn take_sandbox(&self) -> Option<SandboxEvent> {
        self.lock().sandbox.take()
    }

    /// Waits until something has been told.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn set(&self, whereabouts: Where) {
        self.whereabouts.send_if_modified(|now| {
            let news = *now != whereabouts;
            *now = whereabouts;
            news
        });
    }
}
