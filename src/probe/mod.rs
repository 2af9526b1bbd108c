//! `--run-validation`: sends a token through the rules to listeners of our own and
//! demands it back, with the destination it was addressed to. Only the kernel can answer
//! right, so a rule that is missing, shadowed or without effect shows.
//!
//! Which connections to make is not guessed: each one is chosen so that, by the plan,
//! the proxy gets it.

mod inbound;
mod listener;
mod outbound;
mod tcp;
mod trial;
mod witness;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::audit::explain::{NoTrace, explain};
use crate::audit::flow::{Direction, Flow, Surroundings, Taker};
use crate::audit::ruleset::Ruleset;
use crate::config::facts::is_global;
use crate::config::interception::{DnsCapture, Interception, OwnerGroups};
use crate::config::types::{Family, Port, RangeSelection};
use crate::plan::model::{Plan, protocol};

use listener::{Listeners, Occupied};
use trial::Target;
pub use trial::{Path, PathKind, Trial};

/// The results of a validation.
#[derive(Debug, Default)]
pub struct Validation {
    pub passed: Vec<Path>,
    /// The paths that could not be tested, and why.
    pub untested: Vec<(Path, String)>,
    /// The proxy's ports on which somebody else listens already.
    pub occupied: Vec<PortHolder>,
}

/// A port of the proxy's on which somebody listens already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    pub port: u16,
    /// The users as which the listening processes run.
    pub users: Vec<u32>,
}

/// The first path on which the token did not come back.
#[derive(Debug)]
pub struct FailedPath {
    pub path: Path,
    pub problem: String,
    /// Whether the time was over before the test: nothing is known about the rules then.
    pub late: bool,
}

/// What a validation needs.
pub struct Setup<'a> {
    pub interception: &'a Interception,
    pub plan: &'a Plan,
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// The port that probes are addressed to where the plan leaves a choice.
    pub port: Port,
    pub timeout: Duration,
    /// Flows that the plan diverts and that rules of others may let out.
    pub suspects: &'a [Suspect],
}

/// A flow that a foreign rule matches.
#[derive(Debug, Clone)]
pub struct Suspect {
    pub flow: Flow,
    /// The rule, in words.
    pub rule: String,
}

/// Tests every path that the plan diverts. The inner result is the validation's.
///
/// # Errors
///
/// The listeners could not be set up; names the port.
pub fn run(setup: &Setup) -> Result<Result<Validation, FailedPath>, String> {
    let deadline = Instant::now() + setup.timeout;
    let listeners = Listeners::start(setup.interception, setup.plan.families)?;
    let chooser = Chooser::new(setup);
    let mut report = Validation { occupied: holders(&listeners.occupied), ..Validation::default() };
    let occupied = |path: Path| {
        let port = path.port(setup.interception);
        let is_it = |o: &&Occupied| {
            o.at.port() == port
                && o.udp == (path.route == PathKind::DnsUdp)
                && o.at.is_ipv4() == (path.family == Family::V4)
        };
        listeners.occupied.iter().find(is_it).map(|o| o.at.port())
    };
    let attempt = |path: Path, target: Option<Target>| match target {
        Some(_)
            if path.route == PathKind::DnsUdp
                && occupied(path).is_none()
                && !listener::can_answer_dns(setup.interception) =>
        {
            Trial::Untested("answering takes the proxy's own user, which this process is not".into())
        }
        None => Trial::Untested(chooser.why_none(path)),
        Some(target) => match (path.route, occupied(path)) {
            (PathKind::Inbound, port) => inbound::attempt(target.to, port, deadline),
            (PathKind::DnsUdp, Some(port)) => {
                Trial::Untested(format!("somebody listens on port {port} already, and his answers prove nothing"))
            }
            (_, Some(port)) => witness::attempt(&target, port, deadline),
            (_, None) => outbound::attempt(path, &target, deadline),
        },
    };
    let usual = paths(setup).into_iter().map(|path| (path, attempt(path, chooser.choose(path))));
    let suspects = setup.suspects.iter().filter_map(|suspect| {
        let (path, target) = chooser.of_flow(&suspect.flow)?;
        let trial = match target {
            Ok(target) => attempt(path, Some(target)),
            Err(why) => Trial::Untested(why),
        };
        Some((path, trial.because_of(&suspect.rule)))
    });
    for (path, trial) in usual.chain(suspects) {
        match trial {
            Trial::Passed => report.passed.push(path),
            Trial::Untested(why) => report.untested.push((path, why)),
            Trial::Failed(problem) => return Ok(Err(FailedPath { path, problem, late: false })),
            Trial::Late => {
                let problem =
                    format!("no time was left for it of {:?}: allow more with --probe-timeout", setup.timeout);
                return Ok(Err(FailedPath { path, problem, late: true }));
            }
        }
    }
    Ok(Ok(report))
}

/// What became of a connection in a pod that runs.
#[derive(Debug)]
pub enum Beside {
    /// The proxy got the connections on each of these paths.
    Passed(Vec<Path>),
    /// None could be made, and why.
    Untested(String),
    Failed(FailedPath),
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Passed(paths) => {
                let paths: Vec<String> = paths.iter().map(Path::to_string).collect();
                write!(f, "probed: the proxy gets connections ({})", paths.join(", "))
            }
            Self::Untested(why) => write!(f, "not probed: {why}"),
            Self::Failed(failure) => write!(f, "probed in vain ({}): {}", failure.path, failure.problem),
        }
    }
}

/// Makes an outbound connection in a pod that runs, and looks whether the proxy gets it. It
/// goes to an address for documentation and is closed at once. Nothing else is made: no
/// listener in the proxy's place, which could keep it from starting, and no interface.
pub fn beside_proxy(setup: &Setup) -> Beside {
    let deadline = Instant::now() + setup.timeout;
    let port = setup.interception.outbound_port.get();
    let chooser = Chooser::new(setup);
    let (mut passed, mut why) = (Vec::new(), "nothing outbound is taken".to_owned());
    for path in paths(setup).into_iter().filter(|path| path.route == PathKind::Outbound) {
        if !witness::is_listening(port, path.family) {
            why = format!("nobody listens on the proxy's port {port} yet");
            continue;
        }
        let trial = match chooser.choose(path) {
            Some(target) => witness::attempt(&target, port, deadline),
            None => Trial::Untested(chooser.why_none(path)),
        };
        match trial {
            Trial::Passed => passed.push(path),
            Trial::Untested(reason) => why = reason,
            Trial::Late => why = format!("no time was left of {:?}", setup.timeout),
            Trial::Failed(problem) => return Beside::Failed(FailedPath { path, problem, late: false }),
        }
    }
    if passed.is_empty() { Beside::Untested(why) } else { Beside::Passed(passed) }
}

/// The ports among these, each once, with the users that listen there.
fn holders(occupied: &[Occupied]) -> Vec<PortHolder> {
    let mut ports: Vec<u16> = occupied.iter().map(|o| o.at.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into_iter().map(|port| PortHolder { port, users: witness::listeners(port) }).collect()
}

/// The ways that the plan diverts, by family.
fn paths(setup: &Setup) -> Vec<Path> {
    let i = setup.interception;
    let dns = |family| match &i.dns {
        None => false,
        Some(DnsCapture::All) => true,
        Some(DnsCapture::Servers { v4, v6 }) => !if family == Family::V4 { v4.is_empty() } else { v6.is_empty() },
    };
    let mut out = Vec::new();
    for family in setup.plan.families.iter() {
        let mut add = |wanted: bool, route| out.extend(wanted.then_some(Path { route, family }));
        add(i.takes_outbound(), PathKind::Outbound);
        add(true, PathKind::Loop);
        add(i.takes_inbound(), PathKind::Inbound);
        add(dns(family), PathKind::DnsUdp);
        add(dns(family), PathKind::DnsTcp);
    }
    out
}

/// Finds connections that by the plan take a certain way.
struct Chooser<'a> {
    setup: &'a Setup<'a>,
    rules: Ruleset,
    pod: Surroundings,
    /// Users and groups we can act as.
    owners: Vec<(u32, u32)>,
}

impl<'a> Chooser<'a> {
    fn new(setup: &'a Setup<'a>) -> Self {
        let i = setup.interception;
        let mut wanted = vec![outbound::me(), (65_532, 65_532), (1000, 1000)];
        if let OwnerGroups::Only(gids) = &i.owner_groups {
            wanted.extend(gids.iter().map(|&gid| (65_532, gid)));
        }
        wanted.extend(i.proxy_uids.iter().zip(i.proxy_gids.iter().cycle()).map(|(&uid, &gid)| (uid, gid)));
        wanted.retain(|&(uid, gid)| outbound::can_be(uid, gid));
        Self {
            setup,
            rules: Ruleset::of_plan(setup.plan),
            pod: Surroundings::of(setup.addresses.to_vec()),
            owners: wanted,
        }
    }

    fn choose(&self, path: Path) -> Option<Target> {
        let (taker, direction, protocol) = match path.route {
            PathKind::Outbound => (Taker::OutboundProxy, Direction::Outbound, protocol::TCP),
            PathKind::Loop => (Taker::InboundProxy, Direction::Outbound, protocol::TCP),
            PathKind::Inbound => (Taker::InboundProxy, Direction::Inbound, protocol::TCP),
            PathKind::DnsUdp => (Taker::DnsProxy, Direction::Outbound, protocol::UDP),
            PathKind::DnsTcp => (Taker::DnsProxy, Direction::Outbound, protocol::TCP),
        };
        let anybody = [(0, 0)];
        let owners = if direction == Direction::Inbound { &anybody[..] } else { &self.owners };
        for to in self.destinations(path) {
            for &(uid, gid) in owners {
                let own = |id| (direction == Direction::Outbound).then_some(id);
                let flow = Flow {
                    direction,
                    protocol,
                    uid: own(uid),
                    gid: own(gid),
                    source: None,
                    source_port: None,
                    destination: to.ip(),
                    port: to.port(),
                    interface: (direction == Direction::Inbound).then(|| inbound::NEAR.into()),
                    mark: 0,
                };
                if explain(&self.rules, &self.pod, &flow, &mut NoTrace).taker == taker {
                    return Some(Target { to, uid, gid });
                }
            }
        }
        None
    }

    /// The way that a flow takes by the plan, and the connection to make for it; `Err`: why this
    /// process cannot make it. `None`: the plan does not divert it.
    fn of_flow(&self, flow: &Flow) -> Option<(Path, Result<Target, String>)> {
        let taker = explain(&self.rules, &self.pod, flow, &mut NoTrace).taker;
        let route = match (taker, flow.direction) {
            (Taker::OutboundProxy, Direction::Outbound) => PathKind::Outbound,
            (Taker::InboundProxy, Direction::Outbound) => PathKind::Loop,
            (Taker::InboundProxy, Direction::Inbound) => PathKind::Inbound,
            (Taker::DnsProxy, _) if flow.protocol == protocol::UDP => PathKind::DnsUdp,
            (Taker::DnsProxy, _) => PathKind::DnsTcp,
            _ => return None,
        };
        let (uid, gid) = match route {
            PathKind::Inbound => (0, 0),
            _ => (flow.uid.unwrap_or(outbound::me().0), flow.gid.unwrap_or(outbound::me().1)),
        };
        let to = SocketAddr::new(flow.destination, flow.port);
        let target = match () {
            _ if flow.mark != 0 || flow.source.is_some() || flow.source_port.is_some() => {
                Err(format!("a packet to {to} with a mark, source address or source port of its own is not made here"))
            }
            _ if route != PathKind::Inbound && !outbound::can_be(uid, gid) => {
                Err(format!("this process cannot act as user {uid}, group {gid}, to connect to {to}"))
            }
            _ => Ok(Target { to, uid, gid }),
        };
        Some((Path { route, family: flow.family() }, target))
    }

    /// Destinations at which a connection could take a path.
    fn destinations(&self, path: Path) -> Vec<SocketAddr> {
        let i = self.setup.interception;
        let v4 = path.family == Family::V4;
        let own = self.setup.addresses.iter().copied().filter(|a| a.is_ipv4() == v4 && is_global(a));
        // Ranges for documentation (RFC 5737, RFC 3849): nobody is disturbed if a rule is missing.
        let nobody: [IpAddr; 2] = if v4 {
            [[192, 0, 2, 10].into(), [198, 51, 100, 10].into()]
        } else {
            [[0x2001, 0xdb8, 0, 0, 0, 0, 0, 10].into(), [0x2001, 0xdb8, 1, 0, 0, 0, 0, 10].into()]
        };
        let addresses: Vec<IpAddr> = match (path.route, &i.dns) {
            (PathKind::Loop | PathKind::Inbound, _) => own.collect(),
            (PathKind::DnsUdp | PathKind::DnsTcp, Some(DnsCapture::Servers { v4: servers, v6: servers6 })) => {
                if v4 {
                    servers.iter().map(|&a| a.into()).collect()
                } else {
                    servers6.iter().map(|&a| a.into()).collect()
                }
            }
            (PathKind::Outbound, _) => {
                let mut list = nobody.to_vec();
                if let RangeSelection::Only(ranges) = &i.outbound_ranges {
                    list.extend(ranges.of(path.family).iter().flat_map(|net| [net.network(), net.broadcast()]));
                }
                list
            }
            _ => nobody.to_vec(),
        };
        let ports: Vec<u16> = match path.route {
            PathKind::DnsUdp | PathKind::DnsTcp => vec![Port::DNS.get()],
            PathKind::Inbound => {
                let listed = match &i.inbound_ports {
                    crate::config::types::PortSelection::Only(ports) => ports.iter().map(|(first, _)| first).collect(),
                    crate::config::types::PortSelection::All => vec![80, 8080, 443],
                };
                [vec![self.setup.port.get()], listed].concat()
            }
            _ => [vec![self.setup.port.get()], i.outbound_ports.iter().map(|(first, _)| first).collect(), vec![80]]
                .concat(),
        };
        ports.iter().flat_map(|&port| addresses.iter().map(move |&a| SocketAddr::new(a, port))).collect()
    }

    fn why_none(&self, path: Path) -> String {
        let (uid, gid) = outbound::me();
        match path.route {
            PathKind::Outbound | PathKind::DnsUdp | PathKind::DnsTcp => format!(
                "nothing that this process (user {uid}, group {gid}) can send goes that way; run it as another user than the proxy's"
            ),
            PathKind::Loop => format!(
                "only the proxy's own user takes that way, and this process (user {uid}, group {gid}) cannot act as it without CAP_SETUID"
            ),
            PathKind::Inbound => "no port of the pod's own address is taken".into(),
        }
    }
}
