//! nft's names for the fields of a packet, and the expressions that load them.

use crate::backend::nftables::expr::{Expr, Op, ct, meta, payload};
use crate::config::types::Family;
use crate::plan::model::protocol;

/// A part of a packet that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    InInterface,
    OutInterface,
    /// The input interface by its index, which nft shows as a name while the interface exists.
    InIndex,
    OutIndex,
    Family,
    EtherType,
    Protocol,
    /// The protocol in the IPv4 header.
    HeaderProtocol,
    Mark,
    ConnectionMark,
    ConnectionState,
    Uid,
    Gid,
    Source(Family),
    Destination(Family),
    /// The port of this protocol, or of any that has ports.
    SourcePort(Option<u8>),
    DestinationPort(Option<u8>),
}

/// `meta KEY`; most keys stand without the `meta` as well.
pub fn meta_field(key: &str) -> Option<Field> {
    Some(match key {
        "iifname" => Field::InInterface,
        "oifname" => Field::OutInterface,
        "iif" => Field::InIndex,
        "oif" => Field::OutIndex,
        "nfproto" => Field::Family,
        "protocol" => Field::EtherType,
        "l4proto" => Field::Protocol,
        "mark" => Field::Mark,
        "skuid" => Field::Uid,
        "skgid" => Field::Gid,
        _ => return None,
    })
}

/// The field of `ct KEY`.
pub fn ct_field(key: &str) -> Option<Field> {
    match key {
        "mark" => Some(Field::ConnectionMark),
        "state" => Some(Field::ConnectionState),
        _ => None,
    }
}

/// `ip daddr`, `tcp dport` and their like.
pub fn payload_field(header: &str, field: &str) -> Option<Field> {
    let ports = |protocol| match field {
        "sport" => Some(Field::SourcePort(protocol)),
        "dport" => Some(Field::DestinationPort(protocol)),
        _ => None,
    };
    match (header, field) {
        ("ip", "saddr") => Some(Field::Source(Family::V4)),
        ("ip", "daddr") => Some(Field::Destination(Family::V4)),
        ("ip", "protocol") => Some(Field::HeaderProtocol),
        ("ip6", "saddr") => Some(Field::Source(Family::V6)),
        ("ip6", "daddr") => Some(Field::Destination(Family::V6)),
        ("th", _) => ports(None),
        ("tcp" | "udp" | "sctp" | "dccp" | "udplite", _) => ports(protocol::by_name(header)),
        _ => None,
    }
}

/// The condition under which a packet has a header.
pub fn of_header(header: &str) -> Vec<Expr> {
    let family = |family| vec![Expr::Meta(meta::NFPROTO), equals(vec![family])];
    let protocol = |number| vec![Expr::Meta(meta::L4PROTO), equals(vec![number])];
    match header {
        "ip" => family(2),
        "ip6" => family(10),
        "icmp" | "icmpv6" | "tcp" | "udp" | "udplite" | "sctp" | "dccp" => {
            protocol::by_name(header).map(protocol).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// A value or a range of values, as written.
pub type Item = (String, Option<String>);

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    One(Item),
    /// A list within the rule.
    Among(Vec<Item>),
    /// A set of the table, by name.
    Named(String),
}

/// A class of fields whose values have the same encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Name,
    Index,
    Family,
    EtherType,
    Byte,
    Mark,
    State,
    Id,
    Address(Family),
    Port,
}

impl Class {
    pub fn is_name(self) -> bool {
        matches!(self, Class::Name | Class::Index)
    }
}

impl Field {
    pub fn class(self) -> Class {
        match self {
            Field::InInterface | Field::OutInterface => Class::Name,
            Field::InIndex | Field::OutIndex => Class::Index,
            Field::Family => Class::Family,
            Field::EtherType => Class::EtherType,
            Field::Protocol | Field::HeaderProtocol => Class::Byte,
            Field::Mark | Field::ConnectionMark => Class::Mark,
            Field::ConnectionState => Class::State,
            Field::Uid | Field::Gid => Class::Id,
            Field::Source(family) | Field::Destination(family) => Class::Address(family),
            Field::SourcePort(_) | Field::DestinationPort(_) => Class::Port,
        }
    }

    /// The expressions that load the field, after the condition under which a packet has it.
    pub fn load(self) -> Vec<Expr> {
        let of_family =
            |family: Family| [Expr::Meta(meta::NFPROTO), equals(vec![if family == Family::V4 { 2 } else { 10 }])];
        let network = |offset, len| Expr::Payload { base: payload::NETWORK, offset, len };
        let address = |family: Family, source: bool| {
            let (offset, len) = match (family, source) {
                (Family::V4, true) => (12, 4),
                (Family::V4, false) => (16, 4),
                (Family::V6, true) => (8, 16),
                (Family::V6, false) => (24, 16),
            };
            let mut out = Vec::from(of_family(family));
            out.push(network(offset, len));
            out
        };
        let port = |protocol: Option<u8>, offset| {
            let mut out = Vec::new();
            if let Some(protocol) = protocol {
                out.extend([Expr::Meta(meta::L4PROTO), equals(vec![protocol])]);
            }
            out.push(Expr::Payload { base: payload::TRANSPORT, offset, len: 2 });
            out
        };
        match self {
            Field::InInterface | Field::InIndex => vec![Expr::Meta(meta::IIFNAME)],
            Field::OutInterface | Field::OutIndex => vec![Expr::Meta(meta::OIFNAME)],
            Field::Family => vec![Expr::Meta(meta::NFPROTO)],
            Field::EtherType => vec![Expr::Meta(meta::PROTOCOL)],
            Field::Protocol => vec![Expr::Meta(meta::L4PROTO)],
            Field::HeaderProtocol => {
                let mut out = Vec::from(of_family(Family::V4));
                out.push(network(9, 1));
                out
            }
            Field::Mark => vec![Expr::Meta(meta::MARK)],
            Field::ConnectionMark => vec![Expr::Ct(ct::MARK)],
            Field::ConnectionState => vec![Expr::Ct(ct::STATE)],
            // In network order, so that ranges compare.
            Field::Uid => vec![Expr::Meta(meta::SKUID), Expr::Hton { len: 4 }],
            Field::Gid => vec![Expr::Meta(meta::SKGID), Expr::Hton { len: 4 }],
            Field::Source(family) => address(family, true),
            Field::Destination(family) => address(family, false),
            Field::SourcePort(protocol) => port(protocol, 0),
            Field::DestinationPort(protocol) => port(protocol, 2),
        }
    }
}

fn equals(data: Vec<u8>) -> Expr {
    Expr::Cmp { op: Op::Eq, data }
}

/// The one value of an item that is no range.
pub(in crate::backend::nftables) fn exact((first, last): &Item) -> Option<&str> {
    last.is_none().then_some(first)
}
