//! Which rules are looked at: the arguments that `render`, `verify`, `explain` and
//! `audit` have in common, and the reading of what they name.

mod read;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ipnet::IpNet;

use tracing::warn;

use crate::audit::source::options::KnownPod;
use crate::audit::source::{Source, dump, options};
use crate::config::given::{Environment, Given, process_environment};
use crate::config::settings::{Face, Run};
use crate::config::types::Families;
use crate::config::value;

pub use read::LiveRules;

use super::error::CliError;
use super::{args, confine, logging};

const HEADING: &str = "Which rules";

/// The part about sources of all help texts.
pub const HELP: &str = "\
Rules come from one of three sources:
  -- OPTIONS         the plan that these options of podweir init would make; with
                     --as istio-iptables, or that word in front, in that face; with --as
                     ambient those of podweir ambient, the proxy being ztunnel. Nothing
                     of a kernel is needed: give the pod's addresses with --pod-ip.
  --live             the network namespace this runs in, or --netns PATH, --pid N: all
                     rules in it, of anybody. Needs CAP_NET_ADMIN there.
  --dump FILE...     what iptables-save, ip6tables-save, nft list ruleset, nft -j list
                     ruleset or podweir render --format json printed; - is standard
                     input. iptables-save shows rules of iptables-nft that nft cannot.
More than 20,000 rules are refused: a pod's namespace has none so many, a node's may.
";

/// Adds the arguments that name a source.
pub fn with_source(command: Command) -> Command {
    let arg = |name: &'static str| Arg::new(name).long(name).help_heading(HEADING);
    command.args([
        arg("as")
            .value_name("FACE")
            .value_parser(["init", "istio-iptables", "ambient"])
            .help("Whose options and defaults count behind -- [default: init]"),
        arg("live").action(ArgAction::SetTrue).help("Read the rules of this network namespace"),
        arg("netns")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with("pid")
            .help("Read the rules of the network namespace at this path"),
        arg("pid")
            .value_name("PID")
            .value_parser(args::number(1..=u32::MAX, "the number of a process"))
            .help("Read the rules of the network namespace of this process"),
        arg("dump")
            .value_name("FILE")
            .num_args(1..)
            .action(ArgAction::Append)
            .conflicts_with_all(["live", "netns", "pid"])
            .help("Read saved rules; ipv4=FILE or ipv6=FILE where the text does not tell the family"),
        arg("pod-ip")
            .value_name("ADDRESSES")
            .value_delimiter(',')
            .value_parser(pod_address)
            .action(ArgAction::Append)
            .help("The pod's own addresses, where the source does not tell them"),
        arg("uplink")
            .value_name("NAME")
            .value_parser(one_interface)
            .conflicts_with_all(["live", "netns", "pid"])
            .help("The interface by which the pod reaches others, where the source does not tell it [default: eth0]"),
        arg("dns-server")
            .value_name("ADDRESSES")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("The pod's name servers, where the source does not tell them; none: it has none"),
        Arg::new("options")
            .value_name("OPTIONS")
            .num_args(0..)
            .last(true)
            .allow_hyphen_values(true)
            .help("Options of podweir init (or istio-iptables): the rules they would make"),
    ])
}

fn addresses(matches: &ArgMatches, name: &str) -> Vec<IpAddr> {
    matches.get_many(name).map(|all| all.copied().collect()).unwrap_or_default()
}

/// Parses the name of one interface, in the form that clap wants.
fn one_interface(text: &str) -> Result<String, String> {
    match value::interfaces(text).as_deref() {
        Ok([one]) if !one.any_ending => Ok(one.name.to_string()),
        _ => Err("expected the name of one interface, such as eth0".into()),
    }
}

/// Parses an address that a pod can have; an IPv4-mapped one is IPv4. A prefix length behind it, which
/// `ip addr` prints, is ignored.
fn pod_address(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>().or_else(|e| match text.parse::<IpNet>() {
        Ok(network) => Ok(network.addr()),
        Err(_) => Err(format!("{e}; expected an address such as 10.244.0.6, fd00:10:244::6 or 10.244.0.6/24")),
    });
    match address?.to_canonical() {
        address if address.is_unspecified() => Err("no pod has this address".into()),
        address => Ok(address),
    }
}

/// The name servers in the arguments; `None` if there are none.
fn dns_servers(matches: &ArgMatches) -> Result<Option<Vec<IpAddr>>, CliError> {
    let Some(texts) = matches.get_many::<String>("dns-server") else { return Ok(None) };
    let known = texts.filter(|text| *text != "none").map(|text| {
        let problem = || CliError::invalid("--dns-server", text, "an address, or none");
        text.parse().map_err(|_| problem())
    });
    known.collect::<Result<Vec<_>, _>>().map(Some)
}

/// Whether the arguments name existing rules: the kernel's or a dump's.
pub fn names_found(matches: &ArgMatches) -> bool {
    confine::is_live(matches) || matches.contains_id("dump")
}

/// The arguments about rules that are there and about the pod, as they were given.
pub(super) fn words_of_rules(matches: &ArgMatches) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    let path = |name| matches.get_one::<PathBuf>(name).map(|path| path.display().to_string());
    let joined = |all: Vec<String>| Some(all.join(",")).filter(|all| !all.is_empty());
    let texts = |name| matches.get_many::<String>(name).into_iter().flatten().cloned().collect();
    let pod_ips = addresses(matches, "pod-ip").iter().map(ToString::to_string).collect();
    for (name, value) in [
        ("netns", path("netns")),
        ("pid", matches.get_one::<u32>("pid").map(u32::to_string)),
        ("pod-ip", joined(pod_ips)),
        ("uplink", joined(texts("uplink"))),
        ("dns-server", joined(texts("dns-server"))),
    ] {
        value.into_iter().for_each(|value| add(name, value));
    }
    matches.get_many::<String>("dump").into_iter().flatten().for_each(|file| add("dump", file.clone()));
    if matches.get_flag("live") && !["netns", "pid"].iter().any(|name| matches.contains_id(name)) {
        words.push("--live".into());
    }
    words
}

/// The arguments that rules are made of, as they were given: none where the rules are there.
pub(super) fn words_of_options(matches: &ArgMatches) -> Vec<String> {
    if names_found(matches) {
        return Vec::new();
    }
    let face = matches.get_one::<String>("as").into_iter().flat_map(|face| ["--as".to_owned(), face.clone()]);
    let options =
        matches.get_many::<String>("options").map(|options| ["--".to_owned()].into_iter().chain(options.cloned()));
    face.chain(options.into_iter().flatten()).collect()
}

/// Says what the user should hear about a source.
pub fn warn(source: &Source) {
    for note in &source.notes {
        warn!("{note}");
    }
}

/// The one source that the arguments name; from here on only files that they name are read.
///
/// # Errors
///
/// A source that cannot be read, or more than one.
pub fn read(matches: &ArgMatches) -> Result<Source, CliError> {
    confine::begin(matches);
    if !names_found(matches) {
        return wanted(matches, None);
    }
    if matches.contains_id("options") {
        return Err(CliError::Usage(
            "options behind -- and --live, --netns, --pid or --dump are two sources: give one".into(),
        ));
    }
    let found = found(matches)?;
    confine::to_named_files(matches);
    Ok(found.source)
}

/// Reads existing rules: the kernel's or a dump's.
///
/// # Errors
///
/// A source that cannot be read, or more than one.
pub fn found(matches: &ArgMatches) -> Result<LiveRules, CliError> {
    let mut found = match matches.get_many::<String>("dump") {
        Some(names) => LiveRules {
            source: dump::read(&read::texts(names.map(String::as_str))?)?,
            passwd: String::new(),
            group: String::new(),
        },
        None => read::from_kernel(matches)?,
    };
    let source = &mut found.source;
    let addresses = addresses(matches, "pod-ip");
    if !addresses.is_empty() {
        source.pod.addresses = addresses;
    }
    if let Some(servers) = dns_servers(matches)? {
        source.pod.dns_servers = Some(servers);
    }
    name_uplink(matches, source);
    Ok(found)
}

/// Sets the pod's uplink, if the arguments name one.
pub fn name_uplink(matches: &ArgMatches, source: &mut Source) {
    if let Some(name) = matches.get_one::<String>("uplink") {
        source.pod.uplink = name.as_str().into();
    }
}

/// The rules that the options behind `--` would make, for a pod as it was found.
///
/// # Errors
///
/// Options that are not right, or a pod of which too little is known for them.
pub fn wanted(matches: &ArgMatches, found: Option<&LiveRules>) -> Result<Source, CliError> {
    wanted_for(matches, &known(matches, found)?)
}

/// The rules that the options behind `--` would make, for a pod of which this is known.
///
/// # Errors
///
/// Options that are not right, or a pod of which too little is known for them.
pub fn wanted_for(matches: &ArgMatches, known: &KnownPod) -> Result<Source, CliError> {
    let words: Vec<&str> = matches.get_many::<String>("options").into_iter().flatten().map(String::as_str).collect();
    let said = matches.get_one::<String>("as").map(String::as_str);
    let mut source = of_words(&words, said, known)?;
    name_uplink(matches, &mut source);
    Ok(source)
}

/// What is known about the pod that rules are wanted for.
///
/// # Errors
///
/// What was given about the pod is not right.
pub fn known(matches: &ArgMatches, found: Option<&LiveRules>) -> Result<KnownPod, CliError> {
    Ok(match found {
        None => KnownPod {
            addresses: addresses(matches, "pod-ip"),
            dns_servers: dns_servers(matches)?,
            ..KnownPod::default()
        },
        Some(LiveRules { source, passwd, group }) => KnownPod {
            addresses: source.pod.addresses.clone(),
            dns_servers: source.pod.dns_servers.clone(),
            passwd: passwd.clone(),
            group: group.clone(),
            ..KnownPod::default()
        },
    })
}

/// The error for a wrong use of `--diff`.
pub const TWO_LOTS: &str = "--diff needs two lots of options: --diff -- A... --against -- B...";

/// The rules of the options behind `--`, and of those behind `--against --`.
///
/// # Errors
///
/// Options that are not right, or a pod of which too little is known for them.
pub fn both(matches: &ArgMatches) -> Result<(Source, Source), CliError> {
    confine::begin(matches);
    let words: Vec<&str> = matches.get_many::<String>("options").into_iter().flatten().map(String::as_str).collect();
    let Some(at) = words.windows(2).position(|pair| pair == ["--against", "--"]) else {
        return Err(CliError::Usage(TWO_LOTS.into()));
    };
    let said = matches.get_one::<String>("as").map(String::as_str);
    let known =
        KnownPod { addresses: addresses(matches, "pod-ip"), dns_servers: dns_servers(matches)?, ..KnownPod::default() };
    let (mut before, mut after) = (of_words(&words[..at], said, &known)?, of_words(&words[at + 2..], said, &known)?);
    [&mut before, &mut after].into_iter().for_each(|source| name_uplink(matches, source));
    for note in before.notes.iter().chain(after.notes.iter().filter(|note| !before.notes.contains(note))) {
        warn!("{note}");
    }
    Ok((before, after))
}

/// Fails if rules are wanted of a family that a dump does not cover.
///
/// # Errors
///
/// The family that is wanted and that the dump does not have.
pub fn check_families(wanted: &Source, found: &Source) -> Result<(), CliError> {
    let wants = wanted.canon().families();
    let missing = Families { v4: wants.v4 && !found.told.v4, v6: wants.v6 && !found.told.v6 };
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "rules of {missing} are wanted, of which the dump says nothing: add it (iptables-save prints IPv4, ip6tables-save IPv6), name the pod's addresses with --pod-ip, or give --ip-families behind --"
    )))
}

/// Refuses options that are not valid for any pod.
///
/// # Errors
///
/// The option that is not valid, and what would be.
pub fn check_options(matches: &ArgMatches) -> Result<(), CliError> {
    let words: Vec<&str> = matches.get_many::<String>("options").into_iter().flatten().map(String::as_str).collect();
    let said = matches.get_one::<String>("as").map(String::as_str);
    if let Some(words) = of_ambient(&words, said)? {
        return super::ambient::options_of(words, &[]).map(|_| ());
    }
    given_of("behind --", &words, said, &process_environment).map(|_| ())
}

/// The rules that options give for a pod.
///
/// # Errors
///
/// Options that are not right, or a pod of which too little is known for them.
pub fn of_words(words: &[&str], said: Option<&str>, known: &KnownPod) -> Result<Source, CliError> {
    if let Some(words) = of_ambient(words, said)? {
        return Ok(options::of_ambient(&super::ambient::options_of(words, &known.addresses)?, known));
    }
    let (given, face) = given_of("behind --", words, said, &process_environment)?;
    Ok(options::read(&given, face, known)?)
}

/// The options behind `ambient`, if the words or `--as` name it.
fn of_ambient<'a, 'w>(words: &'a [&'w str], said: Option<&str>) -> Result<Option<&'a [&'w str]>, CliError> {
    let (named, rest) = match words.split_first() {
        Some((&name @ ("init" | "istio-iptables" | "ambient"), rest)) => (Some(name), rest),
        _ => (None, words),
    };
    match (named.or(said), said) {
        (Some("ambient"), Some(said)) if said != "ambient" => {
            Err(CliError::Usage(format!("--as {said} and ambient behind -- contradict each other")))
        }
        (Some("ambient"), _) => Ok(Some(rest)),
        _ => Ok(None),
    }
}

/// The options of a pod's init container, whose arguments begin with the face. Where they do not,
/// they are those of an injector's own program, which knows no other face than istio-iptables.
///
/// # Errors
/// The arguments are not valid options.
pub fn given_of_init(arguments: &[String], variables: &BTreeMap<String, String>) -> Result<(Given, Face), CliError> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = match words.first() {
        Some(&("init" | "istio-iptables")) => None,
        _ => Some("istio-iptables"),
    };
    given_of("the arguments of istio-init", &words, said, &|name| variables.get(name).cloned())
}

/// Parses options for the face that they or `said` name.
///
/// # Errors
///
/// The word that is no option of the face, and where it was found.
pub fn given_of(
    place: &str,
    words: &[&str],
    said: Option<&str>,
    environment: Environment,
) -> Result<(Given, Face), CliError> {
    // A container's arguments begin with the face.
    let (named, words) = match words.split_first() {
        Some((&name @ ("init" | "istio-iptables"), rest)) => (Some(name), rest),
        _ => (None, words),
    };
    if let (Some(said), Some(named)) = (said, named)
        && said != named
    {
        return Err(CliError::Usage(format!("--as {said} and {named} {place} contradict each other")));
    }
    let (face, name) = match named.or(said) {
        Some("istio-iptables") => (Face::IstioIptables, "istio-iptables"),
        _ => (Face::Init, "init"),
    };
    let command = logging::with_log_options(args::with_options(Command::new(name)));
    let command = command.no_binary_name(true).disable_help_flag(true);
    let matches = command.try_get_matches_from(words).map_err(|e| {
        let text = e.to_string();
        let problem = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        CliError::Usage(format!("{place}: {problem}; podweir {name} --help lists the options"))
    })?;
    let given = args::given(&matches, environment);
    Run::resolve(&given, face)?;
    Ok((given, face))
}
