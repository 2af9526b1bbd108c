//! A call of the plugin: what the `CNI_` variables and standard input say.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::given::Environment;
use crate::config::pod::PodId;
use crate::config::settings::LONGEST_QUOTE;
use crate::sys::start::was_closed;
use crate::sys::text::{rounded, shortened};

use super::protocol::{CniError, Code, Verb};

/// The longest netconf that is read; those that runtimes send are far shorter.
const LONGEST_INPUT: u64 = 16 << 20;

/// How long an ADD may take unless the netconf says otherwise.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// The time by which a call must be done.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    pub started: Instant,
    pub timeout: Duration,
}

impl Deadline {
    pub fn remaining(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }
}

/// A container's attachment to a network: what state is kept by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub container_id: String,
    pub ifname: String,
}

/// The `CNI_` variables, not yet checked: which ones are needed depends on the verb.
#[derive(Debug, Clone)]
pub(crate) struct Variables {
    container_id: Option<String>,
    ifname: Option<String>,
    netns: Option<String>,
    args: String,
}

impl Variables {
    pub(crate) fn read(environment: Environment) -> Self {
        let variable = |name| environment(name).filter(|value| !value.is_empty());
        Self {
            container_id: variable("CNI_CONTAINERID"),
            ifname: variable("CNI_IFNAME"),
            netns: variable("CNI_NETNS"),
            args: variable("CNI_ARGS").unwrap_or_default(),
        }
    }

    /// The container's id as it was sent, for the log.
    pub(crate) fn container_id(&self) -> &str {
        self.container_id.as_deref().unwrap_or_default()
    }

    pub(crate) fn attachment(&self) -> Result<Attachment, CniError> {
        let container_id = self.container_id.clone().ok_or_else(|| missing("CNI_CONTAINERID"))?;
        let ifname = self.ifname.clone().ok_or_else(|| missing("CNI_IFNAME"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if container_id.len() > 200
            || !container_id.chars().all(plain)
            || !container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            return Err(invalid("CNI_CONTAINERID", &container_id, "letters, digits, '_', '.' and '-', at most 200"));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if ifname.len() > 15 || matches!(ifname.as_str(), "." | "..") || ifname.contains(bad) {
            return Err(invalid("CNI_IFNAME", &ifname, "the name of a network interface, such as eth0"));
        }
        Ok(Attachment { container_id, ifname })
    }

    pub(crate) fn netns(&self) -> Result<PathBuf, CniError> {
        self.netns.as_ref().map(PathBuf::from).ok_or_else(|| missing("CNI_NETNS"))
    }

    /// The pod that `CNI_ARGS` names; `None` where this is not Kubernetes.
    pub(crate) fn pod(&self) -> Result<Option<PodId>, CniError> {
        let (mut namespace, mut name, mut uid) = (None, None, None);
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid("CNI_ARGS", pair, "pairs such as K8S_POD_NAME=web-0, separated by ';'"));
            };
            match key {
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                "K8S_POD_UID" => uid = Some(value),
                _ => {}
            }
        }
        let (Some(namespace), Some(name)) = (namespace.filter(|s| !s.is_empty()), name.filter(|s| !s.is_empty()))
        else {
            return Ok(None);
        };
        for (key, value) in [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)] {
            // They become parts of an address.
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            let ends = value.starts_with(|c: char| c.is_ascii_alphanumeric());
            if value.len() > 253 || !ends || !value.chars().all(plain) {
                return Err(invalid(&format!("CNI_ARGS: {key}"), value, "a name as Kubernetes gives them"));
            }
        }
        let uid = uid.filter(|uid| !uid.is_empty()).map(str::to_owned);
        Ok(Some(PodId { namespace: namespace.into(), name: name.into(), uid }))
    }
}

fn missing(variable: &str) -> CniError {
    CniError::new(Code::Environment, format!("the variable {variable} is not set"))
        .details("a container runtime sets it; podweir cannot do without it here")
}

fn invalid(variable: &str, value: &str, expected: &str) -> CniError {
    let value = shortened(value, LONGEST_QUOTE);
    CniError::new(Code::Environment, format!("{variable}: {value:?} makes no sense; expected {expected}"))
}

/// The verb that `CNI_COMMAND` names.
pub(crate) fn verb(environment: Environment) -> Result<Verb, CniError> {
    let text = environment("CNI_COMMAND").unwrap_or_default();
    Verb::parse(&text)
        .ok_or_else(|| invalid("CNI_COMMAND", &text, "one of ADD, CHECK, DEL, GC, STATUS and VERSION, from a runtime"))
}

/// Reads standard input to its end, waiting at most until the deadline.
pub(crate) fn read_input(deadline: &Deadline) -> Result<Vec<u8>, CniError> {
    let failed = |e: io::Error| CniError::new(Code::Io, format!("cannot read the netconf from standard input: {e}"));
    if was_closed(0) {
        return Err(failed(Errno::EBADF.into()));
    }
    // Past the standard library's buffer: what is in that, poll would not see.
    let mut stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(failed)?;
    let mut input = Vec::new();
    loop {
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(deadline.remaining()).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(0) if deadline.remaining().is_zero() => {
                return Err(failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("it was still open after {}", rounded(deadline.timeout)),
                )));
            }
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        // A page: a netconf is hardly longer, and every start has this on its stack.
        let mut buffer = [0; 4 << 10];
        match stdin.read(&mut buffer) {
            Ok(0) => return Ok(input),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
        if input.len() as u64 > LONGEST_INPUT {
            return Err(CniError::new(Code::Decode, "the netconf on standard input is longer than 16 MiB"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Variables::read(&find)
    }

    #[test]
    fn pods_are_named_by_the_arguments() {
        let pod = |args: &str| variables(&[("CNI_ARGS", args)]).pod();
        let both = "K8S_POD_UID=1;K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;";
        let full = pod(both).unwrap().unwrap();
        assert_eq!((full.to_string().as_str(), full.uid.as_deref()), ("shop/web-0", Some("1")));
        let bare = pod("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop;K8S_POD_UID=").unwrap().unwrap();
        assert_eq!(bare.uid, None);
        for other in ["", "IgnoreUnknown=1", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE=;K8S_POD_NAME=a"] {
            assert!(pod(other).unwrap().is_none(), "{other}");
        }
        for bad in ["K8S_POD_NAME", "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=a/b"] {
            assert_eq!(pod(bad).unwrap_err().code, Code::Environment, "{bad}");
        }
    }

    #[test]
    fn attachments_are_fit_for_file_names() {
        let of = |id: &str, ifname: &str| variables(&[("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)]).attachment();
        assert!(of("abc-1_2.3", "eth0").is_ok());
        for (id, ifname) in
            [("", "eth0"), ("a", ""), ("../a", "eth0"), ("a/b", "eth0"), ("a", "a/b"), ("a", ".."), ("a", "a:b")]
        {
            assert_eq!(of(id, ifname).unwrap_err().code, Code::Environment, "{id} {ifname}");
        }
    }
}
