//! What conntrack has about a packet's connection, and what of it rules are told.

use crate::plan::model::CtStates;

use super::known::KnownFields;

/// How far conntrack's view of a packet's connection has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// Conntrack has not seen the packet yet; it does at priority -200 (`NF_IP_PRI_CONNTRACK`).
    NotYet,
    /// Conntrack has not seen the packet yet, but a rule has assigned a zone by a template connection
    /// (`xt_CT.c`, `nft_ct.c`).
    InZone,
    Known,
}

/// What conntrack has about a packet's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConntrackView {
    pub tracking: Tracking,
    /// The state that the packet has in the connection, once conntrack has seen it.
    pub state: CtStates,
    pub mark: u32,
}

impl ConntrackView {
    /// The view of the first packet of a connection that conntrack has not seen yet.
    pub(crate) const NEW: ConntrackView = ConntrackView { tracking: Tracking::NotYet, state: CtStates::NEW, mark: 0 };

    /// Tells rules what conntrack knows: the state that they see, and the connection's mark.
    pub(crate) fn tell(self, known: &mut KnownFields) {
        let (state, mark) = match self.tracking {
            Tracking::NotYet => (CtStates::INVALID, None),
            Tracking::InZone => (CtStates::NEW, Some(0)),
            Tracking::Known => (self.state, Some(self.mark)),
        };
        known.set_connection(state, mark);
    }
}
