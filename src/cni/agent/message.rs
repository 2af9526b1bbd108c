//! Messages between the plugin and the node's agent over the agent's socket: one line of JSON each way,
//! `version` first. Unknown members are ignored, so that the plugin of one release can talk to the agent
//! of another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of this protocol. It is raised when a line changes its meaning; a new
/// member that may be absent changes none.
pub const VERSION: u32 = 1;

/// The longest line, in bytes, the line feed included.
pub const LONGEST_LINE: usize = 64 << 10;

/// A line: the version, and the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line<T> {
    pub version: u32,
    #[serde(flatten)]
    pub body: T,
}

/// Why a line was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("the line is longer than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("the line is no message: column {column}")]
    NoMessage { column: usize },
    #[error("the line is of version {0}; this podweir speaks version {VERSION}")]
    OtherVersion(u32),
}

/// The text of a message, a line with its line feed.
///
/// # Errors
/// The message is too long to be sent.
pub fn encode<T: Serialize>(body: T) -> Result<Vec<u8>, LineError> {
    let mut text =
        serde_json::to_vec(&Line { version: VERSION, body }).map_err(|_| LineError::NoMessage { column: 0 })?;
    text.push(b'\n');
    if text.len() > LONGEST_LINE { Err(LineError::TooLong) } else { Ok(text) }
}

/// A message from its text.
///
/// # Errors
/// It is no message, or of a version that is not spoken. The text is never repeated.
pub fn decode<T: for<'a> Deserialize<'a>>(text: &[u8]) -> Result<T, LineError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let no_message = |e: serde_json::Error| LineError::NoMessage { column: e.column() };
    let head: Head = serde_json::from_slice(text).map_err(no_message)?;
    if head.version != VERSION {
        return Err(LineError::OtherVersion(head.version));
    }
    serde_json::from_slice(text).map(|line: Line<T>| line.body).map_err(no_message)
}

/// An attachment: a container's interface in a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentName {
    pub container: String,
    pub interface: String,
}

/// A request to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Whether and how a pod's traffic is to be diverted.
    Decide(Decide),
    /// What the plugin has done. Nobody waits for the answer.
    Done(Done),
    /// Tells that an attachment is gone.
    Forget(AttachmentName),
    /// Whether the agent does its work.
    Status {},
    /// Asks for every pod of the node, as the agent knows it. Without `from`, as older releases ask, the
    /// answer has all pods or is an error. With `from` it has as many as fit into a line, beginning with
    /// that one: the empty text at first, and then the `next` of the answer before. An answer without
    /// `next` is the last one.
    List {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
    },
    /// Everything that is known about one pod.
    Why { namespace: String, name: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decide {
    pub namespace: String,
    pub name: String,
    /// The pod's UID, if the runtime tells it: another pod may have had the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(flatten)]
    pub attachment: AttachmentName,
    /// The path of the pod's network namespace on the node.
    pub netns: String,
}

/// The action of an ADD that failed after the decision to intercept the pod.
pub const FAILED: &str = "failed";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    #[serde(flatten)]
    pub attachment: AttachmentName,
    pub namespace: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    pub netns: String,
    /// `intercepted` or `left alone`, or [`FAILED`].
    pub action: String,
    /// Why the pod was left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub families: Option<String>,
    #[serde(default)]
    pub rules: usize,
    /// Options by name, as they were carried out.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Milliseconds by phase: `lookup`, `read`, `apply`, `total`.
    #[serde(default)]
    pub phases: BTreeMap<String, f64>,
}

/// An option's text, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub value: String,
    pub source: String,
}

/// The agent's answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    LeaveAlone {
        why: String,
    },
    Intercept {
        why: String,
        options: BTreeMap<String, Setting>,
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// No answer can be given; the code is one of the plugin's error codes.
    Error {
        code: u32,
        message: String,
        #[serde(default)]
        details: String,
    },
    /// Acknowledges a notification.
    Heard {},
    /// The answer to `status`, `list` and `why`, for people and programs; its members are
    /// described where they are made.
    Report {
        report: serde_json::Value,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decide() -> Decide {
        Decide {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: Some("7f".into()),
            attachment: AttachmentName { container: "c1".into(), interface: "eth0".into() },
            netns: "/var/run/netns/cni-1".into(),
        }
    }

    #[test]
    fn the_version_stands_first_and_the_line_ends_with_a_line_feed() {
        let text = String::from_utf8(encode(Request::Decide(decide())).unwrap()).unwrap();
        assert!(text.starts_with("{\"version\":1,\"request\":\"decide\",") && text.ends_with("}\n"), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn every_message_reads_back() {
        let attachment = decide().attachment;
        let done = Done {
            attachment: attachment.clone(),
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: None,
            netns: "/n".into(),
            action: "intercepted".into(),
            why: None,
            backend: Some("nftables".into()),
            families: Some("IPv4".into()),
            rules: 16,
            options: [("proxy-uid".to_owned(), "1337".to_owned())].into(),
            phases: [("total".to_owned(), 1.25)].into(),
        };
        for request in [
            Request::Decide(decide()),
            Request::Done(done),
            Request::Forget(attachment),
            Request::Status {},
            Request::List { from: None },
            Request::List { from: Some("shop/web-0/7f".into()) },
            Request::Why { namespace: "a".into(), name: "b\n".into() },
        ] {
            assert_eq!(decode::<Request>(&encode(request.clone()).unwrap()).unwrap(), request);
        }
        let setting = Setting { value: "*".into(), source: "default".into() };
        for answer in [
            Answer::LeaveAlone { why: "w".into() },
            Answer::Intercept { why: "w".into(), options: [("a".to_owned(), setting)].into(), warnings: vec![] },
            Answer::Error { code: 11, message: "m".into(), details: "d".into() },
            Answer::Heard {},
            Answer::Report { report: json!({ "pods": [] }) },
        ] {
            assert_eq!(decode::<Answer>(&encode(answer.clone()).unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn what_a_later_release_adds_is_passed_over_and_another_version_is_named() {
        let more = br#"{"version":1,"request":"status","colour":"blue"}"#;
        assert_eq!(decode::<Request>(more).unwrap(), Request::Status {});
        // What an older release asks, byte for byte.
        let list = "{\"version\":1,\"request\":\"list\"}\n";
        assert_eq!(String::from_utf8(encode(Request::List { from: None }).unwrap()).unwrap(), list);
        assert_eq!(decode::<Request>(list.as_bytes()).unwrap(), Request::List { from: None });
        let later = br#"{"version":2,"request":"divine"}"#;
        assert_eq!(decode::<Request>(later).unwrap_err(), LineError::OtherVersion(2));
        for garbage in [&b""[..], b"\0", b"[]", b"{}", br#"{"version":"1"}"#, br#"{"version":1,"request":"x"}"#] {
            assert!(matches!(decode::<Request>(garbage), Err(LineError::NoMessage { .. })), "{garbage:?}");
        }
        let long = Request::Why { namespace: "n".repeat(LONGEST_LINE), name: String::new() };
        assert_eq!(encode(long).unwrap_err(), LineError::TooLong);
    }

    proptest! {
        /// Whatever stands on the socket, reading it ends in a message or an error that repeats none of it.
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Answer>(&bytes);
        }
    }
}
