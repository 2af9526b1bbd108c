//! The option table: every option's names, variables, default and help, once.
//! The command line, the reading of the environment, `--print-config` and the
//! README's table all follow it.

use Group::{Dns, Inbound, Operation, Outbound, Proxy, Runtime};
use Opt::*;

/// One option of the interception faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Opt {
    OutboundPort,
    InboundPort,
    TunnelPort,
    ProxyUid,
    ProxyGid,
    Mode,
    InboundPorts,
    InboundPortsExclude,
    ExcludeInterfaces,
    OutboundRanges,
    OutboundRangesExclude,
    OutboundPorts,
    OutboundPortsExclude,
    VirtualInterfaces,
    TproxyMark,
    TproxyTable,
    OwnerGroups,
    OwnerGroupsExclude,
    OutboundUidsExclude,
    LoopbackCidr,
    RedirectDns,
    CaptureAllDns,
    DropInvalid,
    DualStack,
    IpFamilies,
    Backend,
    NativeNftables,
    ForceIptables,
    RuleComments,
    DryRun,
    Reconcile,
    CleanupOnly,
    ForceApply,
    Established,
    Strict,
    RunValidation,
    SkipRuleApply,
    ProbePort,
    ProbeTimeout,
    NetworkNamespace,
    CniMode,
    HostNetwork,
    LockTimeout,
}

/// The group of options under whose heading `--help` lists an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Proxy,
    Inbound,
    Outbound,
    Dns,
    Runtime,
    Operation,
}

impl Group {
    pub fn heading(self) -> &'static str {
        match self {
            Proxy => "The proxy",
            Inbound => "Inbound traffic",
            Outbound => "Outbound traffic",
            Dns => "DNS",
            Runtime => "Where and how",
            Operation => "What to do",
        }
    }
}

/// What kind of text an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// `true` or `false`; the bare flag means `true`.
    Boolean,
    /// One value; an empty variable counts as not set.
    One(&'static str),
    /// A list; an empty text is an empty list.
    List(&'static str),
}

/// An option's entry in the table.
#[derive(Debug)]
pub struct Spec {
    pub opt: Opt,
    pub group: Group,
    pub short: Option<char>,
    /// Long flag, without dashes; empty for an option that only a variable sets.
    pub long: &'static str,
    /// Variables, the first one set wins.
    pub env: &'static [&'static str],
    pub takes: Takes,
    pub default: &'static str,
    pub help: &'static str,
}

#[allow(clippy::too_many_arguments)] // one row of the table
const fn spec(
    opt: Opt,
    group: Group,
    short: Option<char>,
    long: &'static str,
    env: &'static [&'static str],
    takes: Takes,
    default: &'static str,
    help: &'static str,
) -> Spec {
    Spec { opt, group, short, long, env, takes, default, help }
}

use Takes::{Boolean, List, One};

/// Every option, in the order of the README's table.
#[rustfmt::skip]
pub static OPTIONS: &[Spec] = &[
    spec(OutboundPort, Proxy, Some('p'), "envoy-port", &[], One("PORT"), "15001", "Port on which the proxy takes outbound TCP [default: 15001]"),
    spec(InboundPort, Proxy, Some('z'), "inbound-capture-port", &["INBOUND_CAPTURE_PORT"], One("PORT"), "15006", "Port on which the proxy takes inbound TCP [default: 15006] [INBOUND_CAPTURE_PORT]"),
    spec(TunnelPort, Proxy, Some('e'), "inbound-tunnel-port", &["INBOUND_TUNNEL_PORT"], One("PORT"), "15008", "HBONE tunnel port: left alone inbound by REDIRECT; TPROXY takes it like any other [default: 15008] [INBOUND_TUNNEL_PORT]"),
    spec(ProxyUid, Proxy, Some('u'), "proxy-uid", &["PROXY_UID"], List("UIDS"), "", "Users whose traffic is the proxy's own (default: the user named by ENVOY_USER or istio-proxy, else 1337) [PROXY_UID]"),
    spec(ProxyGid, Proxy, Some('g'), "proxy-gid", &["PROXY_GID"], List("GIDS"), "", "Groups whose traffic is the proxy's own (default: the same numbers as --proxy-uid) [PROXY_GID]"),
    spec(Mode, Inbound, Some('m'), "istio-inbound-interception-mode", &["ISTIO_INBOUND_INTERCEPTION_MODE"], One("MODE"), "REDIRECT", "REDIRECT rewrites the destination; TPROXY keeps both addresses [default: REDIRECT] [ISTIO_INBOUND_INTERCEPTION_MODE]"),
    spec(InboundPorts, Inbound, Some('b'), "istio-inbound-ports", &["ISTIO_INBOUND_PORTS"], List("PORTS"), "", "Ports to take: '*', or ports and ranges such as 80,8000-8100; empty takes none [ISTIO_INBOUND_PORTS]"),
    spec(InboundPortsExclude, Inbound, Some('d'), "istio-local-exclude-ports", &["ISTIO_LOCAL_EXCLUDE_PORTS"], List("PORTS"), "", "Ports left alone; counts only with -b '*' [ISTIO_LOCAL_EXCLUDE_PORTS]"),
    spec(ExcludeInterfaces, Runtime, Some('c'), "istio-exclude-interfaces", &["ISTIO_EXCLUDE_INTERFACES"], List("NAMES"), "", "Interfaces left alone both ways [ISTIO_EXCLUDE_INTERFACES]"),
    spec(OutboundRanges, Outbound, Some('i'), "istio-service-cidr", &["ISTIO_SERVICE_CIDR"], List("CIDRS"), "", "Destinations to take: '*', or IP ranges; empty takes none [ISTIO_SERVICE_CIDR]"),
    spec(OutboundRangesExclude, Outbound, Some('x'), "istio-service-exclude-cidr", &["ISTIO_SERVICE_EXCLUDE_CIDR"], List("CIDRS"), "", "Destinations left alone [ISTIO_SERVICE_EXCLUDE_CIDR]"),
    spec(OutboundPorts, Outbound, Some('q'), "istio-outbound-ports", &["ISTIO_OUTBOUND_PORTS"], List("PORTS"), "", "Destination ports always taken [ISTIO_OUTBOUND_PORTS]"),
    spec(OutboundPortsExclude, Outbound, Some('o'), "istio-local-outbound-ports-exclude", &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"], List("PORTS"), "", "Destination ports left alone, TCP and UDP [ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE]"),
    spec(VirtualInterfaces, Outbound, Some('k'), "kube-virt-interfaces", &["KUBE_VIRT_INTERFACES"], List("NAMES"), "", "Interfaces whose inbound traffic (from virtual machines) counts as outbound [KUBE_VIRT_INTERFACES]"),
    spec(TproxyMark, Inbound, Some('t'), "istio-inbound-tproxy-mark", &["ISTIO_INBOUND_TPROXY_MARK"], One("MARK"), "1337", "Packet mark used with TPROXY [default: 1337] [ISTIO_INBOUND_TPROXY_MARK]"),
    spec(TproxyTable, Inbound, Some('r'), "istio-inbound-tproxy-route-table", &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"], One("TABLE"), "133", "Routing table used with TPROXY [default: 133] [ISTIO_INBOUND_TPROXY_ROUTE_TABLE]"),
    spec(OwnerGroups, Outbound, None, "", &["ISTIO_OUTBOUND_OWNER_GROUPS"], List("GROUPS"), "*", "Groups whose outbound traffic is taken: '*', or at most 64 names or ids [default: *] [ISTIO_OUTBOUND_OWNER_GROUPS]"),
    spec(OwnerGroupsExclude, Outbound, None, "", &["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"], List("GROUPS"), "", "Groups whose outbound traffic is left alone; counts only when all groups are taken [ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE]"),
    spec(OutboundUidsExclude, Outbound, None, "exclude-outbound-uids", &["PODWEIR_EXCLUDE_OUTBOUND_UIDS"], List("UIDS"), "", "Users whose outbound traffic is left alone, such as 1000,2000-2010,backup [PODWEIR_EXCLUDE_OUTBOUND_UIDS]"),
    spec(LoopbackCidr, Outbound, None, "", &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"], One("CIDR"), "127.0.0.1/32", "What counts as the pod talking to itself [default: 127.0.0.1/32] [ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR]"),
    spec(RedirectDns, Dns, None, "redirect-dns", &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"], Boolean, "false", "Hand DNS to the agent on port 15053 [REDIRECT_DNS, ISTIO_META_DNS_CAPTURE]"),
    spec(CaptureAllDns, Dns, None, "capture-all-dns", &["CAPTURE_ALL_DNS"], Boolean, "false", "With --redirect-dns: to any server, not only those of resolv.conf [CAPTURE_ALL_DNS]"),
    spec(DropInvalid, Runtime, None, "drop-invalid", &["DROP_INVALID", "INVALID_DROP"], Boolean, "false", "Drop what connection tracking calls INVALID instead of letting it reset a connection [DROP_INVALID, INVALID_DROP]"),
    spec(DualStack, Runtime, None, "dual-stack", &["DUAL_STACK", "ISTIO_DUAL_STACK"], Boolean, "false", "Program both IP families [DUAL_STACK, ISTIO_DUAL_STACK]"),
    spec(IpFamilies, Runtime, None, "ip-families", &["PODWEIR_IP_FAMILIES"], One("WHICH"), "auto", "auto (every family the pod has a global address in), first (the first global address decides), ipv4, ipv6 or both [default: auto] [PODWEIR_IP_FAMILIES]"),
    spec(Backend, Runtime, None, "backend", &["PODWEIR_BACKEND"], One("BACKEND"), "auto", "auto, nftables, iptables-nft or iptables-legacy [default: auto] [PODWEIR_BACKEND]"),
    spec(NativeNftables, Runtime, None, "native-nftables", &["NATIVE_NFTABLES"], Boolean, "false", "Same as --backend nftables [NATIVE_NFTABLES]"),
    spec(ForceIptables, Runtime, None, "force-iptables-binary", &["FORCE_IPTABLES_BINARY"], One("VARIANT"), "", "Use iptables, in this variant: legacy or nft [FORCE_IPTABLES_BINARY]"),
    spec(RuleComments, Runtime, None, "rule-comments", &["PODWEIR_RULE_COMMENTS"], Boolean, "false", "Let every iptables rule carry its reason as a comment (nftables rules always do) [PODWEIR_RULE_COMMENTS]"),
    spec(DryRun, Operation, Some('n'), "dry-run", &["DRY_RUN"], Boolean, "false", "Print what would be done; touch nothing [DRY_RUN]"),
    spec(Reconcile, Operation, None, "reconcile", &["RECONCILE"], Boolean, "false", "Replace rules that differ from the plan, without a moment in which traffic escapes [RECONCILE]"),
    spec(CleanupOnly, Operation, None, "cleanup-only", &["CLEANUP_ONLY"], Boolean, "false", "Remove every trace from every backend, add nothing [CLEANUP_ONLY]"),
    spec(ForceApply, Operation, None, "force-apply", &["FORCE_APPLY"], Boolean, "false", "Write the plan even where the kernel holds it already [FORCE_APPLY]"),
    spec(Established, Operation, None, "established", &["PODWEIR_ESTABLISHED"], One("WHAT"), "leave", "Connections older than the rules, which would take them: leave (with a warning) or reset [default: leave] [PODWEIR_ESTABLISHED]"),
    spec(Strict, Operation, None, "strict", &["PODWEIR_STRICT"], Boolean, "false", "Fail, with nothing changed, where rules of others come before the interception's or undo what they do [PODWEIR_STRICT]"),
    spec(RunValidation, Operation, None, "run-validation", &["RUN_VALIDATION"], Boolean, "false", "Send a probe through the rules; exit 126 when it does not come back [RUN_VALIDATION]"),
    spec(SkipRuleApply, Operation, None, "skip-rule-apply", &["SKIP_RULE_APPLY"], Boolean, "false", "Program nothing (for --run-validation on its own) [SKIP_RULE_APPLY]"),
    spec(ProbePort, Operation, None, "iptables-probe-port", &["IPTABLES_PROBE_PORT"], One("PORT"), "15002", "Port the validation's probes are addressed to [default: 15002] [IPTABLES_PROBE_PORT]"),
    spec(ProbeTimeout, Operation, None, "probe-timeout", &["PROBE_TIMEOUT"], One("TIME"), "5s", "How long the validation may take [default: 5s] [PROBE_TIMEOUT]"),
    spec(NetworkNamespace, Runtime, None, "network-namespace", &["NETWORK_NAMESPACE"], One("PATH"), "", "Work in this network namespace instead of the current one [NETWORK_NAMESPACE]"),
    spec(CniMode, Runtime, None, "cni-mode", &["CNI_MODE"], Boolean, "false", "Started from the node's file system: iptables locks the pod's namespace, not the node's lock file [CNI_MODE]"),
    spec(HostNetwork, Runtime, None, "host-network", &["PODWEIR_HOST_NETWORK"], Boolean, "false", "Allow to work in the node's own network namespace [PODWEIR_HOST_NETWORK]"),
    spec(LockTimeout, Runtime, None, "lock-timeout", &["PODWEIR_LOCK_TIMEOUT"], One("TIME"), "10s", "How long to wait for another program that is changing the rules [default: 10s] [PODWEIR_LOCK_TIMEOUT]"),
];

impl Opt {
    /// The option's entry in the table.
    pub fn spec(self) -> &'static Spec {
        &OPTIONS[self as usize]
    }
}

impl Spec {
    /// How a message names the option: `-b/--istio-inbound-ports`, `--backend`, or the variable.
    pub fn name(&self) -> String {
        match (self.short, self.long) {
            (_, "") => self.env[0].to_owned(),
            (Some(short), long) => format!("-{short}/--{long}"),
            (None, long) => format!("--{long}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn help_names_defaults_and_variables() {
        for spec in OPTIONS {
            for name in spec.env {
                assert!(spec.help.contains(name), "{}: {name}", spec.name());
            }
            let shown = spec.takes == Takes::Boolean || spec.default.is_empty();
            assert!(shown || spec.help.contains(&format!("[default: {}]", spec.default)), "{}", spec.name());
        }
    }

    #[test]
    fn table_is_in_enum_order_and_names_are_unique() {
        let mut names = BTreeSet::new();
        for (at, spec) in OPTIONS.iter().enumerate() {
            assert_eq!(spec.opt as usize, at, "{:?}", spec.opt);
            assert!(!spec.long.is_empty() || !spec.env.is_empty());
            let short = spec.short.map(String::from);
            let long = (!spec.long.is_empty()).then(|| spec.long.to_owned());
            let env = spec.env.iter().map(|e| (*e).to_owned());
            for name in short.into_iter().chain(long).chain(env) {
                assert!(names.insert(name.clone()), "{name} is used twice");
            }
        }
    }
}
