//! Comparing the rules of a pod's namespace with what they should be, and repairing them.

use std::sync::Arc;
use std::time::Instant;

use super::super::super::cache::Known;
use super::super::super::events::Kind;
use super::super::super::inventory::{self, State};
use super::super::super::noticed::Noticed;
use super::super::super::worker::Urgency;
use super::super::standing::Options;
use super::super::step::Rules;
use super::super::world::World;
use super::super::zds::pause;
use super::{Care, SILENCE, Turn};

impl<W: World> Care<W> {
    /// Compares the rules of the pod's namespace with what they should be, and repairs them if they
    /// differ.
    pub(super) async fn look(&mut self, known: &Arc<Known>, place: &inventory::Place, options: &Options) -> Turn {
        self.look = false;
        if self.rules != Rules::Held(options.clone()) {
            // They are made anew in any case.
            return Turn::Again;
        }
        if let Err(pause) = self.looks.take(Instant::now()) {
            self.look = true;
            return Turn::Wait(pause);
        }
        self.looked = Instant::now();
        let noticed = Noticed::now();
        match self.ambient.world.verify(place, options).await {
            Ok(differences) if differences.is_empty() => match self.ambient.world.is_there(place) {
                true => Turn::Again,
                false => self.lost(),
            },
            Ok(differences) => {
                let noticed = *self.drifted.get_or_insert(noticed);
                let first = differences.first().cloned().unwrap_or_default();
                let what = format!("its rules differed: {first}");
                self.ambient.world.show(self.uid(), State::Drifted { first, escapes: true });
                if !self.ambient.settings.heal {
                    let text = format!("{what}; it is not repaired, since --heal is off");
                    self.say(known, Kind::Drifted, what, text);
                    self.look = true;
                    return Turn::Wait(self.ambient.settings.verify_interval);
                }
                if let Err(pause) = self.repairs.take(Instant::now()) {
                    // It may be looked at many times until then.
                    if !std::mem::replace(&mut self.waits, true) {
                        let seconds = pause.as_secs().max(1);
                        let often = format!("{what}; this happens so often that repairs wait {seconds} s");
                        self.say(known, Kind::Waits, what, often);
                    }
                    self.look = true;
                    return Turn::Wait(pause);
                }
                match self.ambient.world.program(Urgency::Background, place, options).await {
                    Ok(programmed) => {
                        let text = format!("{what}; repaired with {} {noticed}", programmed.backend);
                        self.backend = programmed.backend;
                        self.say(known, Kind::Drifted, what, text);
                        Turn::Again
                    }
                    Err(why) => {
                        self.rules = Rules::Unknown;
                        self.failed(known, format!("{what}, and cannot be repaired: {why}"))
                    }
                }
            }
            Err(_) if !self.ambient.world.is_there(place) => self.lost(),
            Err(why) => {
                self.look = true;
                self.failed(known, format!("its rules cannot be verified: {why}"))
            }
        }
    }

    /// Reports a problem in the log, in the pod's history and in an event; `cause` is the text without
    /// what differs each time.
    fn say(&self, known: &Arc<Known>, kind: Kind, cause: String, text: String) {
        tracing::warn!(pod = %known, "{text}");
        self.ambient.world.note(self.uid(), text.clone());
        self.ambient.world.tell(known, kind, cause, text);
    }

    /// Records that a step succeeded: failures are counted from the start again.
    pub(super) fn worked(&mut self) {
        self.failures = 0;
        self.drifted = None;
        self.waits = false;
        self.failing = None;
        self.untold = false;
    }

    pub(super) fn failed(&mut self, known: &Arc<Known>, why: String) -> Turn {
        self.failures = self.failures.saturating_add(1);
        self.untold |= self.ambient.world.show(self.uid(), State::Failed { why: why.clone() });
        // While a sandbox is taken down, before the plugin hears of it, this and that fails:
        // that is over in a moment, and nobody wants to read of it.
        let since = *self.failing.get_or_insert_with(tokio::time::Instant::now);
        if self.untold && since.elapsed() >= SILENCE {
            self.untold = false;
            self.say(known, Kind::Failed, why.clone(), why);
        }
        // The first tries come soon: what is in the way may be about to end.
        Turn::Wait(pause(self.failures))
    }
}
