//! Translates conditions in nft's words to the kernel's expressions.

use crate::backend::nftables::expr::{Expr, Op};
use crate::plan::model::CtStates;

use super::fields::{Class, Field, Right, exact};
use super::sets::WrittenSets;
use super::values::{number, range_bytes, value_bytes};

/// Translates the comparison of a field with values; `None` if a value is not understood.
pub fn condition(field: Field, mask: Option<&str>, op: Op, right: &Right, sets: &mut WrittenSets) -> Option<Vec<Expr>> {
    let mut out = field.load();
    let class = field.class();
    if let Some(mask) = mask {
        let (Class::Mark, Right::One((value, None))) = (class, right) else { return None };
        out.push(Expr::Bitwise { mask: number(mask)?.to_ne_bytes().to_vec(), xor: vec![0; 4] });
        out.push(Expr::Cmp { op, data: value_bytes(class, value)? });
        return Some(out);
    }
    if class == Class::State && !matches!(right, Right::Named(_)) {
        out.extend(states(op, right)?);
        return Some(out);
    }
    match right {
        Right::One(item) if class.is_name() => {
            out.push(Expr::Cmp { op: plain(op)?, data: value_bytes(class, exact(item)?)? });
        }
        Right::One(item) => {
            let (from, to) = range_bytes(class, item)?;
            out.push(match op {
                Op::Other(_) if from == to => Expr::Cmp { op, data: from },
                Op::Other(_) => return None,
                op if from == to && class != Class::Id => Expr::Cmp { op, data: from },
                op => Expr::Range { op, from, to },
            });
        }
        Right::Among(items) => {
            let set = sets.among(class, items)?;
            out.push(Expr::Lookup { set, id: None, negated: plain(op)? == Op::Neq });
        }
        Right::Named(name) => {
            let set = sets.encoded(name, class)?;
            out.push(Expr::Lookup { set, id: None, negated: plain(op)? == Op::Neq });
        }
    }
    Some(out)
}

fn plain(op: Op) -> Option<Op> {
    matches!(op, Op::Eq | Op::Neq).then_some(op)
}

/// `ct state`: any of the states, or none of them. A packet is in one.
fn states(op: Op, right: &Right) -> Option<Vec<Expr>> {
    let items = match right {
        Right::One(item) => std::slice::from_ref(item),
        Right::Among(items) => items,
        Right::Named(_) => return None,
    };
    let mut all = CtStates(0);
    for item in items {
        for word in exact(item)?.split(',') {
            let known = CtStates::NAMED.iter().find(|(_, name)| name.eq_ignore_ascii_case(word.trim()));
            all = all.union(known?.0);
        }
    }
    let op = if plain(op)? == Op::Eq { Op::Neq } else { Op::Eq };
    let mask = u32::from(all.0).to_ne_bytes().to_vec();
    Some(vec![Expr::Bitwise { mask, xor: vec![0; 4] }, Expr::Cmp { op, data: vec![0; 4] }])
}
