//! Why a rule is there. One reason per kind of rule: it becomes the rule's comment
//! in the kernel, `explain`'s answer and a line of the documentation.

use std::fmt;

/// The reason for a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    InboundEntry,
    OutboundEntry,
    ExcludedInterface,
    VirtualInterface,
    VirtualInterfaceRest,
    TunnelPort,
    ExcludedInboundPort,
    InboundPort,
    AllInbound,
    ToInboundProxy,
    ToOutboundProxy,
    ExcludedOutboundPort,
    ProxyToApp,
    AppToItself,
    LocalTraffic,
    ProxyOwn,
    ExcludedGroup,
    NotIncludedGroup,
    ExcludedUser,
    DnsEntry,
    DnsToAgent,
    DnsZoneUpstream,
    DnsZoneClient,
    DnsZoneAnswer,
    Loopback,
    ExcludedRange,
    IncludedPort,
    IncludedRange,
    AllOutbound,
    InvalidEntry,
    InvalidDrop,
    TproxyMarked,
    TproxyProxyToApp,
    TproxyLocal,
    TproxyEstablished,
    TproxyNew,
    TproxyDivertMark,
    TproxyDivertAccept,
    TproxyHandOver,
    TproxySaveMark,
    TproxyProxyMarked,
    TproxyProxyOut,
    TproxyRestoreMark,
    AmbientEntry,
    ZtunnelConnection,
    ZtunnelAnswer,
    ProbeIn,
    ProbeAnswer,
    ToZtunnelInbound,
    ToZtunnelOutbound,
    DnsToZtunnel,
    DnsZoneZtunnel,
    DnsZoneZtunnelAnswer,
    ProbeEntry,
    ProbeSource,
    /// No rule decided, and the chain's policy drops the packet.
    Policy,
    /// The rule is foreign; with its comment, which may be empty.
    Foreign(Box<str>),
}

/// Every reason that a rule of ours has, with its stable name and its sentence.
#[rustfmt::skip]
pub const REASONS: &[(Why, &str, &str)] = &[
    (Why::InboundEntry, "inbound-entry", "inbound TCP is looked at"),
    (Why::OutboundEntry, "outbound-entry", "outbound traffic is looked at"),
    (Why::ExcludedInterface, "excluded-interface", "interface is left alone"),
    (Why::VirtualInterface, "virtual-interface", "a virtual machine's traffic counts as outbound"),
    (Why::VirtualInterfaceRest, "virtual-interface-rest", "a virtual machine's other traffic is left alone"),
    (Why::TunnelPort, "tunnel-port", "tunnel port is the proxy's already"),
    (Why::ExcludedInboundPort, "excluded-inbound-port", "inbound port is left alone"),
    (Why::InboundPort, "inbound-port", "inbound port is taken"),
    (Why::AllInbound, "all-inbound", "all other inbound TCP is taken"),
    (Why::ToInboundProxy, "to-inbound-proxy", "to the proxy's inbound port"),
    (Why::ToOutboundProxy, "to-outbound-proxy", "to the proxy's outbound port"),
    (Why::ExcludedOutboundPort, "excluded-outbound-port", "outbound port is left alone"),
    (Why::ProxyToApp, "proxy-to-app", "the proxy connects to the app for a peer"),
    (Why::AppToItself, "app-to-itself", "the app called its own service: in through the proxy again"),
    (Why::LocalTraffic, "local-traffic", "the pod talks to itself"),
    (Why::ProxyOwn, "proxy-own", "the proxy's own traffic must not loop"),
    (Why::ExcludedGroup, "excluded-group", "group is left alone"),
    (Why::NotIncludedGroup, "not-included-group", "group is not among those taken"),
    (Why::ExcludedUser, "excluded-user", "user is left alone"),
    (Why::DnsEntry, "dns-entry", "DNS is looked at"),
    (Why::DnsToAgent, "dns-to-agent", "DNS goes to the agent"),
    (Why::DnsZoneUpstream, "dns-zone-upstream", "the proxy's DNS queries are tracked apart"),
    (Why::DnsZoneClient, "dns-zone-client", "the app's DNS is tracked apart"),
    (Why::DnsZoneAnswer, "dns-zone-answer", "DNS answers belong to the proxy's queries"),
    (Why::Loopback, "loopback", "loopback is left alone"),
    (Why::ExcludedRange, "excluded-range", "destination is left alone"),
    (Why::IncludedPort, "included-port", "destination port is always taken"),
    (Why::IncludedRange, "included-range", "destination is taken"),
    (Why::AllOutbound, "all-outbound", "all other outbound TCP is taken"),
    (Why::InvalidEntry, "invalid-entry", "packets of no known connection"),
    (Why::InvalidDrop, "invalid-drop", "dropped instead of resetting a connection"),
    (Why::TproxyMarked, "tproxy-marked", "already handed over"),
    (Why::TproxyProxyToApp, "tproxy-proxy-to-app", "the proxy connects to the app for a peer"),
    (Why::TproxyLocal, "tproxy-local", "the pod talks to itself"),
    (Why::TproxyEstablished, "tproxy-established", "connection the proxy has already"),
    (Why::TproxyNew, "tproxy-new", "new inbound connection"),
    (Why::TproxyDivertMark, "tproxy-divert-mark", "marked for local delivery"),
    (Why::TproxyDivertAccept, "tproxy-divert-accept", "on to the proxy's socket"),
    (Why::TproxyHandOver, "tproxy-hand-over", "to the proxy's inbound port, addresses kept"),
    (Why::TproxySaveMark, "tproxy-save-mark", "the connection remembers the mark"),
    (Why::TproxyProxyMarked, "tproxy-proxy-marked", "the proxy's connection to the app, left alone"),
    (Why::TproxyProxyOut, "tproxy-proxy-out", "the app called its own service: marked to come in again"),
    (Why::TproxyRestoreMark, "tproxy-restore-mark", "answers of intercepted connections go back to the proxy"),
    (Why::AmbientEntry, "ambient-entry", "traffic is looked at"),
    (Why::ZtunnelConnection, "ztunnel-connection", "ztunnel connects to the app for a peer: the connection is marked"),
    (Why::ZtunnelAnswer, "ztunnel-answer", "the app's answers to ztunnel's connections go back to ztunnel"),
    (Why::ProbeIn, "probe-in", "the kubelet's probes reach the app as they are"),
    (Why::ProbeAnswer, "probe-answer", "where the kubelet's probes come from is left alone"),
    (Why::ToZtunnelInbound, "to-ztunnel-inbound", "all other inbound TCP goes to ztunnel"),
    (Why::ToZtunnelOutbound, "to-ztunnel-outbound", "all other outbound TCP goes to ztunnel"),
    (Why::DnsToZtunnel, "dns-to-ztunnel", "DNS goes to ztunnel"),
    (Why::DnsZoneZtunnel, "dns-zone-ztunnel", "ztunnel's DNS queries are tracked apart"),
    (Why::DnsZoneZtunnelAnswer, "dns-zone-ztunnel-answer", "DNS answers belong to ztunnel's queries"),
    (Why::ProbeEntry, "probe-entry", "what the node sends is looked at"),
    (Why::ProbeSource, "probe-source", "probes of ambient pods come from an address of their own"),
];

impl Why {
    /// A stable name, for machines.
    pub fn id(&self) -> &'static str {
        match self {
            Why::Policy => "policy",
            _ => REASONS.iter().find(|(why, ..)| why == self).map_or("foreign", |(_, id, _)| id),
        }
    }

    /// One short sentence, for people; what a rule's comment says.
    pub fn sentence(&self) -> &str {
        match self {
            Why::Policy => "that is the chain's policy",
            Why::Foreign(comment) => comment,
            _ => REASONS.iter().find(|(why, ..)| why == self).map_or("", |(_, _, text)| text),
        }
    }

    /// The comment a rule carries in the kernel.
    pub fn comment(&self) -> String {
        match self {
            Why::Foreign(comment) => comment.to_string(),
            _ => format!("{}: {}", self.id(), self.sentence()),
        }
    }

    /// The reason a comment names; anything else is foreign.
    pub fn from_comment(comment: &str) -> Self {
        let id = comment.split(':').next().unwrap_or_default();
        match REASONS.iter().find(|(_, known, _)| *known == id) {
            Some((why, ..)) => why.clone(),
            None => Why::Foreign(comment.into()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_round_trip_and_are_short() {
        for (why, id, _) in REASONS {
            assert_eq!(Why::from_comment(&why.comment()), *why);
            assert_eq!(why.id(), *id);
            // NFT_USERDATA_MAXLEN is 256; nft itself allows 128 for a comment.
            assert!(why.comment().len() < 128, "{id}");
        }
        assert_eq!(Why::from_comment("x"), Why::Foreign("x".into()));
    }
}
