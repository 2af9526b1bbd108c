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
    /// All severities, the worst first.
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
pub enum EscapeKind {
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
    ProbeSource,
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

impl EscapeKind {
    pub const ALL: [EscapeKind; 24] = [
        EscapeKind::FamilyLeftOpen,
        EscapeKind::TcpNotTaken,
        EscapeKind::ForeignRule,
        EscapeKind::Undecided,
        EscapeKind::UndecidedOther,
        EscapeKind::ExcludedPort,
        EscapeKind::ExcludedRange,
        EscapeKind::ExcludedInterface,
        EscapeKind::ExcludedUser,
        EscapeKind::ExcludedGroup,
        EscapeKind::NotIncludedGroup,
        EscapeKind::VirtualInterfaceRest,
        EscapeKind::ProxyOwn,
        EscapeKind::ProbeSource,
        EscapeKind::Quic,
        EscapeKind::TunnelPort,
        EscapeKind::Dns,
        EscapeKind::Udp,
        EscapeKind::Icmp,
        EscapeKind::OtherProtocols,
        EscapeKind::Forwarded,
        EscapeKind::OwnAddress,
        EscapeKind::Loopback,
        EscapeKind::ProxyToApp,
    ];

    /// The stable name of the kind; with the scope before it, the class in `--accept` files.
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

    /// Whether the flows escape because no proxy takes their protocol, whatever the rules say.
    pub fn is_by_protocol(self) -> bool {
        matches!(
            self,
            EscapeKind::Quic | EscapeKind::Dns | EscapeKind::Udp | EscapeKind::Icmp | EscapeKind::OtherProtocols
        )
    }

    /// What it means that this escapes.
    pub fn meaning(self) -> &'static str {
        self.row().3
    }

    /// What would close it in a pod with a sidecar, or by `ztunnel` in one in ambient mode.
    pub fn closes(self, scope: Scope, ztunnel: bool) -> &'static str {
        let of_ambient = if ztunnel { self.closes_in_ambient_mode(scope) } else { None };
        of_ambient.unwrap_or_else(|| self.closes_by_sidecar(scope))
    }

    /// What would close it in ambient mode, where that differs.
    pub fn closes_in_ambient_mode(self, scope: Scope) -> Option<&'static str> {
        let inbound = scope.direction() == crate::audit::flow::Direction::Inbound;
        Some(match self {
            EscapeKind::FamilyLeftOpen => {
                "--ip-families both (of podweir node run: --ambient-ip-families both), or no address of that family"
            }
            EscapeKind::TcpNotTaken if inbound => {
                "take the annotation ambient.istio.io/bypass-inbound-capture off the pod (--ingress-mode off podweir ambient)"
            }
            EscapeKind::TcpNotTaken => "make the rules anew: ztunnel is to get all TCP that the pod sends",
            EscapeKind::TunnelPort => "let only ztunnel listen on port 15008 in the pod",
            EscapeKind::Dns => {
                "take the annotation ambient.istio.io/dns-capture=false off the pod (--dns-capture=false off podweir ambient); ztunnel takes DNS to port 53 only"
            }
            EscapeKind::VirtualInterfaceRest | EscapeKind::Udp | EscapeKind::Icmp | EscapeKind::OtherProtocols => {
                "a network policy: ztunnel takes TCP and DNS only"
            }
            _ => return None,
        })
    }

    fn closes_by_sidecar(self, scope: Scope) -> &'static str {
        let inbound = scope.direction() == crate::audit::flow::Direction::Inbound;
        match self {
            EscapeKind::FamilyLeftOpen => {
                "--ip-families both (istio-iptables: --dual-stack), or no address of that family"
            }
            EscapeKind::TcpNotTaken if inbound => "--istio-inbound-ports '*' (-b)",
            EscapeKind::TcpNotTaken => "--istio-service-cidr '*' (-i)",
            EscapeKind::ForeignRule => "remove the rule, or move it behind the interception's; find out who makes it",
            EscapeKind::Undecided | EscapeKind::UndecidedOther => {
                "look at the rule: it uses conditions that are not understood here"
            }
            EscapeKind::ExcludedPort if inbound => {
                "take the port out of --istio-local-exclude-ports (-d), or list it in --istio-inbound-ports (-b)"
            }
            EscapeKind::ExcludedPort => "take the port out of --istio-local-outbound-ports-exclude (-o)",
            EscapeKind::ExcludedRange => "take the range out of --istio-service-exclude-cidr (-x)",
            EscapeKind::ExcludedInterface => "take the interface out of --istio-exclude-interfaces (-c)",
            EscapeKind::ExcludedUser => "take the user out of --exclude-outbound-uids",
            EscapeKind::ExcludedGroup => "take the group out of ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
            EscapeKind::NotIncludedGroup => "add the group to ISTIO_OUTBOUND_OWNER_GROUPS, or set it to '*'",
            EscapeKind::VirtualInterfaceRest => "--istio-service-cidr '*' (-i); a proxy takes TCP only",
            EscapeKind::ProxyOwn => {
                "let no other container run as the proxy's user or group (runAsNonRoot, runAsUser, no CAP_SETUID or CAP_SETGID)"
            }
            EscapeKind::ProbeSource => {
                "drop 169.254.7.127 and fd16:9254:7127:1337:ffff:ffff:ffff:ffff on the node where they come in from elsewhere than the node itself"
            }
            EscapeKind::Quic => "drop UDP port 443 with a network policy, or do not offer HTTP/3",
            EscapeKind::TunnelPort => "let only the proxy listen on it; --inbound-tunnel-port (-e) moves it",
            EscapeKind::Dns => "--redirect-dns, with --capture-all-dns for servers that resolv.conf does not name",
            EscapeKind::Udp | EscapeKind::Icmp | EscapeKind::OtherProtocols => {
                "a network policy: sidecar proxies take TCP only"
            }
            EscapeKind::Forwarded => "net.ipv4.ip_forward=0 and net.ipv6.conf.all.forwarding=0 in the pod",
            EscapeKind::OwnAddress | EscapeKind::Loopback => "nothing: containers of one pod trust each other",
            EscapeKind::ProxyToApp => "nothing: this is how the proxy reaches the app",
        }
    }

    fn row(self) -> (&'static str, Severity, &'static str, &'static str) {
        use Severity::{High, Info, Low, Medium};
        match self {
            EscapeKind::FamilyLeftOpen => (
                "family-left-open",
                High,
                "a whole IP family that no rule intercepts",
                "the pod has addresses of the family, and clients that prefer it never meet the proxy",
            ),
            EscapeKind::TcpNotTaken => (
                "tcp-not-taken",
                High,
                "TCP that no rule takes",
                "neither included nor excluded by name: it falls through all rules to its destination",
            ),
            EscapeKind::ForeignRule => (
                "foreign-rule",
                High,
                "TCP let out by a rule that is not the interception's",
                "another tool's or a hand-made rule decides before the interception does",
            ),
            EscapeKind::Undecided => (
                "undecided",
                High,
                "TCP that a rule decides about which is not understood",
                "ordinary connections may escape or not; nothing is guessed",
            ),
            EscapeKind::UndecidedOther => (
                "other-undecided",
                Medium,
                "traffic within the pod, or not by TCP, that a rule decides about which is not understood",
                "it may escape or not; nothing is guessed",
            ),
            EscapeKind::ExcludedPort => (
                "excluded-port",
                Medium,
                "excluded ports",
                "the options leave these ports alone: no mTLS, no policy, no telemetry on them",
            ),
            EscapeKind::ExcludedRange => (
                "excluded-range",
                Medium,
                "excluded destination ranges",
                "the options leave these destinations alone: no mTLS, no policy, no telemetry towards them",
            ),
            EscapeKind::ExcludedInterface => (
                "excluded-interface",
                Medium,
                "excluded interfaces",
                "the options leave these interfaces alone both ways",
            ),
            EscapeKind::ExcludedUser => (
                "excluded-user",
                Medium,
                "excluded users",
                "whatever runs as these users, or can become them, passes the proxy by",
            ),
            EscapeKind::ExcludedGroup => (
                "excluded-group",
                Medium,
                "excluded groups",
                "whatever runs in these groups, or can enter them, passes the proxy by",
            ),
            EscapeKind::NotIncludedGroup => (
                "not-included-group",
                Medium,
                "groups that are not included",
                "only the groups named are intercepted; whatever runs in another passes the proxy by",
            ),
            EscapeKind::VirtualInterfaceRest => (
                "virtual-interface-rest",
                Medium,
                "a virtual machine's traffic outside the included ranges",
                "what the virtual machine sends elsewhere, or not by TCP, passes the proxy by",
            ),
            EscapeKind::ProxyOwn => (
                "proxy-own",
                Medium,
                "whoever runs as the proxy's user or group",
                "the proxy's own traffic must get out; so does that of every process with its user or group",
            ),
            EscapeKind::ProbeSource => (
                "probe-source",
                Low,
                "TCP from or to the address that the node's probes come from",
                "the kubelet's probes reach the app in plain text; so does whoever may send from that address",
            ),
            EscapeKind::Quic => (
                "quic",
                Medium,
                "QUIC (UDP port 443)",
                "HTTP/3 clients reach HTTPS servers without the proxy, with the same requests",
            ),
            EscapeKind::TunnelPort => (
                "tunnel-port",
                Low,
                "the tunnel port",
                "connections to it are the proxy's already; an app that listens there is reached directly",
            ),
            EscapeKind::Dns => (
                "dns",
                Low,
                "DNS to servers that are not captured",
                "queries go to the server itself; data can be hidden in names",
            ),
            EscapeKind::Udp => {
                ("udp", Low, "UDP", "proxies of the mesh take TCP; datagrams reach their destination directly")
            }
            EscapeKind::Icmp => ("icmp", Low, "ICMP", "ping and errors; data can be hidden in it"),
            EscapeKind::OtherProtocols => (
                "other-protocols",
                Low,
                "protocols other than TCP, UDP and ICMP",
                "SCTP, GRE, IPsec and the like reach their destination directly",
            ),
            EscapeKind::Forwarded => (
                "forwarded",
                Low,
                "what the pod forwards for others",
                "only if forwarding is on in the pod and somebody routes through it",
            ),
            EscapeKind::OwnAddress => (
                "own-address",
                Info,
                "the pod to its own addresses",
                "containers of the pod reach each other by the pod's address, not through the proxy",
            ),
            EscapeKind::Loopback => (
                "loopback",
                Info,
                "the pod to its loopback addresses",
                "containers of the pod reach each other by loopback, not through the proxy",
            ),
            EscapeKind::ProxyToApp => (
                "proxy-to-app",
                Info,
                "the proxy to the app",
                "what the proxy has accepted it hands on to the app, within the pod",
            ),
        }
    }
}
