//! Fields of a packet that a register may hold, as far as the model has conditions for them.

use crate::config::types::Family;

use super::expr::{ct, meta};

/// Something of a packet that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PacketField {
    InInterface,
    OutInterface,
    /// The interface that a packet came in by, as its index.
    InIndex,
    /// The interface that a packet leaves by, as its index.
    OutIndex,
    Family,
    /// The family, by the number that an Ethernet frame has for it (`ETH_P_IP`, `ETH_P_IPV6`).
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
pub(super) fn meta_field(key: u32) -> Option<PacketField> {
    match key {
        meta::IIF => Some(PacketField::InIndex),
        meta::OIF => Some(PacketField::OutIndex),
        meta::IIFNAME => Some(PacketField::InInterface),
        meta::OIFNAME => Some(PacketField::OutInterface),
        meta::PROTOCOL => Some(PacketField::EtherType),
        meta::NFPROTO => Some(PacketField::Family),
        meta::L4PROTO => Some(PacketField::Protocol),
        meta::MARK => Some(PacketField::Mark),
        meta::SKUID => Some(PacketField::Uid),
        meta::SKGID => Some(PacketField::Gid),
        _ => None,
    }
}

/// What a ct expression loads.
pub(super) fn ct_field(key: u32) -> Option<PacketField> {
    match key {
        ct::MARK => Some(PacketField::ConnectionMark),
        ct::STATE => Some(PacketField::ConnectionState),
        _ => None,
    }
}
