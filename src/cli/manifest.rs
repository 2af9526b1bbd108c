//! The arguments of `audit` and `verify` that name a pod's manifest, and reading the files that they
//! name.

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::audit::source::options::KnownPod;
use crate::audit::source::{Source, options};
use crate::cni;
use crate::config::given::Given;
use crate::config::pod::NodeOptions;
use crate::config::pod::manifest::{Manifest, PodOptions};
use crate::config::settings::Face;
use crate::config::types::Families;
use crate::sys::file;

use super::error::CliError;
use super::source::{self, LiveRules};

/// The most bytes of a manifest and of the files next to it.
const LARGEST: u64 = 8 << 20;

/// Adds the arguments that name a manifest.
pub(super) fn with_manifest(command: Command) -> Command {
    let arg = |name: &'static str| Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf));
    command.args([
        arg("pod-manifest").help("The pod's YAML, as the injector left it; - is standard input"),
        arg("netconf").help(
            "The CNI configuration of the pod's node (a file of /etc/cni/net.d): its interception counts below the pod's annotations",
        ),
    ])
}

/// A manifest, and the configuration of the pod's node.
pub(super) struct ManifestArguments {
    pub manifest: Manifest,
    node: NodeOptions,
}

/// The manifest that the arguments name.
///
/// # Errors
///
/// A file that cannot be read or is not valid, by its name.
pub(super) fn asked(matches: &ArgMatches) -> Result<Option<ManifestArguments>, CliError> {
    let path = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let Some(manifest) = path("pod-manifest") else {
        return match path("netconf") {
            None => Ok(None),
            Some(_) => Err(CliError::Usage("--netconf counts below what a pod says: give --pod-manifest".into())),
        };
    };
    let text = read("--pod-manifest", manifest)?;
    let manifest = Manifest::parse(&text).map_err(|e| CliError::Usage(format!("{}: {e}", shown(manifest))))?;
    let node = match path("netconf") {
        None => NodeOptions::default(),
        Some(path) => node_options(path)?,
    };
    Ok(Some(ManifestArguments { manifest, node }))
}

/// What a node's configuration says, which `--netconf` names.
///
/// # Errors
///
/// The file cannot be read or is not valid.
pub(super) fn node_options(path: &Path) -> Result<NodeOptions, CliError> {
    let text = read("--netconf", path)?;
    let options = cni::node_options(text.as_bytes());
    options.map_err(|e| CliError::Usage(format!("--netconf: {}: {}", shown(path), e.msg)))
}

impl ManifestArguments {
    /// Adds to a source what only the manifest tells about the pod.
    pub(super) fn complete(&self, found: &mut Source) {
        if found.pod.addresses.is_empty() {
            found.pod.addresses.clone_from(&self.manifest.addresses);
        }
        if found.pod.dns_servers.is_none() {
            found.pod.dns_servers.clone_from(&self.manifest.dns_servers);
        }
    }

    /// Adds to what is known about the pod what only its manifest tells.
    pub(super) fn known(&self, mut known: KnownPod) -> KnownPod {
        if known.addresses.is_empty() {
            known.addresses.clone_from(&self.manifest.addresses);
        }
        if known.dns_servers.is_none() {
            known.dns_servers.clone_from(&self.manifest.dns_servers);
        }
        known
    }

    /// The arguments by which other commands make the rules that the manifest asks for, of a pod
    /// as it was found; `None`: not all of what it asks for has an option.
    pub(super) fn words(&self, found: &Source) -> Option<Vec<String>> {
        let mut words = Vec::new();
        let mut known = |name: &str, all: &[IpAddr]| {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            if !all.is_empty() {
                words.extend([format!("--{name}"), all.join(",")]);
            }
        };
        known("pod-ip", &self.manifest.addresses);
        known("dns-server", found.pod.dns_servers.as_deref().unwrap_or_default());
        words.push("--".into());
        match self.manifest.wanted(&self.node).ok()? {
            PodOptions::Init { arguments, variables } => {
                if Given::from_environment(&|name| variables.get(name).cloned()).iter().next().is_some() {
                    return None;
                }
                if !matches!(arguments.first().map(String::as_str), Some("init" | "istio-iptables")) {
                    words.push("istio-iptables".into());
                }
                words.extend(arguments);
            }
            PodOptions::Annotations(given, _) => {
                for (opt, _, text) in given.iter() {
                    let long = Some(opt.spec().long).filter(|long| !long.is_empty())?;
                    words.push(format!("--{long}={text}"));
                }
            }
        }
        Some(words)
    }

    /// The rules that the manifest asks for, for a pod as it was found.
    ///
    /// # Errors
    ///
    /// The manifest asks for no rules, or its options are not valid.
    pub(super) fn wanted(&self, matches: &ArgMatches, found: Option<&LiveRules>) -> Result<Source, CliError> {
        let mut known = self.known(source::known(matches, found)?);
        // A manifest from a repository or an injector has no status with addresses. A dump has
        // no others than of the families that it is about.
        known.assumed = Some(found.map_or(Families::BOTH, |found| found.source.told));
        let named = |problem: String| CliError::Usage(format!("--pod-manifest: {problem}"));
        let mut wanted = match self.manifest.wanted(&self.node).map_err(|e| named(e.to_string()))? {
            PodOptions::Init { arguments, variables } => {
                let (given, face) = source::given_of_init(&arguments, &variables)?;
                options::read(&given, face, &known)?
            }
            PodOptions::Annotations(given, notes) => {
                let mut source = options::read(&given, Face::Init, &known)?;
                source.notes.extend(notes);
                let on_node = ["pid", "netns"].iter().any(|name| matches.contains_id(name));
                if on_node && !matches.contains_id("netconf") {
                    source.notes.extend(unnamed(Path::new("/etc/cni/net.d")));
                }
                source
            }
        };
        source::name_uplink(matches, &mut wanted);
        Ok(wanted)
    }
}

/// A note if this node's configuration has options for every pod and `--netconf` does not name it: a
/// correct pod would seem to differ.
fn unnamed(directory: &Path) -> Option<String> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // In the order in which runtimes look at them.
    files.sort();
    let has_options = |path: &PathBuf| {
        let kind = path.extension().and_then(|ending| ending.to_str());
        let text = matches!(kind, Some("conflist" | "conf" | "json")).then(|| file::read(path, LARGEST).ok()).flatten();
        text.and_then(|text| cni::node_options(text.as_bytes()).ok())
            .is_some_and(|node| node.options.iter().next().is_some())
    };
    let file = files.into_iter().find(has_options)?.display().to_string();
    Some(format!(
        "this node's {file} has options for every pod, which do not count here: name it with --netconf {file}"
    ))
}

/// Refuses standard input as more than one of the files that arguments name.
///
/// # Errors
///
/// Standard input can be read only once.
pub(super) fn check_stdin(matches: &ArgMatches, other: Option<&Path>) -> Result<(), CliError> {
    let path = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let dumps = matches.get_many::<String>("dump").into_iter().flatten().map(|name| name.as_str());
    let files = [path("pod-manifest"), path("netconf"), other].into_iter().flatten().filter_map(Path::to_str);
    if files.chain(dumps).filter(|name| *name == "-" || name.ends_with("=-")).count() > 1 {
        return Err(CliError::Usage("standard input can be read once: give - once".into()));
    }
    Ok(())
}

/// How a message calls a file.
pub(super) fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".into() } else { path.display().to_string() }
}

/// A small text file, or standard input.
///
/// # Errors
///
/// That it cannot be read, is no text, or is too large; `option` names it.
pub(super) fn read(option: &str, path: &Path) -> Result<String, CliError> {
    read_up_to(LARGEST, option, path)
}

/// Reads a text file of at most `largest` bytes, or standard input.
///
/// # Errors
///
/// As of [`read`].
pub(super) fn read_up_to(largest: u64, option: &str, path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(largest + 1).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(largest + 1).read_to_string(&mut text)),
    };
    let length = read.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => CliError::Usage(format!("{option}: {} is no text", shown(path))),
        _ => CliError::Failed(format!("{option}: cannot read {}: {e}", shown(path))),
    })?;
    if length as u64 > largest {
        return Err(CliError::Usage(format!("{option}: {} is larger than {} MiB", shown(path), largest >> 20)));
    }
    Ok(text)
}
