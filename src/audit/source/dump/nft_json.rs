//! `nft -j list ruleset` (libnftables-json(5)) as tables of expressions.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::backend::effect::of_statement;
use crate::backend::nftables::decode::Listed;
use crate::backend::nftables::everything::{FullChain, FullTable};
use crate::backend::nftables::expr::{Expr, Op, Role, UpdateVerb, code};
use crate::config::types::Interface;

use super::nft_fields::{self as fields, Field, Item, Right};
use super::nft_sets::{self, Entry, Verdicts, WrittenSets};
use super::{nft_names, nft_rule, nft_words};

type Place = (u8, String);

/// Reads the objects of the `nftables` array.
pub fn parse(objects: &[Value], budget: usize) -> Result<Vec<FullTable>, String> {
    let mut reader = Reader { budget, updated: updated(objects), ..Reader::default() };
    for (at, object) in objects.iter().enumerate() {
        let Some((kind, body)) = object.as_object().and_then(|o| o.iter().next()) else {
            return Err(format!("entry {at} of \"nftables\" is no object"));
        };
        let Some(body) = body.as_object() else { continue };
        reader.object(kind, body).map_err(|problem| format!("entry {at} of \"nftables\", a {kind}: {problem}"))?;
    }
    Ok(reader.finish())
}

#[derive(Default)]
struct Reader {
    tables: Vec<FullTable>,
    places: HashMap<Place, usize>,
    chains: HashMap<(Place, String), usize>,
    sets: HashMap<Place, WrittenSets>,
    budget: usize,
    /// The sets and maps that rules change.
    updated: HashSet<(Place, String)>,
}

/// The sets and maps that rules change, wherever the rules stand.
fn updated(objects: &[Value]) -> HashSet<(Place, String)> {
    let mut out = HashSet::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let text = |key: &str| rule.get(key).and_then(Value::as_str);
        let place = || Some((nft_names::family(text("family")?).ok()?, text("table")?.to_owned()));
        let Some(place) = place() else { continue };
        for statement in rule.get("expr").and_then(Value::as_array).into_iter().flatten() {
            let name = match statement {
                // Of what this version of nft has no JSON for.
                Value::String(words) => words.split(' ').nth(1),
                statement => update(statement).map(|(_, set, _)| set),
            };
            out.extend(name.map(|name| (place.clone(), name.trim_start_matches('@').to_owned())));
        }
    }
    out
}

/// A statement that changes a set: how, which, and the element.
fn update(statement: &Value) -> Option<(UpdateVerb, &str, &Value)> {
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

fn text<'a>(body: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    body.get(key).and_then(Value::as_str).ok_or_else(|| format!("it has no \"{key}\""))
}

impl Reader {
    fn object(&mut self, kind: &str, body: &Map<String, Value>) -> Result<(), String> {
        match kind {
            "table" => self.table(body),
            "chain" => self.chain(body),
            "set" | "map" => self.set(body, kind == "map"),
            "rule" => self.rule(body),
            _ => Ok(()),
        }
    }

    /// The table that an object is in, and which one of `tables` that is.
    fn place(&self, body: &Map<String, Value>) -> Result<(Place, usize), String> {
        let place = (nft_names::family(text(body, "family")?)?, text(body, "table")?.to_owned());
        match self.places.get(&place) {
            Some(&at) => Ok((place, at)),
            None => Err(format!("its table {} is not listed before it", place.1)),
        }
    }

    fn table(&mut self, body: &Map<String, Value>) -> Result<(), String> {
        let place = (nft_names::family(text(body, "family")?)?, text(body, "name")?.to_owned());
        if self.places.insert(place.clone(), self.tables.len()).is_some() {
            return Err(format!("{} {} is there for the second time", text(body, "family")?, place.1));
        }
        let flags = body.get("flags").map(|flags| leaves(flags).iter().any(|(flag, _)| flag == "dormant"));
        self.tables.push(FullTable {
            family: place.0,
            name: place.1,
            dormant: flags.unwrap_or(false),
            ..FullTable::default()
        });
        Ok(())
    }

    fn chain(&mut self, body: &Map<String, Value>) -> Result<(), String> {
        let (place, table) = self.place(body)?;
        let name = text(body, "name")?.to_owned();
        let hook = match body.get("hook").and_then(Value::as_str) {
            Some(hook) => {
                let priority = body.get("prio").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
                let drops = body.get("policy").and_then(Value::as_str) == Some("drop");
                let priority = priority.ok_or("it has a hook and no priority")?;
                Some(nft_names::hook(place.0, hook, priority, text(body, "type")?, drops, devices(body))?)
            }
            None => None,
        };
        let Some(table) = self.tables.get_mut(table) else { return Err("its table is not listed before it".into()) };
        if self.chains.insert((place, name.clone()), table.chains.len()).is_some() {
            return Err(format!("{name} is there for the second time"));
        }
        table.chains.push(FullChain { name, hook, rules: Vec::new() });
        Ok(())
    }

    fn set(&mut self, body: &Map<String, Value>, map: bool) -> Result<(), String> {
        let (place, _) = self.place(body)?;
        let (list, name) = (body.get("elem"), text(body, "name")?.to_owned());
        let key = (place, name.clone());
        let sets = self.sets.entry(key.0.clone()).or_default();
        if self.updated.contains(&key) {
            sets.forget(&name);
            return Ok(());
        }
        match map {
            true => drop(sets.named_maps.insert(name, list.map_or(Some(Vec::new()), entries))),
            false => drop(sets.named.insert(name, list.map_or(Some(Vec::new()), items))),
        }
        Ok(())
    }

    fn rule(&mut self, body: &Map<String, Value>) -> Result<(), String> {
        let (place, table) = self.place(body)?;
        let chain = text(body, "chain")?;
        let at = self.chains.get(&(place.clone(), chain.to_owned()));
        let listed = at.and_then(|&at| self.tables.get_mut(table)?.chains.get_mut(at));
        let Some(listed) = listed else { return Err(format!("its chain {chain} is not listed before it")) };
        let exprs = body.get("expr").and_then(Value::as_array).ok_or("it has no \"expr\"")?;
        let sets = self.sets.entry(place.clone()).or_default();
        sets.budget = self.budget;
        let mut out = Vec::new();
        for expr in exprs {
            statement(expr, sets, &mut out);
        }
        self.budget = sets.budget;
        let comment = body.get("comment").and_then(Value::as_str).map(str::to_owned);
        listed.rules.push(Listed {
            exprs: out,
            comment,
            handle: body.get("handle").and_then(Value::as_u64),
            text: body.get("expr").map(|exprs| exprs.to_string().into()),
        });
        Ok(())
    }

    fn finish(mut self) -> Vec<FullTable> {
        for (place, sets) in self.sets {
            if let Some(table) = self.places.get(&place).and_then(|&at| self.tables.get_mut(at)) {
                sets.anonymous.into_table(table);
            }
        }
        self.tables
    }
}

/// `"dev"` of a chain, a name or several; nft 1.0.6 does not print it.
fn devices(chain: &Map<String, Value>) -> Option<Vec<Interface>> {
    let names = items(chain.get("dev")?)?;
    nft_names::devices(names.iter().map(|(name, _)| name.as_str()))
}

/// One statement of a rule; what is not understood is kept as unknown.
fn statement(statement: &Value, sets: &mut WrittenSets, out: &mut Vec<Expr>) {
    let Some((kind, body)) = statement.as_object().and_then(|o| o.iter().next()) else {
        // `"notrack"` and the like stand as bare words, and what nft has no JSON for as text.
        let words = statement.as_str().map_or_else(|| statement.to_string(), str::to_owned);
        match nft_words::all(&words).filter(|tokens| nft_rule::updated(tokens).next().is_some()) {
            Some(tokens) => out.extend(nft_rule::parse(&tokens, None, false, sets).exprs),
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
        "redirect" if let Some(port) = port(body) => out.extend(fields::redirect(port)),
        "tproxy" if let Some(port) = port(body).filter(|_| body.get("addr").is_none()) => {
            out.extend(fields::tproxy(port));
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

/// Adds what must hold for the fields to be there that an expression asks for or takes a value
/// from. A header within another one is none of the packet's; what a map holds are values.
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

/// The one port of a redirection.
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
    fields::condition(field, mask.as_deref(), op, &right, sets)
}

fn vmap(body: &Value, sets: &mut WrittenSets) -> Option<Vec<Expr>> {
    let data = body.get("data")?;
    let map = match data.as_str() {
        Some(name) => Verdicts::Named(name.strip_prefix('@')?.to_owned()),
        None => Verdicts::Among(entries(data.get("set")?)?),
    };
    nft_sets::vmap(field(body.get("key")?)?, &map, sets)
}

/// The entries of a map of verdicts; `None` where one is something else.
fn entries(list: &Value) -> Option<Vec<Entry>> {
    list.as_array()?.iter().map(entry).collect()
}

fn entry(entry: &Value) -> Option<Entry> {
    let [key, verdict] = &entry.as_array()?[..] else { return None };
    let key = if key.as_str() == Some("*") { None } else { Some(item(key)?) };
    let (name, body) = verdict.as_object()?.iter().next()?;
    let code = match name.as_str() {
        "jump" => code::JUMP,
        "goto" => code::GOTO,
        name => return Some((key, (code::by_name(name)?, None))),
    };
    Some((key, (code, Some(body.get("target")?.as_str()?.to_owned()))))
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

/// The elements of a set; `None` where one is no plain value.
fn items(list: &Value) -> Option<Vec<Item>> {
    match list {
        Value::Array(list) => list.iter().map(item).collect(),
        one => Some(vec![item(one)?]),
    }
}

fn item(value: &Value) -> Option<Item> {
    if let Some(one) = leaf(value) {
        return Some((one, None));
    }
    if let Some(range) = value.get("range").and_then(Value::as_array) {
        let [first, last] = &range[..] else { return None };
        return Some((leaf(first)?, Some(leaf(last)?)));
    }
    if let Some(prefix) = value.get("prefix") {
        return Some((format!("{}/{}", leaf(prefix.get("addr")?)?, leaf(prefix.get("len")?)?), None));
    }
    // An element with a timeout, a counter or a comment.
    item_of_element(value.get("elem")?)
}

fn item_of_element(element: &Value) -> Option<Item> {
    let value = element.get("val")?;
    // One level only: an element within an element is nothing that nft prints.
    if value.get("elem").is_some() { None } else { item(value) }
}

fn leaf(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn leaves(value: &Value) -> Vec<Item> {
    items(value).unwrap_or_default()
}

/// `mangle`: a mark or zone being set.
fn mangle(body: &Value) -> Option<Vec<Expr>> {
    let (key, value) = (body.get("key")?, body.get("value")?);
    let of = |value: &Value, what: &str| {
        value.get(what).and_then(|v| v.get("key")).and_then(Value::as_str).map(str::to_owned)
    };
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    match (of(key, "meta").as_deref(), of(key, "ct").as_deref()) {
        (Some("mark"), _) => {
            if let Some(mark) = number(value) {
                return Some(fields::set_mark(mark));
            }
            if of(value, "ct").as_deref() == Some("mark") {
                return Some(fields::restore_mark());
            }
            let (keep, flip) = bits(value)?;
            Some(fields::change_mark(keep, flip))
        }
        // A rule does not apply to what a map has no value for.
        (Some("nftrace" | "priority"), _) if value.get("map").is_none() => Some(Vec::new()),
        (_, Some("mark")) => (of(value, "meta").as_deref() == Some("mark")).then(fields::save_mark),
        (_, Some("zone")) if key["ct"].get("dir").is_none() => {
            Some(fields::set_zone(u16::try_from(value.as_u64()?).ok()?))
        }
        _ => None,
    }
}

/// `mark & A`, `mark | B`, `mark ^ B` and two of these, as what is kept and what is flipped.
fn bits(value: &Value) -> Option<(u32, u32)> {
    let (operator, both) = value.as_object()?.iter().next()?;
    let [left, right] = &both.as_array()?[..] else { return None };
    let right = u32::try_from(right.as_u64()?).ok()?;
    let is_mark = left.get("meta").and_then(|m| m.get("key")).and_then(Value::as_str) == Some("mark");
    let (keep, flip) = match is_mark {
        true => (u32::MAX, 0),
        // Two levels at most, which is what nft makes of any of them.
        false if left.as_object()?.values().next()?.as_array()?.first()?.get("meta").is_some() => bits(left)?,
        false => return None,
    };
    Some(match operator.as_str() {
        "&" => (keep & right, flip & right),
        "|" => (keep & !right, flip & !right | right),
        "^" => (keep, flip ^ right),
        _ => return None,
    })
}
