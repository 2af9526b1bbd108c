//! Elements of sets and entries of maps in nft's JSON.

use serde_json::Value;

use crate::backend::nftables::expr::code;
use crate::backend::nftables::written::fields::Item;
use crate::backend::nftables::written::sets::SetEntry;

/// The entries of a map of verdicts; `None` where one is something else.
pub(super) fn entries(list: &Value) -> Option<Vec<SetEntry>> {
    list.as_array()?.iter().map(entry).collect()
}

pub(super) fn entry(entry: &Value) -> Option<SetEntry> {
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

/// The elements of a set; `None` where one is no plain value.
pub(super) fn items(list: &Value) -> Option<Vec<Item>> {
    match list {
        Value::Array(list) => list.iter().map(item).collect(),
        one => Some(vec![item(one)?]),
    }
}

pub(super) fn item(value: &Value) -> Option<Item> {
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

pub(super) fn item_of_element(element: &Value) -> Option<Item> {
    let value = element.get("val")?;
    // One level only: an element within an element is nothing that nft prints.
    if value.get("elem").is_some() { None } else { item(value) }
}

pub(super) fn leaf(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn leaves(value: &Value) -> Vec<Item> {
    items(value).unwrap_or_default()
}
