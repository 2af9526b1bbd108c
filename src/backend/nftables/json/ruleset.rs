//! `nft -j list ruleset` (libnftables-json(5)) as tables of expressions.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::backend::hook::Base;
use crate::backend::nftables::decode::Listed;
use crate::backend::nftables::table::{NftChain, NftTable};
use crate::backend::nftables::written::names;
use crate::backend::nftables::written::sets::WrittenSets;
use crate::config::types::Interface;

use super::items::{entries, items, leaves};
use super::statement::{self, update};

type TableKey = (u8, String);

/// Reads the objects of the `nftables` array.
///
/// # Errors
///
/// The object that is not understood, or more rules and elements than the budget.
pub fn parse(objects: &[Value], budget: usize) -> Result<Vec<NftTable>, String> {
    let mut reader = JsonRuleset { budget, updated: updated(objects), ..JsonRuleset::default() };
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
struct JsonRuleset {
    tables: Vec<NftTable>,
    places: HashMap<TableKey, usize>,
    chains: HashMap<(TableKey, String), usize>,
    sets: HashMap<TableKey, WrittenSets>,
    budget: usize,
    /// The sets and maps that rules change.
    updated: HashSet<(TableKey, String)>,
}

/// The sets and maps that rules change, wherever the rules stand.
fn updated(objects: &[Value]) -> HashSet<(TableKey, String)> {
    let mut out = HashSet::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let text = |key: &str| rule.get(key).and_then(Value::as_str);
        let place = || Some((names::family(text("family")?).ok()?, text("table")?.to_owned()));
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

fn text<'a>(body: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    body.get(key).and_then(Value::as_str).ok_or_else(|| format!("it has no \"{key}\""))
}

impl JsonRuleset {
    fn object(&mut self, kind: &str, body: &Map<String, Value>) -> Result<(), String> {
        match kind {
            "table" => self.table(body),
            "chain" => self.chain(body),
            "set" | "map" => self.set(body, kind == "map"),
            "rule" => self.rule(body),
            _ => Ok(()),
        }
    }

    /// The table of an object, and its index in `tables`.
    fn place(&self, body: &Map<String, Value>) -> Result<(TableKey, usize), String> {
        let place = (names::family(text(body, "family")?)?, text(body, "table")?.to_owned());
        match self.places.get(&place) {
            Some(&at) => Ok((place, at)),
            None => Err(format!("its table {} is not listed before it", place.1)),
        }
    }

    fn table(&mut self, body: &Map<String, Value>) -> Result<(), String> {
        let place = (names::family(text(body, "family")?)?, text(body, "name")?.to_owned());
        if self.places.insert(place.clone(), self.tables.len()).is_some() {
            return Err(format!("{} {} is there for the second time", text(body, "family")?, place.1));
        }
        let flags = body.get("flags").map(|flags| leaves(flags).iter().any(|(flag, _)| flag == "dormant"));
        self.tables.push(NftTable {
            family: place.0,
            name: place.1,
            dormant: flags.unwrap_or(false),
            ..NftTable::default()
        });
        Ok(())
    }

    fn chain(&mut self, body: &Map<String, Value>) -> Result<(), String> {
        let (place, table) = self.place(body)?;
        let name = text(body, "name")?.to_owned();
        let mut chain = NftChain { name: name.clone(), ..NftChain::default() };
        if let Some(hook) = body.get("hook").and_then(Value::as_str) {
            let priority = body.get("prio").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
            let drops = body.get("policy").and_then(Value::as_str) == Some("drop");
            let priority = priority.ok_or("it has a hook and no priority")?;
            let (base, devices) = names::base(place.0, hook, text(body, "type")?, priority, devices(body))?;
            (chain.base, chain.devices) = (Some(Base { drops, ..base }), devices);
        }
        let Some(table) = self.tables.get_mut(table) else { return Err("its table is not listed before it".into()) };
        if self.chains.insert((place, name), table.chains.len()).is_some() {
            return Err(format!("{} is there for the second time", chain.name));
        }
        table.chains.push(chain);
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
            statement::read(expr, sets, &mut out);
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

    fn finish(mut self) -> Vec<NftTable> {
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
    names::devices(names.iter().map(|(name, _)| name.as_str()))
}
