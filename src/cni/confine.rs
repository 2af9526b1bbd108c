//! The rights of a call while it reads what others wrote. It is root's on the node, and its input comes
//! from runtimes, files, an API server and, through that, whoever may write annotations: so it gives up
//! rights as soon as it is known that they are not needed.
//!
//! | when | what goes |
//! |---|---|
//! | at the start | capabilities that no verb needs |
//! | the netconf is read | writing anywhere but in the run directory; signals to others |
//! | the pod's namespace is open | what opening it took |
//! | the kubeconfig is read | reading anything but what it names and what is left to do; connections to others than its server |
//! | the pod's namespace is entered | entering others |
//!
//! With an agent on the node that is root as well, and wrote this plugin, the fourth step has
//! nothing to keep out and is left out. The deadline's thread is started between the second
//! and the fourth.
//!
//! System calls stay as they are: a seccomp filter that refuses 25 of them costs a process
//! 0.10 ms, one that allows 100 costs 0.24 ms, more than all of this together.

use std::path::Path;

use http::Uri;

use crate::backend;
use crate::backend::iptables::folders::folders;
use crate::config::given::{Environment, process_environment};
use crate::config::settings::BackendChoice;
use crate::sys::privilege::{self, CAP_DAC_READ_SEARCH, CAP_SYS_MODULE, CAP_SYS_PTRACE, Keep};
use crate::sys::sandbox::Sandbox;

use super::access::Access;
use super::protocol::Verb;

/// Where the pod has a user namespace of its own, iptables' programs are started in it, and
/// its user 0 has the files of proc(5) that list what iptables-legacy made.
const OF_OWNED: Keep = Keep::RULES.and_namespaces().and(CAP_DAC_READ_SEARCH);

/// At the start: what the verb may need, whatever the netconf says.
pub(super) fn start(verb: Verb) {
    privilege::keep_only(match verb {
        // A namespace may be named by a process that has more than we have by now.
        Verb::Add | Verb::Check => OF_OWNED.and(CAP_SYS_PTRACE).and(CAP_SYS_MODULE),
        Verb::Status => Keep::RULES.and_namespaces(),
        Verb::Del | Verb::Gc | Verb::Version => Keep::NOTHING,
    });
}

/// Once the netconf is read: only the log and the state of attachments can be written.
pub(super) fn writes(run_dir: &Path) {
    // It is made when there is something to put into it.
    let there = run_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(run_dir);
    Sandbox::new().reading_everything().write(there).run([]).enforce();
}

/// Once the pod's namespace is open: keeps what entering it and working in it takes. `owned`: the pod
/// has a user namespace of its own.
pub(super) fn opened(choice: BackendChoice, owned: bool) {
    privilege::keep_only(if owned { OF_OWNED } else { backend::capabilities(choice).and_namespaces() });
}

/// Once the pod's namespace is entered: keeps what working in it takes.
pub(super) fn entered(choice: BackendChoice, owned: bool) {
    if !owned {
        privilege::keep_only(backend::capabilities(choice));
    }
}

/// Once the API server is known: no other server can be reached, and only those files can be read that
/// the kubeconfig names and that working in the pod's namespace takes.
pub(super) fn lookup(run_dir: &Path, access: &Access) {
    let path = process_environment("PATH").unwrap_or_default();
    let mut sandbox = Sandbox::new().write(run_dir).run(folders(path.as_ref()));
    sandbox = sandbox.read("/proc").read("/etc/resolv.conf");
    sandbox = access.files.iter().fold(sandbox, Sandbox::read);
    if access.authority.is_none() {
        sandbox = certificates(&process_environment).into_iter().fold(sandbox, Sandbox::read);
    }
    let server = access.server.parse::<Uri>().unwrap_or_default();
    let is_address =
        server.host().is_some_and(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok());
    let default = if server.scheme_str() == Some("http") { 80 } else { 443 };
    let mut ports = vec![server.port_u16().unwrap_or(default)];
    if !is_address {
        sandbox = sandbox.read("/etc/hosts").read("/etc/nsswitch.conf");
        // Of name servers, where an answer is too long for a datagram.
        ports.push(53);
    }
    sandbox.connecting_to(ports).enforce();
}

/// The folders in which systems keep trusted certificates.
fn certificates(environment: Environment) -> Vec<String> {
    let usual = [
        "/etc/ssl",
        "/etc/pki",
        "/etc/ca-certificates",
        "/usr/local/share/ca-certificates",
        "/var/lib/ca-certificates",
    ];
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(environment);
    usual.into_iter().map(str::to_owned).chain(named).collect()
}
