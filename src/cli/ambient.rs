//! `podweir ambient`: the rules of a pod whose traffic its node's ztunnel takes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use tracing::{info, warn};

use crate::backend::ambient::Namespace;
use crate::backend::conditions::Conditions;
use crate::backend::install::Session;
use crate::backend::{node, routing};
use crate::config::ambient::{self, AmbientOptions};
use crate::config::facts;
use crate::config::settings::BackendChoice;
use crate::config::types::Families;
use crate::config::value::{self, Invalid};
use crate::plan::build;
use crate::plan::model::Plan;
use crate::sys::netlink::Netlink;
use crate::sys::netns;

use super::error::CliError;
use super::{confine, dry_run, logging, output, session};

const NOTES: &str = "\
Runs in the pod's network namespace and leaves the kernel either as the options say or as
it was. Running it again changes nothing. ztunnel's listeners (15001, 15006, 15008, 15053)
have to be in the namespace: without them what the rules take is refused.

Rules of iptables that differ are replaced only with --reconcile, those of nftables always.
A pod with a sidecar's interception is refused: podweir clean removes that.
";

const EXAMPLES: &str = "
Examples:
  podweir ambient
      Both families, DNS too.
  podweir ambient --ingress-mode --dns-capture=false --virtual-interfaces tap+
      Inbound traffic and DNS left alone; TCP of virtual machines counts as outbound.
  podweir ambient --dry-run
      What would be done, as a script.
  podweir ambient --remove
      Every trace goes, of both families and every backend.
";

/// The `ambient` subcommand.
pub(super) fn command() -> Command {
    let about = "Hand this pod's traffic to its node's ztunnel (ambient mode)";
    Command::new("ambient").about(about).defer(|command| {
        shared(command)
            .arg(
                Arg::new("dns-capture")
                    .long("dns-capture")
                    .help("Hand DNS to ztunnel [default: true]")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("true|false")
                    .overrides_with("dns-capture"),
            )
            .arg(flag("ingress-mode", "Leave inbound traffic alone"))
            .arg(value_of(
                "virtual-interfaces",
                "NAMES",
                "TCP from these counts as outbound; a trailing + stands for any ending",
            ))
            .arg(flag("reconcile", "Replace rules of iptables that differ from what is asked for"))
            .arg(flag("remove", "Remove every trace, of both families and every backend").conflicts_with("reconcile"))
            .arg(flag("rule-comments", "Write each rule's reason as its comment with iptables, too"))
            .after_long_help(format!("{NOTES}{EXAMPLES}"))
    })
}

/// Adds the arguments that the pod's and the node's command have in common.
pub(super) fn shared(command: Command) -> Command {
    command
        .arg(value_of("backend", "NAME", "auto, nftables, iptables-nft or iptables-legacy [default: auto]"))
        .arg(value_of(
            "ip-families",
            "WHICH",
            "Families to program: both, ipv4, ipv6, or auto for those with a global address here [default: both]",
        ))
        .arg(value_of(
            "lock-timeout",
            "DURATION",
            "How long to wait for other runs, and for iptables' lock [default: 10s]",
        ))
        .arg(value_of("network-namespace", "PATH", "Work in this network namespace instead of the current one"))
        .arg(flag("dry-run", "Print what would be done, and touch nothing"))
}

pub(super) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

pub(super) fn value_of(name: &'static str, shown: &'static str, help: &'static str) -> Arg {
    // Given twice, the last one counts.
    Arg::new(name).long(name).help(help).value_name(shown).allow_hyphen_values(true).overrides_with(name)
}

/// The values of the arguments that the pod's and the node's command have in common.
pub(super) struct CommonArguments {
    pub choice: BackendChoice,
    families: Option<Families>,
    pub conditions: Conditions,
    network_namespace: Option<PathBuf>,
    pub dry_run: bool,
}

/// Reads an option's value, before anything is changed.
pub(super) fn read<T>(
    matches: &ArgMatches,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<Option<T>, CliError> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    parse(text).map(Some).map_err(|invalid| CliError::Usage(invalid.of_option(&format!("--{name}"))))
}

impl CommonArguments {
    pub(super) fn read(matches: &ArgMatches) -> Result<Self, CliError> {
        let choice = read(matches, "backend", ambient::backend)?.unwrap_or(BackendChoice::Auto);
        let families = read(matches, "ip-families", families)?.unwrap_or(Some(Families::BOTH));
        let timeout = read(matches, "lock-timeout", value::duration)?.unwrap_or(Duration::from_secs(10));
        let rule_comments = matches.try_get_one::<bool>("rule-comments").ok().flatten().copied().unwrap_or(false);
        Ok(Self {
            choice,
            families,
            conditions: Conditions { rule_comments, lock_timeout: timeout, programs: session::programs() },
            network_namespace: matches.get_one::<String>("network-namespace").map(PathBuf::from),
            dry_run: matches.get_flag("dry-run"),
        })
    }

    /// Enters the namespace that the arguments name, and gives up rights that are not needed in it.
    pub(super) fn enter(&self) -> Result<(), CliError> {
        self.network_namespace.as_deref().map_or(Ok(()), netns::enter)?;
        confine::to_programming_for_ambient(self.choice);
        Ok(())
    }

    /// The families to program, which may depend on the current namespace's addresses.
    pub(super) fn families(&self) -> Result<Families, CliError> {
        if let Some(families) = self.families {
            return Ok(families);
        }
        let mut route = Netlink::open(Netlink::ROUTE).map_err(CliError::Addresses)?;
        let addresses = routing::addresses(&mut route).map_err(CliError::Addresses)?;
        let addresses: Vec<_> = addresses.into_iter().map(|(_, address)| address).collect();
        let has = facts::families_of(&addresses);
        if has.is_empty() {
            warn!("no interface has a global address yet: both IP families are programmed");
            return Ok(Families::BOTH);
        }
        Ok(has)
    }
}

/// Parses the families; `None` for those of the pod's addresses.
fn families(text: &str) -> Result<Option<Families>, Invalid> {
    match text {
        "auto" => Ok(None),
        _ => {
            let named = ambient::families(text).map(Some);
            named.map_err(|invalid| Invalid { expected: "auto, both, ipv4 or ipv6", ..invalid })
        }
    }
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let started = Instant::now();
    let shared = CommonArguments::read(matches)?;
    let options = options(matches)?;
    shared.enter()?;
    refuse_node(shared.network_namespace.is_some())?;
    let namespace = Namespace {
        choice: shared.choice,
        conditions: shared.conditions.clone(),
        reconcile: matches.get_flag("reconcile"),
    };
    if matches.get_flag("remove") {
        return remove(&namespace, shared.dry_run, started);
    }
    let plan = build::ambient(&AmbientOptions { families: shared.families()?, ..options });
    if shared.dry_run {
        return foretell(&namespace, &plan);
    }
    output::check()?;
    let mut changing = namespace.session()?;
    let outcome = namespace.apply_by(&mut changing, &plan)?;
    session::report(&outcome, &plan, started);
    heard(changing)
}

/// The options of an ambient pod, without the families.
fn options(matches: &ArgMatches) -> Result<AmbientOptions, CliError> {
    Ok(AmbientOptions {
        dns: read(matches, "dns-capture", value::boolean)?.unwrap_or(true),
        ingress: matches.get_flag("ingress-mode"),
        virtual_interfaces: read(matches, "virtual-interfaces", ambient::virtual_interfaces)?.unwrap_or_default(),
        ..AmbientOptions::default()
    })
}

/// Parses this command's options from words, for a pod with these addresses.
///
/// # Errors
///
/// The words are not valid options.
pub(super) fn options_of(words: &[&str], addresses: &[IpAddr]) -> Result<AmbientOptions, CliError> {
    let command = command().no_binary_name(true).disable_help_flag(true);
    let matches = command.try_get_matches_from(words).map_err(|e| {
        let text = e.to_string();
        let problem = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        CliError::Usage(format!("behind --: {problem}; podweir ambient --help lists the options"))
    })?;
    let families = match read(&matches, "ip-families", families)?.unwrap_or(Some(Families::BOTH)) {
        Some(families) => families,
        None => facts::families_of(addresses),
    };
    let families = if families.is_empty() { Families::BOTH } else { families };
    Ok(AmbientOptions { families, ..options(&matches)? })
}

/// Refuses a node's own namespace, in which a pod's rules would take the node's traffic.
fn refuse_node(named: bool) -> Result<(), CliError> {
    let unknown = |e| CliError::Failed(format!("cannot tell which network namespace this is: {e}"));
    let inode = netns::current().map_err(unknown)?;
    let mut netlink = Netlink::open(Netlink::ROUTE).map_err(unknown)?;
    let addresses = routing::addresses(&mut netlink).map_err(unknown)?;
    // What the kubelet writes there is about the container's own network.
    let hosts = (!named).then_some(Path::new("/etc/hosts"));
    match node::evidence(inode, hosts, &mut netlink, &addresses).map_err(unknown)? {
        None => Ok(()),
        Some(evidence) if evidence.fits_a_pod_with_machines() => {
            warn!("this is taken for a pod with virtual machines: {evidence}; a node's part is podweir ambient-host");
            Ok(())
        }
        Some(evidence) => Err(CliError::Failed(format!(
            "this is a node's own network namespace: {evidence}; an ambient pod has one of its own: name it with --network-namespace; the node's part is podweir ambient-host"
        ))),
    }
}

fn remove(namespace: &Namespace, dry_run: bool, started: Instant) -> Result<(), CliError> {
    if dry_run {
        match namespace.holders() {
            Ok(held) if held.is_empty() => info!("no rules to remove"),
            Ok(held) => {
                let held: Vec<&str> = held.iter().map(|kind| kind.name()).collect();
                info!(from = %held.join(", "), "would be removed");
            }
            Err(why) => info!("this kernel's rules cannot be looked at: {why}"),
        }
        return output::print("# podweir: every trace of an ambient pod's rules would be removed from every backend\n");
    }
    output::check()?;
    let mut changing = namespace.session()?;
    let outcome = changing.clean()?;
    session::report(&outcome, &Plan::empty(), started);
    heard(changing)
}

/// Undoes the change if the log could not be written.
///
/// # Errors
/// The log's error, or what could not be undone.
fn heard(mut changing: Session) -> Result<(), CliError> {
    let Some(error) = logging::failure() else { return Ok(()) };
    changing.undo().map_err(|(problem, _)| {
        CliError::Failed(format!("cannot write the log: {error}; going back failed too: {problem}"))
    })?;
    Err(CliError::Log(error))
}

/// Prints what would be done, and logs what it would do to the namespace.
fn foretell(namespace: &Namespace, plan: &Plan) -> Result<(), CliError> {
    let looked = namespace.foresee(plan).map_err(CliError::from);
    let backend = dry_run::say(looked, None, &namespace.conditions, namespace.choice);
    output::print(&dry_run::text(plan, backend, namespace.conditions.rule_comments))
}

/// Fails if the log could not be written. The changes stay: a node's sets are as asked for, and asking
/// again does no harm.
pub(super) fn finish() -> Result<(), CliError> {
    match logging::failure() {
        None => Ok(()),
        Some(error) => Err(CliError::Failed(format!("cannot write the log: {error}; the rules are as asked for"))),
    }
}
