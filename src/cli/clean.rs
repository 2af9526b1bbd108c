//! `podweir clean`: removes every trace of an interception.

use std::time::Instant;

use clap::{ArgMatches, Command};

use crate::backend::install::Session;
use crate::backend::routing;
use crate::config::given::{Given, process_environment};
use crate::config::options::Opt;
use crate::config::settings::{Face, Run};
use crate::plan::model::Plan;
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::error::CliError;
use super::{args, init, logging, output};

/// The `clean` subcommand.
pub fn command() -> Command {
    let about = "Remove every trace of an interception, of podweir or istio-iptables, from every backend";
    Command::new("clean").about(about).defer(|command| {
        let wanted = [Opt::NetworkNamespace, Opt::HostNetwork, Opt::LockTimeout];
        command
            .args(wanted.map(|opt| args::option(opt.spec())))
            .after_long_help("Rules, policy routing and ::6 on lo go; rules of others stay. Nothing there is success.")
    })
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let started = Instant::now();
    let given: Given = args::given(matches, &process_environment);
    let run = Run::resolve(&given, Face::Init)?;
    if let Some(path) = &run.network_namespace {
        netns::enter(path)?;
    }
    let mut route = Netlink::open(Netlink::ROUTE).map_err(CliError::Addresses)?;
    let addresses = routing::addresses(&mut route).map_err(CliError::Addresses)?;
    init::check_namespace(Face::Init, &run, &mut route, &addresses)?;
    output::check()?;
    let mut session = Session::open(init::conditions(&run), route)?;
    let outcome = session.clean()?;
    init::report(&outcome, &Plan::empty(), started);
    match logging::failure() {
        None => Ok(()),
        Some(error) => Err(CliError::Failed(format!("cannot write the log: {error}; everything has been removed"))),
    }
}
