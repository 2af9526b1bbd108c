//! `podweir verify`: whether the kernel, or a dump, holds what options ask for.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::audit::report::differences;
use crate::audit::verify::verify;

use super::error::CliError;
use super::{confine, manifest, output, source};

const EXAMPLES: &str = "\
The rules wanted are those of the options behind --, or of --pod-manifest FILE: the
arguments of the pod's istio-init container, or else its annotations and proxy, as the CNI
plugin takes them (--netconf FILE: over the interception that the node's configuration
has). The rules found are those of the kernel or of a dump. Differences are told rule by rule, in order, whichever backend holds the
rules, and what they change: which traffic somebody else gets than should, with an
example. A difference that changes nothing says so.

Rules of others count where they take traffic from the proxy or let it past; where they
only drop, as a network policy does, they are shown and do not count.

Exit status: 0 same, 1 different (or it could not be told), 2 usage.

Examples:
  podweir verify -- -b 8080 -i 10.0.0.0/8
      Does this namespace hold what these options ask for?
  podweir verify --pid 4711 -- istio-iptables -p 15001 -z 15006 -u 1337 -b '*' -i '*'
      The same for a pod's process, with an init container's arguments.
  podweir verify --dump v4.txt v6.txt --pod-ip 10.244.0.6,fd00::6 --json -- -b '*'
      From what iptables-save and ip6tables-save printed, for a pipeline.
  kubectl get pod shop -o yaml | podweir verify --pid 4711 --pod-manifest - --netconf /etc/cni/net.d/10-pods.conflist
      Does this pod on this node have the rules that the plugin should have made?
";

/// The `verify` subcommand.
pub(super) fn command() -> Command {
    let about = "Compare the rules that options ask for with those that are there, and say what differences change";
    Command::new("verify").about(about).defer(|command| {
        let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Report as JSON");
        source::with_source(manifest::with_manifest(command.arg(json))).after_long_help(EXAMPLES)
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    output::check()?;
    manifest::check_stdin(matches, None)?;
    // Mistakes in the options show before anything is read, as far as they can.
    source::check_options(matches)?;
    if matches.contains_id("pod-manifest") && (matches.contains_id("options") || matches.contains_id("as")) {
        return Err(CliError::Usage(
            "--pod-manifest says which rules are wanted, and so do options behind -- and --as: give one of them".into(),
        ));
    }
    // Unless a dump is named, it is the kernel's rules here that are meant.
    match matches.contains_id("dump") {
        true => confine::begin(matches),
        false => confine::to_looking(),
    }
    let mut with_names = source::found(matches)?;
    confine::to_named_files(matches);
    let asked = manifest::asked(matches)?;
    if let Some(asked) = &asked {
        asked.complete(&mut with_names.source);
    }
    let found = &with_names.source;
    // What the options ask for may stand there, unseen: every difference would be made up.
    if let Some(problem) = found.opaque_rule() {
        return Err(CliError::Failed(format!("it cannot be told whether the rules are the plan's: {problem}")));
    }
    source::warn(found);
    let wanted = match &asked {
        Some(asked) => asked.wanted(matches, Some(&with_names))?,
        None => source::wanted(matches, Some(&with_names))?,
    };
    source::warn(&wanted);
    source::check_families(&wanted, found)?;
    let verification = verify(&wanted, found);
    let drift = verification.drift();
    let text = if matches.get_flag("json") {
        format!("{:#}\n", differences::json(&verification))
    } else {
        differences::text(&verification, wanted.plan().rule_count())
    };
    output::print(&text)?;
    match &verification.blind {
        _ if drift => Err(CliError::Failed("the rules differ from the plan".into())),
        Some(problem) => Err(CliError::Failed(format!("what others' rules change cannot be told: {problem}"))),
        None => Ok(()),
    }
}
