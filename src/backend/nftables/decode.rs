//! Translates nf_tables expressions to rules of the model. It tracks the value of the one register from
//! load to comparison; what cannot be tracked becomes an unknown condition or verdict, so that no rule
//! is taken for less than it is.

use std::sync::Arc;

use crate::backend::effect::of_target;
use crate::config::types::{Families, Family, Mark, Port};
use crate::plan::effect::{Effect, Unmodelled};
use crate::plan::model::{Counters, Masked, Matches, Rule, RuleOrigin, Verdict};
use crate::plan::why::Why;

use super::contents::TableContents;
use super::expr::{Expr, Role, code, ct, meta, payload};
use super::field::{PacketField, ct_field, meta_field};
use super::marks;
use super::names;
use super::steps::{self, RuleStep};
use super::value::{ip, native};
use super::words::{phrase, statement};

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub exprs: Vec<Expr>,
    pub comment: Option<String>,
    pub handle: Option<u64>,
    /// The rule's text in the listing, if it was read from text.
    pub text: Option<Box<str>>,
}

/// Decodes the rules of a chain. `families`: those of the table.
pub fn chain(rules: &[Listed], families: Families, around: &dyn TableContents) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for (at, listed) in rules.iter().enumerate() {
        for rule in self::rule(at + 1, listed, families, around) {
            match out.last_mut() {
                // The drop behind a tproxy belongs to it: see `encode`.
                Some(before) if closes(&rule, before) => {
                    if let Verdict::Tproxy { closed, .. } = &mut before.verdict {
                        *closed = true;
                    }
                }
                _ => out.push(rule),
            }
        }
    }
    out
}

fn closes(rule: &Rule, before: &Rule) -> bool {
    matches!(before.verdict, Verdict::Tproxy { closed: false, .. })
        && rule.verdict == Verdict::Drop
        && rule.families == before.families
        && rule.matches == before.matches
}

/// Decodes a rule; one with several verdicts becomes several rules.
fn rule(number: usize, listed: &Listed, families: Families, around: &dyn TableContents) -> Vec<Rule> {
    let read = |exprs: &[Expr]| Decoder::read(exprs, families, around);
    let by_mark = || {
        let read: Vec<_> = marks::each(&listed.exprs, around)?.iter().map(|exprs| read(exprs)).collect();
        let counters = read.first()?.1;
        let steps: Vec<RuleStep> = read.into_iter().flat_map(|(steps, _)| steps).collect();
        steps.iter().all(marks::is_apart).then_some((steps, counters))
    };
    let (steps, counters) = by_mark().unwrap_or_else(|| read(&listed.exprs));
    let why = listed.comment.as_deref().map_or(Why::Foreign("".into()), Why::from_comment);
    let is_understood =
        |step: &RuleStep| step.matches.unknown.is_empty() && !matches!(step.verdict, Verdict::Unknown(_));
    let text = listed.text.clone().filter(|_| !steps.iter().all(is_understood));
    let origin = |incomplete| Arc::new(RuleOrigin { number, handle: listed.handle, text: text.clone(), incomplete });
    let (whole, incomplete) = (origin(false), origin(true));
    let rules = steps.into_iter().map(|step| Rule {
        families: step.families,
        matches: step.matches,
        verdict: step.verdict,
        why: why.clone(),
        counters,
        origin: Some(if step.incomplete { &incomplete } else { &whole }.clone()),
    });
    rules.collect()
}

pub(super) fn verdict(code: i32, chain: Option<&str>) -> Option<Verdict> {
    match (code, chain) {
        (code::CONTINUE, None) => Some(Verdict::Continue),
        (code::DROP, None) => Some(Verdict::Drop),
        (code::ACCEPT, None) => Some(Verdict::Accept),
        (code::RETURN, None) => Some(Verdict::Return),
        (code::JUMP, Some(chain)) => Some(Verdict::Jump(names::chain_by_name(chain))),
        (code::GOTO, Some(chain)) => Some(Verdict::Goto(names::chain_by_name(chain))),
        _ => None,
    }
}

/// What the decoder knows of the register's value.
#[derive(Debug, Clone)]
pub(super) enum Register {
    Empty,
    /// Holds a packet field, with what was done to it: a mask, a change of byte order (`hton`).
    Field {
        field: PacketField,
        mask: Option<Vec<u8>>,
        xor: Option<Vec<u8>>,
        hton: bool,
    },
    Value(Vec<u8>),
    /// Holds a value that the decoder does not track.
    Lost,
}

pub(super) struct Decoder<'a> {
    pub(super) around: &'a dyn TableContents,
    pub(super) families: Families,
    pub(super) matches: Matches,
    pub(super) register: Register,
    pub(super) steps: Vec<RuleStep>,
    counters: Option<Counters>,
    /// The loads for the next comparison or statement.
    pub(super) open: Option<OpenLoad>,
    /// Whether a verdict has ended the rule, so that no expression behind it is evaluated.
    pub(super) ended: bool,
    /// Whether the listing leaves out a part of the rule.
    incomplete: bool,
}

#[derive(Clone, Copy)]
pub(super) struct OpenLoad {
    /// The index of the first load.
    pub(super) from: usize,
    /// The number of unknown conditions before the load.
    unknown: usize,
}

impl<'a> Decoder<'a> {
    /// Decodes a rule's expressions to steps, and its counters.
    fn read(exprs: &[Expr], families: Families, around: &'a dyn TableContents) -> (Vec<RuleStep>, Option<Counters>) {
        let mut reader = Self {
            around,
            families,
            matches: Matches::default(),
            register: Register::Empty,
            steps: Vec::new(),
            counters: None,
            open: None,
            ended: false,
            incomplete: false,
        };
        for at in 0..exprs.len() {
            if reader.ended {
                break;
            }
            reader.step(exprs, at);
        }
        if reader.steps.is_empty() {
            reader.does(Verdict::Continue, 0, 0);
        }
        (steps::apart(reader.steps, exprs), reader.counters)
    }

    fn step(&mut self, exprs: &[Expr], at: usize) {
        let Some(expr) = exprs.get(at) else { return };
        match expr {
            Expr::Meta(key) => self.load(at, meta_field(*key)),
            Expr::Ct(key) => self.load(at, ct_field(*key)),
            Expr::Payload { base, offset, len } => self.load(at, self.payload_field(*base, *offset, *len)),
            Expr::Bitwise { mask, xor } => self.bitwise(mask, xor),
            Expr::Hton { .. } => match &mut self.register {
                Register::Field { hton, .. } => *hton = true,
                other => *other = Register::Lost,
            },
            Expr::Immediate(value) => {
                self.opened(at);
                self.register = Register::Value(value.clone());
            }
            Expr::Cmp { op, data } => {
                let understood = self.compare(*op, data);
                self.or_unknown(understood, exprs, at);
            }
            Expr::Range { op, from, to } => {
                let understood = self.range(*op, from, to);
                self.or_unknown(understood, exprs, at);
            }
            Expr::Lookup { set, negated, .. } => {
                let understood = self.lookup(set, *negated);
                self.or_unknown(understood, exprs, at);
            }
            Expr::Counter { packets, bytes } => {
                self.counters = Some(Counters { packets: *packets, bytes: *bytes });
            }
            Expr::MetaSet(_)
            | Expr::CtSet(_)
            | Expr::Redir
            | Expr::Snat { .. }
            | Expr::Tproxy { .. }
            | Expr::Verdict { .. } => {
                match self.statement(expr) {
                    Some(Verdict::Continue) => {}
                    Some(verdict) => self.does(verdict, self.open.map_or(at, |open| open.from), at),
                    None => self.decision(exprs, at),
                }
                self.open = None;
            }
            Expr::Vmap { set } => {
                self.branch(set, exprs, at);
                (self.register, self.open) = (Register::Lost, None);
            }
            Expr::Xt { target: true, .. } => {
                self.incomplete = true;
                self.decision(exprs, at);
            }
            // All that nft tells of a comment of iptables'.
            Expr::Xt { name, .. } if name == "comment" => {}
            Expr::Xt { .. } => {
                self.incomplete = true;
                self.matches.unknown.push(phrase(&exprs[at..=at]));
            }
            Expr::Update { .. } => {
                let from = self.open.map_or(at, |open| open.from);
                self.matches.unknown.push(phrase(&exprs[from..=at]));
                (self.register, self.open) = (Register::Lost, None);
            }
            Expr::Unknown { role, words } => match role {
                Role::Nothing => {}
                Role::Value => {
                    self.opened(at);
                    self.register = Register::Lost;
                }
                Role::Load => {
                    self.opened(at);
                    // Where there is nothing to load, the rule does not apply.
                    self.matches.unknown.push(words.clone());
                    self.register = Register::Lost;
                }
                Role::Condition => {
                    self.matches.unknown.push(words.clone());
                    (self.register, self.open) = (Register::Lost, None);
                }
                Role::Decision(_) | Role::Hidden => {
                    self.incomplete |= *role == Role::Hidden;
                    self.decision(exprs, at);
                    (self.register, self.open) = (Register::Lost, None);
                }
            },
        }
    }

    fn opened(&mut self, at: usize) {
        self.open.get_or_insert(OpenLoad { from: at, unknown: self.matches.unknown.len() });
    }

    /// Ends a comparison. If it was not understood, its expressions, from the first load on, become an
    /// unknown condition.
    fn or_unknown(&mut self, understood: Option<()>, exprs: &[Expr], at: usize) {
        let open = self.open.take();
        if understood.is_none() {
            let OpenLoad { from, unknown } = open.unwrap_or(OpenLoad { from: at, unknown: self.matches.unknown.len() });
            self.matches.unknown.truncate(unknown);
            let gone = match &self.register {
                Register::Field { field: PacketField::InIndex | PacketField::OutIndex, .. } => {
                    " (no interface has that index now)"
                }
                _ => "",
            };
            self.matches.unknown.push(phrase(&exprs[from..=at]) + gone);
        }
    }

    /// Adds a verdict that is not understood.
    pub(super) fn decision(&mut self, exprs: &[Expr], at: usize) {
        let from = self.open.map_or(at, |open| open.from);
        let is_value = |expr: &Expr| matches!(expr, Expr::Immediate(_) | Expr::Unknown { role: Role::Value, .. });
        let effect = match &exprs[at] {
            // What is taken from elsewhere, such as from a map, may not be there.
            _ if !exprs[from..at].iter().all(is_value) => Effect::Unknown,
            Expr::Unknown { role: Role::Decision(effect), .. } => *effect,
            Expr::Xt { name, .. } => of_target(name),
            _ => Effect::Unknown,
        };
        self.does(Verdict::Unknown(Unmodelled::new(statement(exprs, from, at), effect)), from, at);
    }

    /// Adds a step: a verdict for packets that meet all conditions so far.
    pub(super) fn does(&mut self, verdict: Verdict, from: usize, to: usize) {
        self.ended = steps::ends(&verdict);
        let (families, matches, incomplete) = (self.families, self.matches.clone(), self.incomplete);
        self.steps.push(RuleStep { families, matches, verdict, incomplete, from, to });
    }

    fn load(&mut self, at: usize, field: Option<PacketField>) {
        self.opened(at);
        self.register = match field {
            Some(field) => Register::Field { field, mask: None, xor: None, hton: false },
            None => Register::Lost,
        };
    }

    /// The field at an offset of the packet, which depends on the family that was compared before.
    fn payload_field(&self, base: u32, offset: u32, len: u32) -> Option<PacketField> {
        let only = match (self.families.v4, self.families.v6) {
            (true, false) => Some(Family::V4),
            (false, true) => Some(Family::V6),
            _ => None,
        };
        match (base, only, offset, len) {
            (payload::TRANSPORT, _, 0, 2) => Some(PacketField::SourcePort),
            (payload::TRANSPORT, _, 2, 2) => Some(PacketField::DestinationPort),
            // nft joins conditions on neighbours to one.
            (payload::TRANSPORT, _, 0, 4) => Some(PacketField::Ports),
            (payload::NETWORK, Some(family @ Family::V4), 12, 8) => Some(PacketField::Addresses { family }),
            (payload::NETWORK, Some(family @ Family::V6), 8, 32) => Some(PacketField::Addresses { family }),
            (payload::NETWORK, Some(Family::V4), 9, 1) => Some(PacketField::Protocol),
            // A load shorter than the address compares its first bytes: a prefix.
            (payload::NETWORK, Some(family), ..) => {
                let (source, destination) = if family == Family::V4 { (12, 16) } else { (8, 24) };
                let fits = len <= u32::from(family.bits() / 8);
                (fits && (offset == source || offset == destination))
                    .then_some(PacketField::Address { family, source: offset == source })
            }
            _ => None,
        }
    }

    fn bitwise(&mut self, new_mask: &[u8], new_xor: &[u8]) {
        match &mut self.register {
            Register::Field { mask: mask @ None, xor, .. } => {
                *mask = Some(new_mask.to_vec());
                *xor = Some(new_xor.to_vec());
            }
            other => *other = Register::Lost,
        }
    }

    fn statement(&mut self, expr: &Expr) -> Option<Verdict> {
        let value = |register: &Register| match register {
            Register::Value(bytes) => Some(bytes.clone()),
            _ => None,
        };
        let port = |register: &Register| {
            let bytes = value(register)?;
            Port::new(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        match (expr, &self.register) {
            (Expr::Verdict { code, chain }, _) => verdict(*code, chain.as_deref()),
            (Expr::Redir, register) => port(register).map(Verdict::Redirect),
            (Expr::Snat { .. }, register) => ip(&value(register)?).map(Verdict::Snat),
            // The mark stands in a step of its own: see `steps::apart`.
            (Expr::Tproxy { .. }, register) => {
                port(register).map(|port| Verdict::Tproxy { port, mark: Mark::new(0), closed: false })
            }
            (Expr::MetaSet(meta::MARK), Register::Value(bytes)) => {
                native(bytes).map(|value| Verdict::SetMark(Masked { value, mask: u32::MAX }))
            }
            (Expr::MetaSet(meta::MARK), Register::Field { field: PacketField::ConnectionMark, mask: None, .. }) => {
                Some(Verdict::RestoreMark)
            }
            // Neither changes where a packet goes.
            (Expr::MetaSet(meta::PRIORITY | meta::NFTRACE), _) => Some(Verdict::Continue),
            (
                Expr::MetaSet(meta::MARK),
                Register::Field { field: PacketField::Mark, mask: Some(keep), xor: Some(xor), .. },
            ) => Some(Verdict::SetMark(Masked { value: native(xor)?, mask: !native(keep)? })),
            (Expr::CtSet(ct::MARK), Register::Field { field: PacketField::Mark, mask: None, .. }) => {
                Some(Verdict::SaveMark)
            }
            (Expr::CtSet(ct::MARK), Register::Value(bytes)) => {
                native(bytes).map(|value| Verdict::SetConnectionMark(Masked { value, mask: u32::MAX }))
            }
            (
                Expr::CtSet(ct::MARK),
                Register::Field { field: PacketField::ConnectionMark, mask: Some(keep), xor: Some(xor), .. },
            ) => Some(Verdict::SetConnectionMark(Masked { value: native(xor)?, mask: !native(keep)? })),
            (Expr::CtSet(ct::ZONE), Register::Value(bytes)) => {
                Some(Verdict::CtZone(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)))
            }
            _ => None,
        }
    }
}
