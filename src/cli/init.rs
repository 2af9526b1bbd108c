//! `podweir init` and `podweir istio-iptables`: the interception faces.

use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tracing::{info, warn};

use crate::audit::established;
use crate::audit::lints::tproxy;
use crate::backend::facts::{NamespaceFacts, PodFiles};
use crate::backend::install::{InstallRequest, Session};
use crate::backend::routing;
use crate::config::given::{Given, process_environment};
use crate::config::interception::Interception;
use crate::config::settings::{Face, Run, Settings};
use crate::config::types::OlderConnections;
use crate::plan::{self, model::Plan};
use crate::sys::netns;

use super::error::CliError;
use super::{args, confine, dry_run, logging, output, print_config, session};

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
pub(super) fn init_command() -> Command {
    let command = Command::new("init").about("Divert this pod's traffic to its sidecar proxy");
    face_options(command).after_long_help(format!("{INIT_NOTES}\n{VARIABLES}{INIT_EXAMPLES}"))
}

/// The `istio-iptables` subcommand.
pub(super) fn istio_iptables_command() -> Command {
    let about = "Divert this pod's traffic as istio-iptables does: its defaults, for an injector's arguments";
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
pub(super) enum Print {
    Nothing,
    /// Prints the effective options, with `json` as JSON.
    Config {
        json: bool,
    },
}

/// Runs one of the faces with the arguments that clap has read.
pub(super) fn run_matches(face: Face, matches: &ArgMatches) -> Result<(), CliError> {
    let print = match matches.get_flag("print-config") {
        true => Print::Config { json: matches.get_flag("json") },
        false => Print::Nothing,
    };
    run(face, &args::given(matches, &process_environment), print)
}

/// Runs one of the faces with options that were given.
pub(super) fn run(face: Face, given: &Given, print: Print) -> Result<(), CliError> {
    let started = Instant::now();
    let run = Run::resolve(given, face)?;
    if let Some(path) = &run.network_namespace {
        netns::enter(path)?;
    }
    confine::to_programming(&run);
    let system = NamespaceFacts::new(PodFiles::Own);
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

fn program(
    face: Face,
    settings: &Settings,
    plan: &Plan,
    system: NamespaceFacts,
    started: Instant,
) -> Result<(), CliError> {
    let run = &settings.run;
    let (mut route, addresses) = system.into_addresses().map_err(CliError::Addresses)?;
    session::check_namespace(face, run, &mut route, &addresses)?;
    output::check()?;
    let mesh_address = routing::has_mesh_address(&addresses);
    let mut session = Session::open(session::conditions(run), route)?;
    let outcome = if run.cleanup_only {
        super::clean::say_what_breaks(&mut session);
        session.clean()?
    } else {
        let request = InstallRequest {
            plan,
            choice: run.backend,
            reconcile: run.reconcile,
            force: run.force_apply,
            strict: run.strict,
        };
        session.install(&request, mesh_address)?
    };
    session::report(&outcome, plan, started);
    let mut lost = logging::failure();
    if lost.is_none() && !run.cleanup_only {
        see_to_older_connections(face, &settings.interception, plan, run.established);
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

/// Leaves or ends older connections, and checks the proxy's user; logs the results.
fn see_to_older_connections(face: Face, interception: &Interception, plan: &Plan, what: OlderConnections) {
    let mut said = established::leave_or_end(interception, plan, what, "--established reset ends them");
    // The arguments of istio-iptables are an injector's, who sees to the proxy as well.
    if face == Face::Init && !said.proxy_seen {
        said.warnings.extend(tproxy::warning(interception, tproxy::Proxy::Unknown));
    }
    said.infos.iter().for_each(|info| info!("{info}"));
    said.warnings.iter().for_each(|warning| warn!("{warning}"));
}
