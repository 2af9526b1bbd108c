//! Writes pods' annotations, one at a time, in a task of its own: an API server that answers slowly
//! delays nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::warn;

use crate::sys::mutex::lock;

use super::Ambient;
use super::annotation::Value;
use super::member::Member;
use super::world::World;

#[derive(Debug, Default)]
struct List {
    /// The pods whose annotations are to be written, in order.
    due: VecDeque<Arc<Member>>,
    /// The pods whose annotations could not be written, and when to try again.
    later: Vec<(Instant, Arc<Member>)>,
}

/// The pods whose annotations are to be written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    list: Mutex<List>,
    wake: Notify,
}

impl Writer {
    /// Orders a value for a pod's annotation. A newer order replaces an older one; nobody waits for it.
    pub(super) fn order(&self, member: &Arc<Member>, value: Value) {
        if member.annotation.order(value) {
            lock(&self.list).due.push_back(member.clone());
            self.wake.notify_one();
        }
    }

    /// Waits for the next pod whose annotation is to be written.
    async fn next(&self) -> Arc<Member> {
        loop {
            let alarm = {
                let mut list = lock(&self.list);
                let now = Instant::now();
                let (due, later) = std::mem::take(&mut list.later).into_iter().partition(|(at, _)| *at <= now);
                list.later = later;
                list.due.extend(Vec::into_iter(due).map(|(_, member)| member));
                if let Some(member) = list.due.pop_front() {
                    return member;
                }
                list.later.iter().map(|(at, _)| *at).min()
            };
            let alarm = async {
                match alarm {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = alarm => {}
            }
        }
    }
}

/// Writes annotations for ever, one at a time: the memory that a request needs for a moment lies between
/// memory that stays, and the more requests there are at once, the more of the heap is left in holes,
/// 2.5 MB after 500 pods with four at once.
pub(super) async fn write<W: World>(ambient: Arc<Ambient<W>>) {
    loop {
        let member = ambient.writer.next().await;
        if member.is_gone() {
            member.annotation.forget();
        }
        let Some(value) = member.annotation.begin() else { continue };
        let known = member.known();
        let written = ambient.world.annotate(&known, value).await;
        ambient.figures.annotated(written.is_ok());
        if let Err(why) = &written {
            warn!(pod = %known, "its annotation cannot be written: {why}; it is tried again");
        }
        let now = Instant::now();
        if let Some(pause) = member.annotation.end(written.is_ok(), &known, now) {
            lock(&ambient.writer.list).later.push((now + pause, member.clone()));
        }
        member.wake();
    }
}
