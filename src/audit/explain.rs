//! Who gets a flow: its first packet is walked through hooks and chains as the kernel
//! would walk it, marks and the second pass of a looped-back packet included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::types::{Family, Interface};
use crate::plan::canon::{CanonMatches, CanonRule, number};
use crate::plan::model::{Cond, CtStates, Masked, Verdict, protocol};
use crate::plan::why::Why;

use super::flow::{Direction, Flow, Surroundings, Taker};
use super::ruleset::{ChainRules, FamilyRules, Hook, Ruleset};

/// How deep chains may call each other (`NFT_JUMP_STACK_SIZE`).
pub(super) const DEPTH: usize = 16;

/// Who gets a flow, and the rule that decided.
#[derive(Debug, Clone)]
pub struct Answer<'a> {
    pub taker: Taker,
    /// `None`: no rule says anything about it.
    pub decider: Option<Decider<'a>>,
    /// The reason for that part of the rule that the flow meets.
    pub why: Option<&'a Why>,
}

impl<'a> Answer<'a> {
    /// Nobody can tell, because of this rule.
    pub fn unknown(because: Option<Decider<'a>>) -> Self {
        Self { taker: Taker::Unknown, decider: because, why: because.map(|decider| decider.rule.why()) }
    }
}

/// A rule and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Decider<'a> {
    pub chain: &'a ChainRules,
    pub rule: &'a CanonRule,
}

impl Decider<'_> {
    fn is(&self, other: &Decider) -> bool {
        std::ptr::eq(self.rule, other.rule)
    }
}

/// What happens on the way, for those who want to see all of it.
pub trait Trace<'a> {
    fn hook(&mut self, _hook: Hook, _chain: &'a ChainRules) {}
    fn rule(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}
    /// Whether the rule applies is not known; it is taken not to.
    fn passed(&mut self, _chain: &'a ChainRules, _rule: &'a CanonRule) {}
    fn note(&mut self, _note: &str) {}
    fn mark(&mut self, _what: &str, _mark: u32) {}
}

/// For those who want only the answer.
pub struct NoTrace;

impl Trace<'_> for NoTrace {}

/// How often a flow is walked again when rules have conditions that are not understood.
const MOST_WALKS: usize = 256;

/// Walks a flow through a ruleset. Where it is not known whether a rule applies, both are
/// tried: what comes out either way is certain, and where it differs the rule is named.
pub fn explain<'a>(ruleset: &'a Ruleset, pod: &Surroundings, flow: &Flow, trace: &mut dyn Trace<'a>) -> Answer<'a> {
    let mut choices = Choices::default();
    let answer = walk(ruleset, pod, flow, trace, &mut choices);
    for _ in 0..MOST_WALKS {
        let Some(rule) = choices.advance() else { return answer };
        let other = walk(ruleset, pod, flow, &mut NoTrace, &mut choices);
        if answer.taker != other.taker {
            return Answer::unknown(Some(rule));
        }
    }
    let first = choices.met.first().copied();
    Answer::unknown(first.or(answer.decider))
}

fn walk<'a>(
    ruleset: &'a Ruleset,
    pod: &Surroundings,
    flow: &Flow,
    trace: &mut dyn Trace<'a>,
    choices: &mut Choices<'a>,
) -> Answer<'a> {
    choices.begin();
    let mut walk = Walk {
        rules: ruleset.family(flow.family()),
        pod,
        packet: Packet::of(flow, pod),
        redirected: None,
        nat_done: false,
        decider: None,
        merged: None,
        trace,
        choices,
    };
    let taker = match flow.direction {
        Direction::Outbound => walk.outbound(),
        Direction::Inbound => walk.inbound(),
    };
    let why = walk.decider.map(|decider| match walk.merged {
        Some((of, why)) if of.is(&decider) => why,
        _ => decider.rule.why(),
    });
    Answer { taker, decider: walk.decider, why }
}

/// Whether rules that may apply are taken to apply, in the order in which they are met.
#[derive(Default)]
struct Choices<'a> {
    taken: Vec<bool>,
    met: Vec<Decider<'a>>,
}

impl<'a> Choices<'a> {
    fn begin(&mut self) {
        self.met.clear();
    }

    fn choose(&mut self, rule: Decider<'a>) -> bool {
        let at = self.met.len();
        self.met.push(rule);
        if at == self.taken.len() {
            self.taken.push(false);
        }
        self.taken[at]
    }

    /// Goes on to the next combination: the last rule not taken yet is, and what came
    /// after it is open again. `None` when all have been tried.
    fn advance(&mut self) -> Option<Decider<'a>> {
        let at = self.taken.iter().rposition(|taken| !taken)?;
        self.taken.truncate(at + 1);
        self.taken[at] = true;
        self.met.get(at).copied()
    }
}

/// A packet on its way.
#[derive(Debug, Clone)]
pub(super) struct Packet<'a> {
    family: Family,
    pub(super) protocol: u8,
    pub(super) source: u128,
    pub(super) destination: u128,
    pub(super) local: bool,
    pub(super) source_port: Option<u16>,
    pub(super) port: u16,
    pub(super) in_interface: Option<&'a str>,
    pub(super) out_interface: Option<&'a str>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    mark: u32,
    connection_mark: u32,
    state: CtStates,
}

impl<'a> Packet<'a> {
    pub(super) fn of(flow: &'a Flow, pod: &'a Surroundings) -> Self {
        let family = flow.family();
        let local = pod.is_local(flow.destination);
        let interface = flow.interface.as_deref();
        let (in_interface, out_interface) = match flow.direction {
            Direction::Inbound => (interface.or(Some(&*pod.uplink)), None),
            Direction::Outbound if local => (None, interface.or(Some("lo"))),
            Direction::Outbound => (None, interface.or(Some(&*pod.uplink))),
        };
        let source = flow.source.unwrap_or_else(|| usual_source(flow, pod, local));
        Self {
            family,
            protocol: flow.protocol,
            source: number(source),
            destination: number(flow.destination),
            local,
            source_port: flow.source_port,
            port: flow.port,
            in_interface,
            out_interface,
            uid: flow.uid,
            gid: flow.gid,
            mark: flow.mark,
            connection_mark: 0,
            state: CtStates::NEW,
        }
    }
}

/// The source address the kernel would choose; of another host, one that is nobody's.
pub(super) fn usual_source(flow: &Flow, pod: &Surroundings, local: bool) -> IpAddr {
    let v4 = flow.destination.is_ipv4();
    match flow.direction {
        Direction::Outbound if local && v4 && flow.destination.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        Direction::Outbound if local => flow.destination,
        Direction::Outbound => {
            let own = pod.addresses.iter().find(|a| a.is_ipv4() == v4 && crate::config::facts::is_global(a));
            own.copied().unwrap_or(nobody(v4))
        }
        Direction::Inbound => nobody(v4),
    }
}

/// Addresses for documentation (RFC 5737, RFC 3849).
fn nobody(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() }
}

/// How a chain ended for a packet.
enum End {
    /// No rule decided; or one said RETURN.
    Back,
    Accept,
    Drop,
    /// The destination became a port of the pod itself.
    Redirect(Taker, u16),
    Tproxy,
    Unknown,
}

struct Walk<'a, 'w> {
    rules: &'a FamilyRules,
    pod: &'w Surroundings,
    packet: Packet<'w>,
    redirected: Option<Taker>,
    /// A connection's destination is rewritten once, on its first hook.
    nat_done: bool,
    decider: Option<Decider<'a>>,
    /// The last rule met that stands for several, and which of them the packet met.
    merged: Option<(Decider<'a>, &'a Why)>,
    trace: &'w mut dyn Trace<'a>,
    choices: &'w mut Choices<'a>,
}

impl<'a> Walk<'a, '_> {
    fn outbound(&mut self) -> Taker {
        if let Some(end) = self.hook(Hook::Output) {
            return end;
        }
        if let Some(end) = self.hook(Hook::Postrouting) {
            return end;
        }
        if !self.packet.local {
            return Taker::Direct;
        }
        self.trace.note("comes in again on lo");
        self.packet.in_interface = Some("lo");
        self.packet.out_interface = None;
        // The connection is known since it left: it is not rewritten a second time, and
        // its socket is no longer the sender's.
        self.nat_done = true;
        (self.packet.uid, self.packet.gid) = (None, None);
        self.arrive()
    }

    fn inbound(&mut self) -> Taker {
        self.arrive()
    }

    /// From the network, or looped back.
    fn arrive(&mut self) -> Taker {
        if let Some(end) = self.hook(Hook::Prerouting) {
            return end;
        }
        let next = if self.packet.local || self.redirected.is_some() { Hook::Input } else { Hook::Forward };
        match self.hook(next) {
            Some(end) => end,
            None => self.redirected.or(self.listener()).unwrap_or(Taker::Direct),
        }
    }

    /// Whether the packet was sent to the proxy's own port in the first place.
    fn listener(&self) -> Option<Taker> {
        let p = &self.packet;
        let is_tcp = p.protocol == protocol::TCP && p.local;
        is_tcp.then(|| self.rules.listeners.iter().find(|(port, _)| *port == p.port).map(|(_, taker)| *taker))?
    }

    /// Passes the base chains of a hook; `Some` if the packet's fate is known.
    fn hook(&mut self, hook: Hook) -> Option<Taker> {
        for chain in self.rules.on(hook) {
            let Some(base) = chain.base else { continue };
            if base.nat && self.nat_done {
                continue;
            }
            self.trace.hook(hook, chain);
            let before = self.decider.take();
            let end = match self.chain(chain, None, 0) {
                // Behind routing a destination stays what it is: only the source is rewritten.
                End::Unknown if base.nat && hook.is_behind_routing() => End::Accept,
                end => end,
            };
            // A connection's fate is decided where it is rewritten. Elsewhere "return" and
            // "accept" only say that nothing happens here.
            let passes = matches!(end, End::Back | End::Accept);
            // What TPROXY has handed to a socket stays there, wherever it is addressed to.
            let handed_over = matches!(end, End::Redirect(..)) && self.redirected.is_some();
            if handed_over || self.decider.is_none() || (!base.nat && passes && before.is_some()) {
                self.decider = before;
            }
            match end {
                End::Back if base.drops => return Some(Taker::Dropped),
                End::Back | End::Accept => {}
                End::Drop => return Some(Taker::Dropped),
                End::Unknown => return Some(Taker::Unknown),
                End::Tproxy => {
                    self.redirected = Some(Taker::InboundProxy);
                    self.trace.note("handed to the proxy's socket");
                }
                End::Redirect(taker, port) => {
                    self.redirected.get_or_insert(taker);
                    self.nat_done = true;
                    self.redirect(hook, port);
                }
            }
        }
        None
    }

    fn redirect(&mut self, hook: Hook, port: u16) {
        self.trace.note("now addressed to the pod itself");
        let p = &mut self.packet;
        let loopback: IpAddr = match p.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        // On its way out a packet is sent to loopback, on its way in to the address of
        // the interface that it came by.
        let own = self.pod.addresses.iter().find(|a| a.is_ipv4() == loopback.is_ipv4());
        let to = if hook == Hook::Output { Some(&loopback) } else { own };
        p.destination = number(*to.unwrap_or(&loopback));
        p.port = port;
        p.local = true;
        if hook == Hook::Output {
            p.out_interface = Some("lo");
        }
    }

    /// Walks a chain. `from`: the rule that jumped here, which decides more than what
    /// stands here.
    fn chain(&mut self, chain: &'a ChainRules, from: Option<Decider<'a>>, depth: usize) -> End {
        for (at, rule) in chain.rules.iter().enumerate() {
            let meets = self.meets(&rule.matches);
            if meets == Meets::No || (meets == Meets::Maybe && rule.verdict == Verdict::Continue) {
                continue;
            }
            let here = Decider { chain, rule };
            if meets == Meets::Maybe && !self.choices.choose(here) {
                self.trace.passed(chain, rule);
                continue;
            }
            self.trace.rule(chain, rule);
            if rule.parts.len() > 1 {
                self.merged = Some((here, self.why(rule)));
            }
            match &rule.verdict {
                Verdict::Continue | Verdict::CtZone(_) => {}
                Verdict::Return => {
                    self.decider = Some(here);
                    return End::Back;
                }
                Verdict::Accept => {
                    self.decider = Some(from.unwrap_or(here));
                    return End::Accept;
                }
                Verdict::Drop => {
                    self.decider = Some(here);
                    return End::Drop;
                }
                Verdict::SetMark(Masked { value, mask }) => {
                    self.packet.mark = (self.packet.mark & !mask) ^ value;
                    self.trace.mark("the packet is marked", self.packet.mark);
                }
                Verdict::SaveMark => {
                    self.packet.connection_mark = self.packet.mark;
                    self.trace.mark("the connection is marked", self.packet.mark);
                }
                Verdict::RestoreMark => {
                    self.packet.mark = self.packet.connection_mark;
                    self.trace.mark("the packet is marked like its connection", self.packet.mark);
                }
                Verdict::Redirect(port) => {
                    self.decider = Some(from.unwrap_or(here));
                    return End::Redirect(chain.listener_on(*port), port.get());
                }
                Verdict::Tproxy { mark, .. } => {
                    self.packet.mark = mark.get();
                    self.trace.mark("the packet is marked", self.packet.mark);
                    self.decider = Some(from.unwrap_or(here));
                    return End::Tproxy;
                }
                Verdict::Unknown(words) => match effect(words) {
                    Effect::None => {}
                    effect => {
                        self.decider = Some(here);
                        return match effect {
                            Effect::Drops => End::Drop,
                            Effect::Accepts => End::Accept,
                            _ => End::Unknown,
                        };
                    }
                },
                Verdict::Jump(_) | Verdict::Goto(_) => {
                    let Some(target) = self.rules.target(chain, at).filter(|_| depth < DEPTH) else {
                        self.decider = Some(here);
                        return End::Unknown;
                    };
                    match self.chain(target, Some(here), depth + 1) {
                        End::Back if matches!(rule.verdict, Verdict::Goto(_)) => return End::Back,
                        End::Back => {}
                        end => return end,
                    }
                }
            }
        }
        End::Back
    }

    /// The reason for the part of a rule that the packet meets.
    fn why(&self, rule: &'a CanonRule) -> &'a Why {
        match &rule.parts[..] {
            [_] => rule.why(),
            parts => {
                let met = parts.iter().find(|(_, part)| self.meets(part) == Meets::Yes);
                met.map_or(rule.why(), |(why, _)| why)
            }
        }
    }

    fn meets(&self, m: &CanonMatches) -> Meets {
        let p = &self.packet;
        // A packet without ports has none that could be asked for.
        let ports = |list: &crate::config::types::PortList, port: Option<u16>| match port {
            _ if list.is_full() => Meets::Yes,
            Some(port) => Meets::from(list.holds(port)),
            None => Meets::Maybe,
        };
        let has_ports = protocol::WITH_PORTS.contains(&p.protocol);
        let known = m.protocol.holds(p.protocol)
            && m.destination.holds(p.destination)
            && m.source.holds(p.source)
            && (m.connection_state.0 & p.state.0 != 0)
            && owner(&m.uid, p.uid)
            && owner(&m.gid, p.gid)
            && interface(&m.in_interface, p.in_interface)
            && interface(&m.out_interface, p.out_interface)
            && mark(&m.mark, p.mark)
            && mark(&m.connection_mark, p.connection_mark)
            && ports(&m.destination_port, has_ports.then_some(p.port)) != Meets::No;
        if !known {
            return Meets::No;
        }
        // Which port a connection comes from is chance, unless it is said. Whoever
        // chooses it does not choose a low one or a well-known one.
        let from_port = match p.source_port {
            Some(port) => ports(&m.source_port, Some(port)),
            None => Meets::from(m.source_port.is_full() || m.source_port.holds(EPHEMERAL)),
        };
        match from_port {
            Meets::No => Meets::No,
            _ if !m.unknown.is_empty() => Meets::Maybe,
            other => other,
        }
    }
}

/// What a target does that the model does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Unknown,
    /// Refused is not delivered.
    Drops,
    /// Changes where a packet comes from, not where it goes.
    Accepts,
    /// Changes something that decides nothing here, and lets the packet go on.
    None,
}

pub fn effect(words: &str) -> Effect {
    const GOES_ON: &[&str] = &[
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNSECMARK",
        "DSCP",
        "ECN",
        "HL",
        "IDLETIMER",
        "LED",
        "RATEEST",
        "SECMARK",
        "SET",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TEE",
        "TOS",
        "TTL",
    ];
    let words = words.strip_prefix("-j ").or_else(|| words.strip_prefix("target ")).unwrap_or(words);
    match words.split(' ').next().unwrap_or_default() {
        "REJECT" | "reject" => Effect::Drops,
        "MASQUERADE" | "SNAT" | "masq" | "snat" => Effect::Accepts,
        name if GOES_ON.contains(&name) => Effect::None,
        _ => Effect::Unknown,
    }
}

/// A port in the middle of those from which clients connect.
pub(super) const EPHEMERAL: u16 = 45_678;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    Yes,
    No,
    Maybe,
}

impl From<bool> for Meets {
    fn from(yes: bool) -> Self {
        if yes { Meets::Yes } else { Meets::No }
    }
}

/// A packet without an owner meets only "not owned by".
fn owner(cond: &Option<Cond<crate::config::types::IdList>>, id: Option<u32>) -> bool {
    match (cond, id) {
        (None, _) => true,
        (Some(cond), Some(id)) => cond.value.holds(id) != cond.negated,
        (Some(cond), None) => cond.negated,
    }
}

/// A packet that has no such interface here has one without a name.
fn interface(cond: &Option<Cond<Vec<Interface>>>, name: Option<&str>) -> bool {
    let Some(cond) = cond else { return true };
    let is = name.is_some_and(|name| cond.value.iter().any(|i| i.matches(name)));
    is != cond.negated
}

fn mark(cond: &Option<Cond<Masked>>, mark: u32) -> bool {
    cond.as_ref().is_none_or(|cond| (mark & cond.value.mask == cond.value.value) != cond.negated)
}
