//! A set of flows on its way: what has happened to their packet, and which of them meet
//! the conditions of a rule.

use crate::audit::explain::Decider;
use crate::audit::flow::Taker;
use crate::audit::packet::Tracking;
use crate::audit::ruleset::{Base, ChainRules};
use crate::config::types::IdList;
use crate::plan::canon::CanonMatches;
use crate::plan::model::{Cond, CtStates, Masked};
use crate::plan::why::Why;

use super::cube::{Cube, NOBODY, Owners, owners};
use super::guesses::Guess;
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
    pub tracking: Tracking,
    pub asked_by_nft: bool,
    pub redirected: Option<Taker>,
    pub nat_done: bool,
    pub decider: Option<(Decider<'a>, &'a Why)>,
    /// Of the rules that may apply: which were taken to, and the last of these.
    pub guesses: Guess,
    pub perhaps: Option<(Decider<'a>, &'a Why)>,
}

impl<'a> State<'a> {
    pub fn with(&self, flows: Cube) -> Self {
        Self { flows, ..*self }
    }

    /// Comes to a base chain.
    pub fn enter(&mut self, chain: &ChainRules, base: &Base) {
        self.tracking = self.tracking.at(base);
        self.asked_by_nft = chain.is_native() && !base.hook.is_outbound();
    }

    /// Those of the flows that meet the conditions.
    pub fn inside(&self, m: &CanonMatches, interfaces: &Interfaces) -> Option<Cube> {
        let flows = &self.flows;
        let may = m.connection_state.0 & self.tracking.told(CtStates::NEW).0 != 0
            && mark(&m.mark, self.mark)
            && match self.tracking {
                Tracking::NotYet => m.connection_mark.is_none(),
                Tracking::InZone => mark(&m.connection_mark, 0),
                Tracking::Known => mark(&m.connection_mark, self.connection_mark),
            }
            && self.destination.map_or_else(|| flows.destination.overlaps(&m.destination), |a| m.destination.holds(a))
            && self.port.map_or_else(|| flows.port.overlaps(&m.destination_port), |p| m.destination_port.holds(p))
            && flows.source.overlaps(&m.source)
            && flows.protocol.overlaps(&m.protocol)
            && flows.source_port.overlaps(&m.source_port);
        if !may {
            return None;
        }
        let mut interface = flows.interface.clone();
        for (cond, by) in [(&m.in_interface, self.in_by), (&m.out_interface, self.out_by)] {
            let Some(cond) = cond else { continue };
            match by {
                By::None => cond.negated.then_some(())?,
                By::Lo => interfaces.meeting(cond).overlaps(interfaces.lo()).then_some(())?,
                By::Flow => interface = interface.intersection(&interfaces.meeting(cond)),
            }
        }
        let owned = |cond: &Option<Cond<IdList>>, set: &Owners| {
            let Some(meeting) = cond.as_ref().map(owners) else { return Some(set.clone()) };
            // nftables has no answer about a packet without an owner.
            let nobody = meeting.holds(NOBODY) && !self.asked_by_nft;
            match (self.ownerless, nobody) {
                (true, nobody) => nobody.then(|| set.clone()),
                (false, true) => Some(set.intersection(&meeting)),
                (false, false) => Some(set.intersection(&meeting.minus(&Owners::of([NOBODY])))),
            }
        };
        let (uid, gid) = (owned(&m.uid, &flows.uid)?, owned(&m.gid, &flows.gid)?);
        if interface.is_empty() || uid.is_empty() || gid.is_empty() {
            return None;
        }
        Some(Cube {
            interface,
            uid,
            gid,
            protocol: flows.protocol.intersection(&m.protocol),
            destination: match self.destination {
                Some(_) => flows.destination.clone(),
                None => flows.destination.intersection(&m.destination),
            },
            port: match self.port {
                Some(_) => flows.port.clone(),
                None => flows.port.intersection(&m.destination_port),
            },
            source: flows.source.intersection(&m.source),
            source_port: flows.source_port.intersection(&m.source_port),
        })
    }
}

fn mark(cond: &Option<Cond<Masked>>, mark: u32) -> bool {
    cond.as_ref().is_none_or(|cond| (mark & cond.value.mask == cond.value.value) != cond.negated)
}
