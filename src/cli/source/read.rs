//! Reading what the arguments name: dumps, the kernel, and the pod's files.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use tracing::warn;

use crate::audit::source::dump::Text;
use crate::audit::source::live::{self, Live};
use crate::audit::source::{Source, SourceError};
use crate::backend::limit::Most;
use crate::config::types::Family;
use crate::sys::{file, netns};

use super::super::error::CliError;
use super::super::{confine, session};

/// Existing rules, and the files that name the pod's users and groups.
pub struct LiveRules {
    pub source: Source,
    pub(super) passwd: String,
    pub(super) group: String,
}

/// The most bytes of a dump that are read.
const LARGEST_DUMP: u64 = 256 << 20;

/// Reads the dumps that are named, or standard input.
pub(super) fn texts<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<Text>, CliError> {
    let mut stdin_taken = false;
    names
        .map(|name| {
            let (family, path) = match name.split_once('=') {
                Some(("ipv4", path)) => (Some(Family::V4), path),
                Some(("ipv6", path)) => (Some(Family::V6), path),
                _ => (None, name),
            };
            let shown = if path == "-" { "standard input".to_owned() } else { path.to_owned() };
            if path == "-" && std::mem::replace(&mut stdin_taken, true) {
                return Err(CliError::Usage("standard input can be read once: give - once".into()));
            }
            let mut bytes = Vec::new();
            let read = match path {
                "-" => std::io::stdin().lock().take(LARGEST_DUMP + 1).read_to_end(&mut bytes),
                path => std::fs::File::open(path).and_then(|f| f.take(LARGEST_DUMP + 1).read_to_end(&mut bytes)),
            };
            let length = read.map_err(|source| SourceError::File { name: shown.clone(), source })?;
            if length as u64 > LARGEST_DUMP {
                return Err(CliError::Usage(format!("{shown} is larger than {} MiB", LARGEST_DUMP >> 20)));
            }
            Ok(Text { name: shown, bytes, family })
        })
        .collect()
}

/// Reads the rules of the kernel, and files of the pod that they refer to.
pub(super) fn from_kernel(matches: &ArgMatches) -> Result<LiveRules, CliError> {
    let files = root_of(matches);
    // Files belong to the mount namespace, which stays as it is.
    let resolv_conf = files.read("etc/resolv.conf");
    // Only of use for names of users and groups; without the files names are not known.
    let [passwd, group] = ["etc/passwd", "etc/group"].map(|path| files.read(path).unwrap_or_default());
    if let Some(pid) = matches.get_one::<u32>("pid") {
        netns::enter(Path::new(&format!("/proc/{pid}/ns/net")))?;
    } else if let Some(path) = matches.get_one::<PathBuf>("netns") {
        netns::enter(path)?;
    }
    confine::entered();
    let lock_timeout = std::time::Duration::from_secs(5);
    let live = Live {
        programs: session::programs(),
        lock_timeout,
        resolv_conf: resolv_conf.as_deref(),
        most: Most::TO_UNDERSTAND,
    };
    Ok(LiveRules { source: live::read(&live)?, passwd, group })
}

/// Where the pod's files are, if that can be known.
enum Root {
    /// Below the root of a process. Root reads there what the pod has written.
    Process(u32),
    Own,
    Unknown,
}

/// The most bytes of one of the pod's files that are read.
const LARGEST_FILE: u64 = 1 << 20;

impl Root {
    /// Reads one of the pod's files; `None` if it is missing or cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        let (whose, read) = match self {
            Self::Process(pid) => {
                let root = PathBuf::from(format!("/proc/{pid}/root"));
                (format!(" of process {pid}"), file::read_below(&root, Path::new(path), LARGEST_FILE))
            }
            Self::Own => (String::new(), file::read(&Path::new("/").join(path), LARGEST_FILE)),
            Self::Unknown => return None,
        };
        match read {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                warn!("/{path}{whose} is not read: {e}; what it tells counts as not known");
                None
            }
        }
    }
}

fn root_of(matches: &ArgMatches) -> Root {
    match matches.get_one::<u32>("pid") {
        Some(pid) => Root::Process(*pid),
        None if matches.contains_id("netns") || matches.contains_id("dump") => Root::Unknown,
        None => Root::Own,
    }
}
