//! Which kind of escape flows are: by where they go, by protocol, and by the reason of
//! the rule that lets them out. What no sidecar proxy takes is named by its protocol,
//! whichever rule it meets last.

use crate::audit::flow::Taker;
use crate::audit::partition::Part;
use crate::audit::ruleset::{Ruleset, redirect_taker};
use crate::audit::space::cube::Cube;
use crate::audit::space::{Scope, Space, loopback};
use crate::config::ambient::TUNNEL_PORT;
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family};
use crate::plan::canon::CanonRule;
use crate::plan::model::{Dataplane, Verdict, protocol};
use crate::plan::why::Why;

use super::kind::EscapeKind;

const DNS: u16 = 53;
const HTTPS: u16 = 443;

/// What a ruleset intercepts at all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Captured {
    pub any: Families,
    pub dns: Families,
    /// The proxy is a ztunnel, to which HBONE is addressed already.
    pub ztunnel: bool,
}

impl Captured {
    /// The families in which a rule redirects or hands to TPROXY, and those of DNS among them.
    pub(super) fn of(ruleset: &Ruleset) -> Self {
        let mut out = Self { any: Families::NONE, dns: Families::NONE, ztunnel: false };
        for family in Family::BOTH {
            for chain in &ruleset.family(family).chains {
                // In ingress mode it marks what it diverts nothing of.
                out.ztunnel |= chain.name.dataplane() == Some(Dataplane::Ambient) && !chain.rules.is_empty();
                let takes = |rule: &&CanonRule| matches!(rule.verdict, Verdict::Redirect(_) | Verdict::Tproxy { .. });
                if chain.rules.iter().any(|rule| takes(&rule)) {
                    out.any = out.any.union(Families::only(family));
                    let to_dns = |rule: &CanonRule| matches!(&rule.verdict, Verdict::Redirect(port) if redirect_taker(&chain.name, *port) == Taker::DnsProxy);
                    if chain.rules.iter().any(to_dns) {
                        out.dns = out.dns.union(Families::only(family));
                    }
                }
            }
        }
        out
    }

    /// Whether one family is intercepted, but not this one.
    fn left_open(self, family: Family) -> bool {
        !self.any.is_empty() && !self.any.has(family)
    }
}

/// Cuts a part that reaches its destination (or may) by kind.
pub(super) fn classify<'a>(part: Part<'a>, space: &Space, captured: Captured) -> Vec<(EscapeKind, Part<'a>)> {
    let mut sorter = Sorter { out: Vec::new(), left: vec![part.clone()] };
    sorter.sort(&part, space, captured);
    sorter.out
}

struct Sorter<'a> {
    left: Vec<Part<'a>>,
    out: Vec<(EscapeKind, Part<'a>)>,
}

impl<'a> Sorter<'a> {
    fn sort(&mut self, part: &Part<'a>, space: &Space, captured: Captured) {
        let (family, scope) = (part.family, part.scope);
        let why = part.decider.as_ref().map(|&(_, why)| why);
        let whole = space.whole(family, scope);
        if part.taker == Taker::Unknown {
            if matches!(scope, Scope::Outbound | Scope::Inbound) {
                self.take(EscapeKind::Undecided, Cube { protocol: RangeList::of([protocol::TCP]), ..whole });
            }
            return self.rest(EscapeKind::UndecidedOther);
        }
        match scope {
            Scope::Local => {
                if matches!(why, Some(Why::ProxyOwn | Why::ProxyToApp)) {
                    return self.rest(EscapeKind::ProxyToApp);
                }
                self.take(EscapeKind::Loopback, Cube { destination: loopback(family), ..whole });
                return self.rest(EscapeKind::OwnAddress);
            }
            Scope::Transit if why == Some(&Why::VirtualInterfaceRest) => {
                return self.rest(EscapeKind::VirtualInterfaceRest);
            }
            Scope::Transit => return self.rest(EscapeKind::Forwarded),
            Scope::Outbound | Scope::Inbound if captured.left_open(family) => {
                return self.rest(EscapeKind::FamilyLeftOpen);
            }
            Scope::Outbound | Scope::Inbound => {}
        }
        let of = |protocols: &[u8]| Cube { protocol: RangeList::of(protocols.iter().copied()), ..whole.clone() };
        let udp_to = |port| Cube { port: RangeList::of([port]), ..of(&[protocol::UDP]) };
        if captured.ztunnel && scope == Scope::Inbound && named_by_no_rule(why) {
            self.take(
                EscapeKind::TunnelPort,
                Cube { port: RangeList::of([TUNNEL_PORT.get()]), ..of(&[protocol::TCP]) },
            );
        }
        let named = by_reason(why);
        self.take(named.unwrap_or(EscapeKind::TcpNotTaken), of(&[protocol::TCP]));
        if scope == Scope::Outbound {
            // What the capture of DNS leaves to a reason of its own is that reason's.
            let dns = named
                .filter(|kind| captured.dns.has(family) && *kind != EscapeKind::ExcludedRange)
                .unwrap_or(EscapeKind::Dns);
            self.take(dns, udp_to(DNS));
            self.take(EscapeKind::Quic, udp_to(HTTPS));
        }
        self.take(EscapeKind::Udp, of(&[protocol::UDP]));
        let icmp = if family == Family::V4 { protocol::ICMP } else { protocol::ICMPV6 };
        self.take(EscapeKind::Icmp, of(&[icmp]));
        self.rest(EscapeKind::OtherProtocols);
    }

    /// Gives those flows of the rest that are in `cube` to a kind.
    fn take(&mut self, kind: EscapeKind, cube: Cube) {
        for part in std::mem::take(&mut self.left) {
            let Some(inside) = part.flows.intersection(&cube) else {
                self.left.push(part);
                continue;
            };
            let around = part.flows.clone().around(&inside);
            self.left.extend(around.into_iter().map(|flows| Part { flows, ..part }));
            self.out.push((kind, Part { flows: inside, ..part }));
        }
    }

    fn rest(&mut self, kind: EscapeKind) {
        self.out.extend(self.left.drain(..).map(|part| (kind, part)));
    }
}

/// Whether flows get by because no rule is about them.
fn named_by_no_rule(why: Option<&Why>) -> bool {
    why.is_none_or(|why| matches!(why, Why::Policy | Why::AmbientEntry))
}

/// The kind that the reason of a rule stands for, about protocols that a proxy takes.
fn by_reason(why: Option<&Why>) -> Option<EscapeKind> {
    Some(match why? {
        Why::ExcludedInterface => EscapeKind::ExcludedInterface,
        Why::VirtualInterfaceRest => EscapeKind::VirtualInterfaceRest,
        Why::TunnelPort => EscapeKind::TunnelPort,
        Why::ExcludedInboundPort | Why::ExcludedOutboundPort => EscapeKind::ExcludedPort,
        Why::ExcludedRange => EscapeKind::ExcludedRange,
        Why::ExcludedUser => EscapeKind::ExcludedUser,
        Why::ExcludedGroup => EscapeKind::ExcludedGroup,
        Why::NotIncludedGroup => EscapeKind::NotIncludedGroup,
        Why::ProxyOwn => EscapeKind::ProxyOwn,
        Why::ProbeIn | Why::ProbeAnswer => EscapeKind::ProbeSource,
        Why::Foreign(_) => EscapeKind::ForeignRule,
        _ => return None,
    })
}
