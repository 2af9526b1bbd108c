//! `podweir init` and `podweir istio-iptables`: the interception faces.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tracing::{info, warn};

use crate::audit::established;
use crate::audit::lints::tproxy;
use crate::backend::install::{Action, Conditions, Outcome, Request, Session};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::node::{self, Evidence};
use crate::backend::routing;
use crate::config::given::{Given, process_environment};
use crate::config::interception::Interception;
use crate::config::settings::{Face, Run, Settings};
use crate::config::types::OlderConnections;
use crate::plan::{self, model::Plan};
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::error::CliError;
use super::facts::System;
use super::{args, dry_run, logging, output, print_config};

/// What both faces' help says besides the options.
const VARIABLES: &str = "\
Variables without a flag:
  ISTIO_OUTBOUND_OWNER_GROUPS          groups whose outbound traffic is taken: '*', or at
                                       most 64 names or ids [default: *]
  ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE  groups whose outbound traffic is left alone
  ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR    what counts as the pod talking to itself
                                       [default: 127.0.0.1/32]
  ENVOY_USER                           the proxy's user where --proxy-uid is not given

A flag beats a variable, a variable beats the default. Lists are comma separated.
Exit status: 0 done, 1 failed or the rules differ, 2 usage, 126 validation failed.
";

const INIT_NOTES: &str = "\
Runs in the pod's network namespace, needs CAP_NET_ADMIN, and leaves the kernel either as
the options say or as it was. Running it again changes nothing.
";

const INIT_EXAMPLES: &str = "
Examples:
  podweir init
      Everything both ways, inbound 15020, 15021 and 15090 left alone.
  podweir init -b 8080 -i 10.0.0.0/8 -o 3306
      Inbound port 8080; outbound 10.0.0.0/8 but for port 3306.
  podweir init --dry-run
      What would be done, as a script.
  podweir init --print-config
      Every option's value and where it comes from.
";

const COMPATIBLE_NOTES: &str = "\
Takes the options of podweir init. Without any nothing is intercepted, iptables is the
backend, and the first global address decides about IPv6 (--dual-stack takes both).
";

const COMPATIBLE_EXAMPLES: &str = "
Examples:
  podweir istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020
      What Istio's injector writes.
  podweir istio-iptables -b '*' -i '*' --native-nftables --reconcile
      Through nftables, over whatever an earlier run left.
";

/// The `init` subcommand.
pub fn init_command() -> Command {
    let command = Command::new("init").about("Divert this pod's traffic to its sidecar proxy");
    face_options(command).after_long_help(format!("{INIT_NOTES}\n{VARIABLES}{INIT_EXAMPLES}"))
}

/// The `istio-iptables` subcommand.
pub fn istio_iptables_command() -> Command {
    let about = "The same with the defaults of istio-iptables, for an injector's arguments";
    let notes = format!("{COMPATIBLE_NOTES}\n{VARIABLES}{COMPATIBLE_EXAMPLES}");
    face_options(Command::new("istio-iptables").about(about)).after_long_help(notes)
}

fn face_options(command: Command) -> Command {
    args::with_options(command)
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .help("Print the effective options with the source of each, and do nothing else")
                .help_heading("What to do")
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .help("With --print-config: as JSON")
                .help_heading("What to do")
                .action(ArgAction::SetTrue)
                .requires("print-config"),
        )
}

/// What to do besides programming the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Print {
    Nothing,
    /// The effective options, perhaps as JSON.
    Config {
        json: bool,
    },
}

/// Runs one of the faces with the arguments that clap has read.
pub fn run_matches(face: Face, matches: &ArgMatches) -> Result<(), CliError> {
    let print = match matches.get_flag("print-config") {
        true => Print::Config { json: matches.get_flag("json") },
        false => Print::Nothing,
    };
    run(face, &args::given(matches, &process_environment), print)
}

/// Runs one of the faces.
pub fn run(face: Face, given: &Given, print: Print) -> Result<(), CliError> {
    let started = Instant::now();
    let run = Run::resolve(given, face)?;
    if let Some(path) = &run.network_namespace {
        netns::enter(path)?;
    }
    let system = System::default();
    let settings = Settings::resolve(given, face, &system)?;
    if let Print::Config { json } = print {
        return print_config::print(given, face, &settings, json);
    }
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let plan = plan::build(&settings.interception);
    if run.dry_run {
        return dry_run::print(face, &plan, &settings, system);
    }
    if run.skip_rule_apply {
        info!("nothing is programmed: --skip-rule-apply");
    } else {
        program(face, &settings, &plan, system, started)?;
    }
    if run.run_validation {
        super::validate::run(&settings, &plan)?;
    }
    Ok(())
}

/// What the iptables programs are started with.
pub fn conditions(run: &Run) -> Conditions {
    let mut programs = ProgramEnvironment { host_network: run.host_network, ..programs() };
    if run.cni_mode {
        // The namespace itself is locked; the file is the node's.
        programs.variables.insert("XTABLES_LOCKFILE", NO_LOCK.into());
    }
    Conditions { rule_comments: run.rule_comments, lock_timeout: run.lock_timeout, programs }
}

/// What the programs get from our environment.
pub fn programs() -> ProgramEnvironment {
    let variable = |name: &'static str| process_environment(name).map(|value| (name, value.into()));
    ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        variables: ["XTABLES_LOCKFILE", "XTABLES_LIBDIR"].into_iter().filter_map(variable).collect(),
        ..ProgramEnvironment::default()
    }
}

fn program(face: Face, settings: &Settings, plan: &Plan, system: System, started: Instant) -> Result<(), CliError> {
    let run = &settings.run;
    let (mut route, addresses) = system.into_addresses().map_err(CliError::Addresses)?;
    check_namespace(face, run, &mut route, &addresses)?;
    output::check()?;
    let mesh_address = routing::has_mesh_address(&addresses);
    let mut session = Session::open(conditions(run), route)?;
    let outcome = if run.cleanup_only {
        super::clean::say_what_breaks(&mut session);
        session.clean()?
    } else {
        let request =
            Request { plan, choice: run.backend, reconcile: run.reconcile, force: run.force_apply, strict: run.strict };
        session.install(&request, mesh_address)?
    };
    report(&outcome, plan, started);
    let mut lost = logging::failure();
    if lost.is_none() && !run.cleanup_only {
        settle(face, &settings.interception, plan, run.established);
        lost = logging::failure();
    }
    match lost {
        None => {
            if !run.run_validation {
                // The process ends now; the kernel closes what is open, faster than we would.
                std::mem::forget(session);
            }
            Ok(())
        }
        Some(error) => {
            session.undo().map_err(|(problem, _)| {
                CliError::Failed(format!("cannot write the log: {error}; going back failed too: {problem}"))
            })?;
            Err(CliError::Log(error))
        }
    }
}

/// Sees to what is there already when the rules come, and to the proxy that they are for.
fn settle(face: Face, interception: &Interception, plan: &Plan, what: OlderConnections) {
    let mut said = established::settle(interception, plan, what, "--established reset ends them");
    // The arguments of istio-iptables are an injector's, who sees to the proxy as well.
    if face == Face::Init && !said.proxy_seen {
        said.warnings.extend(tproxy::warning(interception, tproxy::Proxy::Unknown));
    }
    said.infos.iter().for_each(|info| info!("{info}"));
    said.warnings.iter().for_each(|warning| warn!("{warning}"));
}

/// Refuses a node's network namespace, which a pod with hostNetwork shares: programming it
/// would divert the node's own traffic, and that of the pods it forwards for. A virtual
/// machine that is intercepted itself is programmed in its first namespace, by
/// `istio-iptables`.
///
/// # Errors
///
/// That it is a node's, and how that is known; or that it cannot be told.
pub fn check_namespace(
    face: Face,
    run: &Run,
    netlink: &mut Netlink,
    addresses: &[(u32, IpAddr)],
) -> Result<(), CliError> {
    let unknown = |e| CliError::Failed(format!("cannot tell which network namespace this is: {e}"));
    if run.host_network {
        return Ok(());
    }
    let inode = netns::current().map_err(unknown)?;
    // What the kubelet writes there is about the container's own network.
    let hosts = run.network_namespace.is_none().then_some(Path::new("/etc/hosts"));
    let Some(evidence) = node::evidence(inode, hosts, netlink, addresses).map_err(unknown)? else {
        return Ok(());
    };
    let is_first = matches!(evidence, Evidence::FirstNamespace { .. });
    if face == Face::IstioIptables && is_first && node::looks_like_a_virtual_machine(netlink).map_err(unknown)? {
        warn!("this is the machine's own network namespace ({evidence}): all of the machine's traffic is diverted");
        return Ok(());
    }
    let machine = match face {
        Face::IstioIptables if is_first => {
            " (a virtual machine of its own would have no forwarding and no veth interface)"
        }
        _ => "",
    };
    Err(CliError::Failed(format!(
        "this is a node's own network namespace: {evidence}{machine}; a pod with hostNetwork has no traffic of its own to divert: take it out of the mesh (sidecar.istio.io/inject: \"false\"), or give --host-network if the node's is meant"
    )))
}

/// One line that says what was done.
pub fn report(outcome: &Outcome, plan: &Plan, started: Instant) {
    for warning in &outcome.warnings {
        warn!("{warning}");
    }
    let ms = started.elapsed().as_micros() as f64 / 1000.0;
    let elsewhere: Vec<&str> = outcome.removed_from.iter().map(|kind| kind.name()).collect();
    let elsewhere = elsewhere.join(", ");
    let backend = outcome.backend.name();
    let (families, rules) = (plan.families.to_string(), plan.rule_count());
    match outcome.action {
        Action::Installed => info!(backend, %families, rules, ms, "installed"),
        Action::Replaced if elsewhere.is_empty() => info!(backend, %families, rules, ms, "replaced"),
        Action::Replaced => info!(backend, %families, rules, ms, from = %elsewhere, "replaced"),
        Action::Unchanged => info!(backend, %families, rules, ms, "unchanged"),
        Action::Removed => info!(from = %elsewhere, ms, "removed"),
        Action::Nothing => info!(ms, "nothing to remove"),
    }
}
