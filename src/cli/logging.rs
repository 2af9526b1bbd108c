//! Log lines on stderr: `--log_output_level`, `--log_as_json`, `-v`. A failure to write a line is
//! remembered, so that a run can report it and undo its changes.

use std::io::{self, Write};
use std::sync::Mutex;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::log_levels;
use crate::sys::text::printable_lines;

/// The first error in writing a log line.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Adds the log options to a command; every subcommand knows them.
pub(super) fn with_log_options(command: Command) -> Command {
    command
        .arg(
            Arg::new("log_output_level")
                .long("log_output_level")
                .value_name("SCOPE:LEVEL,…")
                .help("Which lines to log: a level (none, error, warn, info, debug), or levels by scope such as default:info,backend:debug")
                .help_heading("Logging")
                .global(true)
                .overrides_with("log_output_level"),
        )
        .arg(
            Arg::new("log_as_json")
                .long("log_as_json")
                .help("Log lines as JSON objects")
                .help_heading("Logging")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(["true", "false"])
                .hide_possible_values(true)
                .value_name("true|false")
                .global(true)
                .overrides_with("log_as_json"),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .help("Log more; -vv logs most")
                .help_heading("Logging")
                .action(ArgAction::Count)
                .global(true),
        )
}

/// The log options as typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub json: bool,
    /// The levels of the log by scope: `SCOPE:LEVEL,…`.
    pub levels: String,
    /// How often `-v` was given.
    pub verbose: u8,
}

impl LogOptions {
    pub(super) fn from_matches(matches: &ArgMatches) -> Self {
        let text = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
        Self {
            json: text("log_as_json") == "true",
            levels: text("log_output_level"),
            verbose: matches.get_count("verbose"),
        }
    }
}

/// Starts logging as the options say. The error says which option is not valid.
pub(super) fn start(options: &LogOptions) -> Result<(), String> {
    let base = match options.verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = targets(&options.levels, base)?;
    let registry = tracing_subscriber::registry().with(filter);
    if options.json {
        let layer =
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
        registry.with(layer.with_target(false).with_writer(|| Remembering)).init();
    } else {
        let layer = tracing_subscriber::fmt::layer().compact().with_ansi(false).with_target(false);
        registry.with(layer.with_writer(|| Remembering)).init();
    }
    Ok(())
}

/// `SCOPE:LEVEL,…` as a filter. `default` and `all` set the level of everything; the names
/// of our modules (`backend`, `config`, `cni` …) set theirs; other programs' scopes, which
/// injectors pass along, have nothing to set here.
fn targets(text: &str, base: LevelFilter) -> Result<Targets, String> {
    let mut filter = Targets::new();
    let mut default = base;
    let levels = log_levels::by_scope(text).map_err(|invalid| invalid.of_option("--log_output_level"))?;
    for (scope, level) in levels {
        match scope {
            // `-v` asks for more than an injector's usual default:info.
            "default" | "all" if base > LevelFilter::INFO => default = base.max(level),
            "default" | "all" => default = level,
            scope => filter = filter.with_target(format!("podweir::{scope}"), level),
        }
    }
    Ok(filter.with_default(default))
}

/// A writer to stderr that remembers the first error.
struct Remembering;

impl Write for Remembering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match io::stderr().lock().write_all(bytes) {
            Ok(()) => {}
            Err(error) => {
                if let Ok(mut first) = FAILURE.lock() {
                    first.get_or_insert(error);
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the first error of writing a log line, if there was one.
pub(super) fn failure() -> Option<io::Error> {
    FAILURE.lock().ok()?.take()
}

/// Says why the run failed. Nothing can be done where even that cannot be written.
pub(super) fn report(problem: &str) {
    if tracing::dispatcher::has_been_set() && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{problem}");
    } else {
        let _ = writeln!(io::stderr(), "podweir: {}", printable_lines(problem));
    }
}
