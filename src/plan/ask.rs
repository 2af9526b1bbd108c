//! What kinds of conditions a rule has, whatever the values: the form by which a rule of a
//! plan is known.

use crate::config::ranges::RangeList;
use crate::config::types::Interface;

use super::model::{Cond, Matches, protocol};

/// One kind of condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ask {
    Tcp,
    Udp,
    TcpAndUdp,
    From,
    To,
    NotTo,
    FromPort,
    Port,
    NotPort,
    In,
    Out,
    /// In or out by lo.
    InLo,
    OutLo,
    User,
    NotUser,
    Group,
    NotGroup,
    Marked,
    NotMarked,
    ConnectionMarked,
    State,
    /// One that no rule of a plan has.
    Other,
}

/// A rule's conditions, in the order of [`Ask`].
pub(super) fn asks(m: &Matches) -> Vec<Ask> {
    fn either<T>(cond: &Option<Cond<T>>, is: Ask, is_not: Ask) -> Option<Ask> {
        cond.as_ref().map(|cond| if cond.negated { is_not } else { is })
    }
    let by = |cond: &Option<Cond<Vec<Interface>>>, lo: Ask, any: Ask| match cond {
        Some(cond) if !cond.negated && cond.value == [Interface::lo()] => Some(lo),
        cond => either(cond, any, Ask::Other),
    };
    let protocols = m.protocol.as_ref().map(|cond| {
        let is = |numbers: &[u8]| cond.value.normalised() == RangeList::of(numbers.iter().copied()).normalised();
        match cond.negated {
            false if is(&[protocol::TCP]) => Ask::Tcp,
            false if is(&[protocol::UDP]) => Ask::Udp,
            false if is(&[protocol::TCP, protocol::UDP]) => Ask::TcpAndUdp,
            _ => Ask::Other,
        }
    });
    let all = [
        protocols,
        either(&m.source, Ask::From, Ask::Other),
        either(&m.destination, Ask::To, Ask::NotTo),
        either(&m.source_port, Ask::FromPort, Ask::Other),
        either(&m.destination_port, Ask::Port, Ask::NotPort),
        by(&m.in_interface, Ask::InLo, Ask::In),
        by(&m.out_interface, Ask::OutLo, Ask::Out),
        either(&m.uid, Ask::User, Ask::NotUser),
        either(&m.gid, Ask::Group, Ask::NotGroup),
        either(&m.mark, Ask::Marked, Ask::NotMarked),
        either(&m.connection_mark, Ask::ConnectionMarked, Ask::Other),
        either(&m.connection_state, Ask::State, Ask::Other),
        (!m.unknown.is_empty()).then_some(Ask::Other),
    ];
    all.into_iter().flatten().collect()
}
