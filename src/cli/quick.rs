//! A quick reading of the interception faces' arguments. Building a command line parser
//! for all options takes longer than the kernel takes for a pod's rules, and every pod's
//! start waits for it. So arguments that are plainly options of the table are read
//! straight from the table; anything else (help, a mistake, another command) is left to
//! clap, which has the last word on what is right. A test holds the two against each other.

use std::ffi::OsString;

use crate::config::given::{Environment, Given, Origin};
use crate::config::options::{OPTIONS, Spec, Takes};
use crate::config::settings::Face;

use super::logging::LogOptions;

/// What was typed, understood.
#[derive(Debug)]
pub struct Quick {
    pub face: Face,
    pub given: Given,
    pub log: LogOptions,
}

/// Reads the arguments, the program's name first; `None` where clap has to look at them.
pub fn read(arguments: &[OsString], environment: Environment) -> Option<Quick> {
    let mut words = arguments.iter().skip(1).map(|a| a.to_str());
    let face = match words.next()?? {
        "init" => Face::Init,
        "istio-iptables" => Face::IstioIptables,
        _ => return None,
    };
    let mut quick = Quick { face, given: Given::from_environment(environment), log: LogOptions::default() };
    while let Some(word) = words.next() {
        let word = word?;
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        match (name, value) {
            ("--log_as_json", None | Some("true")) => quick.log.json = true,
            ("--log_as_json", Some("false")) => quick.log.json = false,
            ("--log_output_level", Some(levels)) => quick.log.levels = levels.to_owned(),
            _ => {
                let spec = by_name(name)?;
                let text = match (spec.takes, value) {
                    (_, Some(value)) => value,
                    (Takes::Boolean, None) => "true",
                    (_, None) => words.next()??,
                };
                quick.given.set(spec.opt, Origin::Flag, text);
            }
        }
    }
    Some(quick)
}

/// The option with exactly this flag: `-p`, `--envoy-port`.
fn by_name(name: &str) -> Option<&'static Spec> {
    OPTIONS.iter().find(|spec| match name.strip_prefix("--") {
        Some(long) => !spec.long.is_empty() && spec.long == long,
        None => name.strip_prefix('-').is_some_and(|short| spec.short.is_some_and(|s| short.chars().eq([s]))),
    })
}
