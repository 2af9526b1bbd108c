//! What a register may hold: the fields of a packet that the model has conditions for.

use crate::config::types::Family;

use super::expr::{ct, meta};

/// Something of a packet that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    InInterface,
    OutInterface,
    /// The same by number.
    InIndex,
    OutIndex,
    Family,
    /// The same, by the frame's number for it.
    EtherType,
    Protocol,
    Mark,
    ConnectionMark,
    ConnectionState,
    Uid,
    Gid,
    Address {
        family: Family,
        source: bool,
    },
    /// Source and destination in one piece.
    Addresses {
        family: Family,
    },
    SourcePort,
    DestinationPort,
    /// Source and destination in one piece.
    Ports,
}

/// What a meta expression loads.
pub(super) fn meta_field(key: u32) -> Option<Field> {
    match key {
        meta::IIF => Some(Field::InIndex),
        meta::OIF => Some(Field::OutIndex),
        meta::IIFNAME => Some(Field::InInterface),
        meta::OIFNAME => Some(Field::OutInterface),
        meta::PROTOCOL => Some(Field::EtherType),
        meta::NFPROTO => Some(Field::Family),
        meta::L4PROTO => Some(Field::Protocol),
        meta::MARK => Some(Field::Mark),
        meta::SKUID => Some(Field::Uid),
        meta::SKGID => Some(Field::Gid),
        _ => None,
    }
}

/// What a ct expression loads.
pub(super) fn ct_field(key: u32) -> Option<Field> {
    match key {
        ct::MARK => Some(Field::ConnectionMark),
        ct::STATE => Some(Field::ConnectionState),
        _ => None,
    }
}
