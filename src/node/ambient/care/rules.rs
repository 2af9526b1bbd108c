//! A pod's namespace, and the rules in it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::types::Family;

use super::super::super::cache::Known;
use super::super::super::inventory::State;
use super::super::member::Where;
use super::super::standing::Options;
use super::super::step::{NamespaceState, Rules, Want};
use super::super::world::World;
use super::{Care, Turn};

impl<W: World> Care<W> {
    /// Looks for the pod's namespace.
    pub(super) async fn find(&mut self, want: &Want) -> Turn {
        match self.ambient.world.find(self.uid()).await {
            Some(place) => self.open(place),
            None => {
                self.close(NamespaceState::Missing);
                if matches!(want, Want::In { .. }) {
                    self.ambient.book.not_found(self.uid());
                    self.ambient.world.show(self.uid(), State::NoNamespace);
                }
            }
        }
        Turn::Again
    }

    /// Makes the rules in the pod's namespace.
    pub(super) async fn program(&mut self, known: &Arc<Known>, options: &Options) -> Turn {
        let Some(place) = self.place.clone() else {
            self.place_is = NamespaceState::Unknown;
            return Turn::Again;
        };
        let urgency = self.member.urgency();
        // Heard from before the rules are there, so that no change is missed.
        if self.ears.is_none() {
            self.ears = self.ambient.world.listen(urgency, &place).await;
        }
        match self.ambient.world.program(urgency, &place, options).await {
            Ok(programmed) => {
                self.worked();
                self.rules = Rules::Held(options.clone());
                self.looked = Instant::now();
                self.backend = programmed.backend.clone();
                programmed.warnings.iter().for_each(|warning| tracing::warn!(pod = %known, "{warning}"));
                if programmed.changed {
                    let uid = self.uid();
                    self.ambient.world.note(uid, format!("its rules were made in {}", programmed.backend));
                }
                Turn::Again
            }
            Err(_) if !self.ambient.world.is_there(&place) => self.lost(),
            Err(why) => {
                self.member.set(Where::Failed(place.identity, why.clone()));
                self.ambient.book.has_no_rules(self.uid(), place.identity);
                self.failed(known, why)
            }
        }
    }

    /// Closes a namespace that is gone, and searches again: the pod's sandbox may have been made anew.
    pub(super) fn lost(&mut self) -> Turn {
        self.close(NamespaceState::Unknown);
        self.searches += 1;
        match self.searches {
            1 => Turn::Again,
            _ => Turn::Wait(self.search_pause()),
        }
    }

    /// Removes the rules from the pod's namespace.
    pub(super) async fn unprogram(&mut self, known: &Arc<Known>) -> Turn {
        let Some(place) = self.place.clone() else {
            self.place_is = NamespaceState::Missing;
            return Turn::Again;
        };
        match self.ambient.world.unprogram(&place).await {
            Ok(changed) => {
                self.worked();
                self.rules = Rules::None;
                self.ears = None;
                if changed {
                    let Where::Out(why) = self.member.whereabouts() else { return Turn::Again };
                    self.ambient.world.note(self.uid(), format!("it left ambient mode: {why}"));
                }
                Turn::Again
            }
            Err(_) if !self.ambient.world.is_there(&place) => {
                self.close(NamespaceState::Missing);
                Turn::Again
            }
            Err(why) => {
                self.rules = Rules::Stuck;
                let mut why = format!("its rules cannot be removed: {why}");
                let is_told = self.ambient.book.contains(self.uid());
                if is_told || self.member.annotation.value(known).is_some() {
                    // With its rules the pod, or its ztunnel, takes the node's probes for anybody's.
                    let addresses = self.addresses(known).await;
                    if let Err(problem) = self.ambient.claim(known, addresses).await {
                        why = format!("{why}; and the node's probes cannot be let by: {problem}");
                    }
                }
                self.failed(known, why)
            }
        }
    }

    /// The addresses at which probes reach the pod: those of its status, unless there are none, or only
    /// those of a sandbox before; then those of its namespace. A family that is left out has none.
    pub(super) async fn addresses(&mut self, known: &Known) -> BTreeSet<IpAddr> {
        let families = self.ambient.settings.families;
        self.all_addresses(known).await.into_iter().filter(|ip| families.has(Family::of(*ip))).collect()
    }

    async fn all_addresses(&mut self, known: &Known) -> BTreeSet<IpAddr> {
        if self.outdated.as_ref().is_some_and(|outdated| *outdated != known.ips) {
            self.outdated = None;
        }
        let told = || known.ips.iter().copied().collect();
        if !known.ips.is_empty() && self.outdated.is_none() {
            return told();
        }
        if let (true, Some(place)) = (self.listed.is_empty(), self.place.clone()) {
            self.listed = self.ambient.world.addresses(self.member.urgency(), &place).await;
        }
        // A sandbox that was made anew may have its address again.
        match !known.ips.is_empty() && known.ips.iter().all(|ip| self.listed.contains(ip)) {
            true => told(),
            false => self.listed.iter().copied().collect(),
        }
    }
}
