//! Options that change nothing, and options that want opposite things.

use crate::audit::escapes::kind::Severity;
use crate::config::given::Given;
use crate::config::interception::{Interception, OwnerGroups};
use crate::config::options::Opt;
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family, Mode, Networks, Port, PortSelection, RangeSelection};
use crate::plan::canon::addresses;

use super::Lint;

/// Lints about options, and what they mean for this pod.
pub fn lints(given: &Given, interception: &Interception) -> Vec<Lint> {
    let mut found = FoundOptions { given, lints: Vec::new() };
    found.inbound(interception);
    found.outbound(interception);
    found.owners(interception);
    found.families(interception);
    found.others(interception);
    found.lints
}

struct FoundOptions<'a> {
    given: &'a Given,
    lints: Vec<Lint>,
}

fn within<T: crate::config::ranges::Discrete>(inner: &RangeList<T>, outer: &RangeList<T>) -> bool {
    inner.normalised().minus(&outer.normalised()).is_empty()
}

fn shared<T: crate::config::ranges::Discrete>(a: &RangeList<T>, b: &RangeList<T>) -> Option<String> {
    let both = a.normalised().intersection(&b.normalised());
    let words: Vec<String> =
        both.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    (!words.is_empty()).then(|| words.join(","))
}

impl FoundOptions<'_> {
    fn no_effect(&mut self, opt: Opt, message: &str, advice: &str) {
        self.push("option-without-effect", Severity::Low, opt, message.into(), advice.into());
    }

    fn contradict(&mut self, opt: Opt, message: String, advice: &str) {
        self.push("options-contradict", Severity::Medium, opt, message, advice.into());
    }

    fn push(&mut self, id: &'static str, severity: Severity, opt: Opt, message: String, advice: String) {
        let subject = self.given.text(opt).0.name_of(opt);
        self.lints.push(Lint { severity, id, subject, message, advice });
    }

    fn inbound(&mut self, i: &Interception) {
        match &i.inbound_ports {
            PortSelection::Only(_)
                if !i.inbound_ports_exclude.is_empty() && self.given.has(Opt::InboundPortsExclude) =>
            {
                self.no_effect(
                    Opt::InboundPortsExclude,
                    "ports are excluded only from all inbound ports; here only some are taken",
                    "use --istio-inbound-ports '*' (-b), or drop it",
                );
            }
            PortSelection::Only(ports) => {
                if i.mode == Mode::Redirect && ports.normalised().holds(i.tunnel_port.get()) {
                    let message = format!(
                        "port {} is to be taken, but it is the tunnel port, which REDIRECT leaves alone",
                        i.tunnel_port
                    );
                    self.contradict(Opt::InboundPorts, message, "take it out of --istio-inbound-ports (-b)");
                }
                for (name, port) in [("outbound", i.outbound_port), ("inbound", i.inbound_port)] {
                    if ports.normalised().holds(port.get()) {
                        let message = format!("port {port} is to be taken, but it is the proxy's own {name} port");
                        self.contradict(Opt::InboundPorts, message, "take it out of --istio-inbound-ports (-b)");
                    }
                }
            }
            PortSelection::All => {}
        }
        if i.inbound_port == i.outbound_port {
            let message = format!("inbound and outbound traffic both go to port {}", i.inbound_port);
            self.contradict(Opt::InboundPort, message, "a proxy tells the two apart by port: use two");
        }
    }

    fn outbound(&mut self, i: &Interception) {
        if let Some(ports) = shared(&i.outbound_ports, &i.outbound_ports_exclude) {
            let message = format!("ports {ports} are both included and excluded; excluded wins");
            self.contradict(Opt::OutboundPorts, message, "take them out of one of the two");
        } else if i.outbound_ranges == RangeSelection::All && !i.outbound_ports.is_empty() {
            self.no_effect(
                Opt::OutboundPorts,
                "all destinations are taken already, and what is excluded is so on every port",
                "drop it, or narrow --istio-service-cidr (-i)",
            );
        }
        let RangeSelection::Only(ranges) = &i.outbound_ranges else { return };
        if i.outbound_ranges_exclude.is_empty() {
            return;
        }
        let apart = |family| !addresses(ranges, family).overlaps(&addresses(&i.outbound_ranges_exclude, family));
        let covered = |family: Family| {
            let (inner, outer) = (addresses(ranges, family), addresses(&i.outbound_ranges_exclude, family));
            !inner.is_empty() && within(&inner, &outer)
        };
        if i.outbound_ports.is_empty() && i.families.iter().all(apart) {
            self.no_effect(
                Opt::OutboundRangesExclude,
                "none of the ranges is in an included one, and nothing else is taken",
                "drop it",
            );
        }
        for family in i.families.iter().filter(|&family| covered(family)) {
            let message = format!("every included {family} range is excluded as well; excluded wins");
            self.contradict(Opt::OutboundRanges, message, "take the ranges out of --istio-service-exclude-cidr (-x)");
        }
    }

    fn owners(&mut self, i: &Interception) {
        let proxy = RangeList::of(i.proxy_uids.iter().copied());
        if !i.outbound_uids_exclude.is_empty() && within(&i.outbound_uids_exclude, &proxy) {
            self.no_effect(Opt::OutboundUidsExclude, "the proxy's users are left alone anyway", "drop it");
        }
        let groups = RangeList::of(i.proxy_gids.iter().copied());
        match &i.owner_groups {
            OwnerGroups::Only(gids) => {
                if self.given.has(Opt::OwnerGroupsExclude) && !self.given.text(Opt::OwnerGroupsExclude).1.is_empty() {
                    self.no_effect(
                        Opt::OwnerGroupsExclude,
                        "only the groups of the inclusion list are taken",
                        "take groups out of ISTIO_OUTBOUND_OWNER_GROUPS instead",
                    );
                }
                if gids.is_empty() && i.outbound_ranges == RangeSelection::All {
                    let message = "no group's traffic is taken, so none of any destination is".to_owned();
                    self.contradict(Opt::OwnerGroups, message, "name groups, or '*'");
                }
            }
            OwnerGroups::Except(gids) => {
                let gids = RangeList::of(gids.iter().copied());
                if !gids.is_empty() && within(&gids, &groups) {
                    self.no_effect(Opt::OwnerGroupsExclude, "the proxy's groups are left alone anyway", "drop it");
                }
            }
        }
        if i.proxy_uids.contains(&0) {
            let message = "the proxy's user is root: everything that runs as root in the pod passes it by".to_owned();
            self.contradict(Opt::ProxyUid, message, "give the proxy a user of its own");
        }
    }

    fn families(&mut self, i: &Interception) {
        let only = |nets: &Networks| {
            let families = Families { v4: !nets.v4.is_empty(), v6: !nets.v6.is_empty() };
            let lost = |family: Family| families.has(family) && !i.families.has(family);
            Family::BOTH.into_iter().find(|&family| lost(family))
        };
        let included = match &i.outbound_ranges {
            RangeSelection::Only(ranges) => only(ranges),
            RangeSelection::All => None,
        };
        let lists = [(Opt::OutboundRanges, included), (Opt::OutboundRangesExclude, only(&i.outbound_ranges_exclude))];
        for (opt, family) in lists {
            if let Some(family) = family {
                let message = format!("it names {family} ranges, but {family} is not intercepted in this pod");
                self.no_effect(opt, &message, "drop them, or intercept the family (--ip-families)");
            }
        }
    }

    fn others(&mut self, i: &Interception) {
        if i.mode == Mode::Redirect {
            for opt in [Opt::TproxyMark, Opt::TproxyTable] {
                // Injectors write the default out; that harms nobody.
                let is_default = self.given.text(opt).1 == opt.spec().default;
                if self.given.has(opt) && !is_default {
                    self.no_effect(opt, "marks and routes are for TPROXY; the mode is REDIRECT", "drop it");
                }
            }
        }
        if i.dns.is_none() && self.given.has(Opt::CaptureAllDns) && is_on(self.given, Opt::CaptureAllDns) {
            self.no_effect(Opt::CaptureAllDns, "DNS is not captured at all", "add --redirect-dns");
        }
        if i.dns.is_some() && i.outbound_ports_exclude.normalised().holds(Port::DNS.get()) {
            let message = "DNS is to be captured, but port 53 is excluded; excluded wins".to_owned();
            self.contradict(
                Opt::OutboundPortsExclude,
                message,
                "take 53 out of --istio-local-outbound-ports-exclude (-o)",
            );
        }
        for interface in i.virtual_interfaces.iter().filter(|interface| i.exclude_interfaces.contains(interface)) {
            let message =
                format!("interface {interface} is both excluded and a virtual machine's; the latter wins inbound");
            self.contradict(Opt::ExcludeInterfaces, message, "take it out of one of the two");
        }
    }
}

fn is_on(given: &Given, opt: Opt) -> bool {
    crate::config::value::boolean(given.text(opt).1) == Ok(true)
}
