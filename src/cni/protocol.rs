//! The words of the CNI specification: verbs, versions, results and error objects.

use std::fmt;
use std::io::{self, Write};

use nix::errno::Errno;
use serde_json::json;

use crate::config::pod::error::PodError;
use crate::sys::start::was_closed;
use crate::sys::text::one_line;

/// The most characters of an error's message, and of its details. Events hold 1024 characters in all.
const LONGEST: usize = 1000;

/// The versions of the specification that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version of the specification: the index of its name in [`VERSIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CniVersion(usize);

impl CniVersion {
    pub const LATEST: Self = Self(VERSIONS.len() - 1);
    /// The first version with CHECK.
    const WITH_CHECK: Self = Self(4);
    /// The first with GC and STATUS.
    const WITH_GC: Self = Self(6);
    /// The first in which plugins are chained: from it on a plugin receives the result of the
    /// one before it as `prevResult`.
    const WITH_CHAINS: usize = 2;

    pub fn parse(text: &str) -> Option<Self> {
        VERSIONS.iter().position(|version| *version == text).map(Self)
    }

    pub fn name(self) -> &'static str {
        VERSIONS[self.0]
    }

    /// Those in which plugins are chained, oldest first.
    pub(crate) fn chained() -> impl Iterator<Item = Self> {
        (Self::WITH_CHAINS..VERSIONS.len()).map(Self)
    }
}

/// The verb of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "CHECK" => Self::Check,
            "DEL" => Self::Del,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The oldest version of the specification that has it.
    pub(crate) fn since(self) -> CniVersion {
        match self {
            Self::Check => CniVersion::WITH_CHECK,
            Self::Gc | Self::Status => CniVersion::WITH_GC,
            _ => CniVersion(0),
        }
    }
}

/// What kind of error: the number in the error object. Below 100 the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The netconf's version, or the verb in that version, is not spoken.
    IncompatibleVersion,
    /// A `CNI_` variable is missing or makes no sense.
    Environment,
    /// Reading or writing failed.
    Io,
    /// Standard input is no netconf.
    Decode,
    /// The netconf makes no sense.
    Netconf,
    /// A repetition may succeed: the API server cannot be reached, or the deadline has passed.
    TryAgainLater,
    /// STATUS: no pod could be set up now.
    NotAvailable,
    /// The pod's namespace could not be programmed.
    Programming,
    /// The pod cannot be looked up until somebody changes something.
    LookUp,
    /// The pod's annotations make no interception.
    Pod,
    /// CHECK: the kernel does not hold the plan.
    Drift,
    /// A mistake in podweir itself.
    Internal,
}

impl Code {
    /// Every kind of error.
    const ALL: [Self; 12] = [
        Self::IncompatibleVersion,
        Self::Environment,
        Self::Io,
        Self::Decode,
        Self::Netconf,
        Self::TryAgainLater,
        Self::NotAvailable,
        Self::Programming,
        Self::LookUp,
        Self::Pod,
        Self::Drift,
        Self::Internal,
    ];

    /// The kind of error that has a number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Netconf => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::Programming => 100,
            Self::LookUp => 101,
            Self::Pod => 102,
            Self::Drift => 103,
            Self::Internal => 999,
        }
    }
}

/// Why a verb failed: the error object. Runtimes show "msg; details" in the pod's event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    pub code: Code,
    /// What failed, on what.
    pub msg: String,
    /// More about the error: what to do about it, where to look.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.details.as_str() {
            "" => f.write_str(&self.msg),
            details => write!(f, "{}; {details}", self.msg),
        }
    }
}

impl CniError {
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The error object, in the netconf's version where that is known.
    pub fn object(&self, version: CniVersion) -> String {
        let [msg, details] = [&self.msg, &self.details].map(|text| one_line(text, LONGEST));
        let code = self.code.number();
        let object = json!({ "cniVersion": version.name(), "code": code, "msg": msg, "details": details });
        format!("{object}\n")
    }
}

impl From<PodError> for CniError {
    fn from(error: PodError) -> Self {
        Self::new(Code::Pod, error.to_string()).details(error.advice())
    }
}

/// The answer to VERSION.
pub(crate) fn version_result(version: CniVersion) -> String {
    format!("{}\n", json!({ "cniVersion": version.name(), "supportedVersions": VERSIONS }))
}

/// The result of an ADD without a plugin before it.
pub(crate) fn empty_result(version: CniVersion) -> String {
    json!({ "cniVersion": version.name() }).to_string()
}

/// Checks, before anything is changed, that there is a standard output to answer on.
pub(crate) fn check_output() -> Result<(), CniError> {
    match was_closed(1) {
        true => Err(output_error(Errno::EBADF.into())),
        false => Ok(()),
    }
}

/// Writes a whole answer. For an empty one no standard output is needed.
pub(crate) fn write(text: &str) -> Result<(), CniError> {
    if text.is_empty() {
        return Ok(());
    }
    check_output()?;
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output_error)
}

fn output_error(error: io::Error) -> CniError {
    CniError::new(Code::Io, format!("cannot write the result to standard output: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_and_verbs_have_names() {
        let parsed: Vec<CniVersion> = VERSIONS.iter().map(|text| CniVersion::parse(text).unwrap()).collect();
        assert!(parsed.is_sorted() && parsed.last() == Some(&CniVersion::LATEST));
        assert_eq!(Verb::Check.since().name(), "0.4.0");
        assert_eq!(Verb::Status.since().name(), "1.1.0");
        for verb in [Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status, Verb::Version] {
            assert_eq!(Verb::parse(verb.name()), Some(verb));
        }
        assert!(
            CniVersion::parse("1.2.0").is_none() && CniVersion::parse("").is_none() && Verb::parse("add").is_none()
        );
    }

    #[test]
    fn an_error_object_has_what_the_specification_asks_for() {
        let error = CniError::new(Code::Netconf, "no").details("so");
        let object: serde_json::Value = serde_json::from_str(&error.object(CniVersion::LATEST)).unwrap();
        assert_eq!(object, json!({ "cniVersion": "1.1.0", "code": 7, "msg": "no", "details": "so" }));
        assert_eq!(error.to_string(), "no; so");
        // Events are shown on terminals: no text of a pod's may write over what is there.
        let error = CniError::new(Code::Pod, format!("a\u{9b}2J\u{202e}\n{}", "x".repeat(9999)));
        let object = error.object(CniVersion::LATEST);
        assert!(!object.contains(['\u{9b}', '\u{202e}']) && object.len() < 1200, "{object}");
    }
}
