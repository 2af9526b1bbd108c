//! What is said about connections that are older than the rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::libc;

use crate::audit::flow::{Direction, Flow};
use crate::backend::connections::Ended;

use super::older::{Established, Fate, Older};

/// How many kinds of connections a message names.
const NAMED: usize = 5;

/// Connections that differ only in a port that was chosen by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionGroup {
    /// "outbound TCP of user 1000 to 10.0.0.5:5432", "inbound TCP to port 8080".
    pub what: String,
    pub count: usize,
}

/// The connections with this fate, the most of a kind first.
pub fn groups(found: &Established, fate: Fate) -> Vec<ConnectionGroup> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for older in found.older.iter().filter(|older| older.fate == fate) {
        *counts.entry(kind(&older.flow)).or_default() += 1;
    }
    let mut groups: Vec<ConnectionGroup> =
        counts.into_iter().map(|(what, count)| ConnectionGroup { what, count }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

fn kind(flow: &Flow) -> String {
    match flow.direction {
        Direction::Inbound => {
            let from = flow.interface.as_ref().map(|interface| format!(" by {interface}")).unwrap_or_default();
            format!("inbound TCP{from} to {}", SocketAddr::new(flow.destination, flow.port))
        }
        Direction::Outbound => {
            let user = flow.uid.map(|uid| format!(" of user {uid}")).unwrap_or_default();
            format!("outbound TCP{user} to {}", SocketAddr::new(flow.destination, flow.port))
        }
    }
}

/// "outbound TCP of user 1000 to 10.0.0.5:5432 (3), … and 2 more kinds".
fn list(groups: &[ConnectionGroup]) -> String {
    let named = groups.iter().take(NAMED).map(|ConnectionGroup { what, count }| match count {
        1 => what.clone(),
        _ => format!("{what} ({count})"),
    });
    let mut out = named.collect::<Vec<_>>().join(", ");
    let (more, rest) = (groups.len().saturating_sub(NAMED), groups.iter().skip(NAMED).map(|g| g.count).sum::<usize>());
    if more > 0 {
        out += &format!(", and {rest} to {more} other places");
    }
    out
}

/// "1 established connection older than the rules", "3 established connections …".
fn some(number: usize) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} established connection{plural} older than the rules")
}

fn total(groups: &[ConnectionGroup]) -> usize {
    groups.iter().map(|group| group.count).sum()
}

/// The warnings about connections that are left as they are. `cure`: what would end them.
pub fn warnings(found: &Established, cure: &str) -> Vec<String> {
    let cured = |sentence: String, more: &str| format!("{sentence}; {cure}{more}");
    let mut out: Vec<String> = sentence(found, Fate::Passes).map(|s| cured(s, "")).into_iter().collect();
    out.extend(sentence(found, Fate::Breaks).map(|s| cured(s, " at both ends")));
    out.extend(sentence(found, Fate::MayBreak));
    out.extend(aside(found));
    out
}

/// A sentence about the connections with a fate, which says what becomes of them.
pub fn sentence(found: &Established, fate: Fate) -> Option<String> {
    let groups = groups(found, fate);
    let (some, list, one) = (some(total(&groups)), list(&groups), total(&groups) == 1);
    let text = match fate {
        _ if groups.is_empty() => return None,
        Fate::Passes if one => format!("{some} passes the proxy by until it ends: {list}"),
        Fate::Passes => format!("{some} pass the proxy by until they end: {list}"),
        Fate::Breaks => format!(
            "{some} will break: connection tracking has not seen {}, so that the next packet is diverted in the middle of a stream; its sender gets a reset, the other end nothing: {list}",
            if one { "it" } else { "them" }
        ),
        Fate::MayBreak => format!("{some} will break if the end that did not begin it is the next to send: {list}"),
    };
    Some(text)
}

/// The warning for when conntrack could not be queried.
pub fn aside(found: &Established) -> Option<String> {
    let problem = found.untold.as_ref()?;
    Some(format!(
        "connection tracking could not be asked about established connections: {problem}; those said to pass the proxy by may break instead"
    ))
}

/// The warning that connections may be the proxy's, since their group is unknown.
pub fn unsure(found: &Established) -> Option<String> {
    (found.unsure > 0).then(|| format!(
        "{} may be the proxy's own, which runs as the same user: of which group they are cannot be seen from here; look as root in the node's PID namespace",
        some(found.unsure).replace(" older", " perhaps older")
    ))
}

/// The connections that can be ended, so that they begin again by way of the proxy.
pub fn to_end(found: &Established) -> impl Iterator<Item = &Older> {
    found.older.iter().filter(|older| older.fate != Fate::MayBreak)
}

/// A message about the connections that were ended, and warnings about those that could not be.
pub fn ended(found: &Established, ended: &Ended) -> (Option<String>, Vec<String>) {
    let mut all = groups(found, Fate::Passes);
    all.extend(groups(found, Fate::Breaks));
    let list = list(&all);
    let done = (ended.ended > 0).then(|| format!("ended {}: {list}", some(ended.ended)));
    let Some(problem) = &ended.problem else { return (done, Vec::new()) };
    let hint = match problem.raw_os_error() {
        Some(libc::EOPNOTSUPP) => " (this kernel is built without CONFIG_INET_DIAG_DESTROY)",
        Some(libc::EPERM) => " (it takes CAP_NET_ADMIN in the user namespace that owns the pod's network)",
        _ => "",
    };
    let left = |number: usize, what: &str| {
        (number > 0).then(|| format!("cannot end {}: {problem}{hint}; {what}: {list}", some(number)))
    };
    let breaks = left(ended.breaks, "rules divert the next packet, which breaks the connection");
    let passes = left(ended.left, "restart the processes that have them, else they go on past the proxy");
    (done, breaks.into_iter().chain(passes).collect())
}
