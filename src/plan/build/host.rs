//! A node's plan: probes that it sends to its ambient pods get a source address of their own, so that
//! the pods' rules can tell the kubelet from a peer.

use std::net::IpAddr;

use crate::config::ambient::{PROBE_SOURCE_V4, PROBE_SOURCE_V6, Prober};
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family};
use crate::plan::model::{ChainName, Cond, Dataplane, Matches, Plan, Routing, Table, Verdict};
use crate::plan::why::Why;

use super::Written;

/// The name of the set with the addresses of ambient pods, for a family.
pub fn probe_set(family: Family) -> &'static str {
    if family == Family::V4 { "istio-inpod-probes-v4" } else { "istio-inpod-probes-v6" }
}

/// The plan for a node.
pub fn host(families: Families, prober: Prober) -> Plan {
    let mut written = Written::new(families);
    let sender = match prober {
        Prober::User(uid) => RangeList::of([uid]),
        // Every user: only what no process of the node sends, such as what it forwards, has none.
        Prober::Anybody => RangeList::full(),
    };
    // Before masquerading, whose source would be one of the node's.
    let entry = Verdict::Jump(ChainName::NodeOut);
    written.rule_for(families, Table::Nat, ChainName::Postrouting, Matches::any(), entry, Why::ProbeEntry);
    for family in families.iter() {
        let source = match family {
            Family::V4 => IpAddr::V4(PROBE_SOURCE_V4),
            Family::V6 => IpAddr::V6(PROBE_SOURCE_V6),
        };
        let probe = Matches {
            uid: Some(Cond::is(sender.clone())),
            destination_set: Some(Cond::is(probe_set(family).into())),
            ..Matches::tcp()
        };
        let of_family = Families::only(family);
        written.rule_for(of_family, Table::Nat, ChainName::NodeOut, probe, Verdict::Snat(source), Why::ProbeSource);
    }
    written.into_plan(Dataplane::Node, Routing::default())
}
