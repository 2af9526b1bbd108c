//! Options as a source: the plan they would make, without a kernel. What options do not
//! tell about the pod (addresses, name servers) is what the caller knows of it.

use std::io;
use std::net::IpAddr;

use crate::audit::flow::Surroundings;
use crate::audit::ruleset::Ruleset;
use crate::backend::{listing, ours};
use crate::config::ambient::AmbientOptions;
use crate::config::facts::Facts;
use crate::config::given::{Given, Origin};
use crate::config::options::Opt;
use crate::config::settings::{Face, Settings, SettingsError};
use crate::config::types::Families;
use crate::plan::{self, model::Plan};

use super::{Source, SourceError};

/// What is known of a pod that is not here.
#[derive(Debug, Clone, Default)]
pub struct KnownPod {
    pub addresses: Vec<IpAddr>,
    /// The pod's name servers; `None` if they are not known.
    pub dns_servers: Option<Vec<IpAddr>>,
    /// Texts of passwd(5) and group(5).
    pub passwd: String,
    pub group: String,
    /// The IP families to go by where they follow from addresses and none is known.
    pub assumed: Option<Families>,
}

impl Facts for KnownPod {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let mut all = self.addresses.clone();
        // The kernel's order.
        all.sort_by_key(|address| !address.is_ipv4());
        Ok(all)
    }

    fn resolv_conf(&self) -> io::Result<String> {
        match &self.dns_servers {
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the pod's is not known here: give --dns-server")),
            Some(servers) => Ok(servers.iter().map(|server| format!("nameserver {server}\n")).collect()),
        }
    }

    fn passwd(&self) -> io::Result<String> {
        Ok(self.passwd.clone())
    }

    fn group(&self) -> io::Result<String> {
        Ok(self.group.clone())
    }

    fn without_address(&self) -> &'static str {
        "no global address of the pod is known (--pod-ip tells them)"
    }

    fn names_servers(&self) -> &'static str {
        "--dns-server"
    }
}

/// The plan that options make for a pod.
///
/// # Errors
///
/// That the options make none, or that the pod's IP families cannot be told.
pub fn read(given: &Given, face: Face, known: &KnownPod) -> Result<Source, SourceError> {
    let mut settings = match (Settings::resolve(given, face, known), known.assumed) {
        (Err(SettingsError::NoAddress), Some(families)) => assuming(families, given, face, known)?,
        (Err(SettingsError::NoAddress), None) => return Err(SourceError::NoAddress),
        (settings, _) => settings?,
    };
    let mut pod =
        Surroundings { dns_servers: known.dns_servers.clone(), ..Surroundings::of(settings.addresses.clone()) };
    if let Some(families) = known.assumed.filter(|_| pod.families().is_empty()) {
        pod = pod.with_stand_ins(families);
        settings.warnings.push("addresses for documentation stand in for the pod's own, which are not known".into());
    }
    Ok(Source { given: Some(given.clone()), ..of_settings(settings, pod) })
}

/// The settings of a pod that may never have run, with a warning that says what is assumed.
fn assuming(families: Families, given: &Given, face: Face, known: &KnownPod) -> Result<Settings, SettingsError> {
    let choice = match (families.v4, families.v6) {
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        _ => "both",
    };
    let mut given = given.clone();
    given.set(Opt::IpFamilies, Origin::Default, choice);
    let mut settings = Settings::resolve(&given, face, known)?;
    settings.warnings.push(format!("{}: it is taken to have {families}", known.without_address()));
    Ok(settings)
}

/// The plan that settings make.
pub fn of_settings(settings: Settings, pod: Surroundings) -> Source {
    let source = of_plan(&plan::build(&settings.interception), pod);
    Source { notes: settings.warnings.clone(), settings: Some(settings), ..source }
}

/// The plan of an ambient pod.
pub fn of_ambient(options: &AmbientOptions, known: &KnownPod) -> Source {
    let pod = Surroundings { dns_servers: known.dns_servers.clone(), ..Surroundings::of(known.addresses.clone()) };
    of_plan(&plan::build::ambient(options), pod)
}

fn of_plan(plan: &Plan, pod: Surroundings) -> Source {
    let tables = listing::of_plan(plan);
    Source {
        ruleset: Ruleset::of_tables(&tables),
        held: ours::holdings(&tables),
        tables,
        routing: Some(plan.routing.normalised()),
        told: Families::BOTH,
        pod,
        notes: Vec::new(),
        settings: None,
        given: None,
    }
}
