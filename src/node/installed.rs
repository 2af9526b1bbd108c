//! What is known of the installation on the node: what the installer's last look found, since
//! when the chain has had our entry, and whether the runtime goes by that chain.

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use crate::sys::mutex::lock;

use super::cache::Known;
use super::condition::Condition;
use super::installer::keeper::Inspection;
use super::installer::{ChainMode, ChainState, Installation};
use super::inventory::TrackedPod;
use super::missed::{self, MissedPod};

/// What is known of the installation.
#[derive(Default)]
pub(super) struct Installed(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// What the installer's last look found.
    look: Option<Inspection>,
    /// Since when the chain has had our entry.
    effective: Option<SystemTime>,
    /// A pod that should have been intercepted and for which no ADD came, since then.
    missed: Option<MissedPod>,
}

impl Installed {
    /// Takes note of what a look of the installer found.
    pub(super) fn looked(&self, look: &Inspection) {
        let effective = matches!(&look.chain, Ok(state) if state.is_effective());
        let mut inner = lock(&self.0);
        match (effective, inner.effective) {
            // While others had taken it out, pods may have started without.
            (true, _) if look.rewritten => inner.effective = Some(SystemTime::now()),
            (true, None) => inner.effective = Some(SystemTime::now()),
            (false, Some(_)) => inner.effective = None,
            _ => {}
        }
        inner.look = Some(look.clone());
    }

    /// Whether the chain and the binary have been looked at.
    pub(super) fn is_looked_at(&self) -> bool {
        lock(&self.0).look.is_some()
    }

    /// The state of the chain in words, or why it could not be looked at.
    pub(super) fn chain(&self) -> Option<String> {
        lock(&self.0).look.as_ref().map(|look| match &look.chain {
            Ok(state) => state.to_string(),
            Err(e) => e.clone(),
        })
    }

    /// Since when the chain has had our entry.
    pub(super) fn effective_since(&self) -> Option<SystemTime> {
        lock(&self.0).effective
    }

    /// Takes note of a pod without any rules that the plugin should have made: if the pod was made while
    /// the chain had our entry, and no ADD came for it, the runtime uses another chain.
    pub(super) fn has_no_rules(&self, tracked: &TrackedPod) {
        let known = tracked.known();
        let mut pod = tracked.inner();
        // A pod is judged once: what is not repaired is looked at again and again.
        if pod.attachment.is_some() || std::mem::replace(&mut pod.judged, true) {
            return;
        }
        let mut inner = lock(&self.0);
        if let (Some(effective), Some(created)) = (inner.effective, known.created)
            && missed::is_made_after(created, effective)
        {
            inner.missed = Some(MissedPod::new(&known, Instant::now()));
        }
    }

    /// Takes note that the runtime ran the plugin, so that it uses our chain.
    pub(super) fn is_used(&self) {
        lock(&self.0).missed = None;
    }

    /// Takes note that a pod has ended or is gone: that its ADD was missed does not count any more.
    pub(super) fn is_gone(&self, known: &Known) {
        lock(&self.0).missed.take_if(|missed| missed.is_of(known));
    }

    /// What keeps the plugin from being run for every pod, as a condition of the node; `None`:
    /// nothing does.
    pub(super) fn problem(&self, installation: &Installation) -> Option<Condition> {
        let mut inner = lock(&self.0);
        let Some(look) = &inner.look else {
            return Some(Condition::fails("Starting", "the agent is starting"));
        };
        if let Some(problem) = look.problem() {
            let taken_out = matches!(look.chain, Ok(ChainState::TakenOut { .. }));
            return Some(Condition::fails(if taken_out { "TakenOut" } else { "NotInstalled" }, problem));
        }
        inner.missed.take_if(|missed| missed.is_old(Instant::now()));
        inner.missed.as_ref().map(|missed| Condition::fails("ChainNotUsed", not_used(missed, installation)))
    }
}

/// What is wrong, and what helps, where a pod was missed.
fn not_used(missed: &MissedPod, installation: &Installation) -> String {
    let folder = installation.conf_dir.display();
    match installation.mode {
        ChainMode::Standalone => format!(
            "pod {missed} was started without the plugin although the list podweir is in {folder}: Multus runs it only for pods whose annotation k8s.v1.cni.cncf.io/networks names it; have the injector write the annotation, see that the NetworkAttachmentDefinition podweir is in the namespace that the annotation names (cni.networkAttachmentNamespaces of the chart), and that Multus reads the folder that --cni-conf-dir names"
        ),
        ChainMode::Merge | ChainMode::DropIn | ChainMode::None => format!(
            "pod {missed} was started without the plugin although the entry is in the chain: the runtime uses another folder or file; compare its configuration with --cni-conf-dir {folder}"
        ),
    }
}
