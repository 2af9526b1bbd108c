//! The command line of the interception faces, made from the option table.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::given::{Environment, Given, Origin};
use crate::config::options::{OPTIONS, Spec, Takes};

/// Adds every option of the table to a command.
pub(super) fn with_options(command: Command) -> Command {
    command.args(OPTIONS.iter().filter(|spec| !spec.long.is_empty()).map(option))
}

/// One option as an argument.
pub(super) fn option(spec: &'static Spec) -> Arg {
    let mut arg = Arg::new(spec.long)
        .long(spec.long)
        .help(spec.help)
        .help_heading(spec.group.heading())
        .action(ArgAction::Set)
        // Given twice, the last one counts.
        .overrides_with(spec.long);
    if let Some(short) = spec.short {
        arg = arg.short(short);
    }
    match spec.takes {
        Takes::Boolean => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .hide_possible_values(true),
        Takes::One(name) | Takes::List(name) => arg.num_args(1).allow_hyphen_values(true).value_name(name),
    }
}

/// The options that were given: flags, and variables for the others.
pub(super) fn given(matches: &ArgMatches, environment: Environment) -> Given {
    let mut given = Given::from_environment(environment);
    for spec in OPTIONS.iter().filter(|spec| !spec.long.is_empty()) {
        // A command may take only some of the options.
        if let Ok(Some(text)) = matches.try_get_one::<String>(spec.long) {
            given.set(spec.opt, Origin::Flag, text.as_str());
        }
    }
    given
}

/// An option's path; empty if it was not given.
pub(super) fn path_of(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

/// An option's text, where it was given.
pub(super) fn text_of(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned()
}

/// A number of a range, in the form in which clap wants it.
pub(super) fn number<T>(range: RangeInclusive<T>, expected: &'static str) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Clone,
{
    move |text| text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| format!("expected {expected}"))
}
