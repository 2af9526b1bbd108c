//! Showing the state of a pod in ambient mode, to the start that waits for it and to people.

use std::sync::Arc;

use super::super::super::cache::Known;
use super::super::super::inventory::State;
use super::super::member::Where;
use super::super::world::World;
use super::super::zds::book::Progress;
use super::{Care, SILENCE};

impl<W: World> Care<W> {
    pub(super) fn show_pending(&self) {
        let (Some(announced), Some(place)) = (&self.announced, &self.place) else { return };
        let why = match &*announced.progress.borrow() {
            Progress::Refused(why) => format!("ztunnel refuses it: {why}"),
            _ if self.ambient.book.ztunnels().0 == 0 => {
                "no ztunnel is connected to the agent; is there one on this node, and are its logs in order?".into()
            }
            _ => "ztunnel has not acknowledged it yet".into(),
        };
        self.member.set(Where::Pending(place.identity, why.clone()));
        if announced.since.elapsed() >= SILENCE || matches!(&*announced.progress.borrow(), Progress::Refused(_)) {
            self.ambient.world.show(self.uid(), State::Pending { why });
        }
    }

    pub(super) fn show_enrolled(&mut self, known: &Arc<Known>) {
        let Some(place) = self.place.clone() else { return };
        self.worked();
        if self.ambient.world.show(self.uid(), State::Enrolled) {
            tracing::info!(pod = %known, "ztunnel takes its traffic");
            self.ambient.world.note(self.uid(), "ztunnel takes its traffic".into());
        }
        self.member.set(Where::Enrolled(place.identity));
    }
}
