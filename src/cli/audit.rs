//! `podweir audit`: every way past the proxy, what looks unintended, and a verdict for a
//! pipeline.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Arg, ArgMatches, Command, ValueEnum, value_parser};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::audit::accept::{Accepted, Subject};
use crate::audit::escapes::kind::Severity;
use crate::audit::established::{self, Established};
use crate::audit::report::{Input, Report, html, json, sarif, text};
use crate::audit::source::Source;
use crate::audit::space::Space;
use crate::backend::connections::Kernel;
use crate::config::pod::manifest::Manifest;

use super::error::CliError;
use super::manifest::ManifestArguments;
use super::source::LiveRules;
use super::{confine, fleet, manifest, output, source};

const HELP: &str = "\
Severities: high - ordinary connections pass the proxy by, unnamed by any option;
medium - options let them out by name, or it takes QUIC or the proxy's user; low - it
takes intent (other UDP, DNS, ICMP, other protocols); info - it stays in the pod.

--pod-manifest FILE is a source too: the arguments of its istio-init container, or else
its annotations and proxy, as the CNI plugin takes them; --netconf FILE names the node's
configuration, whose interception counts below them. With --live, --netns, --pid or
--dump next to it, or to options behind --, what is found is compared with them: drift is
high if traffic escapes by it, low if it changes nothing.

--accept FILE names what is known and wanted; what it does not name goes on counting:
  accept:
    - class: inbound-excluded-port
      reason: health checks and metrics
      expires: 2027-06-30            # optional
      only: { ports: [15020-15021, 15090] }

Examples:
  podweir audit --pod-ip 10.244.0.6 -- -i '*' -b '*' -d 15020,15021,15090
  kubectl get pod shop -o yaml | podweir audit --pod-manifest - --fail-on high
  podweir audit --pid 4242 --pod-manifest shop.yaml --format html >shop.html
  podweir audit --dump rules.v4 rules.v6 --accept known.yaml --format sarif
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReportFormat {
    Text,
    Json,
    Sarif,
    Html,
    Prometheus,
}

impl ReportFormat {
    fn of_many(self) -> fleet::FleetFormat {
        match self {
            Self::Text => fleet::FleetFormat::Text,
            Self::Json => fleet::FleetFormat::Json,
            Self::Sarif => fleet::FleetFormat::Sarif,
            Self::Html => fleet::FleetFormat::Html,
            Self::Prometheus => fleet::FleetFormat::Prometheus,
        }
    }
}

impl ValueEnum for ReportFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json, Self::Sarif, Self::Html, Self::Prometheus]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Text => PossibleValue::new("text").help("for a terminal or a log"),
            Self::Json => PossibleValue::new("json").help("everything, for programs"),
            Self::Sarif => PossibleValue::new("sarif").help("SARIF 2.1.0, for code scanning"),
            Self::Html => PossibleValue::new("html").help("one file with the drawing, for people"),
            Self::Prometheus => PossibleValue::new("prometheus").help("metrics of many pods"),
        })
    }
}

/// The `audit` subcommand.
pub(super) fn command() -> Command {
    let about = "Find every way past the proxy, and what looks unintended";
    Command::new("audit").about(about).defer(|command| {
        let arg = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
        let severities = ["high", "medium", "low", "info"];
        let command = manifest::with_manifest(command).args([
            arg("format", "FORMAT")
                .default_value("text")
                .value_parser(value_parser!(ReportFormat))
                .help("How to report"),
            arg("accept", "FILE").value_parser(value_parser!(PathBuf)).help("Findings that are known and wanted"),
            arg("fail-on", "SEVERITY").value_parser(severities).help("Exit 1 if a finding as bad, or worse, counts"),
        ]);
        let command = fleet::with_fleet(source::with_source(command));
        command.after_long_help(format!("{}\n{}\n{HELP}", source::HELP, fleet::HELP))
    })
}

/// Runs the command. `has_options`: options stand behind `--`, or `--` alone, for the defaults.
pub(super) fn run(matches: &ArgMatches, has_options: bool) -> Result<(), CliError> {
    output::check()?;
    let path = |name: &str| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    manifest::check_stdin(matches, path("accept"))?;
    // What asks a cluster starts kubectl again and again, which is the user's: it may be set-uid
    // (a snap's is), start programs that prove who asks, and write to a cache. Whatever this
    // process gave up for good would be given up for kubectl as well, so it is confined when all
    // is collected.
    if !fleet::is_of_cluster(matches) {
        confine::begin(matches);
    }
    let format = matches.get_one("format").copied().unwrap_or(ReportFormat::Text);
    if fleet::is_asked(matches) {
        let accepted = path("accept").map(accepted).transpose()?.unwrap_or_default();
        return fleet::run(matches, format.of_many(), &accepted);
    }
    let mut found = source::names_found(matches).then(|| source::found(matches)).transpose()?;
    let established = found.as_mut().and_then(|found| established(matches, &mut found.source));
    confine::to_named_files(matches);
    let asked = manifest::asked(matches)?;
    let manifest = asked.as_ref().map(|asked| &asked.manifest);
    let labels = manifest.map(|manifest| manifest.pod.labels()).unwrap_or_default();
    let subject = Subject {
        namespace: manifest.and_then(|manifest| manifest.pod.namespace()).unwrap_or_default(),
        workload: ("", ""),
        labels: &labels,
    };
    let (accepted, _) = path("accept").map(accepted).transpose()?.unwrap_or_default().of(&subject);
    let (main, wanted) = sources(matches, has_options, asked.as_ref(), found)?;
    let space = Space::telling_apart(&[&main.ruleset], &main.pod, &accepted.interfaces());
    let explain = explained_by(matches, &main, asked.as_ref());
    let input = Input {
        about: about(matches, has_options, manifest),
        file: file(matches),
        source: &main,
        wanted: wanted.as_ref(),
        manifest,
        proxy_user: manifest.and_then(Manifest::proxy_user),
        established: established.as_ref(),
        explain: explain.as_deref(),
        accepted: &accepted,
        today: Timestamp::now().to_zoned(TimeZone::UTC).date(),
    };
    let report = Report::new(input, &space).map_err(|e| CliError::Failed(e.to_string()))?;
    let written = match format {
        ReportFormat::Prometheus => {
            return Err(CliError::Usage("--format prometheus is of many pods: give --manifests".into()));
        }
        ReportFormat::Text => text::write(&report),
        ReportFormat::Json => json::write(&report),
        ReportFormat::Sarif => sarif::write(&report),
        ReportFormat::Html => html::write(&report),
    };
    output::print(&written)?;
    let limit = matches.get_one::<String>("fail-on").and_then(|name| Severity::by_name(name));
    match limit.map(|severity| (severity, report.count_from(severity))) {
        Some((severity, count)) if count > 0 => {
            let findings = if count == 1 { "finding is" } else { "findings are" };
            Err(CliError::Failed(format!("{count} {findings} of severity {severity} or worse, and not accepted")))
        }
        _ => Ok(()),
    }
}

/// The connections of the current namespace, if the rules come from there.
fn established(matches: &ArgMatches, source: &mut Source) -> Option<Established> {
    if !confine::is_live(matches) || !established::possible(&source.ruleset) {
        return None;
    }
    let found = Kernel::open().and_then(|mut kernel| established::look(&mut kernel, &source.ruleset, &source.pod));
    found.inspect_err(|e| source.notes.push(format!("established connections cannot be listed: {e}"))).ok()
}

/// The rules to audit, and the wanted ones if they are known.
fn sources(
    matches: &ArgMatches,
    has_options: bool,
    asked: Option<&ManifestArguments>,
    mut found: Option<LiveRules>,
) -> Result<(Source, Option<Source>), CliError> {
    if let (Some(found), Some(asked)) = (&mut found, asked) {
        asked.complete(&mut found.source);
    }
    let wanted = match asked {
        // Options that are typed say more than a manifest does.
        _ if has_options => {
            let known = source::known(matches, found.as_ref())?;
            source::wanted_for(matches, &asked.map_or(known.clone(), |asked| asked.known(known)))?
        }
        Some(asked) => asked.wanted(matches, found.as_ref())?,
        None => match found {
            Some(found) => return Ok((found.source, None)),
            None if ["pod-ip", "as"].iter().any(|name| matches.contains_id(name)) => source::wanted(matches, None)?,
            // A gate that looks at nothing must not pass.
            None => {
                return Err(CliError::Usage("no rules to look at: name a source (podweir audit --help)".into()));
            }
        },
    };
    Ok(match found {
        Some(found) => {
            source::check_families(&wanted, &found.source)?;
            (found.source, Some(wanted))
        }
        None => (wanted, None),
    })
}

/// The arguments by which `podweir explain` asks the rules that are looked at; `None`: it cannot.
fn explained_by(matches: &ArgMatches, main: &Source, asked: Option<&ManifestArguments>) -> Option<Vec<String>> {
    let mut words = source::words_of_rules(matches);
    let options = match asked {
        Some(asked) if !source::names_found(matches) && !matches.contains_id("options") => asked.words(main)?,
        _ => source::words_of_options(matches),
    };
    // Behind -- there are options only.
    words.extend(options);
    Some(words)
}

fn accepted(path: &Path) -> Result<Accepted, CliError> {
    let text = manifest::read("--accept", path)?;
    Accepted::parse(&text).map_err(|e| CliError::Usage(format!("{}: {e}", manifest::shown(path))))
}

/// What is audited, in words.
fn about(matches: &ArgMatches, has_options: bool, manifest: Option<&Manifest>) -> String {
    let pod = manifest.map(|manifest| format!(" of {}", manifest.name)).unwrap_or_default();
    let names = |name| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
    if matches.contains_id("dump") {
        format!("rules{pod} in {}", names("dump"))
    } else if let Some(pid) = matches.get_one::<u32>("pid") {
        format!("rules{pod} around process {pid}")
    } else if let Some(path) = matches.get_one::<PathBuf>("netns") {
        format!("rules{pod} in {}", path.display())
    } else if matches.get_flag("live") {
        format!("rules{pod} in this network namespace")
    } else if matches.contains_id("options") {
        let words = matches.get_many::<String>("options").into_iter().flatten();
        format!("options {}{}", short(words), pod.replacen(" of ", " for ", 1))
    } else {
        match manifest.filter(|_| !has_options) {
            Some(manifest) => format!("manifest of {}", manifest.name),
            None => format!("no options{}", pod.replacen(" of ", " for ", 1)),
        }
    }
}

/// Options in a line that can be read: of long lists just the beginning.
fn short<'a>(words: impl Iterator<Item = &'a String>) -> String {
    const ITEMS: usize = 3;
    const WORD: usize = 60;
    const WORDS: usize = 40;
    let cut = |word: &String| {
        let items: Vec<&str> = word.split(',').collect();
        let some = items.iter().take(ITEMS).copied().collect::<Vec<_>>().join(",");
        match (word.chars().count() > WORD, items.len() > ITEMS) {
            (false, _) => word.clone(),
            (true, true) => format!("{},… ({} in all)", beginning(&some, WORD), items.len()),
            (true, false) => beginning(word, WORD),
        }
    };
    let mut all: Vec<String> = words.map(cut).collect();
    let more = all.len().saturating_sub(WORDS);
    all.truncate(WORDS);
    all.extend((more > 0).then(|| format!("and {more} more words")));
    all.join(" ")
}

/// A text, cut after `most` characters.
fn beginning(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// The file that findings are about, for tools that show them beside it.
fn file(matches: &ArgMatches) -> Option<String> {
    let manifest = matches.get_one::<PathBuf>("pod-manifest").map(|path| path.display().to_string());
    let dump = matches.get_many::<String>("dump").and_then(|mut names| names.next().map(String::as_str));
    let path =
        |name: &str| ["ipv4=", "ipv6="].iter().find_map(|family| name.strip_prefix(family)).unwrap_or(name).into();
    let dump = dump.map(path);
    manifest.or(dump).filter(|name| name != "-")
}
