//! Looking after one pod: a task that looks at the pod's rules when the kernel reports a change in the
//! pod's namespace, when there is news of the pod, and now and then; and that repairs the rules, within
//! a budget.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use crate::probe::Beside;
use crate::sys::text::rounded;

use super::backoff::growing;
use super::budget::Budget;
use super::decide::{PodDecision, Programmer, decide};
use super::ears::Ears;
use super::events::{Happened, Kind};
use super::inventory::{Place, State, TrackedPod};
use super::look::{self, Drift, Look, Mending, Wanted};
use super::noticed::Noticed;
use super::on_failure::{self, Acted, FailedRepairs};
use super::shared::Shared;
use super::worker::Urgency;

/// Changes come in bursts: one look for all of them.
const BURST: Duration = Duration::from_millis(5);
/// How many looks a pod may cause at once, and the time after which it may cause one more.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(200));
/// How many repairs a pod may cause at once, and the time after which it may cause one more.
const REPAIRS: (u32, Duration) = (5, Duration::from_secs(10));
/// How long one repair may take.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(20);
/// The pauses after a look or a repair that failed: the first, and the longest.
const AFTER_FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// How long a repair waits for older connections to end, and the pause between two looks meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const WAIT_FOR_OLDER: Duration = Duration::from_secs(2);
/// The pause between two looks for the first process of a pod that already has its network.
const WAIT_FOR_PROCESS: Duration = Duration::from_secs(2);
/// Where the kernel tells of every change, how many times longer than the usual interval
/// passes between two looks that nothing called for.
const TOLD_FACTOR: u32 = 10;

/// Looks after a pod until it is forgotten.
pub(super) async fn look_after(shared: Arc<Shared>, tracked: Arc<TrackedPod>) {
    let now = Instant::now();
    let mut care = Care {
        shared,
        tracked,
        ears: None,
        looks: Budget::new(LOOKS.0, LOOKS.1, now),
        repairs: Budget::new(REPAIRS.0, REPAIRS.1, now),
        failed_looks: 0,
        failed_repairs: FailedRepairs::default(),
        drifted: None,
        waits: false,
        waits_for_older: false,
    };
    loop {
        let next = care.round().await;
        care.wait(next).await;
    }
}

/// The pause after this many failures in a row.
fn pause_after(failures: u32) -> Duration {
    growing(AFTER_FAILURE, failures)
}

struct Care {
    shared: Arc<Shared>,
    tracked: Arc<TrackedPod>,
    /// The subscription to changes in a namespace, and that namespace's device and inode.
    ears: Option<((u64, u64), Ears)>,
    looks: Budget,
    repairs: Budget,
    /// How many looks failed in a row.
    failed_looks: u32,
    failed_repairs: FailedRepairs,
    /// When the difference that is not repaired yet was first seen.
    drifted: Option<Noticed>,
    /// Whether it was reported that repairs wait, since there were too many.
    waits: bool,
    /// Whether it was reported that the repair waits for the end of older connections.
    waits_for_older: bool,
}

impl Care {
    /// Looks once, and mends. Gives the time of the next look, should nothing happen before.
    async fn round(&mut self) -> Duration {
        let interval = self.shared.settings.verify_interval;
        let known = self.tracked.known();
        let (by, mut wanted, why) = match decide(&known, &self.shared.settings.policy) {
            PodDecision::LeaveAlone(why) => {
                self.ears = None;
                self.tracked.inner().place = None;
                self.nothing_to_mend();
                self.tracked.set(State::LeftAlone { why });
                return interval * TOLD_FACTOR;
            }
            PodDecision::Refuse(error) => {
                self.failed(error.to_string());
                return interval * TOLD_FACTOR;
            }
            PodDecision::Intercept { by, options, face, why, .. } => {
                (by, Wanted { options, face, resolv_conf: None }, why)
            }
        };
        let Some(place) = self.shared.place_of(&self.tracked).await else {
            self.ears = None;
            self.tracked.set(State::NoNamespace);
            return interval;
        };
        self.listen(&place).await;
        if let Err(pause) = self.looks.take(Instant::now()) {
            return pause;
        }
        if wanted.needs_resolv_conf() {
            match self.shared.places.resolv_conf(&self.tracked.known().uid, place.identity).await {
                Ok(Some(text)) => wanted.resolv_conf = Some(text),
                // Its first process comes in a moment.
                Ok(None) => return WAIT_FOR_PROCESS,
                Err(e) => {
                    self.failed(format!("its /etc/resolv.conf, whose servers are captured, cannot be read: {e}"));
                    return self.after_failed_look();
                }
            }
        }
        if let Some((_, ears)) = &self.ears {
            ears.forget();
        }
        let noticed = Noticed::now();
        let looked = {
            let (wanted, netns) = (wanted.clone(), place.netns.clone());
            self.shared.workers.run(Urgency::Background, place.netns.clone(), move || look::look(&netns, &wanted)).await
        };
        let look = match looked {
            Ok(look) => look,
            Err(error) => {
                // The namespace may be gone, and another one in its place.
                self.tracked.inner().place = None;
                self.failed(error.to_string());
                return self.after_failed_look();
            }
        };
        self.tracked.inner().verified = Some(SystemTime::now());
        self.failed_looks = 0;
        match look {
            Look::Same { backend } => {
                self.shared.metrics.verified("same");
                self.nothing_to_mend();
                self.tracked.set(State::Intercepted { backend: backend.into() });
                let told = self.ears.as_ref().is_some_and(|(_, ears)| ears.hear_all_of(backend));
                if told { interval * TOLD_FACTOR } else { interval }
            }
            Look::CannotTell(reason) => {
                self.shared.metrics.verified("unknown");
                self.failed(format!("its rules cannot be verified: {reason}"));
                interval
            }
            Look::Nothing if by == Programmer::Init && !self.is_past_init() => {
                // Its init container has not run yet, which is how it should be.
                self.tracked.set(State::New);
                Duration::from_secs(2)
            }
            Look::Nothing => {
                self.shared.metrics.verified("nothing");
                // While it is tried again, what was found of the first try stays shown.
                if self.failed_repairs.count() == 0 && !self.waits_for_older {
                    self.tracked.set(State::Unguarded);
                }
                if by == Programmer::Plugin {
                    self.shared.installed.has_no_rules(&self.tracked);
                }
                self.mend(&place, &wanted, None, why, noticed).await
            }
            Look::Differs(drift) => {
                self.shared.metrics.verified("different");
                self.waits_for_older = false;
                if self.failed_repairs.count() == 0 {
                    self.tracked.set(State::Drifted { first: drift.first.clone(), escapes: drift.escapes });
                }
                self.mend(&place, &wanted, Some(drift), why, noticed).await
            }
        }
    }

    /// Records that nothing needs a repair.
    fn nothing_to_mend(&mut self) {
        self.failed_repairs = FailedRepairs::default();
        self.drifted = None;
        self.waits_for_older = false;
    }

    fn is_past_init(&self) -> bool {
        self.tracked.known().init_done
    }

    /// Subscribes to changes in the namespace, unless that is done already.
    async fn listen(&mut self, place: &Place) {
        if self.ears.as_ref().is_some_and(|(identity, _)| *identity == place.identity) {
            return;
        }
        let pod = self.tracked.known().to_string();
        let Some(ears) = Ears::open(&self.shared.workers, Urgency::Background, place, &pod).await else { return };
        self.ears = Some((place.identity, ears));
    }

    /// Replaces the rules by what they should be. Gives the time until the next look.
    async fn mend(
        &mut self,
        place: &Place,
        wanted: &Wanted,
        drift: Option<Drift>,
        why: &str,
        noticed: Noticed,
    ) -> Duration {
        let interval = self.shared.settings.verify_interval;
        let noticed = *self.drifted.get_or_insert(noticed);
        let what = match &drift {
            None => format!("its rules were missing, although {why}"),
            Some(drift) => format!("its rules differed: {}", drift.first),
        };
        if !self.shared.settings.heal {
            let consequence =
                drift.as_ref().and_then(|d| d.effects.first()).map(|e| format!("; {e}")).unwrap_or_default();
            let note = format!("{what}{consequence}; it is not repaired, since --heal is off");
            warn!(pod = %self.tracked.known(), "{note}");
            self.tell(Kind::Drifted, what, note);
            return interval;
        }
        if let Err(pause) = self.repairs.take(Instant::now()) {
            // It may be looked at many times until then.
            if !std::mem::replace(&mut self.waits, true) {
                let often = format!("{what}; this happens so often that repairs wait {} s", pause.as_secs().max(1));
                warn!(pod = %self.tracked.known(), "{often}");
                self.tracked.note(often.clone());
                self.tell(Kind::Waits, what, often);
            }
            return pause;
        }
        let mended = {
            let (wanted, netns) = (wanted.clone(), place.netns.clone());
            let wait = self.shared.settings.wait_for_older && drift.is_none() && noticed.elapsed() < LONGEST_WAIT;
            self.shared
                .workers
                .run(Urgency::Background, place.netns.clone(), move || {
                    look::mend(&netns, &wanted, wait, REPAIR_TIMEOUT)
                })
                .await
        };
        let mended = match mended {
            Ok(Ok(Mending::Done(mended))) => mended,
            Ok(Ok(Mending::Waits { open })) => {
                // Nothing was written.
                self.repairs.give_back();
                return self.wait_for_older(&what, open);
            }
            Ok(Err(error)) => return self.not_mended(&what, error.to_string()).await,
            Err(error) => return self.not_mended(&what, error.to_string()).await,
        };
        self.nothing_to_mend();
        self.waits = false;
        self.shared.metrics.healed("mended", noticed.elapsed());
        self.tracked.set(State::Intercepted { backend: mended.backend.into() });
        let effects = drift.iter().flat_map(|d| &d.effects).take(2).cloned().collect::<Vec<_>>().join("; ");
        let effects = if effects.is_empty() { String::new() } else { format!("; meanwhile {effects}") };
        let older: String = mended.older.iter().map(|said| format!("; {said}")).collect();
        let probed = mended.probed.as_ref().map(|probed| format!("; {probed}")).unwrap_or_default();
        let text = format!(
            "{what}{effects}; repaired with {} ({} rules, {}) {noticed}{older}{probed}",
            mended.backend, mended.rules, mended.families
        );
        self.tracked.note(text.clone());
        info!(pod = %self.tracked.known(), backend = mended.backend, ms = noticed.elapsed().as_micros() as f64 / 1000.0, "{text}");
        for warning in &mended.warnings {
            warn!(pod = %self.tracked.known(), "{warning}");
        }
        let kind = match (&mended.probed, &drift) {
            (Some(Beside::Failed(_)), _) => Kind::Failed,
            (_, None) => Kind::Repaired,
            (_, Some(_)) => Kind::Drifted,
        };
        self.tell(kind, what, text);
        // What was just written is heard as a change, and looked at.
        interval
    }

    /// Shows that the repair waits until older connections are gone, which the rules would break. Gives
    /// the time until the next look.
    fn wait_for_older(&mut self, what: &str, open: usize) -> Duration {
        if !std::mem::replace(&mut self.waits_for_older, true) {
            let text = format!(
                "{what}; older connections ({open}) are open that they would break: they are made when these are gone, and after {} at the latest",
                rounded(LONGEST_WAIT)
            );
            info!(pod = %self.tracked.known(), "{text}");
            self.tracked.note(text);
        }
        self.tracked.set(State::Waiting);
        WAIT_FOR_OLDER
    }

    async fn not_mended(&mut self, what: &str, error: String) -> Duration {
        self.shared.metrics.healed("failed", Duration::ZERO);
        self.waits_for_older = false;
        self.failed_repairs.add();
        self.failed(format!("{what}, and cannot be repaired: {error}"));
        if self.failed_repairs.acting_in(Instant::now()) == Some(Duration::ZERO) {
            self.act().await;
        }
        let pause = pause_after(self.failed_repairs.count());
        // With the repair that comes then, what is left to be done is tried again.
        self.failed_repairs.acting_in(Instant::now()).map_or(pause, |acting| acting.min(pause))
    }

    /// Takes the action that `--on-failure` asks for.
    async fn act(&mut self) {
        let known = self.tracked.known();
        let (shared, pod) = (self.shared.clone(), known.clone());
        // In a task of its own: an evicted pod may be gone before the answer is read, and with it
        // the task that looks after it.
        let acted = tokio::spawn(async move {
            let acted = on_failure::act(shared.settings.on_failure, &shared.client, &pod, &shared.evictions).await;
            if let Ok(Acted::Done(done)) = acted {
                let note = format!("it cannot be repaired, so {done}");
                warn!(pod = %pod, "{note}");
                shared.events.tell(Happened { pod, kind: Kind::Acted, cause: done.into(), note });
            }
            acted
        });
        match acted.await.unwrap_or_else(|e| Err(format!("the work was lost: {e}"))) {
            Ok(Acted::Done(done)) => {
                self.failed_repairs.acted();
                self.tracked.note(done);
            }
            Ok(Acted::Nothing) => self.failed_repairs.acted(),
            Ok(Acted::Later(pause)) => self.failed_repairs.wait(Instant::now(), pause),
            Err(problem) => {
                let pause = rounded(self.failed_repairs.refused(Instant::now()));
                let text =
                    format!("what --on-failure asks for cannot be done: {problem}; it is tried again after {pause}");
                self.shared.metrics.error("on-failure", format_args!("{known}: {problem}"));
                warn!(pod = %known, "{text}");
                self.tracked.note(text);
            }
        }
    }

    fn failed(&mut self, why: String) {
        if self.tracked.set(State::Failed { why: why.clone() }) {
            warn!(pod = %self.tracked.known(), "{why}");
            self.tracked.note(why.clone());
            self.tell(Kind::Failed, why.clone(), why);
        }
    }

    fn after_failed_look(&mut self) -> Duration {
        self.failed_looks = self.failed_looks.saturating_add(1);
        pause_after(self.failed_looks)
    }

    /// Reports about the pod in an event; `cause` is the note without what differs each time.
    fn tell(&self, kind: Kind, cause: String, note: String) {
        self.shared.events.tell(Happened { pod: self.tracked.known(), kind, cause, note });
    }

    /// Waits until there is a reason to look again.
    async fn wait(&mut self, longest: Duration) {
        // Spread, so that pods that came together are not all looked at together.
        let spread = longest.mul_f64(0.9 + 0.2 * f64::from(self.shared.random()) / f64::from(u32::MAX));
        let tracked = self.tracked.clone();
        let heard = async {
            match &self.ears {
                Some((_, ears)) => ears.heard().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = heard => tokio::time::sleep(BURST).await,
            () = tracked.wake.notified() => {}
            () = tokio::time::sleep(spread) => {}
        }
    }
}
