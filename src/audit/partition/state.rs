//! A set of flows on its way: what has happened to their packet, and which of them meet
//! the conditions of a rule.

use crate::audit::explain::Decider;
use crate::audit::flow::Taker;
use crate::config::ranges::{RangeList, Step};
use crate::plan::canon::CanonMatches;
use crate::plan::model::{Cond, CtStates, Masked};
use crate::plan::why::Why;

use super::cube::{Cube, NOBODY, owners};
use super::interfaces::Interfaces;

/// The interface a packet has here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    None,
    Lo,
    /// The one in the set of flows.
    Flow,
}

/// Flows that are at the same place, with what has happened to their packet.
#[derive(Debug, Clone)]
pub struct State<'a> {
    /// As the flows were sent.
    pub flows: Cube,
    /// Where redirection sent them.
    pub destination: Option<u128>,
    pub port: Option<u16>,
    pub in_by: By,
    pub out_by: By,
    /// The packet's socket is no longer the sender's.
    pub ownerless: bool,
    pub local: bool,
    pub mark: u32,
    pub connection_mark: u32,
    pub redirected: Option<Taker>,
    pub nat_done: bool,
    pub decider: Option<(Decider<'a>, &'a Why)>,
    /// Of the rules that may apply: which were taken to, and the last of these.
    pub guesses: Vec<bool>,
    pub perhaps: Option<(Decider<'a>, &'a Why)>,
}

impl<'a> State<'a> {
    pub fn with(&self, flows: Cube) -> Self {
        Self { flows, ..self.clone() }
    }

    /// Those that meet the conditions, and those that do not.
    pub fn cut(self, m: &CanonMatches, interfaces: &Interfaces) -> (Option<Self>, Vec<Self>) {
        match self.inside(m, interfaces) {
            None => (None, vec![self]),
            Some(inside) => {
                let rest = self.flows.around(&inside).into_iter().map(|flows| self.with(flows)).collect();
                (Some(Self { flows: inside, ..self }), rest)
            }
        }
    }

    fn inside(&self, m: &CanonMatches, interfaces: &Interfaces) -> Option<Cube> {
        if m.connection_state.0 & CtStates::NEW.0 == 0
            || !mark(&m.mark, self.mark)
            || !mark(&m.connection_mark, self.connection_mark)
        {
            return None;
        }
        let mut flows = self.flows.clone();
        narrow(&mut flows.protocol, &m.protocol)?;
        match self.destination {
            Some(here) => m.destination.holds(here).then_some(())?,
            None => narrow(&mut flows.destination, &m.destination)?,
        }
        match self.port {
            Some(here) => m.destination_port.holds(here).then_some(())?,
            None => narrow(&mut flows.port, &m.destination_port)?,
        }
        narrow(&mut flows.source, &m.source)?;
        narrow(&mut flows.source_port, &m.source_port)?;
        for (cond, by) in [(&m.in_interface, self.in_by), (&m.out_interface, self.out_by)] {
            let Some(cond) = cond else { continue };
            let meeting = interfaces.meeting(cond);
            match by {
                By::None => cond.negated.then_some(())?,
                By::Lo => meeting.overlaps(&interfaces.lo()).then_some(())?,
                By::Flow => narrow(&mut flows.interface, &meeting)?,
            }
        }
        for (cond, set) in [(&m.uid, &mut flows.uid), (&m.gid, &mut flows.gid)] {
            let Some(cond) = cond else { continue };
            let meeting = owners(cond);
            if self.ownerless { meeting.holds(NOBODY).then_some(())? } else { narrow(set, &meeting)? }
        }
        Some(flows)
    }
}

/// Leaves what both hold; `None` if that is nothing.
fn narrow<T: Step>(set: &mut RangeList<T>, by: &RangeList<T>) -> Option<()> {
    if !by.is_full() && set != by {
        *set = set.intersection(by);
    }
    (!set.is_empty()).then_some(())
}

fn mark(cond: &Option<Cond<Masked>>, mark: u32) -> bool {
    cond.as_ref().is_none_or(|cond| (mark & cond.value.mask == cond.value.value) != cond.negated)
}
