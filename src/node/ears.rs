//! Subscriptions to changes in a pod's namespace.

use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::backend::BackendKind;
use crate::sys::subscription::{NFTABLES, ROUTING, Subscription};

use super::inventory::Place;
use super::worker::{Urgency, Workers};

/// The kernel's notifications of changes in a namespace.
pub struct Ears {
    nftables: Option<AsyncFd<Subscription>>,
    routing: Option<AsyncFd<Subscription>>,
}

impl Ears {
    /// Subscribes to changes in a namespace; `pod` names the pod in the log. `None` if the namespace
    /// cannot be entered.
    pub async fn open(workers: &Workers, urgency: Urgency, place: &Place, pod: &str) -> Option<Self> {
        let opened = workers.run(urgency, place.netns.clone(), || [NFTABLES, ROUTING].map(Subscription::open)).await;
        let Ok([nftables, routing]) = opened else { return None };
        Some(Self::of(nftables, routing, pod))
    }

    /// Subscribes to changes in the namespace of the calling thread.
    pub fn here(whose: &str) -> Self {
        Self::of(Subscription::open(NFTABLES), Subscription::open(ROUTING), whose)
    }

    fn of(nftables: std::io::Result<Subscription>, routing: std::io::Result<Subscription>, whose: &str) -> Self {
        let ear = |subscription: std::io::Result<Subscription>, what: &str| match subscription {
            Ok(subscription) => {
                subscription.watched().inspect_err(|e| warn!(pod = %whose, "changes of {what} are not heard: {e}")).ok()
            }
            Err(e) => {
                warn!(pod = %whose, "changes of {what} are not heard: {e}; it is looked at now and then");
                None
            }
        };
        Self { nftables: ear(nftables, "nf_tables"), routing: ear(routing, "routing") }
    }

    /// Whether the kernel reports every change of rules that this backend made. Changes of
    /// iptables-legacy and of ipset, which rules of iptables-nft use, are reported to nobody.
    pub fn hear_all_of(&self, backend: &str) -> bool {
        backend == BackendKind::Nftables.name() && self.nftables.is_some() && self.routing.is_some()
    }

    /// Waits for the next change.
    pub async fn heard(&self) {
        let one = async |ear: &Option<AsyncFd<Subscription>>| match ear {
            Some(ear) => loop {
                // An ear that fails is one that is deaf: the timer is left.
                let Ok(mut guard) = ear.readable().await else { return std::future::pending().await };
                let told = ear.get_ref().drain();
                guard.clear_ready();
                match told {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(_) => return std::future::pending().await,
                }
            },
            None => std::future::pending().await,
        };
        tokio::select! {
            () = one(&self.nftables) => {}
            () = one(&self.routing) => {}
        }
    }

    /// Drops the notifications that came up to now, before a look.
    pub fn forget(&self) {
        for ear in [&self.nftables, &self.routing].into_iter().flatten() {
            // An error shows when the ear is waited for.
            let _ = ear.get_ref().drain();
        }
    }
}
