//! What conntrack has about a packet's connection, and what of it rules are told.

use crate::plan::model::CtStates;

use super::known::KnownFields;

/// How far conntrack is with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// It comes to it at priority -200 (`NF_IP_PRI_CONNTRACK`).
    NotYet,
    /// So does this one; but a rule has said in which zone, by a connection that stands for
    /// the one to come (`xt_CT.c`, `nft_ct.c`).
    InZone,
    Known,
}

/// What conntrack has about a packet's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConntrackView {
    pub tracking: Tracking,
    /// The state that the packet has in it, once it is known.
    pub state: CtStates,
    pub mark: u32,
}

impl ConntrackView {
    /// That of the first packet that conntrack has not come to yet.
    pub(crate) const NEW: ConntrackView = ConntrackView { tracking: Tracking::NotYet, state: CtStates::NEW, mark: 0 };

    /// Lets rules know what conntrack has: the state that the packet has for them, and the
    /// connection's mark.
    pub(crate) fn tell(self, known: &mut KnownFields) {
        let (state, mark) = match self.tracking {
            Tracking::NotYet => (CtStates::INVALID, None),
            Tracking::InZone => (CtStates::NEW, Some(0)),
            Tracking::Known => (self.state, Some(self.mark)),
        };
        known.set_connection(state, mark);
    }
}
