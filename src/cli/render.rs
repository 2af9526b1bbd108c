//! `podweir render`: the rules of any source as text.

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueEnum, value_parser};
use tracing::warn;

use crate::audit::report::{differences, html};
use crate::audit::source::Source;
use crate::audit::space::Space;
use crate::audit::{digest, draw, escapes, schema, table};
use crate::backend::nftables;
use crate::backend::routing;

use super::error::CliError;
use super::{dry_run, output, source};

/// The format of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RenderFormat {
    Table,
    Iptables,
    Nft,
    Json,
    Svg,
    Mermaid,
    Dot,
    Html,
}

impl ValueEnum for RenderFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Table, Self::Iptables, Self::Nft, Self::Json, Self::Svg, Self::Mermaid, Self::Dot, Self::Html]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Table => PossibleValue::new("table").help("for reading: chains, counters, why"),
            Self::Iptables => PossibleValue::new("iptables").help("for iptables-restore and ip6tables-restore"),
            Self::Nft => PossibleValue::new("nft").help("for nft -f"),
            Self::Json => PossibleValue::new("json").help("everything, for --dump elsewhere"),
            Self::Svg => PossibleValue::new("svg").help("a drawing, escapes set off"),
            Self::Mermaid => PossibleValue::new("mermaid").help("the drawing for Markdown"),
            Self::Dot => PossibleValue::new("dot").help("the drawing for Graphviz"),
            Self::Html => PossibleValue::new("html").help("drawing and table in one page"),
        })
    }
}

const EXAMPLES: &str = "\
Formats: table and json show all rules that are there, of anybody; nft and iptables what
of them is an interception's, as a script; svg, mermaid, dot and html draw all rules, and
where traffic escapes. All of them are the same for the same rules. --dump reads json, nft
and iptables.

--hash prints a digest of the interception: the same whichever backend holds it, or
whether it is only wanted yet. Rules of others, comments and counters do not count.

Examples:
  podweir render --pod-ip 10.244.0.6 -- -b '*' -i 10.0.0.0/8
      The rules that options make, and why each is there.
  podweir render --live --format json > pod.json
      All rules of this namespace, to look at elsewhere with --dump pod.json.
  test \"$(podweir render --live --hash)\" = \"$(podweir render --pod-ip 10.244.0.6 --hash -- -b 80)\"
      Does this namespace hold what these options ask for?
  podweir render --pod-ip 10.244.0.6 --format svg -- -b '*' -i '*' > pod.svg
      The drawing for a review.
  podweir render --pod-ip 10.244.0.6 --diff -- -b '*' --against -- -b '*' -d 9090
      What a change of options changes, rules and traffic.
";

/// The `render` subcommand.
pub(super) fn command() -> Command {
    let about = "Show the rules that options make, that the kernel holds, or that a dump tells";
    Command::new("render").about(about).defer(|command| {
        let format = Arg::new("format").long("format").value_name("FORMAT").default_value("table");
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let command = command.args([
            format.value_parser(value_parser!(RenderFormat)).help("How to write them down"),
            flag("hash").help("Print a digest of the interception").conflicts_with_all(["format", "diff"]),
            flag("diff")
                .help("Compare the options behind -- with those behind --against --; table or json")
                .conflicts_with_all(["live", "netns", "pid", "dump"]),
            // It belongs behind --; here it is a mistake to be named.
            flag("against").hide(true),
        ]);
        source::with_source(command).after_long_help(format!("{}\n{EXAMPLES}", source::HELP))
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    output::check()?;
    let format = matches.get_one::<RenderFormat>("format").copied().unwrap_or(RenderFormat::Table);
    if matches.get_flag("against") {
        return Err(CliError::Usage(source::TWO_LOTS.into()));
    }
    if matches.get_flag("diff") {
        return diff(matches, format);
    }
    let source = source::read(matches)?;
    if matches.get_flag("hash") {
        return hash(&source);
    }
    source::warn(&source);
    output::print(&text(&source, format)?)
}

fn text(source: &Source, format: RenderFormat) -> Result<String, CliError> {
    let plan = source.plan();
    let routing = || routing::commands(&plan.routing).into_iter().map(|c| format!("# {c}\n")).collect::<String>();
    Ok(match format {
        RenderFormat::Table => table::table(source),
        RenderFormat::Json => format!("{:#}\n", schema::source(source)),
        RenderFormat::Nft => nftables::script::script(&plan) + &routing(),
        RenderFormat::Iptables => dry_run::iptables_scripts(&plan, true) + &routing(),
        RenderFormat::Svg => drawn(source, draw::DrawingFormat::Svg)?,
        RenderFormat::Mermaid => drawn(source, draw::DrawingFormat::Mermaid)?,
        RenderFormat::Dot => drawn(source, draw::DrawingFormat::Dot)?,
        RenderFormat::Html => html::drawing_page(&drawn(source, draw::DrawingFormat::Svg)?, &table::table(source)),
    })
}

fn drawn(source: &Source, format: draw::DrawingFormat) -> Result<String, CliError> {
    let space = Space::of(&[&source.ruleset], &source.pod);
    let families = escapes::families(&source.ruleset, &source.pod).intersection(source.told);
    let found = escapes::find_in(&source.ruleset, &space, families).map_err(|e| CliError::Failed(e.to_string()))?;
    Ok(draw::draw(&source.ruleset, &found, format))
}

fn hash(source: &Source) -> Result<(), CliError> {
    if let Some(problem) = source.opaque_rule() {
        return Err(CliError::Failed(format!("no digest, because it cannot be told what is there: {problem}")));
    }
    source::warn(source);
    if let [one, other, ..] = &source.held[..] {
        let (one, other) = (one.holder, other.holder);
        return Err(CliError::Failed(format!("{one} and {other} both hold rules of an interception: no one digest")));
    }
    if source.routing.is_none() {
        warn!("the dump does not tell routing and addresses: the digest is that of an interception without");
    }
    output::print(&format!("{}\n", digest::digest(&source.canon())))
}

fn diff(matches: &ArgMatches, format: RenderFormat) -> Result<(), CliError> {
    if !matches!(format, RenderFormat::Table | RenderFormat::Json) {
        return Err(CliError::Usage("--diff compares rules, not scripts: give --format table or json".into()));
    }
    let (before, after) = source::both(matches)?;
    let verification = crate::audit::verify::verify(&before, &after);
    output::print(&match format {
        RenderFormat::Json => format!("{:#}\n", differences::json(&verification)),
        _ => differences::changes(&verification),
    })
}
