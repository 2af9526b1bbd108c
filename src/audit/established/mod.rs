//! Established TCP connections that are older than the rules. Rules look at the first
//! packet of a connection; what was begun before they were there is decided by what
//! connection tracking knows:
//!
//! - it knows the connection: packets go on as before, past the proxy, until it ends;
//! - it does not, as in a namespace without rules until now: the next packet counts as a
//!   first one, is diverted in the middle of a stream, and breaks the connection. Its
//!   sender gets a reset, the other end nothing.
//!
//! A connection that the proxy has is told by its sockets: the proxy's end of it is on a
//! port that rules divert to, or has an address that is not the pod's.

pub mod older;
#[cfg(test)]
mod tests;
pub mod words;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use crate::backend::connections::{self, Ended, Kernel, TcpConnection};
use crate::backend::routing;
use crate::config::interception::Interception;
use crate::config::types::{Family, Interface, OlderConnections};
use crate::plan::model::{Cond, Plan, Verdict, protocol};
use crate::sys::conntrack::{Ends, Tracked};
use crate::sys::inet_diag::{self, TcpSocket, TcpState};
use crate::sys::netlink::Netlink;
use crate::sys::netns::Netns;
use crate::sys::socket_owner::{self, SocketOwner};

use super::explain::{NoTrace, explain};
use super::flow::{Direction, Flow, Surroundings, Taker};
use super::lints::tproxy;
use super::ruleset::{FamilyRules, Ruleset};
use super::source::live;
pub use older::{Established, Fate, Older};

/// Whether the namespace that the calling thread is in can have connections that these rules
/// would take.
pub fn possible(ruleset: &Ruleset) -> bool {
    connections::possible() || takes_forwarded(ruleset)
}

/// Looks at the connections of the network namespace that the calling thread is in.
///
/// # Errors
/// The kernel's, when the sockets cannot be listed.
pub fn look(kernel: &mut Kernel, ruleset: &Ruleset, pod: &Surroundings) -> io::Result<Established> {
    let sockets = kernel.sockets()?;
    let inodes: HashSet<u32> = sockets.iter().filter(|s| s.state != TcpState::Listening).map(|s| s.inode).collect();
    let owners = socket_owner::owners(&inodes.into_iter().filter(|inode| *inode != 0).collect());
    let foreign = Netns::open("/proc/thread-self/ns/net".as_ref()).ok().and_then(|n| n.foreign_owner().ok()?).is_some();
    let forwarded = if takes_forwarded(ruleset) { kernel.all_tracked() } else { Ok(Vec::new()) };
    let known = KnownSockets { owners, foreign, tracked: &mut |ends| kernel.tracked(ends) };
    let mut found = judge(ruleset, pod, &sockets, known);
    found.source_ports = inet_diag::source_ports().ok();
    match forwarded {
        Ok(tracked) => found.older.extend(tracked.into_iter().filter_map(|t| judge_forwarded(ruleset, pod, t))),
        Err(e) => drop(found.untold.get_or_insert(e)),
    }
    Ok(found)
}

/// Whether rules divert forwarded packets that come in by an interface, such as a virtual machine's.
fn takes_forwarded(ruleset: &Ruleset) -> bool {
    let mut chains = Family::BOTH.into_iter().flat_map(|family| &ruleset.family(family).chains);
    chains.any(|chain| chain.rules.iter().any(|rule| diverts_by_interface(&rule.matches.in_interface, &rule.verdict)))
}

/// Whether a rule diverts what comes in by an interface that it names, loopback apart.
fn diverts_by_interface(in_interface: &Option<Cond<Vec<Interface>>>, verdict: &Verdict) -> bool {
    let names_another = |cond: &Cond<Vec<Interface>>| cond.value.iter().any(|name| *name != Interface::lo());
    in_interface.as_ref().is_some_and(|cond| !cond.negated && names_another(cond))
        && matches!(verdict, Verdict::Jump(_) | Verdict::Goto(_) | Verdict::Redirect(_))
}

/// Judges a connection that the pod forwards, and that has no socket in it.
fn judge_forwarded(ruleset: &Ruleset, pod: &Surroundings, tracked: Tracked) -> Option<Older> {
    let Ends { from, to } = tracked.original;
    let is_diverted = tracked.reply.from != to;
    if !tracked.established || is_diverted || pod.is_local(from.ip()) || pod.is_local(to.ip()) {
        return None;
    }
    let flow = Flow {
        direction: Direction::Inbound,
        protocol: protocol::TCP,
        uid: None,
        gid: None,
        source: Some(from.ip()),
        source_port: Some(from.port()),
        destination: to.ip(),
        port: to.port(),
        interface: Some(pod.routes.egress_interface(from.ip())?.into()),
        mark: 0,
    };
    let taken = explain(ruleset, pod, &flow, &mut NoTrace).taker.is_proxy();
    let connection = TcpConnection { sockets: Vec::new(), tracked: Some(tracked) };
    taken.then_some(Older { fate: Fate::Passes, flow, connection })
}

/// Holds the connections of the network namespace that the calling thread is in against a
/// plan that has just been installed there. `None`: there can be none.
///
/// # Errors
/// The kernel's, when sockets, addresses or routes cannot be listed.
pub fn look_for(plan: &Plan) -> io::Result<Option<(Kernel, Established)>> {
    let mut rules = plan.chains.iter().flat_map(|chain| &chain.rules);
    let may_forward = rules.any(|rule| diverts_by_interface(&rule.matches.in_interface, &rule.verdict));
    // Rules are made ready for walking only where there is something to walk through them.
    if !connections::possible() && !may_forward {
        return Ok(None);
    }
    let ruleset = Ruleset::of_plan(plan);
    let mut route = Netlink::open(Netlink::ROUTE)?;
    let addresses = routing::addresses(&mut route)?;
    let pod = live::surroundings(&mut route, addresses).map_err(io::Error::other)?;
    let mut kernel = Kernel::open()?;
    let found = look(&mut kernel, &ruleset, &pod)?;
    Ok(Some((kernel, found)))
}

/// Ends the connections that rules would take, so that they begin again by way of the proxy.
pub fn end(kernel: &mut Kernel, found: &Established) -> Ended {
    connections::end(kernel, words::to_end(found).map(|older| &older.connection))
}

/// What is logged about connections that are older than a plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    pub infos: Vec<String>,
    pub warnings: Vec<String>,
    /// Whether somebody listens already where inbound connections are diverted to.
    pub proxy_seen: bool,
}

/// Leaves or ends the connections that are older than rules just installed, and looks at
/// the proxy, where one runs already. `cure`: what would end those that are left.
pub fn leave_or_end(interception: &Interception, plan: &Plan, what: OlderConnections, cure: &str) -> Remarks {
    let mut said = Remarks::default();
    let (mut kernel, mut found) = match look_for(plan) {
        Ok(Some(found)) => found,
        Ok(None) => return said,
        Err(e) => {
            let unknown = "whether any is older than the rules is not known";
            said.warnings.push(format!("established connections cannot be listed: {e}; {unknown}"));
            return said;
        }
    };
    if what == OlderConnections::Reset {
        let (done, problems) = words::ended(&found, &end(&mut kernel, &found));
        found.older.retain(|older| older.fate == Fate::MayBreak);
        said.infos.extend(done);
        said.warnings.extend(problems);
    }
    said.warnings.extend(words::warnings(&found, cure));
    if let Some(proxy) = tproxy::Proxy::seen(Some(&found)) {
        said.proxy_seen = true;
        said.warnings.extend(tproxy::warning(interception, proxy));
    }
    said
}

/// What is known about sockets besides their listing.
pub struct KnownSockets<'a> {
    /// The owners of sockets, by inode.
    pub owners: HashMap<u32, SocketOwner>,
    /// Whether another user namespace owns the network namespace, so that a socket's user has another
    /// number here than in rules.
    pub foreign: bool,
    pub tracked: &'a mut dyn FnMut(Ends) -> io::Result<Option<Tracked>>,
}

/// Judges the sockets of a namespace.
pub fn judge(ruleset: &Ruleset, pod: &Surroundings, sockets: &[TcpSocket], known: KnownSockets) -> Established {
    let is_listening = |s: &&TcpSocket| s.state == TcpState::Listening;
    let mut judge = ConnectionJudge {
        ruleset,
        pod,
        known,
        listening: sockets.iter().filter(is_listening).map(|s| s.local.port()).collect(),
        by_ends: sockets.iter().map(|s| ((s.local, s.remote), s)).collect(),
        at_proxy: HashSet::new(),
        proxy_uids: HashSet::new(),
        out: Established::default(),
    };
    judge.at_proxy = sockets.iter().filter(|s| judge.is_proxy(s.local)).map(|s| s.remote).collect();
    let listeners: Vec<&TcpSocket> = sockets.iter().filter(is_listening).filter(|s| judge.is_proxy(s.local)).collect();
    judge.proxy_uids = listeners.iter().map(|s| s.uid).collect();
    let inbound = listeners.into_iter().filter(|s| judge.is_inbound(s.local));
    judge.out.inbound_listeners = inbound.cloned().collect();
    for socket in sockets {
        if matches!(socket.state, TcpState::Established | TcpState::HalfClosed | TcpState::Opening) {
            let older = judge.one(socket);
            judge.out.older.extend(older);
        }
    }
    judge.out
}

struct ConnectionJudge<'a, 'k> {
    ruleset: &'a Ruleset,
    pod: &'a Surroundings,
    known: KnownSockets<'k>,
    /// The ports on which sockets listen.
    listening: HashSet<u16>,
    by_ends: HashMap<(SocketAddr, SocketAddr), &'a TcpSocket>,
    /// The other ends of connections that the proxy has.
    at_proxy: HashSet<SocketAddr>,
    /// The users of sockets that listen on ports which rules divert to.
    proxy_uids: HashSet<u32>,
    out: Established,
}

impl ConnectionJudge<'_, '_> {
    fn one(&mut self, socket: &TcpSocket) -> Option<Older> {
        let established = socket.state == TcpState::Established;
        if self.is_proxys(socket) {
            // The proxy's own connection to the app is none that came to it.
            self.out.proxied += usize::from(established && self.pod.is_local(socket.local.ip()));
            return None;
        }
        let other = self.by_ends.get(&(socket.remote, socket.local)).copied();
        let is_diverted = self.at_proxy.contains(&socket.local) || other.is_some_and(|other| self.is_proxys(other));
        if is_diverted || self.is_proxy(socket.remote) && self.pod.is_local(socket.remote.ip()) {
            return None;
        }
        let within = other.is_some() || self.pod.is_local(socket.remote.ip());
        let accepted = self.listening.contains(&socket.local.port());
        // Within the pod it is judged at the end that began it, as long as both are there.
        if within && (!established || (accepted && !self.listening.contains(&socket.remote.port()))) {
            return None;
        }
        let (out, back) = (self.outbound(socket), inbound(socket));
        let begun_here = within || !accepted;
        let takes = |flow: &Flow| explain(self.ruleset, self.pod, flow, &mut NoTrace).taker.is_proxy();
        // A packet that stays in the pod is known to connection tracking when it comes in.
        let (takes_out, takes_back) = (takes(&out), !within && takes(&back));
        if !takes_out && !takes_back {
            return None;
        }
        let taken = |begun_here: bool| if begun_here { takes_out } else { takes_back };
        let ends = Ends { from: socket.local, to: socket.remote };
        let (tracked, begun_here, fate) = match (self.known.tracked)(ends) {
            Ok(Some(tracked)) if self.leads_to_proxy(&tracked) => return None,
            Ok(Some(tracked)) => {
                let begun_here = tracked.original == ends;
                (Some(tracked), begun_here, taken(begun_here).then_some(Fate::Passes)?)
            }
            // One that is not tracked and half closed may have been the proxy's, and is as
            // good as over.
            _ if !established => return None,
            Ok(None) if taken(begun_here) => (None, begun_here, Fate::Breaks),
            Ok(None) => (None, begun_here, Fate::MayBreak),
            Err(e) => {
                self.out.untold.get_or_insert(e);
                (None, begun_here, taken(begun_here).then_some(Fate::Passes)?)
            }
        };
        if begun_here && takes_out && self.may_be_the_proxys(socket) {
            self.out.unsure += 1;
            return None;
        }
        let sockets = [Some(socket), other].into_iter().flatten().cloned().collect();
        let flow = if begun_here { out } else { back };
        Some(Older { fate, flow, connection: TcpConnection { sockets, tracked } })
    }

    /// Whether rules divert to this address's port.
    fn is_proxy(&self, address: SocketAddr) -> bool {
        self.rules(address).listeners.iter().any(|listener| listener.port == address.port())
    }

    /// Whether rules divert inbound connections to this address's port.
    fn is_inbound(&self, address: SocketAddr) -> bool {
        let mut listeners = self.rules(address).listeners.iter();
        listeners.any(|listener| (listener.port, listener.taker) == (address.port(), Taker::InboundProxy))
    }

    /// Whether a socket is the proxy's end of a connection that was diverted to it, or of one to the app
    /// in a client's name.
    fn is_proxys(&self, socket: &TcpSocket) -> bool {
        let taken_by_tproxy = match socket.transparent {
            Some(transparent) => transparent,
            None => self.tproxy_marks(socket.local).next().is_some() && self.proxy_uids.contains(&socket.uid),
        };
        taken_by_tproxy || self.is_proxy(socket.local)
    }

    /// What rules mark connections with that they hand to the proxy's socket.
    fn tproxy_marks(&self, address: SocketAddr) -> impl Iterator<Item = u32> {
        let rules = self.rules(address).chains.iter().flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| match rule.verdict {
            Verdict::Tproxy { mark, .. } => Some(mark.get()),
            _ => None,
        })
    }

    fn rules(&self, address: SocketAddr) -> &FamilyRules {
        self.ruleset.family(if address.is_ipv4() { Family::V4 } else { Family::V6 })
    }

    /// Whether connection tracking remembers that it was diverted, or that the proxy made it.
    fn leads_to_proxy(&self, tracked: &Tracked) -> bool {
        let rewritten = tracked.reply.from != tracked.original.to && self.is_proxy(tracked.reply.from);
        rewritten || self.tproxy_marks(tracked.original.to).any(|mark| mark == tracked.mark)
    }

    /// Whether a socket may be the proxy's own connection to somewhere else, as far as can be seen.
    fn may_be_the_proxys(&self, socket: &TcpSocket) -> bool {
        let seen = self.known.owners.contains_key(&socket.inode);
        !seen && (self.known.foreign || self.proxy_uids.contains(&socket.uid))
    }

    /// The first packet of a socket's connection, if it was opened from this end.
    fn outbound(&self, socket: &TcpSocket) -> Flow {
        let owner = self.known.owners.get(&socket.inode);
        Flow {
            direction: Direction::Outbound,
            protocol: protocol::TCP,
            uid: Some(owner.filter(|owner| owner.foreign).map_or(socket.uid, |owner| owner.uid)),
            gid: owner.map(|owner| owner.gid),
            source: Some(socket.local.ip()),
            source_port: Some(socket.local.port()),
            destination: socket.remote.ip(),
            port: socket.remote.port(),
            interface: None,
            mark: socket.mark,
        }
    }
}

/// The first packet of a socket's connection, if it was opened from the other end.
fn inbound(socket: &TcpSocket) -> Flow {
    Flow {
        direction: Direction::Inbound,
        protocol: protocol::TCP,
        uid: None,
        gid: None,
        source: Some(socket.remote.ip()),
        source_port: Some(socket.remote.port()),
        destination: socket.local.ip(),
        port: socket.local.port(),
        interface: None,
        mark: 0,
    }
}
