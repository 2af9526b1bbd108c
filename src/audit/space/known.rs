//! The known values of packets on a walk, which all packets that are followed together have in common.
//! Of a single packet everything is known; of a set of packets what rules have changed, and the set has
//! the rest.

use crate::audit::flow::{Direction, Flow, Surroundings};
use crate::plan::canon::{CanonMatches, number};
use crate::plan::model::CtStates;

use super::dimensions::{Asks, Name, each_dimension, owner};

/// Whether packets meet a rule's conditions: a three-valued verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Meets {
    Yes,
    No,
    /// Some condition is not understood, or asks for a mark that is not known.
    Unknown,
}

macro_rules! define {
    ($($name:ident, $asked:ident, $set:ty, $value:ty, $told:ty;)*) => {
        /// Values that packets have in common, by dimension; `None` where they may differ.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct KnownFields<'n> {
            $(pub $name: Option<$told>,)*
            pub mark: Option<u32>,
            /// The mark of the connection, where there is one already.
            pub connection_mark: Option<Option<u32>>,
        }

        impl KnownFields<'_> {
            /// Whether these values meet a rule's conditions. Conditions on what is not known
            /// are left to the set of packets.
            pub(in crate::audit) fn meets(&self, asked: &CanonMatches) -> Meets {
                $(if let Some(value) = self.$name && !asked.$asked.admits(value) {
                    return Meets::No;
                })*
                let marks = match (self.mark, self.connection_mark) {
                    _ if asked.mark.is_none() && asked.connection_mark.is_none() => Meets::Yes,
                    (Some(mark), _) if !asked.mark.admits(mark) => Meets::No,
                    (_, Some(mark)) if !asked.connection_mark.admits(mark) => Meets::No,
                    (Some(_), Some(_)) => Meets::Yes,
                    _ => Meets::Unknown,
                };
                if marks == Meets::Yes && !asked.unknown.is_empty() { Meets::Unknown } else { marks }
            }
        }
    };
}
each_dimension!(define);

/// A typical source port. Which port a connection comes from is chance, unless a question names it: a
/// port in the middle of the ephemeral ones stands for it, which is neither low nor well-known.
pub const EPHEMERAL: u16 = 45_678;

impl<'n> KnownFields<'n> {
    /// What is known of the packets' connection: the state that they have in it, and its mark,
    /// if there is one already.
    pub(in crate::audit) fn set_connection(&mut self, state: CtStates, mark: Option<u32>) {
        (self.state, self.connection_mark) = (Some(state), Some(mark));
    }

    /// The values of the first packet of a flow, all of them.
    pub(crate) fn of(flow: &'n Flow, pod: &'n Surroundings) -> Self {
        let interface = flow.interface.as_deref();
        let interface = Some(interface.unwrap_or_else(|| pod.interface(flow.direction, flow.destination)));
        let (in_interface, out_interface) = match flow.direction {
            Direction::Inbound => (interface, None),
            Direction::Outbound => (None, interface),
        };
        Self {
            protocol: Some(flow.protocol),
            in_interface: Some(in_interface),
            out_interface: Some(out_interface),
            uid: Some(owner(flow.uid)),
            gid: Some(owner(flow.gid)),
            destination: Some(number(flow.destination)),
            port: Some(flow.port),
            source: Some(number(flow.source.unwrap_or_else(|| pod.usual_source(flow)))),
            source_port: Some(flow.source_port.unwrap_or(EPHEMERAL)),
            state: Some(CtStates::NEW),
            mark: Some(flow.mark),
            connection_mark: Some(Some(0)),
        }
    }
}
