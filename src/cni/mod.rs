//! The CNI face: a plugin that a container runtime executes last in a chain, with
//! `CNI_COMMAND` in the environment and the netconf on standard input. Standard output
//! carries the result or the error object and nothing else.
//!
//! | file | what it owns |
//! |---|---|
//! | `protocol` | verbs, versions, results, error objects |
//! | `request`, `netconf` | what the runtime sends, checked |
//! | `decide`, `decision` | what is done with a pod, which `config::pod` reads |
//! | `kubeconfig`, `access`, `client`, `resolver` | whom to ask for a pod, and one request |
//! | `lookup`, `patience` | asking for a pod, and asking again |
//! | `namespace` | working in a pod's network namespace |
//! | `confine` | what a call may still do when it reads what others wrote |
//! | `verbs`, `state`, `reply`, `log`, `rotate` | what each verb does, remembers and says |

pub(crate) mod access;
pub mod agent;
pub(crate) mod client;
mod confine;
pub(crate) mod decide;
pub(crate) mod decision;
pub(crate) mod kubeconfig;
mod log;
pub(crate) mod lookup;
pub(crate) mod namespace;
pub(crate) mod netconf;
mod patience;
pub(crate) mod protocol;
mod reply;
pub(crate) mod request;
mod resolver;
mod rotate;
pub(crate) mod state;
mod verbs;

use std::any::Any;
use std::sync::Arc;

use crate::config::given::{Environment, process_environment};
use crate::sys::start;

use log::Caller;
use netconf::RawNetconf;
use protocol::{CniError, CniVersion, Code, Verb};
use reply::{Delivery, Reply};
use request::{DEFAULT_TIMEOUT, Deadline, Variables};
use verbs::Call;

pub use netconf::node_options;

/// Whether a container runtime has started this process.
pub fn is_called(environment: Environment) -> bool {
    environment("CNI_COMMAND").is_some()
}

/// Answers the call and returns the exit status. Every failure, panics included, is answered.
pub fn main() -> u8 {
    let answer = Arc::new(Reply::default());
    let theirs = answer.clone();
    // The release build does not unwind: a panic is answered on the spot.
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(|place| format!("at {place}; ")).unwrap_or_default();
        let status = give_up(&theirs, &internal(panic.payload(), &place));
        std::process::exit(status.into());
    }));
    let error = match run(&answer) {
        Ok(()) => match answer.give("") {
            Delivery::Failed(error) => error,
            _ => return answer.has_failed().into(),
        },
        Err(error) => error,
    };
    give_up(&answer, &error)
}

/// Answers with an error object, unless there is an answer already; returns the exit status.
fn give_up(answer: &Reply, error: &CniError) -> u8 {
    // Where the netconf was no good, logging has not begun.
    log::start("", Caller::default(), None);
    tracing::error!(code = error.code.number(), "{error}");
    if let Delivery::Failed(error) = answer.fail(error) {
        tracing::error!("{error}");
    }
    1
}

/// The error for a panic.
fn internal(panic: &(dyn Any + Send), place: &str) -> CniError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    CniError::new(Code::Internal, format!("podweir made a mistake: {}", text.unwrap_or("it panicked")))
        .details(format!("{place}please report it, with the plugin's log"))
}

fn run(answer: &Arc<Reply>) -> Result<(), CniError> {
    let mut deadline = Deadline { started: start::began(), timeout: DEFAULT_TIMEOUT };
    let verb = request::verb(&process_environment)?;
    confine::start(verb);
    let variables = Variables::read(&process_environment);
    let input = request::read_input(&deadline);
    if verb == Verb::Del {
        // Whatever the netconf is, the pod goes.
        let (raw, problem) = match input.and_then(|input| RawNetconf::parse(&input)) {
            Ok(raw) => (raw, None),
            Err(error) => (RawNetconf::default(), Some(error)),
        };
        start_log(verb, &variables, &raw);
        problem.iter().for_each(|problem| tracing::warn!("{problem}"));
        match raw.run_dir() {
            Ok(run_dir) => {
                confine::writes(&run_dir);
                verbs::del(&variables, &run_dir);
            }
            Err(error) => tracing::warn!("nothing is forgotten: {error}"),
        }
        return Ok(());
    }
    let input = input?;
    if verb == Verb::Version {
        return version(&input, answer);
    }
    let raw = RawNetconf::parse(&input)?;
    start_log(verb, &variables, &raw);
    let version = raw.version()?;
    answer.speak(version);
    if version < verb.since() {
        let (name, since) = (verb.name(), verb.since().name());
        return Err(CniError::new(
            Code::IncompatibleVersion,
            format!("the netconf's cniVersion {} has no {name}", version.name()),
        )
        .details(format!("{name} came with {since}")));
    }
    let netconf = raw.check(version)?;
    deadline.timeout = netconf.timeout;
    let call = Call { variables, netconf, deadline, answer: answer.clone() };
    match verb {
        Verb::Add => call.add(),
        Verb::Check => call.check(),
        Verb::Gc => call.gc(),
        Verb::Status => call.status(),
        Verb::Del | Verb::Version => Ok(()),
    }
}

fn start_log(verb: Verb, variables: &Variables, raw: &RawNetconf) {
    let pod = variables.pod().ok().flatten().map(|pod| pod.to_string()).unwrap_or_default();
    let caller = Caller { verb: verb.name(), pod, container_id: variables.container_id().into() };
    log::start(&raw.log_level(), caller, raw.run_dir().as_deref().ok());
}

/// Answers VERSION with the supported versions: the netconf's version may be any, or missing.
fn version(input: &[u8], answer: &Reply) -> Result<(), CniError> {
    let spoken = match input.iter().all(u8::is_ascii_whitespace) {
        true => CniVersion::LATEST,
        false => RawNetconf::parse(input)?.version().unwrap_or(CniVersion::LATEST),
    };
    match answer.give(&protocol::version_result(spoken)) {
        Delivery::Failed(error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_object_that_tells_what_it_said() {
        for panic in [&"boom" as &(dyn Any + Send), &"boom".to_owned()] {
            let error = internal(panic, "at here; ");
            assert_eq!((error.code, error.code.number()), (Code::Internal, 999));
            assert!(error.msg.contains("boom") && error.details.starts_with("at here; "), "{error}");
        }
        assert!(internal(&7, "").msg.contains("it panicked"));
    }

    #[test]
    fn who_comes_second_does_not_answer() {
        let answer = Reply::default();
        assert!(matches!(answer.give(""), Delivery::Written));
        assert_eq!(give_up(&answer, &internal(&7, "")), 1);
        assert!(!answer.has_failed());
    }
}
