//! The command line: one file per subcommand.

mod ambient;
mod ambient_host;
mod args;
mod audit;
mod clean;
mod confine;
mod dry_run;
mod error;
mod explain;
mod fleet;
mod init;
mod logging;
mod manifest;
mod node;
mod output;
mod print_config;
mod quick;
mod render;
mod session;
pub mod source;
mod validate;
mod verify;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command};

use crate::config::given::process_environment;
use crate::config::settings::Face;
use crate::sys::text::printable;
use error::CliError;
use init::Print;
use logging::LogOptions;

/// The parser of the command line.
fn command() -> Command {
    let about = "Puts a weir across a pod's traffic: diverts it to a sidecar proxy, and says exactly what is diverted and what escapes";
    let command = Command::new("podweir")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(init::init_command())
        .subcommand(init::istio_iptables_command())
        .subcommand(clean::command())
        .subcommand(ambient::command())
        .subcommand(ambient_host::command())
        .subcommand(render::command())
        .subcommand(verify::command())
        .subcommand(explain::command())
        .subcommand(audit::command())
        .subcommand(node::command());
    logging::with_log_options(command)
}

/// Runs what the arguments say and gives the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    // The release build does not unwind: a panic says what it is about, and is a failure.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::exit(1);
    }));
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let result = match quick::read(&arguments, &process_environment) {
        Some(quick) => logging::start(&quick.log)
            .map_err(CliError::Usage)
            .and_then(|()| init::run(quick.face, &quick.given, Print::Nothing)),
        None => match command().try_get_matches_from(&arguments) {
            Ok(matches) => {
                let has_options = arguments.iter().any(|word| word == "--");
                run_command(&matches, has_options)
            }
            Err(e) => return parse_error(&e),
        },
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            logging::report(&error.to_string());
            error.exit_status()
        }
    }
}

/// Says that the arguments and `CNI_COMMAND` ask for two different things, and gives the
/// exit status of a usage error.
pub fn refuse_both_faces(arguments: &[OsString]) -> u8 {
    let verb = process_environment("CNI_COMMAND").unwrap_or_default();
    let first = arguments.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let error = CliError::Usage(format!(
        "the variable CNI_COMMAND is set ('{}'), which asks for the CNI plugin, and there are arguments ('{} …'), which ask for a command; nothing was done: take the variable out of the environment, or call the plugin without arguments",
        quotable(&verb),
        quotable(&first),
    ));
    logging::report(&error.to_string());
    error.exit_status()
}

/// The beginning of a text that somebody else chose, short enough to be quoted on a line.
fn quotable(text: &str) -> String {
    printable(&text.chars().take(40).collect::<String>()).into_owned()
}

/// Runs a subcommand. `has_options`: whether `--` was given, with options behind it or without.
fn run_command(matches: &ArgMatches, has_options: bool) -> Result<(), CliError> {
    let Some((name, matches)) = matches.subcommand() else { return Err(CliError::Usage("no command".into())) };
    logging::start(&LogOptions::from_matches(matches)).map_err(CliError::Usage)?;
    match name {
        "init" => init::run_matches(Face::Init, matches),
        "istio-iptables" => init::run_matches(Face::IstioIptables, matches),
        "clean" => clean::run(matches),
        "ambient" => ambient::run(matches),
        "ambient-host" => ambient_host::run(matches),
        "render" => render::run(matches),
        "verify" => verify::run(matches),
        "explain" => explain::run(matches),
        "audit" => audit::run(matches, has_options),
        "node" => node::run(matches),
        _ => Err(CliError::Usage(format!("{name} is no command"))),
    }
}

/// Prints an error of clap, which help and version are as well; returns the exit status.
fn parse_error(error: &clap::Error) -> u8 {
    let status = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ => 2,
    };
    // Help that nobody can read is no success.
    if output::check().is_ok() && error.print().is_ok() { status } else { status.max(1) }
}
