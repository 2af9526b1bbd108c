//! A pod of ambient mode as other tasks see it: the news that they report of it, and its state.

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

/// The state of a pod, for the start that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    Joining,
    /// No ztunnel has taken the pod in this namespace yet, and why; it is tried again.
    Pending(Identity, String),
    /// A step failed in this namespace, and why; it is tried again later.
    Failed(Identity, String),
    /// A ztunnel takes the pod's traffic in this namespace.
    Enrolled(Identity),
    Out(String),
}

/// What the plugin reports of a pod's sandbox.
#[derive(Debug, Clone)]
pub(super) enum SandboxEvent {
    /// The plugin was called to set this namespace up.
    Made(Place),
    /// The plugin was called to take the sandbox down.
    Gone,
}

#[derive(Debug)]
struct MemberState {
    known: Arc<Known>,
    /// Whether the pod is gone from the API server.
    gone: bool,
    sandbox: Option<SandboxEvent>,
    /// The pod's namespace, while that is open.
    place: Option<Place>,
    task: Option<AbortHandle>,
    /// How many starts wait for the pod.
    starts: usize,
}

/// A start that waits for a pod until this is dropped.
pub(super) struct Start {
    member: Arc<Member>,
    pub whereabouts: watch::Receiver<Where>,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.member.lock().starts -= 1;
    }
}

/// A pod that a task looks after.
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

    /// Takes note of a change of the pod.
    pub(super) fn changed(&self, known: &Arc<Known>) {
        let mut shared = self.lock();
        shared.known = known.clone();
        shared.gone = false;
        drop(shared);
        self.wake();
    }

    /// Wakes the task that looks after the pod.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Takes note that the pod is gone from the API server.
    pub(super) fn gone(&self) {
        self.lock().gone = true;
        self.wake.notify_one();
    }

    /// Takes note that the plugin sets this namespace up and waits. Gives the start, with the pod's
    /// state.
    pub(super) fn sandbox_made(self: &Arc<Self>, place: Place) -> Start {
        let start = Start { member: self.clone(), whereabouts: self.whereabouts.subscribe() };
        let mut shared = self.lock();
        shared.sandbox = Some(SandboxEvent::Made(place));
        shared.starts += 1;
        drop(shared);
        self.wake.notify_one();
        start
    }

    /// Whether a start waits for work on the pod.
    pub(super) fn urgency(&self) -> Urgency {
        if self.lock().starts > 0 { Urgency::Start } else { Urgency::Background }
    }

    /// Takes note that the plugin takes the sandbox down.
    pub(super) fn sandbox_gone(&self) {
        self.lock().sandbox = Some(SandboxEvent::Gone);
        self.wake.notify_one();
    }

    pub(super) fn has_task(&self, task: AbortHandle) {
        self.lock().task = Some(task);
    }

    /// Ends the task that looks after the pod, as the end of the agent does; its rules and entries stay.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        if let Some(task) = self.lock().task.take() {
            task.abort();
        }
    }

    /// Whether all news of the pod's sandbox has been taken up.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().sandbox.is_none()
    }

    /// Whether the pod is gone from the API server.
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

    /// Sets the pod's namespace; `None` if it is not open.
    pub(super) fn set_place(&self, place: Option<Place>) {
        self.lock().place = place;
    }

    /// Takes the last news of the pod's sandbox, if there is any that was not taken before.
    pub(super) fn take_sandbox(&self) -> Option<SandboxEvent> {
        self.lock().sandbox.take()
    }

    /// Waits until there is news of the pod.
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
