//! Reading one option's text, with errors and warnings that name the option and the value.

use super::given::Given;
use super::options::Opt;
pub use super::value::LONGEST_QUOTE;
use super::value::{self, Invalid, Parsed};

/// How many warnings that are alike, about the items of one list, are given.
const MOST_ALIKE: usize = 3;

/// Why the options make no interception.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An option's text is no valid value: a usage error.
    #[error("{}", .invalid.of_option(.option))]
    Value { option: String, invalid: Invalid },
    /// Two options contradict each other: a usage error.
    #[error("{0}")]
    Contradiction(String),
    /// A fact that is needed could not be had.
    #[error("cannot read {what}: {source}{hint}")]
    Fact { what: &'static str, source: std::io::Error, hint: &'static str },
    /// The pod has no address and the families follow from its addresses.
    #[error(
        "the pod has no global address yet, so its IP families are not known; name them with --ip-families ipv4, ipv6 or both"
    )]
    NoAddress,
}

impl SettingsError {
    /// Whether what was typed is at fault (exit status 2) rather than the surroundings (1).
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Value { .. } | Self::Contradiction(_))
    }
}

/// Reads one option's text with `parse`, naming option and value when it is wrong.
pub(super) struct OptionReader<'a> {
    pub(super) given: &'a Given,
    pub(super) warnings: Vec<String>,
}

impl OptionReader<'_> {
    pub(super) fn read<T>(&self, opt: Opt, parse: impl FnOnce(&str) -> Parsed<T>) -> Result<T, SettingsError> {
        let (origin, text) = self.given.text(opt);
        parse(text).map_err(|invalid| SettingsError::Value { option: origin.name_of(opt), invalid })
    }

    /// Reads one option's text, for parsers that may have something to say about a valid value.
    pub(super) fn read_warned<T>(
        &mut self,
        opt: Opt,
        parse: impl FnOnce(&str, &mut dyn FnMut(String)) -> Parsed<T>,
    ) -> Result<T, SettingsError> {
        let (origin, text) = self.given.text(opt);
        let name = origin.name_of(opt);
        let (warnings, mut alike) = (&mut self.warnings, 0);
        let parsed = parse(text, &mut |warning| {
            alike += 1;
            if alike <= MOST_ALIKE {
                warnings.push(format!("{name}: {warning}"));
            }
        });
        if alike > MOST_ALIKE {
            warnings.push(format!("{name}: {} more like it", alike - MOST_ALIKE));
        }
        parsed.map_err(|invalid| SettingsError::Value { option: origin.name_of(opt), invalid })
    }

    pub(super) fn flag(&self, opt: Opt) -> Result<bool, SettingsError> {
        self.read(opt, value::boolean)
    }
}
