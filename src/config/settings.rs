//! Parses and checks options: their texts and facts about the pod give an [`Interception`] and the
//! [`Run`] options, which do not change it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::facts::{self, Facts};
use super::families::{families, family_choice};
use super::given::{Given, Origin};
use super::interception::{DnsCapture, Interception};
use super::options::Opt;
use super::owners::{owner_groups, proxy_owners};
use super::reader::OptionReader;
pub use super::reader::{LONGEST_QUOTE, SettingsError};
use super::types::{Families, OlderConnections, Port, PortSelection, RangeSelection};
use super::value::{self, Invalid};

/// Which set of defaults applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `podweir init`: native nftables, every family, a typical sidecar when nothing is asked.
    Init,
    /// `podweir istio-iptables`: the defaults of the program of that name.
    IstioIptables,
}

/// What programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// The one that holds our rules; else nftables; else iptables.
    Auto,
    /// The iptables variant that holds rules; else nft; else legacy; else nftables.
    AutoIptables,
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

/// Options that do not change the plan.
#[derive(Debug, Clone)]
pub struct Run {
    pub backend: BackendChoice,
    pub rule_comments: bool,
    pub dry_run: bool,
    pub reconcile: bool,
    pub cleanup_only: bool,
    pub force_apply: bool,
    pub established: OlderConnections,
    /// Whether rules of others that interfere are an error.
    pub strict: bool,
    pub run_validation: bool,
    pub skip_rule_apply: bool,
    pub probe_port: Port,
    pub probe_timeout: Duration,
    pub network_namespace: Option<PathBuf>,
    /// Whether the iptables programs go without the node's lock file: the network namespace is locked.
    pub cni_mode: bool,
    pub host_network: bool,
    pub lock_timeout: Duration,
}

/// Everything a run needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    pub interception: Interception,
    pub run: Run,
    /// Addresses of the pod, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// Warnings about the options, for the user.
    pub warnings: Vec<String>,
}

impl Run {
    /// Resolves the options that do not change the plan. It needs no facts, and is called first: it
    /// names the namespace in which facts are read.
    ///
    /// # Errors
    ///
    /// The flag, variable or annotation with the value that is not right, and what would be.
    pub fn resolve(given: &Given, face: Face) -> Result<Self, SettingsError> {
        let reader = OptionReader { given, warnings: Vec::new() };
        let path = given.text(Opt::NetworkNamespace).1;
        let run = Run {
            backend: backend(&reader, face)?,
            rule_comments: reader.flag(Opt::RuleComments)?,
            dry_run: reader.flag(Opt::DryRun)?,
            reconcile: reader.flag(Opt::Reconcile)?,
            cleanup_only: reader.flag(Opt::CleanupOnly)?,
            force_apply: reader.flag(Opt::ForceApply)?,
            established: reader.read(Opt::Established, value::older_connections)?,
            strict: reader.flag(Opt::Strict)?,
            run_validation: reader.flag(Opt::RunValidation)?,
            skip_rule_apply: reader.flag(Opt::SkipRuleApply)?,
            probe_port: reader.read(Opt::ProbePort, value::port)?,
            probe_timeout: reader.read(Opt::ProbeTimeout, value::duration)?,
            network_namespace: (!path.is_empty()).then(|| PathBuf::from(path)),
            cni_mode: reader.flag(Opt::CniMode)?,
            host_network: reader.flag(Opt::HostNetwork)?,
            lock_timeout: reader.read(Opt::LockTimeout, value::duration)?,
        };
        if run.cleanup_only && run.run_validation {
            return Err(SettingsError::Contradiction(
                "--cleanup-only leaves nothing that --run-validation could test; give one of them".into(),
            ));
        }
        Ok(run)
    }
}

fn backend(reader: &OptionReader, face: Face) -> Result<BackendChoice, SettingsError> {
    let named = reader.read(Opt::Backend, |text| match text {
        "auto" => Ok(None),
        "nftables" => Ok(Some(BackendChoice::Nftables)),
        "iptables-nft" => Ok(Some(BackendChoice::IptablesNft)),
        "iptables-legacy" => Ok(Some(BackendChoice::IptablesLegacy)),
        _ => Err(Invalid {
            item: text.into(),
            problem: "is no backend".into(),
            expected: "auto, nftables, iptables-nft or iptables-legacy",
        }),
    })?;
    let variant = reader.read(Opt::ForceIptables, |text| match text {
        "" => Ok(None),
        "legacy" => Ok(Some(BackendChoice::IptablesLegacy)),
        "nft" => Ok(Some(BackendChoice::IptablesNft)),
        _ => Err(Invalid { item: text.into(), problem: "is no iptables variant".into(), expected: "legacy or nft" }),
    })?;
    let native = reader.flag(Opt::NativeNftables)?.then_some(BackendChoice::Nftables);
    let typed = |opt| reader.given.get(opt).is_some_and(|(origin, _)| *origin == Origin::Flag);
    let flags = [(Opt::Backend, named), (Opt::NativeNftables, native), (Opt::ForceIptables, variant)];
    let mut on_flag = flags.iter().filter(|(opt, choice)| choice.is_some() && typed(*opt));
    if let (Some((a, first)), Some((b, second))) = (on_flag.next(), on_flag.next())
        && first != second
    {
        return Err(SettingsError::Contradiction(format!(
            "{} and {} name different backends; give one of them",
            a.spec().name(),
            b.spec().name()
        )));
    }
    // A flag beats a variable, whichever of the three options it is.
    let by_flag = flags.iter().find(|(opt, choice)| choice.is_some() && typed(*opt));
    let chosen = by_flag.and_then(|(_, choice)| *choice).or(named).or(native).or(variant);
    let default = match face {
        Face::Init => BackendChoice::Auto,
        Face::IstioIptables => BackendChoice::AutoIptables,
    };
    Ok(chosen.unwrap_or(default))
}

impl Settings {
    /// Resolves all options. Nothing is changed, and facts are read only where they decide something.
    ///
    /// # Errors
    ///
    /// The flag, variable or annotation with the value that is not right, and what would be; a
    /// contradiction between two of them; a fact that decides something and cannot be had.
    pub fn resolve(given: &Given, face: Face, facts: &dyn Facts) -> Result<Self, SettingsError> {
        let given = &with_face_defaults(given, face);
        let run = Run::resolve(given, face)?;
        let mut reader = OptionReader { given, warnings: Vec::new() };
        let proxy_uids = proxy_owners(&mut reader, Opt::ProxyUid, facts)?;
        let proxy_gids = if given.text(Opt::ProxyGid).1.is_empty() {
            proxy_uids.clone()
        } else {
            proxy_owners(&mut reader, Opt::ProxyGid, facts)?
        };
        let uid_by_name = |name: &str| facts::uid_by_name(facts, name);
        let choice = family_choice(&reader)?;
        let dns_wanted = reader.flag(Opt::RedirectDns)?;
        let dns_all = reader.flag(Opt::CaptureAllDns)?;
        let mut interception = Interception {
            families: Families::NONE,
            outbound_port: reader.read(Opt::OutboundPort, value::port)?,
            inbound_port: reader.read(Opt::InboundPort, value::port)?,
            tunnel_port: reader.read(Opt::TunnelPort, value::port)?,
            proxy_uids,
            proxy_gids,
            mode: reader.read(Opt::Mode, value::mode)?,
            inbound_ports: reader.read(Opt::InboundPorts, value::port_selection)?,
            inbound_ports_exclude: reader.read(Opt::InboundPortsExclude, value::port_list)?,
            exclude_interfaces: reader.read(Opt::ExcludeInterfaces, value::interfaces)?,
            virtual_interfaces: reader.read(Opt::VirtualInterfaces, value::interfaces)?,
            outbound_ranges: reader.read_warned(Opt::OutboundRanges, value::range_selection)?,
            outbound_ranges_exclude: reader.read_warned(Opt::OutboundRangesExclude, value::networks)?,
            outbound_ports: reader.read(Opt::OutboundPorts, value::port_list)?,
            outbound_ports_exclude: reader.read(Opt::OutboundPortsExclude, value::port_list)?,
            owner_groups: owner_groups(&reader, facts)?,
            outbound_uids_exclude: reader.read(Opt::OutboundUidsExclude, |text| value::id_list(text, &uid_by_name))?,
            loopback: reader.read_warned(Opt::LoopbackCidr, value::loopback)?,
            dns: None,
            drop_invalid: reader.flag(Opt::DropInvalid)?,
            mark: reader.read(Opt::TproxyMark, value::mark)?,
            route_table: reader.read(Opt::TproxyTable, value::route_table)?,
        };
        // All texts are known to be right: now the surroundings may be asked.
        let addresses = facts.addresses().map_err(|source| SettingsError::Fact {
            what: "the pod's addresses",
            source,
            hint: "",
        })?;
        interception.families = families(choice, &addresses, facts, &mut reader.warnings)?;
        if dns_wanted {
            interception.dns = dns_capture(dns_all, facts, &mut reader.warnings)?;
        }
        Ok(Settings { interception, run, addresses, warnings: reader.warnings })
    }
}

/// Adds a face's defaults for options that are not given: for `init` a typical sidecar and every family,
/// for `istio-iptables` the families that the first address tells.
pub fn with_face_defaults(given: &Given, face: Face) -> Given {
    let mut given = given.clone();
    let asks = [Opt::InboundPorts, Opt::OutboundRanges, Opt::OutboundPorts];
    match face {
        Face::Init if !asks.iter().any(|&opt| given.has(opt)) => {
            given.set(Opt::InboundPorts, Origin::Default, "*");
            given.set(Opt::OutboundRanges, Origin::Default, "*");
            if !given.has(Opt::InboundPortsExclude) {
                given.set(Opt::InboundPortsExclude, Origin::Default, "15020,15021,15090");
            }
        }
        Face::IstioIptables if !given.has(Opt::IpFamilies) => {
            given.set(Opt::IpFamilies, Origin::Default, "first");
        }
        _ => {}
    }
    given
}

fn dns_capture(all: bool, facts: &dyn Facts, warnings: &mut Vec<String>) -> Result<Option<DnsCapture>, SettingsError> {
    if all {
        return Ok(Some(DnsCapture::All));
    }
    let from = facts.names_servers();
    let text = facts.resolv_conf().map_err(|source| SettingsError::Fact {
        what: "/etc/resolv.conf",
        source,
        hint: " (--redirect-dns needs it for the servers to capture; --capture-all-dns does not)",
    })?;
    let (servers, odd) = facts::name_servers(&text);
    for entry in odd {
        warnings.push(format!("{from}: name server '{entry}' is no plain address: DNS to it is not captured"));
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for server in servers {
        match server {
            IpAddr::V4(a) => v4.push(a),
            IpAddr::V6(a) => v6.push(a),
        }
    }
    if v4.is_empty() && v6.is_empty() {
        warnings.push(format!(
            "DNS capture is asked for, but {from} names no server: DNS is not captured; give --capture-all-dns to capture it all"
        ));
        return Ok(None);
    }
    Ok(Some(DnsCapture::Servers { v4, v6 }))
}

impl Interception {
    /// Whether any inbound traffic is taken.
    pub fn takes_inbound(&self) -> bool {
        !matches!(&self.inbound_ports, PortSelection::Only(ports) if ports.is_empty())
    }

    /// Whether any outbound TCP is taken.
    pub fn takes_outbound(&self) -> bool {
        !matches!(&self.outbound_ranges, RangeSelection::Only(nets) if nets.is_empty())
            || !self.outbound_ports.is_empty()
    }
}
