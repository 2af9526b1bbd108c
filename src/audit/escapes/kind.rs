//! What kinds of escapes there are, how bad each is, and what closes it.
//!
//! Severity is about what it takes to use an escape, and who is the wiser:
//!
//! | severity | meaning |
//! |---|---|
//! | high | ordinary connections (TCP, by any library) pass the proxy by, or nobody can tell, and nothing in the options names them |
//! | medium | the options let them out by name; or it takes just another common protocol (QUIC), or becoming the proxy's user |
//! | low | it takes intent or a special program: other UDP, DNS, ICMP, other protocols, forwarding |
//! | info | it never leaves the pod, or the mesh is made that way |

use std::fmt;

use crate::audit::space::Scope;

/// How bad an escape is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
}

impl Severity {
    /// The worst first.
    pub const ALL: [Severity; 4] = [Severity::High, Severity::Medium, Severity::Low, Severity::Info];

    pub fn name(self) -> &'static str {
        match self {
            Severity::High => "high",
            Severity::Medium => "medium",
            Severity::Low => "low",
            Severity::Info => "info",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.name() == name)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of escape: the reason why nothing intercepts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    FamilyLeftOpen,
    TcpNotTaken,
    ForeignRule,
    Undecided,
    UndecidedOther,
    ExcludedPort,
    ExcludedRange,
    ExcludedInterface,
    ExcludedUser,
    ExcludedGroup,
    NotIncludedGroup,
    VirtualInterfaceRest,
    ProxyOwn,
    Quic,
    TunnelPort,
    Dns,
    Udp,
    Icmp,
    OtherProtocols,
    Forwarded,
    OwnAddress,
    Loopback,
    ProxyToApp,
}

impl Kind {
    pub const ALL: [Kind; 23] = [
        Kind::FamilyLeftOpen,
        Kind::TcpNotTaken,
        Kind::ForeignRule,
        Kind::Undecided,
        Kind::UndecidedOther,
        Kind::ExcludedPort,
        Kind::ExcludedRange,
        Kind::ExcludedInterface,
        Kind::ExcludedUser,
        Kind::ExcludedGroup,
        Kind::NotIncludedGroup,
        Kind::VirtualInterfaceRest,
        Kind::ProxyOwn,
        Kind::Quic,
        Kind::TunnelPort,
        Kind::Dns,
        Kind::Udp,
        Kind::Icmp,
        Kind::OtherProtocols,
        Kind::Forwarded,
        Kind::OwnAddress,
        Kind::Loopback,
        Kind::ProxyToApp,
    ];

    /// A stable name; with the scope before it, what `--accept` files call the class.
    pub fn id(self) -> &'static str {
        self.row().0
    }

    pub fn severity(self) -> Severity {
        self.row().1
    }

    /// What escapes, in a few words.
    pub fn title(self, scope: Scope) -> String {
        let title = self.row().2;
        match scope {
            Scope::Outbound => format!("{title}, outbound"),
            Scope::Inbound => format!("{title}, inbound"),
            Scope::Local | Scope::Transit => title.to_owned(),
        }
    }

    /// Whether it escapes because no proxy takes its protocol, whatever the rules say.
    pub fn is_by_protocol(self) -> bool {
        matches!(self, Kind::Quic | Kind::Dns | Kind::Udp | Kind::Icmp | Kind::OtherProtocols)
    }

    /// What it means that this escapes.
    pub fn meaning(self) -> &'static str {
        self.row().3
    }

    /// What would close it.
    pub fn closes(self, scope: Scope) -> &'static str {
        let inbound = scope.direction() == crate::audit::flow::Direction::Inbound;
        match self {
            Kind::FamilyLeftOpen => "--ip-families both (istio-iptables: --dual-stack), or no address of that family",
            Kind::TcpNotTaken if inbound => "--istio-inbound-ports '*' (-b)",
            Kind::TcpNotTaken => "--istio-service-cidr '*' (-i)",
            Kind::ForeignRule => "remove the rule, or move it behind the interception's; find out who makes it",
            Kind::Undecided | Kind::UndecidedOther => {
                "look at the rule: it uses conditions that are not understood here"
            }
            Kind::ExcludedPort if inbound => {
                "take the port out of --istio-local-exclude-ports (-d), or list it in --istio-inbound-ports (-b)"
            }
            Kind::ExcludedPort => "take the port out of --istio-local-outbound-ports-exclude (-o)",
            Kind::ExcludedRange => "take the range out of --istio-service-exclude-cidr (-x)",
            Kind::ExcludedInterface => "take the interface out of --istio-exclude-interfaces (-c)",
            Kind::ExcludedUser => "take the user out of --exclude-outbound-uids",
            Kind::ExcludedGroup => "take the group out of ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
            Kind::NotIncludedGroup => "add the group to ISTIO_OUTBOUND_OWNER_GROUPS, or set it to '*'",
            Kind::VirtualInterfaceRest => "--istio-service-cidr '*' (-i); a proxy takes TCP only",
            Kind::ProxyOwn => {
                "let no other container run as the proxy's user or group (runAsNonRoot, runAsUser, no CAP_SETUID or CAP_SETGID)"
            }
            Kind::Quic => "drop UDP port 443 with a network policy, or do not offer HTTP/3",
            Kind::TunnelPort => "let only the proxy listen on it; --inbound-tunnel-port (-e) moves it",
            Kind::Dns => "--redirect-dns, with --capture-all-dns for servers that resolv.conf does not name",
            Kind::Udp | Kind::Icmp | Kind::OtherProtocols => "a network policy: sidecar proxies take TCP only",
            Kind::Forwarded => "net.ipv4.ip_forward=0 and net.ipv6.conf.all.forwarding=0 in the pod",
            Kind::OwnAddress | Kind::Loopback => "nothing: containers of one pod trust each other",
            Kind::ProxyToApp => "nothing: this is how the proxy reaches the app",
        }
    }

    fn row(self) -> (&'static str, Severity, &'static str, &'static str) {
        use Severity::{High, Info, Low, Medium};
        match self {
            Kind::FamilyLeftOpen => (
                "family-left-open",
                High,
                "a whole IP family that no rule intercepts",
                "the pod has addresses of the family, and clients that prefer it never meet the proxy",
            ),
            Kind::TcpNotTaken => (
                "tcp-not-taken",
                High,
                "TCP that no rule takes",
                "neither included nor excluded by name: it falls through all rules to its destination",
            ),
            Kind::ForeignRule => (
                "foreign-rule",
                High,
                "TCP let out by a rule that is not the interception's",
                "another tool's or a hand-made rule decides before the interception does",
            ),
            Kind::Undecided => (
                "undecided",
                High,
                "TCP that a rule decides about which is not understood",
                "ordinary connections may escape or not; nothing is guessed",
            ),
            Kind::UndecidedOther => (
                "other-undecided",
                Medium,
                "traffic within the pod, or not by TCP, that a rule decides about which is not understood",
                "it may escape or not; nothing is guessed",
            ),
            Kind::ExcludedPort => (
                "excluded-port",
                Medium,
                "excluded ports",
                "the options leave these ports alone: no mTLS, no policy, no telemetry on them",
            ),
            Kind::ExcludedRange => (
                "excluded-range",
                Medium,
                "excluded destination ranges",
                "the options leave these destinations alone: no mTLS, no policy, no telemetry towards them",
            ),
            Kind::ExcludedInterface => (
                "excluded-interface",
                Medium,
                "excluded interfaces",
                "the options leave these interfaces alone both ways",
            ),
            Kind::ExcludedUser => (
                "excluded-user",
                Medium,
                "excluded users",
                "whatever runs as these users, or can become them, passes the proxy by",
            ),
            Kind::ExcludedGroup => (
                "excluded-group",
                Medium,
                "excluded groups",
                "whatever runs in these groups, or can enter them, passes the proxy by",
            ),
            Kind::NotIncludedGroup => (
                "not-included-group",
                Medium,
                "groups that are not included",
                "only the groups named are intercepted; whatever runs in another passes the proxy by",
            ),
            Kind::VirtualInterfaceRest => (
                "virtual-interface-rest",
                Medium,
                "a virtual machine's traffic outside the included ranges",
                "what the virtual machine sends elsewhere, or not by TCP, passes the proxy by",
            ),
            Kind::ProxyOwn => (
                "proxy-own",
                Medium,
                "whoever runs as the proxy's user or group",
                "the proxy's own traffic must get out; so does that of every process with its user or group",
            ),
            Kind::Quic => (
                "quic",
                Medium,
                "QUIC (UDP port 443)",
                "HTTP/3 clients reach HTTPS servers without the proxy, with the same requests",
            ),
            Kind::TunnelPort => (
                "tunnel-port",
                Low,
                "the tunnel port",
                "connections to it are the proxy's already; an app that listens there is reached directly",
            ),
            Kind::Dns => (
                "dns",
                Low,
                "DNS to servers that are not captured",
                "queries go to the server itself; data can be hidden in names",
            ),
            Kind::Udp => ("udp", Low, "UDP", "sidecar proxies take TCP; datagrams reach their destination directly"),
            Kind::Icmp => ("icmp", Low, "ICMP", "ping and errors; data can be hidden in it"),
            Kind::OtherProtocols => (
                "other-protocols",
                Low,
                "protocols other than TCP, UDP and ICMP",
                "SCTP, GRE, IPsec and the like reach their destination directly",
            ),
            Kind::Forwarded => (
                "forwarded",
                Low,
                "what the pod forwards for others",
                "only if forwarding is on in the pod and somebody routes through it",
            ),
            Kind::OwnAddress => (
                "own-address",
                Info,
                "the pod to its own addresses",
                "containers of the pod reach each other by the pod's address, not through the proxy",
            ),
            Kind::Loopback => (
                "loopback",
                Info,
                "the pod to its loopback addresses",
                "containers of the pod reach each other by loopback, not through the proxy",
            ),
            Kind::ProxyToApp => (
                "proxy-to-app",
                Info,
                "the proxy to the app",
                "what the proxy has accepted it hands on to the app, within the pod",
            ),
        }
    }
}
