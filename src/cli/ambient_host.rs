//! `podweir ambient-host`: a node's rules and sets for its kubelet's probes of ambient pods.

use std::net::IpAddr;
use std::time::Instant;

use clap::{ArgMatches, Command};
use tracing::info;

use crate::backend::BackendKind;
use crate::backend::host::HostProbes;
use crate::config::ambient::HostOptions;
use crate::config::types::Family;
use crate::config::value::{self, Invalid};
use crate::plan::build;

use super::ambient::{CommonArguments, finish, flag, read, shared, value_of};
use super::error::CliError;
use super::{dry_run, output};

const NOTES: &str = "\
Runs in the node's network namespace. What a process of the node sends to the pods in the
sets gets the source address 169.254.7.127 or fd16:9254:7127:1337:ffff:ffff:ffff:ffff, so
that the pods' rules tell the kubelet's probes from other traffic. Without --add, --delete
and --remove it sets up rules and sets, and keeps the entries; --add and --delete make the
sets where there are none, but no rules. The agent (podweir node) does all of it by itself.
";

/// The `ambient-host` subcommand.
pub(super) fn command() -> Command {
    let about = "Let a node's probes of its ambient pods be told from other traffic";
    Command::new("ambient-host").about(about).defer(|command| {
        shared(command)
            .arg(value_of("kubelet-uid", "UID", "Whose connections are probes, with nftables [default: 0]"))
            .arg(value_of("add", "IP=POD-UID,…", "Put pods into the sets; an address that is there gets the new UID"))
            .arg(value_of("delete", "IP=POD-UID,…", "Take pods out; an address that another UID holds stays"))
            .arg(flag("flush", "Set up, and empty the sets").conflicts_with_all(["add", "delete", "remove"]))
            .arg(flag("remove", "Remove rules and sets, of every backend").conflicts_with_all(["add", "delete"]))
            .after_long_help(NOTES)
    })
}

/// Addresses, each with the pod that it belongs to.
fn pairs(text: &str) -> Result<Vec<(IpAddr, String)>, Invalid> {
    const EXPECTED: &str = "addresses of pods with their UIDs, comma separated, for example 10.244.0.6=6d1f3a40-0b5e-4f6d-9f5e-3d7f6c1b2a90";
    let invalid =
        |item: &str, problem: &str| Invalid { item: item.into(), problem: problem.into(), expected: EXPECTED };
    let pair = |item: &str| {
        let (ip, uid) = item.split_once('=').ok_or_else(|| invalid(item, "has no '='"))?;
        let ip = ip.trim().parse().map_err(|_| invalid(item, "does not begin with an address"))?;
        // As long as a comment in the kernel may be, without what a listing would have to quote.
        let fits = (1..=128).contains(&uid.len()) && uid.chars().all(|c| c.is_ascii_graphic() && !"\"\\".contains(c));
        if fits { Ok((ip, uid.to_owned())) } else { Err(invalid(item, "has no UID of 1 to 128 plain characters")) }
    };
    value::items(text).map(pair).collect()
}

fn uid(text: &str) -> Result<u32, Invalid> {
    value::id(text).ok_or_else(|| Invalid {
        item: text.into(),
        problem: "is no user id".into(),
        expected: "a number from 0 to 4294967294",
    })
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let started = Instant::now();
    let shared = CommonArguments::read(matches)?;
    let kubelet_uid = read(matches, "kubelet-uid", uid)?.unwrap_or(0);
    let add = read(matches, "add", pairs)?.unwrap_or_default();
    let delete = read(matches, "delete", pairs)?.unwrap_or_default();
    shared.enter()?;
    let options = HostOptions { families: shared.families()?, kubelet_uid };
    let mut conditions = shared.conditions.clone();
    conditions.programs.host_network = true;
    let mut probes = HostProbes::open(shared.choice, options, conditions)?;
    let backend = probes.kind().name();
    if shared.dry_run {
        return foretell(&probes, matches.get_flag("remove"));
    }
    output::check()?;
    let names_pods = matches.contains_id("add") || matches.contains_id("delete");
    let written = if matches.get_flag("remove") {
        probes.remove()?
    } else if matches.get_flag("flush") {
        probes.flush()?
    } else if names_pods {
        let add: Vec<(IpAddr, &str)> = add.iter().map(|(ip, uid)| (*ip, uid.as_str())).collect();
        let delete: Vec<(IpAddr, &str)> = delete.iter().map(|(ip, uid)| (*ip, uid.as_str())).collect();
        probes.change(&add, &delete)?
    } else {
        probes.set_up()?
    };
    let ms = started.elapsed().as_micros() as f64 / 1000.0;
    match (matches.get_flag("remove"), written) {
        (true, true) => info!(ms, "removed"),
        (true, false) => info!(ms, "nothing to remove"),
        (false, true) => info!(backend, families = %options.families, ms, "set up"),
        (false, false) => info!(backend, families = %options.families, ms, "unchanged"),
    }
    finish()
}

fn foretell(probes: &HostProbes, removes: bool) -> Result<(), CliError> {
    if removes {
        return output::print("# podweir: the node's rules and sets for probes of ambient pods would be removed\n");
    }
    let mut text = String::new();
    for family in probes.plan().families.iter() {
        let (set, inet) = (build::probe_set(family), if family == Family::V4 { "inet" } else { "inet6" });
        if probes.kind() != BackendKind::Nftables {
            text += &format!("# ipset create {set} hash:ip family {inet} comment\n");
        }
    }
    output::print(&(text + &dry_run::text(probes.plan(), probes.kind(), false)))
}
