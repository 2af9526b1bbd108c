//! nf_tables expressions back to rules of the model. Follows what the one register
//! holds from load to comparison; whatever it cannot follow becomes an unknown
//! condition or verdict, so that a rule is never taken for less than it is.

use crate::config::types::{Families, Family, Interface, Mark, Networks, Port};
use crate::plan::canon::cover;
use crate::plan::model::{Cond, Counters, CtStates, Masked, Matches, Rule, Verdict};
use crate::plan::why::Why;

use super::expr::{Expr, Op, code, ct, meta, payload};
use super::field::{Field, ct_field, meta_field};
use super::names;
use super::sets::Elements;
use super::value::{big_endian, interface, list, native, place, place_list, place_names, port, prefix, single};

/// What rules refer to by name or number.
pub trait Surroundings {
    /// The elements of a set, `None` for one that is not known or not of plain keys.
    fn elements(&self, name: &str) -> Option<&Elements>;

    /// The name of the interface with an index, `None` where none has it.
    fn interface(&self, index: u32) -> Option<&str>;
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub exprs: Vec<Expr>,
    pub comment: Option<String>,
}

/// The rules of a chain. `families`: those of the table.
pub fn chain(rules: &[Listed], families: Families, around: &dyn Surroundings) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for listed in rules {
        for rule in self::rule(listed, families, around) {
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

/// A rule; several where it does several things, each then with the same conditions.
fn rule(listed: &Listed, families: Families, around: &dyn Surroundings) -> Vec<Rule> {
    let mut reader = Reader {
        around,
        families,
        matches: Matches::default(),
        register: Register::Empty,
        verdicts: Vec::new(),
        counters: None,
    };
    for expr in &listed.exprs {
        reader.step(expr);
    }
    let why = listed.comment.as_deref().map_or(Why::Foreign("".into()), Why::from_comment);
    let (families, matches, counters) = (reader.families, reader.matches, reader.counters);
    let mut verdicts = join_tproxy(reader.verdicts);
    if verdicts.is_empty() {
        verdicts.push(Verdict::Continue);
    }
    let rules = verdicts.into_iter().map(|verdict| Rule {
        families,
        matches: matches.clone(),
        verdict,
        why: why.clone(),
        counters,
    });
    rules.collect()
}

/// "tproxy, set mark, accept" in one rule is one verdict of the model.
fn join_tproxy(verdicts: Vec<Verdict>) -> Vec<Verdict> {
    let tproxy = verdicts.iter().find_map(|v| if let Verdict::Tproxy { port, .. } = v { Some(*port) } else { None });
    let mark = verdicts.iter().find_map(|v| if let Verdict::SetMark(m) = v { Some(*m) } else { None });
    match (tproxy, mark, verdicts.len(), verdicts.last()) {
        (Some(port), Some(mark), 3, Some(Verdict::Accept)) if mark.mask == u32::MAX => {
            vec![Verdict::Tproxy { port, mark: Mark::new(mark.value), closed: false }]
        }
        (Some(_), ..) => vec![Verdict::Unknown("tproxy".into())],
        _ => verdicts,
    }
}

/// What the register holds.
#[derive(Debug, Clone)]
enum Register {
    Empty,
    /// A field, `len` bytes of it, masked if a mask is there, in network order if `hton`.
    Field {
        field: Field,
        mask: Option<Vec<u8>>,
        xor: Option<Vec<u8>>,
        hton: bool,
    },
    Value(Vec<u8>),
    /// Not followed.
    Lost,
}

/// Expressions that decide about a packet, in a form or with an effect that is not known.
const DECIDES: &[&str] = &[
    "nat", "snat", "masq", "redir", "tproxy", "reject", "queue", "fwd", "dup", "target", "synproxy", "notrack", "vmap",
];

struct Reader<'a> {
    around: &'a dyn Surroundings,
    families: Families,
    matches: Matches,
    register: Register,
    verdicts: Vec<Verdict>,
    counters: Option<Counters>,
}

impl Reader<'_> {
    fn step(&mut self, expr: &Expr) {
        match expr {
            Expr::Meta(key) => self.load(meta_field(*key)),
            Expr::Ct(key) => self.load(ct_field(*key)),
            Expr::Payload { base, offset, len } => self.load(self.payload_field(*base, *offset, *len)),
            Expr::Bitwise { mask, xor } => self.bitwise(mask, xor),
            Expr::Hton { .. } => match &mut self.register {
                Register::Field { hton, .. } => *hton = true,
                other => *other = Register::Lost,
            },
            Expr::Immediate(value) => self.register = Register::Value(value.clone()),
            Expr::Cmp { op, data } => {
                let understood = self.compare(*op, data);
                self.or_unknown(understood, "comparison");
            }
            Expr::Range { op, from, to } => {
                let understood = self.range(*op, from, to);
                self.or_unknown(understood, "range");
            }
            Expr::Lookup { set, negated, .. } => {
                let understood = self.lookup(set, *negated);
                self.or_unknown(understood, "lookup");
            }
            Expr::Counter { packets, bytes } => {
                self.counters = Some(Counters { packets: *packets, bytes: *bytes });
            }
            Expr::MetaSet(_) | Expr::CtSet(_) | Expr::Redir | Expr::Tproxy { .. } | Expr::Verdict { .. } => {
                let verdict = self.statement(expr).unwrap_or_else(|| Verdict::Unknown("statement".into()));
                self.verdicts.push(verdict);
            }
            Expr::Xt { target: true, name, .. } => {
                self.verdicts.push(Verdict::Unknown(format!("target {name}").into()));
            }
            Expr::Xt { name, .. } => self.matches.unknown.push(format!("match {name}")),
            // Writes somewhere and lets the packet go on.
            Expr::Unknown(name) if name == "log" => {}
            Expr::Unknown(name) if DECIDES.contains(&name.as_str()) => {
                self.verdicts.push(Verdict::Unknown(name.as_str().into()));
            }
            Expr::Unknown(name) => {
                self.matches.unknown.push(name.clone());
                self.register = Register::Lost;
            }
        }
    }

    fn or_unknown(&mut self, understood: Option<()>, what: &str) {
        if understood.is_none() {
            self.matches.unknown.push(what.to_owned());
        }
    }

    fn load(&mut self, field: Option<Field>) {
        self.register = match field {
            Some(field) => Register::Field { field, mask: None, xor: None, hton: false },
            None => Register::Lost,
        };
    }

    /// A payload's meaning depends on the family that was compared before it.
    fn payload_field(&self, base: u32, offset: u32, len: u32) -> Option<Field> {
        let only = match (self.families.v4, self.families.v6) {
            (true, false) => Some(Family::V4),
            (false, true) => Some(Family::V6),
            _ => None,
        };
        match (base, only, offset, len) {
            (payload::TRANSPORT, _, 0, 2) => Some(Field::SourcePort),
            (payload::TRANSPORT, _, 2, 2) => Some(Field::DestinationPort),
            (payload::NETWORK, Some(Family::V4), 9, 1) => Some(Field::Protocol),
            // A load shorter than the address compares its first bytes: a prefix.
            (payload::NETWORK, Some(family), ..) => {
                let (source, destination) = if family == Family::V4 { (12, 16) } else { (8, 24) };
                let fits = len <= u32::from(family.bits() / 8);
                (fits && (offset == source || offset == destination))
                    .then_some(Field::Address { family, source: offset == source })
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

    fn compare(&mut self, op: Op, data: &[u8]) -> Option<()> {
        let Register::Field { field, mask, xor, hton } = self.register.clone() else { return None };
        if xor.is_some_and(|x| x.iter().any(|&b| b != 0)) {
            return None;
        }
        let negated = match op {
            Op::Eq => false,
            Op::Neq => true,
            Op::Other(_) if mask.is_none() => return self.ordering(field, op, data, hton),
            Op::Other(_) => return None,
        };
        match (field, mask) {
            (Field::Address { family, source }, mask) => {
                let net = prefix(family, data, mask.as_deref())?;
                self.address(source, negated, Networks::from_iter([net]))
            }
            (Field::Mark | Field::ConnectionMark, mask) => {
                let mask = mask.map_or(Some(u32::MAX), |m| native(&m))?;
                let cond = Cond { negated, value: Masked { value: native(data)?, mask } };
                let slot = match field {
                    Field::Mark => &mut self.matches.mark,
                    _ => &mut self.matches.connection_mark,
                };
                place(slot, cond)
            }
            // "(state & mask) != 0"
            (Field::ConnectionState, Some(mask)) if data.iter().all(|&b| b == 0) => {
                let states = CtStates(u8::try_from(native(&mask)?).ok()?);
                place(&mut self.matches.connection_state, Cond { negated: !negated, value: states })
            }
            (Field::InInterface | Field::OutInterface, None) => self.interfaces(field, negated, vec![interface(data)?]),
            (Field::InIndex | Field::OutIndex, None) => self.interfaces(field, negated, vec![self.by_index(data)?]),
            (field, None) => self.numbers(field, negated, &[(data.to_vec(), data.to_vec())], hton),
            _ => None,
        }
    }

    /// `<`, `<=`, `>`, `>=` (2 to 5) as ranges.
    fn ordering(&mut self, field: Field, op: Op, data: &[u8], hton: bool) -> Option<()> {
        let (least, most) = (vec![0; data.len()], vec![0xff; data.len()]);
        let add = |by: i128| {
            let n = i128::try_from(big_endian(data)?).ok()?.checked_add(by)?;
            let bytes = u128::try_from(n).ok()?.to_be_bytes();
            Some(bytes[16 - data.len()..].to_vec())
        };
        let range = match op {
            Op::Other(2) => (least, add(-1)?),
            Op::Other(3) => (least, data.to_vec()),
            Op::Other(4) => (add(1)?, most),
            Op::Other(5) => (data.to_vec(), most),
            _ => return None,
        };
        self.numbers_or_addresses(field, false, &[range], hton)
    }

    fn range(&mut self, op: Op, from: &[u8], to: &[u8]) -> Option<()> {
        let Register::Field { field, mask: None, hton, .. } = self.register.clone() else { return None };
        let negated = match op {
            Op::Eq => false,
            Op::Neq => true,
            Op::Other(_) => return None,
        };
        self.numbers_or_addresses(field, negated, &[(from.to_vec(), to.to_vec())], hton)
    }

    fn lookup(&mut self, set: &str, negated: bool) -> Option<()> {
        let Register::Field { field, mask: None, hton, .. } = self.register.clone() else { return None };
        let around = self.around;
        let elements = around.elements(set)?;
        match field {
            Field::InInterface | Field::OutInterface => {
                let names = single(elements)?.map(interface).collect::<Option<_>>()?;
                self.interfaces(field, negated, names)
            }
            Field::InIndex | Field::OutIndex => {
                let names = single(elements)?.map(|index| self.by_index(index)).collect::<Option<_>>()?;
                self.interfaces(field, negated, names)
            }
            _ => self.numbers_or_addresses(field, negated, elements, hton),
        }
    }

    fn numbers_or_addresses(
        &mut self,
        field: Field,
        negated: bool,
        ranges: &[(Vec<u8>, Vec<u8>)],
        hton: bool,
    ) -> Option<()> {
        let Field::Address { family, source } = field else { return self.numbers(field, negated, ranges, hton) };
        let mut networks = Networks::default();
        for (first, last) in ranges {
            cover(family, big_endian(first)?, big_endian(last)?, &mut networks);
        }
        self.address(source, negated, networks)
    }

    fn numbers(&mut self, field: Field, negated: bool, ranges: &[(Vec<u8>, Vec<u8>)], hton: bool) -> Option<()> {
        match field {
            Field::Family if ranges.len() == 1 && ranges[0].0 == ranges[0].1 => {
                let families = match ranges[0].0[..] {
                    [2] => Families::V4,
                    [10] => Families::V6,
                    _ => return None,
                };
                let families = if negated { Families { v4: !families.v4, v6: !families.v6 } } else { families };
                self.families = self.families.intersection(families);
                Some(())
            }
            Field::Protocol => {
                let list = list(ranges, |b| (b.len() == 1).then(|| b[0]))?;
                place_list(&mut self.matches.protocol, negated, list)
            }
            Field::SourcePort => place_list(&mut self.matches.source_port, negated, list(ranges, port)?),
            Field::DestinationPort => place_list(&mut self.matches.destination_port, negated, list(ranges, port)?),
            Field::Uid | Field::Gid => {
                let singles = ranges.iter().all(|(first, last)| first == last);
                // Host order numbers in a range would be compared byte by byte.
                let read = |b: &[u8]| match (hton, singles) {
                    (true, _) => big_endian(b).and_then(|n| u32::try_from(n).ok()),
                    (false, true) => native(b),
                    (false, false) => None,
                };
                let list = list(ranges, read)?;
                let slot = if field == Field::Uid { &mut self.matches.uid } else { &mut self.matches.gid };
                place_list(slot, negated, list)
            }
            // A bitmask in a set: nft writes `ct state { new, established }` so.
            Field::ConnectionState => {
                let states = ranges.iter().try_fold(CtStates(0), |all, (first, last)| {
                    let one = (first == last).then(|| native(first))??;
                    Some(all.union(CtStates(u8::try_from(one).ok()?)))
                })?;
                place(&mut self.matches.connection_state, Cond { negated, value: states })
            }
            _ => None,
        }
    }

    fn by_index(&self, index: &[u8]) -> Option<Interface> {
        self.around.interface(native(index)?).map(|name| Interface::new(name, false))
    }

    fn interfaces(&mut self, field: Field, negated: bool, names: Vec<Interface>) -> Option<()> {
        let slot = match field {
            Field::InInterface | Field::InIndex => &mut self.matches.in_interface,
            _ => &mut self.matches.out_interface,
        };
        place_names(slot, negated, names)
    }

    fn address(&mut self, source: bool, negated: bool, networks: Networks) -> Option<()> {
        let slot = if source { &mut self.matches.source } else { &mut self.matches.destination };
        match slot {
            Some(cond) if cond.negated && negated => {
                cond.value.v4.extend(networks.v4);
                cond.value.v6.extend(networks.v6);
                Some(())
            }
            _ => place(slot, Cond { negated, value: networks }),
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
            (Expr::Verdict { code, chain }, _) => match (*code, chain) {
                (code::DROP, None) => Some(Verdict::Drop),
                (code::ACCEPT, None) => Some(Verdict::Accept),
                (code::RETURN, None) => Some(Verdict::Return),
                (code::JUMP, Some(chain)) => Some(Verdict::Jump(names::chain_by_name(chain))),
                (code::GOTO, Some(chain)) => Some(Verdict::Goto(names::chain_by_name(chain))),
                _ => None,
            },
            (Expr::Redir, register) => port(register).map(Verdict::Redirect),
            // The mark is found beside it by `join_tproxy`.
            (Expr::Tproxy { .. }, register) => {
                port(register).map(|port| Verdict::Tproxy { port, mark: Mark::new(0), closed: false })
            }
            (Expr::MetaSet(meta::MARK), Register::Value(bytes)) => {
                native(bytes).map(|value| Verdict::SetMark(Masked { value, mask: u32::MAX }))
            }
            (Expr::MetaSet(meta::MARK), Register::Field { field: Field::ConnectionMark, mask: None, .. }) => {
                Some(Verdict::RestoreMark)
            }
            // Neither changes where a packet goes.
            (Expr::MetaSet(meta::PRIORITY | meta::NFTRACE), _) => Some(Verdict::Continue),
            (
                Expr::MetaSet(meta::MARK),
                Register::Field { field: Field::Mark, mask: Some(keep), xor: Some(xor), .. },
            ) => Some(Verdict::SetMark(Masked { value: native(xor)?, mask: !native(keep)? })),
            (Expr::CtSet(ct::MARK), Register::Field { field: Field::Mark, mask: None, .. }) => Some(Verdict::SaveMark),
            (Expr::CtSet(ct::ZONE), Register::Value(bytes)) => {
                Some(Verdict::CtZone(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)))
            }
            _ => None,
        }
    }
}
