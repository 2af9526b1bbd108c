//! One statement of a rule in nft's JSON; what is not understood is kept as unknown.

use std::net::IpAddr;

use serde_json::Value;

use crate::backend::effect::of_statement;
use crate::backend::nftables::expr::{Expr, Op, Role, UpdateVerb, code};
use crate::backend::nftables::text::{self, tokens};
use crate::backend::nftables::written::conditions;
use crate::backend::nftables::written::fields::{self, Field, Right};
use crate::backend::nftables::written::sets::{self, Verdicts, WrittenSets};
use crate::backend::nftables::written::statements::{self, MarkOf};

use super::items::{entries, item, items, leaf};

/// A statement that changes a set: how, which, and the element.
pub(super) fn update(statement: &Value) -> Option<(UpdateVerb, &str, &Value)> {
    let (kind, body) = statement.as_object()?.iter().next()?;
    match kind.as_str() {
        "set" | "map" => {
            let verb = UpdateVerb::by_name(body.get("op")?.as_str()?)?;
            Some((verb, body.get(kind)?.as_str()?, body))
        }
        "meter" => Some((UpdateVerb::Add, body.get("name")?.as_str()?, body)),
        _ => None,
    }
}

/// One statement of a rule; what is not understood is kept as unknown.
pub(super) fn read(statement: &Value, sets: &mut WrittenSets, out: &mut Vec<Expr>) {
    let Some((kind, body)) = statement.as_object().and_then(|o| o.iter().next()) else {
        // `"notrack"` and the like stand as bare words, and what nft has no JSON for as text.
        let words = statement.as_str().map_or_else(|| statement.to_string(), str::to_owned);
        match tokens::all(&words).filter(|tokens| text::updated(tokens).next().is_some()) {
            Some(tokens) => out.extend(text::rule::parse(&tokens, None, false, sets).exprs),
            None => out.push(decision(&words.clone(), words)),
        }
        return;
    };
    if let Some((verb, set, element)) = update(statement) {
        headers(element, out);
        return out.push(Expr::Update { verb, set: set.trim_start_matches('@').to_owned() });
    }
    let number = |key: &str| body.get(key).and_then(Value::as_u64);
    let target = || body.get("target").and_then(Value::as_str).map(str::to_owned);
    let verdict = |code, chain| Expr::Verdict { code, chain };
    let words = || if body.is_null() { kind.clone() } else { format!("{kind} {body}") };
    match kind.as_str() {
        "match" => match condition(body, sets) {
            Some(exprs) => out.extend(exprs),
            None => {
                body.get("left").into_iter().for_each(|left| headers(left, out));
                out.push(Expr::Unknown { role: Role::Condition, words: format!("match {body}") });
            }
        },
        "vmap" => match vmap(body, sets) {
            Some(exprs) => out.extend(exprs),
            None => {
                body.get("key").into_iter().for_each(|key| headers(key, out));
                out.push(decision(kind, words()));
            }
        },
        "counter" => {
            if let (Some(packets), Some(bytes)) = (number("packets"), number("bytes")) {
                out.push(Expr::Counter { packets, bytes });
            } else if body.is_object() && body.get("packets").is_none() {
                // From a map, which need not have one for the packet.
                headers(body, out);
                out.push(Expr::Unknown { role: Role::Condition, words: words() });
            }
        }
        "accept" => out.push(verdict(code::ACCEPT, None)),
        "drop" => out.push(verdict(code::DROP, None)),
        "return" => out.push(verdict(code::RETURN, None)),
        "continue" | "log" | "last" => {}
        "jump" => out.push(verdict(code::JUMP, target())),
        "goto" => out.push(verdict(code::GOTO, target())),
        "redirect" if let Some(port) = port(body) => out.extend(statements::redirect(port)),
        "snat" if let Some(to) = only_address(body) => out.extend(statements::snat(to)),
        "tproxy" if let Some(port) = port(body).filter(|_| body.get("addr").is_none()) => {
            out.extend(statements::tproxy(port));
        }
        "mangle" => match mangle(body) {
            Some(exprs) => out.extend(exprs),
            None => {
                headers(body, out);
                out.push(decision(kind, words()));
            }
        },
        "xt" => {
            let name = body.get("name").and_then(Value::as_str).unwrap_or("of iptables").to_owned();
            let target = body.get("type").and_then(Value::as_str) != Some("match");
            out.push(Expr::Xt { target, name, revision: u32::MAX, info: Vec::new() });
        }
        "limit" | "quota" | "ct count" => {
            headers(body, out);
            out.push(Expr::Unknown { role: Role::Condition, words: words() });
        }
        // Whatever else it is, it may decide about the packet.
        _ => {
            headers(body, out);
            out.push(decision(kind, words()));
        }
    }
}

/// Adds the conditions under which a packet has the fields that an expression compares or loads. A
/// header within another one is not the packet's own; a map's values are no fields.
fn headers(expression: &Value, out: &mut Vec<Expr>) {
    match expression {
        Value::Object(parts) => {
            for (name, part) in parts.iter().filter(|(name, _)| *name != "data") {
                match part.get("protocol").and_then(Value::as_str) {
                    Some(header) if name == "payload" && part.get("tunnel").is_none() => {
                        out.extend(fields::of_header(header));
                    }
                    Some(_) if name == "payload" => {}
                    _ => headers(part, out),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| headers(part, out)),
        _ => {}
    }
}

fn decision(statement: &str, words: String) -> Expr {
    Expr::Unknown { role: Role::Decision(of_statement(statement)), words }
}

/// The address to which a source is rewritten, if the statement says nothing else.
fn only_address(body: &Value) -> Option<IpAddr> {
    let plain = body.as_object()?.keys().all(|key| matches!(key.as_str(), "family" | "addr"));
    body.get("addr").filter(|_| plain)?.as_str()?.parse().ok()
}

/// The port of a redirection, if there is one.
fn port(body: &Value) -> Option<u16> {
    u16::try_from(body.get("port")?.as_u64()?).ok().filter(|_| body.get("flags").is_none())
}

fn condition(body: &Value, sets: &mut WrittenSets) -> Option<Vec<Expr>> {
    let op = match body.get("op")?.as_str()? {
        "==" | "in" => Op::Eq,
        "!=" => Op::Neq,
        "<" => Op::Other(2),
        "<=" => Op::Other(3),
        ">" => Op::Other(4),
        ">=" => Op::Other(5),
        _ => return None,
    };
    let left = body.get("left")?;
    let (left, mask) = match left.get("&").and_then(Value::as_array) {
        Some(both) => match &both[..] {
            [left, mask] => (left, Some(leaf(mask)?)),
            _ => return None,
        },
        None => (left, None),
    };
    let field = field(left)?;
    let right = right(field, body.get("right")?)?;
    conditions::condition(field, mask.as_deref(), op, &right, sets)
}

fn vmap(body: &Value, sets: &mut WrittenSets) -> Option<Vec<Expr>> {
    let data = body.get("data")?;
    let map = match data.as_str() {
        Some(name) => Verdicts::Named(name.strip_prefix('@')?.to_owned()),
        None => Verdicts::Among(entries(data.get("set")?)?),
    };
    sets::vmap(field(body.get("key")?)?, &map, sets)
}

fn field(left: &Value) -> Option<Field> {
    let key = |of: &str| left.get(of)?.get("key")?.as_str();
    if let Some(key) = key("meta") {
        return fields::meta_field(key);
    }
    if let Some(key) = key("ct") {
        // With a direction it is another thing.
        return fields::ct_field(key).filter(|_| left["ct"].get("dir").is_none());
    }
    let payload = left.get("payload")?;
    fields::payload_field(payload.get("protocol")?.as_str()?, payload.get("field")?.as_str()?)
}

fn right(field: Field, value: &Value) -> Option<Right> {
    match value {
        Value::String(name) if name.starts_with('@') => Some(Right::Named(name[1..].to_owned())),
        Value::Array(_) if field == Field::ConnectionState => Some(Right::Among(items(value)?)),
        value => match value.get("set") {
            Some(Value::String(name)) => Some(Right::Named(name.trim_start_matches('@').to_owned())),
            Some(list) => Some(Right::Among(items(list)?)),
            None => item(value).map(Right::One),
        },
    }
}

/// `mangle`: a mark or zone being set.
fn mangle(body: &Value) -> Option<Vec<Expr>> {
    let (key, value) = (body.get("key")?, body.get("value")?);
    let of = |value: &Value, what: &str| {
        value.get(what).and_then(|v| v.get("key")).and_then(Value::as_str).map(str::to_owned)
    };
    match (of(key, "meta").as_deref(), of(key, "ct").as_deref()) {
        (Some("mark"), _) => set_mark(MarkOf::Packet, value),
        (_, Some("mark")) if key["ct"].get("dir").is_none() => set_mark(MarkOf::Connection, value),
        // A rule does not apply to what a map has no value for.
        (Some("nftrace" | "priority"), _) if value.get("map").is_none() => Some(Vec::new()),
        (_, Some("zone")) if key["ct"].get("dir").is_none() => {
            Some(statements::set_zone(u16::try_from(value.as_u64()?).ok()?))
        }
        _ => None,
    }
}

fn set_mark(of: MarkOf, value: &Value) -> Option<Vec<Expr>> {
    if let Some(mark) = value.as_u64().and_then(|n| u32::try_from(n).ok()) {
        return Some(statements::set_mark(of, mark));
    }
    if is_mark(of.other(), value) {
        return Some(statements::copy_mark(of));
    }
    let (keep, flip) = bits(of, value)?;
    Some(statements::change_mark(of, keep, flip))
}

fn is_mark(of: MarkOf, value: &Value) -> bool {
    value.get(of.word()).and_then(|mark| mark.get("key")).and_then(Value::as_str) == Some("mark")
}

/// Reads `mark & A`, `mark | B`, `mark ^ B` and pairs of these as the bits that are kept and flipped.
fn bits(of: MarkOf, value: &Value) -> Option<(u32, u32)> {
    let (operator, both) = value.as_object()?.iter().next()?;
    let [left, right] = &both.as_array()?[..] else { return None };
    let right = u32::try_from(right.as_u64()?).ok()?;
    let (keep, flip) = match is_mark(of, left) {
        true => (u32::MAX, 0),
        // Two levels at most, which is what nft makes of any of them.
        false if is_mark(of, left.as_object()?.values().next()?.as_array()?.first()?) => bits(of, left)?,
        false => return None,
    };
    Some(match operator.as_str() {
        "&" => (keep & right, flip & right),
        "|" => (keep & !right, flip & !right | right),
        "^" => (keep, flip ^ right),
        _ => return None,
    })
}
