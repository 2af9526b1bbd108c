//! Who gets a flow: its first packet is walked through hooks and chains as the kernel
//! would walk it, marks and the second pass of a looped-back packet included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::types::Family;
use crate::plan::canon::{CanonRule, number};
use crate::plan::model::{Masked, Verdict, protocol};
use crate::plan::why::Why;

use super::flow::{Direction, Flow, Surroundings, Taker};
use super::packet::{Meets, Packet};
use super::ruleset::{ChainRules, FamilyRules, Hook, Ruleset};
use super::target::{Effect, effect};

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
/// How many rules are looked at in doing so.
pub(super) const MOST_AGAIN: usize = 1_000_000;
/// How many rules a flow may meet on one walk: chains that each jump often to the next
/// one could lead through more than there is time for.
const MOST_RULES: usize = 2_000_000;

/// Walks a flow through a ruleset. Where it is not known whether a rule applies, both are
/// tried: what comes out either way is certain, and where it differs the rule is named.
pub fn explain<'a>(ruleset: &'a Ruleset, pod: &Surroundings, flow: &Flow, trace: &mut dyn Trace<'a>) -> Answer<'a> {
    let mut choices = Choices::default();
    let answer = walk(ruleset, pod, flow, trace, &mut choices);
    let first_walk = choices.looks;
    for _ in 0..MOST_WALKS {
        let Some(rule) = choices.advance() else { return answer };
        if choices.looks - first_walk > MOST_AGAIN {
            break;
        }
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
    /// How many rules have been looked at, on all walks.
    looks: usize,
    /// How many there may be at the end of this walk.
    most: usize,
}

impl<'a> Choices<'a> {
    fn begin(&mut self) {
        self.met.clear();
        self.most = self.looks + MOST_RULES;
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
            self.choices.looks += 1;
            let meets = self.packet.meets(&rule.matches);
            if meets == Meets::No || (meets == Meets::Maybe && rule.verdict == Verdict::Continue) {
                continue;
            }
            let here = Decider { chain, rule };
            if self.choices.looks > self.choices.most {
                self.decider = Some(here);
                return End::Unknown;
            }
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
                Verdict::Tproxy { port, mark, .. } => {
                    self.packet.mark = mark.get();
                    self.trace.mark("the packet is marked", self.packet.mark);
                    self.decider = Some(from.unwrap_or(here));
                    if chain.listener_on(*port) == Taker::Direct {
                        return End::Redirect(Taker::Direct, port.get());
                    }
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
                let met = parts.iter().find(|(_, part)| self.packet.meets(part) == Meets::Yes);
                met.map_or(rule.why(), |(why, _)| why)
            }
        }
    }
}
