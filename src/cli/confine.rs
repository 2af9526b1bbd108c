//! What a command may still do while it reads what others wrote: dumps, manifests, and the
//! names and comments of rules in a kernel.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgMatches;

use crate::backend;
use crate::config::settings::{BackendChoice, Run};
use crate::sys::privilege::{
    self, CAP_CHOWN, CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, Keep,
};
use crate::sys::sandbox::Sandbox;

/// The capabilities for reading a namespace: its rules, and the owners of its connections.
const LOOKING: Keep = Keep::RULES.and(CAP_SYS_PTRACE).and(CAP_DAC_READ_SEARCH);
/// The capabilities for reading files that the command line names, which may be anybody's.
const READING: Keep = Keep::NOTHING.and(CAP_DAC_READ_SEARCH);

/// Whether a kernel's rules are asked for.
pub(super) fn is_live(matches: &ArgMatches) -> bool {
    matches.get_flag("live") || ["netns", "pid"].iter().any(|name| matches.contains_id(name))
}

/// Gives up, before anything is read, what reading rules does not take. Reading a kernel also needs
/// other processes, so [`to_named_files`] follows after that.
pub(super) fn begin(matches: &ArgMatches) {
    if is_live(matches) {
        to_looking();
    } else {
        to_named_files(matches);
    }
}

/// Keeps what looking at a kernel takes, and what entering a namespace first takes.
pub(super) fn to_looking() {
    privilege::keep_only(LOOKING.and_namespaces());
}

/// Keeps what looking at a kernel takes, once its namespace has been entered.
pub(super) fn entered() {
    privilege::keep_only(LOOKING);
}

/// Gives up writing, starting programs, connecting, and reading other files than those that the
/// arguments name.
pub(super) fn to_named_files(matches: &ArgMatches) {
    privilege::keep_only(READING);
    let sandbox = named(matches).into_iter().fold(Sandbox::new(), Sandbox::read);
    // Runtimes' configurations, which are looked at for what was not named.
    sandbox.read("/etc/cni/net.d").connecting_to([]).enforce();
}

/// The files that the arguments of any command name.
fn named(matches: &ArgMatches) -> Vec<PathBuf> {
    let raw = |name: &str| matches.try_get_raw(name).ok().flatten().into_iter().flatten().map(OsString::from);
    let files =
        ["dump", "pod-manifest", "netconf", "accept", "flows", "manifests", "injector-values", "baseline", "facts"]
            .into_iter()
            .flat_map(raw);
    let path = |name: OsString| {
        let path =
            name.to_str().and_then(|name| ["ipv4=", "ipv6="].iter().find_map(|family| name.strip_prefix(family)));
        path.map_or_else(|| PathBuf::from(&name), PathBuf::from)
    };
    files.map(path).collect()
}

/// The capabilities for making and removing rules in the current namespace.
fn programming(choice: BackendChoice) -> Keep {
    // Who holds the lock, and whose connections there are, is seen in a process namespace that
    // is shared with them: by who may trace them, in folders that are theirs (proc(5),
    // /proc/pid/fd). Where a user namespace has the namespace, so has that one's user 0 its
    // files in proc(5).
    backend::capabilities(choice).and(CAP_SYS_PTRACE).and(CAP_DAC_READ_SEARCH)
}

/// Gives up what making or removing an interception in the current namespace does not take.
pub(super) fn to_programming(run: &Run) {
    let mut keep = programming(run.backend);
    if run.run_validation {
        // It listens as the proxy does, and sends as the proxy's user.
        keep = keep.and(CAP_NET_BIND_SERVICE).and(CAP_SETUID).and(CAP_SETGID);
    }
    privilege::keep_only(keep);
}

/// Gives up what making rules for ambient mode does not take, in a pod's namespace or the node's.
pub(super) fn to_programming_for_ambient(choice: BackendChoice) {
    privilege::keep_only(programming(choice));
}

/// The agent of a node. It enters pods' namespaces, finds them by the processes of pods, and
/// works there; what a pod with a user namespace of its own has in proc(5) is that user's.
/// What the agent installs lies in folders of root's, and a file in which it puts its entry
/// stays its owner's and group's.
///
/// Landlock is not used: the agent writes to folders of the runtime and watches their parents, which
/// come and go, and it reads other processes, which a confined process may not.
pub(super) fn to_the_nodes_agent() {
    let of_pods = Keep::RULES.and_namespaces().and(CAP_SYS_PTRACE).and(CAP_DAC_READ_SEARCH);
    privilege::keep_only(of_pods.and(CAP_CHOWN));
}

/// What the agent leaves on a node is removed: files of root's, its entry in files that are
/// whoever's, and the node's rules.
pub(super) fn to_uninstalling() {
    privilege::keep_only(programming(BackendChoice::Auto).and(CAP_CHOWN));
}

/// Gives up all capabilities, for commands that only ask the agent.
pub(super) fn to_asking() {
    privilege::keep_only(Keep::NOTHING);
}
