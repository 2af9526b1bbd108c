//! IPv6 by addresses of the link alone (RFC 4291, section 2.5.6), which every interface has
//! unless IPv6 is switched off. Rules for them would only break what goes by them: a socket
//! that connects to one is bound to its link, on which there is no way to the proxy, and the
//! proxy in turn would need the scope to connect by one.

use std::net::{IpAddr, Ipv6Addr};

use crate::audit::escapes::kind::Severity;
use crate::audit::explain::{NoTrace, explain};
use crate::audit::flow::{Direction, Flow, Surroundings, Taker};
use crate::audit::ruleset::Ruleset;
use crate::config::facts::is_link_local_v6;
use crate::plan::model::protocol;

use super::Lint;

/// Lints about a pod that has IPv6 by such addresses only.
pub fn lint(ruleset: &Ruleset, pod: &Surroundings) -> Option<Lint> {
    let own = *pod.addresses.iter().find(|address| is_link_local_v6(address))?;
    if pod.families().v6 {
        return None;
    }
    let neighbour: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x7077).into();
    let passes = |direction| {
        let outbound = direction == Direction::Outbound;
        let (source, destination) = if outbound { (own, neighbour) } else { (neighbour, own) };
        let flow = Flow {
            direction,
            protocol: protocol::TCP,
            uid: outbound.then_some(1000),
            gid: outbound.then_some(1000),
            source: Some(source),
            source_port: None,
            destination,
            port: 80,
            interface: None,
            mark: 0,
        };
        explain(ruleset, pod, &flow, &mut NoTrace).taker == Taker::Direct
    };
    let who = match (passes(Direction::Inbound), passes(Direction::Outbound)) {
        (true, true) => "neighbours on its link reach the app by them, and the app neighbours",
        (true, false) => "neighbours on its link reach the app by them",
        (false, true) => "the app reaches neighbours on its link by them",
        (false, false) => return None,
    };
    Some(Lint {
        severity: Severity::Medium,
        id: "link-local-ipv6",
        subject: format!("IPv6 address {own}"),
        message: format!("the pod has IPv6 by link-local addresses only: {who}, past the proxy"),
        advice: "switch IPv6 off in the pod (net.ipv6.conf.all.disable_ipv6), or let a network policy drop fe80::/10; taken it would break, since the proxy cannot connect by such an address".into(),
    })
}
