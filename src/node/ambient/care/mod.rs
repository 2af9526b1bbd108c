//! Looking after one pod in ambient mode: a task that takes one step after the other from what is there
//! to what is wanted, and looks again when the kernel, the watch or a ztunnel reports a change, and now
//! and then.

mod look;
mod rules;
mod show;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::budget::Budget;
use super::super::cache::{Known, Phase};
use super::super::inventory::{self, State};
use super::super::noticed::Noticed;
use super::Ambient;
use super::member::{Member, SandboxEvent, Where};
use super::standing::{ENABLED, Standing};
use super::step::{Acknowledged, Is, NamespaceState, Rules, Step, Want, step};
use super::world::World;
use super::zds::book::Progress;
use super::zds::{PATIENCE, Uid};

/// Changes come in bursts: one look for all of them.
const BURST: Duration = Duration::from_millis(5);
/// How many looks, and how many repairs, a pod may cause at once, and the time after which it may cause
/// one more.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(200));
const REPAIRS: (u32, Duration) = (5, Duration::from_secs(10));
/// For how long a ztunnel's silence or a failure is not reported.
const SILENCE: Duration = Duration::from_secs(1);
/// The pauses between two searches for a pod's namespace: the first, and the longest.
const SEARCHES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Where the kernel tells of every change, how many times longer than the usual interval passes
/// between two looks that nothing called for.
const TOLD_FACTOR: u32 = 10;

/// What comes after a step.
enum Turn {
    /// The next step is taken at once.
    Again,
    /// The next step is taken after this time, or when something happens before.
    Wait(Duration),
    /// The pod needs no care any more.
    End,
}

/// The announcement of the pod to ztunnels: how far it has got, and since when it is made.
struct Announced {
    progress: watch::Receiver<Progress>,
    since: Instant,
}

struct Care<W: World> {
    ambient: Arc<Ambient<W>>,
    member: Arc<Member>,
    place: Option<inventory::Place>,
    place_is: NamespaceState,
    /// Whether the plugin has taken the sandbox down and has made none since.
    taken_down: bool,
    rules: Rules,
    announced: Option<Announced>,
    ears: Option<W::Ears>,
    /// The backend by which the rules in the pod's namespace were made.
    backend: String,
    /// Whether the rules of the namespace are to be verified, since something may have changed there.
    look: bool,
    looked: Instant,
    /// The addresses that the namespace itself has, used as long as the pod's status has none of this
    /// sandbox.
    listed: Vec<IpAddr>,
    /// The addresses that the pod's status had when its sandbox was made: those of a sandbox before.
    outdated: Option<Vec<IpAddr>>,
    looks: Budget,
    repairs: Budget,
    /// When the difference that is not repaired yet was first seen.
    drifted: Option<Noticed>,
    /// Whether it was reported that repairs wait, since there were too many.
    waits: bool,
    /// How many times in a row a step failed.
    failures: u32,
    /// Since when steps fail; in `untold`, whether that is still to be reported.
    failing: Option<tokio::time::Instant>,
    untold: bool,
    searches: u32,
    warned: Vec<String>,
}

/// Looks after a pod until it is out of ambient mode and nothing of ambient mode is left of it.
pub(super) async fn look_after<W: World>(ambient: Arc<Ambient<W>>, member: Arc<Member>) {
    let now = Instant::now();
    let mut care = Care {
        ambient,
        member,
        place: None,
        place_is: NamespaceState::Unknown,
        taken_down: false,
        rules: Rules::Unknown,
        announced: None,
        ears: None,
        backend: String::new(),
        look: false,
        looked: now,
        listed: Vec::new(),
        outdated: None,
        looks: Budget::new(LOOKS.0, LOOKS.1, now),
        repairs: Budget::new(REPAIRS.0, REPAIRS.1, now),
        drifted: None,
        waits: false,
        failures: 0,
        failing: None,
        untold: false,
        searches: 0,
        warned: Vec::new(),
    };
    loop {
        match care.round().await {
            Turn::Again => {}
            Turn::Wait(longest) => care.wait(longest).await,
            Turn::End if care.ambient.let_go(&care.member) => return,
            Turn::End => {}
        }
    }
}

impl<W: World> Care<W> {
    fn uid(&self) -> &Uid {
        &self.member.uid
    }

    fn close(&mut self, is: NamespaceState) {
        self.place = None;
        self.place_is = is;
        self.ears = None;
        self.rules = Rules::Unknown;
        // Of another namespace ztunnels have to be told again; of the same one it is no news.
        self.announced = None;
        self.listed.clear();
        self.member.set_place(None);
    }

    fn open(&mut self, place: inventory::Place) {
        self.close(NamespaceState::Open);
        self.place = Some(place);
        self.member.set_place(self.place.clone());
        self.searches = 0;
        self.worked();
    }

    /// Takes up what the plugin last reported of the pod's sandbox.
    fn sandbox(&mut self) {
        match self.member.take_sandbox() {
            Some(SandboxEvent::Made(place)) => {
                self.taken_down = false;
                self.listed.clear();
                self.outdated = Some(self.member.known().ips.clone());
                if self.place.as_ref().is_none_or(|known| known.identity != place.identity) {
                    self.open(place);
                }
                self.worked();
                self.member.set(Where::Joining);
            }
            Some(SandboxEvent::Gone) => {
                self.taken_down = true;
                self.close(NamespaceState::Missing);
            }
            None => {}
        }
    }

    async fn want(&mut self, known: &Arc<Known>, gone: bool) -> Option<Want> {
        if gone {
            return Some(Want::Out { runs: false, exists: false });
        }
        match self.ambient.standing(known)? {
            Standing::Out { why } => {
                self.member.set(Where::Out(why));
                let runs = !self.taken_down && !known.host_network && known.phase != Phase::Ended;
                // Nobody reads what is written on a pod that is being deleted.
                Some(Want::Out { runs, exists: !(known.ending && known.phase == Phase::Ended) })
            }
            // Until its sandbox is made anew there is nothing of it.
            Standing::In { .. } if self.taken_down => Some(Want::Out { runs: false, exists: false }),
            Standing::In { options, warnings, .. } => {
                if self.warned != warnings {
                    warnings.iter().for_each(|warning| {
                        tracing::warn!(pod = %known, "{warning}");
                        self.ambient.world.note(self.uid(), warning.clone());
                    });
                    self.warned = warnings;
                }
                Some(Want::In { options, addresses: self.addresses(known).await })
            }
        }
    }

    fn is(&self, known: &Arc<Known>, want: &Want) -> Is {
        let told = match &self.announced {
            // It may be in the book by another namespace, or before it was found.
            None => match want {
                Want::Out { .. } if self.ambient.book.contains(self.uid()) => Acknowledged::Waiting { long: false },
                _ => Acknowledged::Nothing,
            },
            Some(announced) => match &*announced.progress.borrow() {
                Progress::Waiting => Acknowledged::Waiting { long: announced.since.elapsed() >= SILENCE },
                Progress::Refused(_) => Acknowledged::Refused,
                Progress::Taken => Acknowledged::Taken,
            },
        };
        Is {
            place: self.place_is,
            rules: self.rules.clone(),
            told,
            probed: self.ambient.claimed(self.uid()),
            annotation: self.member.annotation.value(known),
        }
    }

    /// Finds out which step is next, and takes it.
    async fn round(&mut self) -> Turn {
        self.sandbox();
        let (known, gone) = (self.member.known(), self.member.is_gone());
        // Which namespaces have the label is not known yet.
        let Some(want) = self.want(&known, gone).await else {
            return Turn::Wait(self.ambient.settings.verify_interval);
        };
        if let Want::Out { .. } = want {
            self.member.annotation.take_back();
        }
        let next = step(&want, &self.is(&known, &want));
        // Making its rules is heard of, too. While a pod's start waits for a ztunnel, the answer comes
        // before another look at them, unless it keeps one waiting.
        let is_new = self.announced.as_ref().is_none_or(|announced| announced.since.elapsed() < SILENCE);
        let hurries = is_new && matches!(self.member.whereabouts(), Where::Joining | Where::Pending(..));
        if let (Want::In { options, .. }, true, Some(place)) = (&want, self.look && !hurries, self.place.clone()) {
            return self.look(&known, &place, options).await;
        }
        match next {
            Step::Find => self.find(&want).await,
            Step::Program(options) => self.program(&known, &options).await,
            Step::Announce => self.announce(&known),
            Step::LetProbesBy(addresses) => self.let_probes_by(&known, addresses).await,
            Step::Annotate(value) => self.annotate(&known, value),
            Step::Unprogram => self.unprogram(&known).await,
            Step::Withdraw => self.withdraw().await,
            Step::Wait => self.waiting(),
            Step::Done => match want {
                Want::In { .. } => self.enrolled(&known),
                Want::Out { exists: false, .. } if self.taken_down && !gone => {
                    self.ambient.world.show(self.uid(), State::NoNamespace);
                    // Whatever comes next of it is told.
                    Turn::Wait(self.ambient.settings.verify_interval)
                }
                Want::Out { exists, .. } => {
                    if let Where::Out(why) = self.member.whereabouts() {
                        self.ambient.world.show(self.uid(), State::LeftAlone { why });
                    }
                    // Its annotation is about to be removed: if it comes back, that counts as done.
                    if exists && self.member.annotation.is_ordered() {
                        return Turn::Wait(self.ambient.settings.verify_interval);
                    }
                    self.close(NamespaceState::Unknown);
                    Turn::End
                }
            },
        }
    }

    fn announce(&mut self, known: &Arc<Known>) -> Turn {
        let Some(place) = self.place.clone() else {
            self.place_is = NamespaceState::Unknown;
            return Turn::Again;
        };
        let progress = self.ambient.book.announce(self.uid(), super::info(known), place);
        self.announced = Some(Announced { progress, since: Instant::now() });
        Turn::Again
    }

    async fn let_probes_by(&mut self, known: &Arc<Known>, addresses: BTreeSet<IpAddr>) -> Turn {
        match self.ambient.claim(known, addresses).await {
            Ok(()) => Turn::Again,
            Err(why) => {
                let why = format!("the node's probes cannot be let by: {why}");
                if let Some(place) = &self.place {
                    self.member.set(Where::Failed(place.identity, why.clone()));
                }
                self.failed(known, why)
            }
        }
    }

    fn annotate(&mut self, known: &Arc<Known>, value: Option<&'static str>) -> Turn {
        if value == Some(ENABLED) {
            self.show_enrolled(known);
        } else if value.is_some() {
            self.show_pending();
        }
        // What is true stays true without being written down.
        self.ambient.writer.order(&self.member, value);
        Turn::Again
    }

    async fn withdraw(&mut self) -> Turn {
        let uid = self.uid().clone();
        self.ambient.book.remove(&uid);
        // A ztunnel that does not answer is closed before this ends.
        let _ = tokio::time::timeout(PATIENCE * 2, self.ambient.book.let_go(&uid)).await;
        self.announced = None;
        Turn::Again
    }

    /// Shows that the pod waits for a ztunnel or for its namespace, and gives the time until the next
    /// try.
    fn waiting(&mut self) -> Turn {
        if self.place_is == NamespaceState::Missing {
            self.searches = self.searches.saturating_add(1);
            let pause = self.search_pause();
            self.place_is = NamespaceState::Unknown;
            return Turn::Wait(pause);
        }
        self.show_pending();
        Turn::Wait(SILENCE)
    }

    fn search_pause(&self) -> Duration {
        let (first, longest) = SEARCHES;
        first.saturating_mul(1u32.checked_shl(self.searches.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest)
    }

    fn enrolled(&mut self, known: &Arc<Known>) -> Turn {
        self.show_enrolled(known);
        let told = self.ears.as_ref().is_some_and(|ears| W::hear_all_of(ears, &self.backend));
        let interval = self.ambient.settings.verify_interval * if told { TOLD_FACTOR } else { 1 };
        match interval.checked_sub(self.looked.elapsed()) {
            Some(left) if !left.is_zero() => Turn::Wait(left),
            _ => {
                self.look = true;
                Turn::Again
            }
        }
    }

    /// Waits until something changes, at most for `longest`.
    async fn wait(&mut self, longest: Duration) {
        let member = self.member.clone();
        let recheck = member.annotation.recheck();
        let heard = async {
            match &self.ears {
                Some(ears) => W::heard(ears).await,
                None => std::future::pending().await,
            }
            self.look = true;
            tokio::time::sleep(BURST).await;
        };
        let told = async {
            let Some(announced) = &mut self.announced else { return std::future::pending().await };
            if announced.progress.changed().await.is_err() {
                // The book has forgotten the pod: somebody says so otherwise.
                std::future::pending().await
            }
        };
        tokio::select! {
            () = heard => {}
            () = told => {}
            () = member.woken() => {}
            () = tokio::time::sleep(recheck.map_or(longest, |soon| soon.min(longest))) => {}
        }
    }
}
