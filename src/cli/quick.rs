//! Quick parsing of the interception faces' arguments. Building a command line parser for all options
//! takes longer than the kernel takes for a pod's rules, and every pod's start waits for it. So
//! arguments that are plainly options of the table are parsed straight from the table; anything else
//! (help, a mistake, another command) is left to clap, which decides what is valid. A test compares the
//! two.

use std::ffi::OsString;

use crate::config::given::{Environment, Given, Origin};
use crate::config::options::{OPTIONS, Spec, Takes};
use crate::config::settings::Face;

use super::logging::LogOptions;

/// Arguments that were parsed without clap.
#[derive(Debug)]
pub(super) struct Quick {
    pub face: Face,
    pub given: Given,
    pub log: LogOptions,
}

/// Parses the arguments, the program's name first; `None` if clap must parse them.
pub(super) fn read(arguments: &[OsString], environment: Environment) -> Option<Quick> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::{args, command};

    /// A word of a command line: flags in every spelling, values, log options, nonsense.
    fn word() -> impl Strategy<Value = String> {
        let flag = (0..OPTIONS.len(), 0..6u8, value()).prop_map(|(at, form, value)| {
            let spec = &OPTIONS[at];
            let short = spec.short.unwrap_or('Q');
            match form {
                0 => format!("--{}", spec.long),
                1 => format!("--{}={value}", spec.long),
                2 => format!("-{short}"),
                3 => format!("-{short}={value}"),
                4 => format!("-{short}{value}"),
                _ => format!("--{}", spec.long.get(..4).unwrap_or_default()),
            }
        });
        let log = prop::sample::select(vec![
            "--log_as_json",
            "--log_as_json=true",
            "--log_as_json=maybe",
            "--log_output_level=default:info",
            "--log_output_level",
            "-v",
            "--verbose",
            "--help",
            "--print-config",
            "--json",
        ]);
        prop_oneof![6 => flag, 3 => value(), 1 => log.prop_map(str::to_owned)]
    }

    fn value() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "*", "80", "80,90", "true", "false", "-1", "--", "-", "-b", "a=b", "10.0.0.0/8"])
            .prop_map(str::to_owned)
    }

    fn texts(given: &Given) -> Vec<(Origin, String)> {
        OPTIONS
            .iter()
            .map(|spec| given.text(spec.opt))
            .map(|(origin, text)| (origin.clone(), text.to_owned()))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What is read quickly, clap reads the same.
        #[test]
        fn quick_reading_agrees_with_clap(face in 0..2usize, words in prop::collection::vec(word(), 0..6)) {
            let face = ["init", "istio-iptables"][face];
            let arguments: Vec<OsString> = ["podweir", face].into_iter().map(Into::into).chain(words.into_iter().map(Into::into)).collect();
            let environment = |name: &str| (name == "ISTIO_INBOUND_PORTS").then(|| "7".to_owned());
            if let Some(quick) = read(&arguments, &environment) {
                let matches = command().try_get_matches_from(&arguments);
                let matches = matches.map_err(|e| TestCaseError::fail(format!("{arguments:?}: {e}")))?;
                let (name, matches) = matches.subcommand().unwrap();
                prop_assert_eq!(name, face);
                prop_assert_eq!(texts(&quick.given), texts(&args::given(matches, &environment)), "{:?}", arguments);
                prop_assert_eq!(quick.log, LogOptions::from_matches(matches));
                prop_assert!(!matches.get_flag("print-config") && !matches.get_flag("json"));
            }
        }
    }

    #[test]
    fn an_injectors_arguments_are_read_quickly() {
        let typed = "podweir istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x  -b * -d 15090,15021,15020 --log_output_level=default:info --run-validation --dual-stack=true";
        let arguments: Vec<OsString> = typed.split(' ').map(Into::into).collect();
        let quick = read(&arguments, &|_| None).unwrap();
        assert_eq!(quick.given.text(crate::config::options::Opt::OutboundRangesExclude).1, "");
        assert_eq!(quick.log.levels, "default:info");
    }
}
