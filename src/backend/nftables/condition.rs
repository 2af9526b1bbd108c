//! Comparisons of a rule to conditions of the model. `None`: not understood.

use crate::config::types::{Families, Family, Interface, Networks};
use crate::plan::canon::{Addresses, addresses, cover};
use crate::plan::model::{Cond, CtStates, Masked};

use super::decode::{Decoder, Register};
use super::expr::Op;
use super::field::PacketField;
use super::sets::Elements;
use super::value::{
    big_endian, in_host_order, interface, interfaces_between, list, native, place, place_list, place_names, port,
    prefix, single,
};

impl Decoder<'_> {
    pub(super) fn compare(&mut self, op: Op, data: &[u8]) -> Option<()> {
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
            (PacketField::Address { family, source }, mask) => {
                let net = prefix(family, data, mask.as_deref())?;
                self.address(source, negated, Networks::from_iter([net]))
            }
            (PacketField::Addresses { family }, None) if !negated => {
                let (source, destination) = data.split_at_checked(data.len() / 2)?;
                let (source, destination) = (prefix(family, source, None)?, prefix(family, destination, None)?);
                self.address(true, false, Networks::from_iter([source]))?;
                self.address(false, false, Networks::from_iter([destination]))
            }
            (PacketField::Ports, None) if !negated => {
                let (source, destination) = data.split_at_checked(2)?;
                let one = |port: &[u8]| [(port.to_vec(), port.to_vec())];
                self.numbers(PacketField::SourcePort, false, &one(source), hton)?;
                self.numbers(PacketField::DestinationPort, false, &one(destination), hton)
            }
            (PacketField::Mark | PacketField::ConnectionMark, mask) => {
                let mask = mask.map_or(Some(u32::MAX), |m| native(&m))?;
                let cond = Cond { negated, value: Masked { value: native(data)?, mask } };
                let slot = match field {
                    PacketField::Mark => &mut self.matches.mark,
                    _ => &mut self.matches.connection_mark,
                };
                place(slot, cond)
            }
            // "(state & mask) != 0"
            (PacketField::ConnectionState, Some(mask)) if data.iter().all(|&b| b == 0) => {
                let states = CtStates(u8::try_from(native(&mask)?).ok()?);
                place(&mut self.matches.connection_state, Cond { negated: !negated, value: states })
            }
            (PacketField::InInterface | PacketField::OutInterface, None) => {
                self.interfaces(field, negated, vec![interface(data)?])
            }
            (PacketField::InIndex | PacketField::OutIndex, None) => {
                self.interfaces(field, negated, vec![self.by_index(data)?])
            }
            (field, None) => self.numbers(field, negated, &[(data.to_vec(), data.to_vec())], hton),
            _ => None,
        }
    }

    /// Translates `<`, `<=`, `>`, `>=` (2 to 5) to a range.
    fn ordering(&mut self, field: PacketField, op: Op, data: &[u8], hton: bool) -> Option<()> {
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

    pub(super) fn range(&mut self, op: Op, from: &[u8], to: &[u8]) -> Option<()> {
        let Register::Field { field, mask: None, hton, .. } = self.register.clone() else { return None };
        let negated = match op {
            Op::Eq => false,
            Op::Neq => true,
            Op::Other(_) => return None,
        };
        self.numbers_or_addresses(field, negated, &[(from.to_vec(), to.to_vec())], hton)
    }

    pub(super) fn lookup(&mut self, set: &str, negated: bool) -> Option<()> {
        let Register::Field { field, mask: None, hton, .. } = self.register.clone() else { return None };
        let around = self.around;
        self.among(field, negated, around.elements(set)?, hton)
    }

    /// Adds the condition that a field has one of these values.
    pub(super) fn among(&mut self, field: PacketField, negated: bool, elements: &Elements, hton: bool) -> Option<()> {
        match field {
            PacketField::InInterface | PacketField::OutInterface => {
                let names =
                    elements.iter().map(|(first, last)| interfaces_between(first, last)).collect::<Option<_>>()?;
                self.interfaces(field, negated, names)
            }
            PacketField::InIndex | PacketField::OutIndex => {
                let name = |index: &[u8]| self.by_index(&in_host_order(index, hton));
                let names = single(elements)?.map(name).collect::<Option<_>>()?;
                self.interfaces(field, negated, names)
            }
            _ => self.numbers_or_addresses(field, negated, elements, hton),
        }
    }

    fn numbers_or_addresses(
        &mut self,
        field: PacketField,
        negated: bool,
        ranges: &[(Vec<u8>, Vec<u8>)],
        hton: bool,
    ) -> Option<()> {
        let PacketField::Address { family, source } = field else { return self.numbers(field, negated, ranges, hton) };
        let mut networks = Networks::default();
        for (first, last) in ranges {
            cover(family, big_endian(first)?, big_endian(last)?, &mut networks);
        }
        self.address(source, negated, networks)
    }

    fn numbers(&mut self, field: PacketField, negated: bool, ranges: &[(Vec<u8>, Vec<u8>)], hton: bool) -> Option<()> {
        match field {
            PacketField::Family | PacketField::EtherType => {
                let family = |(first, last): &(Vec<u8>, Vec<u8>)| match first[..] {
                    _ if first != last => None,
                    [2] | [0x08, 0x00] => Some(Families::V4),
                    [10] | [0x86, 0xdd] => Some(Families::V6),
                    _ => None,
                };
                let families = ranges.iter().map(family).collect::<Option<Vec<_>>>()?;
                let families = families.into_iter().fold(Families::NONE, Families::union);
                let families = if negated { Families { v4: !families.v4, v6: !families.v6 } } else { families };
                self.families = self.families.intersection(families);
                Some(())
            }
            PacketField::Protocol => {
                let list = list(ranges, |b| (b.len() == 1).then(|| b[0]))?;
                place_list(&mut self.matches.protocol, negated, list)
            }
            PacketField::SourcePort => place_list(&mut self.matches.source_port, negated, list(ranges, port)?),
            PacketField::DestinationPort => {
                place_list(&mut self.matches.destination_port, negated, list(ranges, port)?)
            }
            PacketField::Uid | PacketField::Gid => {
                let singles = ranges.iter().all(|(first, last)| first == last);
                // Host order numbers in a range would be compared byte by byte.
                let read = |b: &[u8]| match (hton, singles) {
                    (true, _) => big_endian(b).and_then(|n| u32::try_from(n).ok()),
                    (false, true) => native(b),
                    (false, false) => None,
                };
                let list = list(ranges, read)?;
                let slot = if field == PacketField::Uid { &mut self.matches.uid } else { &mut self.matches.gid };
                place_list(slot, negated, list)
            }
            PacketField::Mark | PacketField::ConnectionMark => {
                let [(first, last)] = ranges else { return None };
                let value = (first == last).then(|| native(&in_host_order(first, hton)))??;
                let cond = Cond { negated, value: Masked { value, mask: u32::MAX } };
                match field {
                    PacketField::Mark => place(&mut self.matches.mark, cond),
                    _ => place(&mut self.matches.connection_mark, cond),
                }
            }
            // A bitmask in a set: nft writes `ct state { new, established }` so.
            PacketField::ConnectionState => {
                let states = ranges.iter().try_fold(CtStates(0), |all, (first, last)| {
                    // A packet is in one state: no packet is in what several of them make.
                    let one = (first == last).then(|| native(first))?.filter(|state| state.count_ones() == 1)?;
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

    fn interfaces(&mut self, field: PacketField, negated: bool, names: Vec<Interface>) -> Option<()> {
        let slot = match field {
            PacketField::InInterface | PacketField::InIndex => &mut self.matches.in_interface,
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
            Some(cond) => {
                *cond = Cond::is(both(cond, &Cond { negated, value: networks }));
                Some(())
            }
            None => place(slot, Cond { negated, value: networks }),
        }
    }
}

/// The addresses that meet both conditions: nft asks for a range by its two ends.
fn both(one: &Cond<Networks>, other: &Cond<Networks>) -> Networks {
    let mut out = Networks::default();
    for family in Family::BOTH {
        let all = Addresses::new([(0, u128::MAX >> (128 - u32::from(family.bits())))]);
        let meeting = |cond: &Cond<Networks>| match addresses(&cond.value, family) {
            set if cond.negated => all.minus(&set),
            set => set,
        };
        let met = meeting(one).intersection(&meeting(other));
        met.iter().for_each(|(first, last)| cover(family, first, last, &mut out));
    }
    out
}
