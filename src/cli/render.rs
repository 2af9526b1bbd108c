//! `podweir render`: rules as text, whichever source they come from.

use clap::builder::PossibleValue;
use clap::{Arg, ArgMatches, Command, ValueEnum, value_parser};

use crate::audit::schema;
use crate::audit::source::Source;
use crate::backend::nftables;
use crate::backend::routing;

use super::error::CliError;
use super::{dry_run, output, source};

/// How rules are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Iptables,
    Nft,
    Json,
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Iptables, Self::Nft, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Iptables => PossibleValue::new("iptables").help("for iptables-restore and ip6tables-restore"),
            Self::Nft => PossibleValue::new("nft").help("for nft -f"),
            Self::Json => PossibleValue::new("json").help("everything, for --dump elsewhere"),
        })
    }
}

/// The `render` subcommand.
pub fn command() -> Command {
    let about = "Show the rules that options make, that the kernel holds, or that a dump tells";
    Command::new("render").about(about).defer(|command| {
        let format = Arg::new("format").long("format").value_name("FORMAT").default_value("nft");
        let format = format.value_parser(value_parser!(Format)).help("How to write them down");
        source::with_source(command.arg(format)).after_long_help(source::HELP)
    })
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    output::check()?;
    let source = source::read(matches)?;
    source::warn(&source);
    let format = matches.get_one::<Format>("format").copied().unwrap_or(Format::Nft);
    output::print(&text(&source, format))
}

fn text(source: &Source, format: Format) -> String {
    let plan = source.plan();
    let routing = routing::commands(&plan.routing).into_iter().map(|command| format!("# {command}\n"));
    match format {
        Format::Json => format!("{:#}\n", schema::source(source)),
        Format::Nft => nftables::script::script(&plan) + &routing.collect::<String>(),
        Format::Iptables => dry_run::iptables_scripts(&plan, true) + &routing.collect::<String>(),
    }
}
