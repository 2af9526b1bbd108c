//! `podweir clean`: removes every trace of an interception.

use std::time::Instant;

use clap::{ArgMatches, Command};
use tracing::warn;

use crate::audit::established;
use crate::backend::install::Session;
use crate::backend::{connections, routing};
use crate::config::given::{Given, process_environment};
use crate::config::options::Opt;
use crate::config::settings::{Face, Run};
use crate::plan::model::{Plan, Routing};
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::error::CliError;
use super::{args, confine, logging, output, session};

const NOTES: &str = "\
Rules, policy routing and ::6 on lo go; rules of others stay. Nothing there is success.

Connections that go through the proxy break: they are reset, or hang until their ends give
up. How many there are is said first. To keep them, drain the pod before: take it out of
its service and let its clients finish.";

/// The `clean` subcommand.
pub(super) fn command() -> Command {
    let about = "Remove every trace of an interception, of podweir or istio-iptables, from every backend";
    Command::new("clean").about(about).defer(|command| {
        let wanted = [Opt::NetworkNamespace, Opt::HostNetwork, Opt::LockTimeout];
        command.args(wanted.map(|opt| args::option(opt.spec()))).after_long_help(NOTES)
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let started = Instant::now();
    let given: Given = args::given(matches, &process_environment);
    let run = Run::resolve(&given, Face::Init)?;
    if let Some(path) = &run.network_namespace {
        netns::enter(path)?;
    }
    confine::to_programming(&run);
    let mut route = Netlink::open(Netlink::ROUTE).map_err(CliError::Addresses)?;
    let addresses = routing::addresses(&mut route).map_err(CliError::Addresses)?;
    session::check_namespace(Face::Init, &run, &mut route, &addresses)?;
    output::check()?;
    let mut session = Session::open(session::conditions(&run), route)?;
    say_what_breaks(&mut session);
    let outcome = session.clean()?;
    session::report(&outcome, &Plan::empty(), started);
    match logging::failure() {
        None => Ok(()),
        Some(error) => Err(CliError::Failed(format!("cannot write the log: {error}; everything has been removed"))),
    }
}

/// Logs how many connections go through the proxy by rules that are about to be removed. If they cannot
/// be listed, the rules are removed all the same.
pub(super) fn say_what_breaks(session: &mut Session) {
    if !connections::possible() {
        return;
    }
    let through = |plan: &Plan| established::look_for(plan).ok().flatten().map_or(0, |(_, found)| found.proxied);
    let readings = session.read(&Routing::default()).unwrap_or_default();
    match readings.iter().map(|(_, reading)| through(&reading.plan)).max() {
        None | Some(0) => {}
        Some(1) => warn!("1 established connection goes through the proxy: without the rules it is reset, or hangs"),
        Some(n) => {
            warn!("{n} established connections go through the proxy: without the rules they are reset, or hang")
        }
    }
}
