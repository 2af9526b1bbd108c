//! JSON to rules. A member that is not known is an error: it could be a condition, and a
//! rule must never be taken for less than it is.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::audit::flow::Surroundings;
use crate::audit::routes::{Route, Routes};
use crate::audit::ruleset::Ruleset;
use crate::audit::source::Source;
use crate::backend::hook::{Base, ChainKind, Hook};
use crate::backend::listing::{Holder, ListedChain, ListedTable, make_printable};
use crate::backend::ours;
use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Families, Family, Interface, Mark, Networks, Port, RouteTable};
use crate::config::value;
use crate::plan::effect::{Effect, Unmodelled};
use crate::plan::model::{
    ChainName, Cond, Counters, CtStates, MarkRoute, Masked, Matches, Routing, Rule, RuleOrigin, Verdict,
};
use crate::plan::why::Why;
use crate::sys::text::printable;

use super::write::VERSION;

type Read<T> = Result<T, String>;
type Object = Map<String, Value>;

/// Reads what [`super::source`] wrote.
///
/// # Errors
///
/// The field that is missing or that is not what the schema says, by its path.
pub fn read(value: &Value) -> Read<Source> {
    let top = object(value, "the whole")?;
    match member(top, "version")?.as_u64() {
        Some(1..=VERSION) => {}
        version => {
            let shown = version.map_or("not a number".into(), |n| n.to_string());
            return Err(format!("its version is {shown}, and this podweir reads up to {VERSION}: take a newer one"));
        }
    }
    let tables = list(member(top, "tables")?, "tables")?;
    let mut tables: Vec<ListedTable> = tables
        .iter()
        .enumerate()
        .map(|(at, t)| table(t).map_err(|e| format!("tables[{at}]: {e}")))
        .collect::<Read<_>>()?;
    make_printable(&mut tables);
    let pod = object(member(top, "pod")?, "pod")?;
    Ok(Source {
        ruleset: Ruleset::of_tables(&tables),
        held: ours::holdings(&tables),
        tables,
        routing: match member(top, "routing")? {
            Value::Null => None,
            routing => Some(self::routing(routing)?),
        },
        told: families(member(top, "told")?)?,
        pod: Surroundings {
            addresses: addresses(pod, "addresses")?,
            dns_servers: match member(pod, "dns_servers")? {
                Value::Null => None,
                _ => Some(addresses(pod, "dns_servers")?),
            },
            uplink: printable(text(pod, "uplink")?).into(),
            // What was written before there was such a member tells no routes.
            routes: match pod.get("routes") {
                None => Routes::default(),
                Some(routes) => self::routes(routes)?,
            },
        },
        settings: None,
        given: None,
        notes: Vec::new(),
    })
}

fn routes(value: &Value) -> Read<Routes> {
    let route = |value: &Value| {
        let route = object(value, "a route")?;
        let to = text(route, "to")?;
        Ok(Route {
            to: to.parse().map_err(|_| format!("'{to}' in \"routes\" is no IP range"))?,
            interface: printable(text(route, "interface")?).into(),
            own: truth(route, "own")?,
        })
    };
    Ok(Routes::new(list(value, "routes")?.iter().map(route).collect::<Read<Vec<_>>>()?))
}

fn object<'a>(value: &'a Value, what: &str) -> Read<&'a Object> {
    value.as_object().ok_or_else(|| format!("{what} is no object"))
}

fn list<'a>(value: &'a Value, what: &str) -> Read<&'a Vec<Value>> {
    value.as_array().ok_or_else(|| format!("{what} is no list"))
}

fn member<'a>(object: &'a Object, name: &str) -> Read<&'a Value> {
    object.get(name).ok_or_else(|| format!("\"{name}\" is missing"))
}

fn text<'a>(object: &'a Object, name: &str) -> Read<&'a str> {
    member(object, name)?.as_str().ok_or_else(|| format!("\"{name}\" is no text"))
}

fn truth(object: &Object, name: &str) -> Read<bool> {
    member(object, name)?.as_bool().ok_or_else(|| format!("\"{name}\" is neither true nor false"))
}

fn number<T: TryFrom<i64>>(object: &Object, name: &str) -> Read<T> {
    let value = member(object, name)?.as_i64().and_then(|n| T::try_from(n).ok());
    value.ok_or_else(|| format!("\"{name}\" is no number that fits"))
}

fn port(object: &Object) -> Read<Port> {
    Port::new(number(object, "port")?).ok_or_else(|| "\"port\" is 0, which is no port".into())
}

fn addresses(object: &Object, name: &str) -> Read<Vec<IpAddr>> {
    let items = list(member(object, name)?, name)?;
    let address = |item: &Value| item.as_str().and_then(|text| text.parse().ok());
    items.iter().map(|item| address(item).ok_or_else(|| format!("{item} in \"{name}\" is no address"))).collect()
}

fn family(text: &str) -> Read<Family> {
    let known = Family::BOTH.into_iter().find(|family| family.to_string() == text);
    known.ok_or_else(|| format!("'{text}' is no IP family; expected IPv4 or IPv6"))
}

fn families(value: &Value) -> Read<Families> {
    list(value, "a list of families")?.iter().try_fold(Families::NONE, |all, item| {
        let family = family(item.as_str().unwrap_or_default())?;
        Ok(all.union(Families::only(family)))
    })
}

fn table(value: &Value) -> Read<ListedTable> {
    let table = object(value, "a table")?;
    let holder = text(table, "holder")?;
    let chains = list(member(table, "chains")?, "chains")?;
    let chain = |(at, c): (usize, &Value)| chain(c).map_err(|e| format!("chains[{at}]: {e}"));
    Ok(ListedTable {
        holder: Holder::by_name(holder).ok_or_else(|| format!("'{holder}' holds no rules that podweir knows"))?,
        families: families(member(table, "families")?)?,
        name: text(table, "name")?.to_owned(),
        dormant: truth(table, "dormant")?,
        // Rules that were written before there was such a member were all there is.
        as_nft_shows: table.contains_key("as_nft_shows") && truth(table, "as_nft_shows")?,
        chains: chains.iter().enumerate().map(chain).collect::<Read<_>>()?,
    })
}

fn chain(value: &Value) -> Read<ListedChain> {
    let chain = object(value, "a chain")?;
    let base = match member(chain, "hook")? {
        Value::Null => None,
        hook => {
            let hook = object(hook, "a hook")?;
            let name = text(hook, "name")?;
            Some(Base {
                hook: Hook::by_name(name).ok_or_else(|| format!("'{name}' is no hook"))?,
                kind: ChainKind::by_name(text(hook, "type")?),
                priority: number(hook, "priority")?,
                drops: truth(hook, "drops")?,
            })
        }
    };
    let rules = list(member(chain, "rules")?, "rules")?;
    let rule = |(at, r): (usize, &Value)| rule(r).map_err(|e| format!("rules[{at}]: {e}"));
    Ok(ListedChain {
        name: ChainName::by_name(text(chain, "name")?),
        base,
        rules: rules.iter().enumerate().map(rule).collect::<Read<_>>()?,
    })
}

fn rule(value: &Value) -> Read<Rule> {
    let rule = object(value, "a rule")?;
    let counters = match rule.get("counters") {
        None | Some(Value::Null) => None,
        Some(counters) => {
            let counters = object(counters, "counters")?;
            let count = |name| member(counters, name)?.as_u64().ok_or_else(|| format!("\"{name}\" is no number"));
            Some(Counters { packets: count("packets")?, bytes: count("bytes")? })
        }
    };
    Ok(Rule {
        families: families(member(rule, "families")?)?,
        matches: matches(object(member(rule, "match")?, "match")?)?,
        verdict: verdict(object(member(rule, "verdict")?, "verdict")?)?,
        why: Why::from_comment(text(rule, "why")?),
        counters,
        origin: rule.get("origin").filter(|origin| !origin.is_null()).map(origin).transpose()?,
    })
}

fn origin(value: &Value) -> Read<Arc<RuleOrigin>> {
    let origin = object(value, "origin")?;
    let number = member(origin, "number")?.as_u64().and_then(|n| usize::try_from(n).ok());
    Ok(Arc::new(RuleOrigin {
        number: number.ok_or("\"number\" is no number")?,
        handle: origin.get("handle").and_then(Value::as_u64),
        text: origin.get("text").and_then(Value::as_str).map(Into::into),
        incomplete: origin.get("incomplete").and_then(Value::as_bool).unwrap_or(false),
    }))
}

fn matches(object: &Object) -> Read<Matches> {
    let mut m = Matches::default();
    for (name, value) in object {
        let named = |problem: String| format!("the condition on {name}: {problem}");
        match name.as_str() {
            "source" => m.source = Some(cond(value, networks).map_err(named)?),
            "destination" => m.destination = Some(cond(value, networks).map_err(named)?),
            "in_interface" => m.in_interface = Some(cond(value, interfaces).map_err(named)?),
            "out_interface" => m.out_interface = Some(cond(value, interfaces).map_err(named)?),
            "protocol" => m.protocol = Some(cond(value, numbers).map_err(named)?),
            "source_port" => m.source_port = Some(cond(value, numbers).map_err(named)?),
            "destination_set" => {
                m.destination_set =
                    Some(cond(value, |name| Ok(name.as_str().ok_or("a set's name is text")?.into())).map_err(named)?)
            }
            "destination_port" => m.destination_port = Some(cond(value, numbers).map_err(named)?),
            "mark" => m.mark = Some(cond(value, mark).map_err(named)?),
            "connection_mark" => m.connection_mark = Some(cond(value, mark).map_err(named)?),
            "connection_state" => m.connection_state = Some(cond(value, states).map_err(named)?),
            "uid" => m.uid = Some(cond(value, numbers).map_err(named)?),
            "gid" => m.gid = Some(cond(value, numbers).map_err(named)?),
            "unknown" => m.unknown = texts(value).map_err(named)?,
            _ => return Err(format!("'{name}' is no condition that podweir knows")),
        }
    }
    Ok(m)
}

fn cond<T>(value: &Value, read: impl Fn(&Value) -> Read<T>) -> Read<Cond<T>> {
    let object = object(value, "it")?;
    match object.iter().next() {
        Some((word, value)) if object.len() == 1 && (word == "is" || word == "is_not") => {
            Ok(Cond { negated: word == "is_not", value: read(value)? })
        }
        _ => Err("it says neither \"is\" nor \"is_not\"".into()),
    }
}

fn texts(value: &Value) -> Read<Vec<String>> {
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or_else(|| format!("{item} is no text"));
    list(value, "it")?.iter().map(text).collect()
}

fn networks(value: &Value) -> Read<Networks> {
    let mut out = Networks::default();
    for text in texts(value)? {
        out.push(value::cidr(&text).ok_or_else(|| format!("'{text}' is no IP range"))?.0);
    }
    Ok(out)
}

fn interfaces(value: &Value) -> Read<Vec<Interface>> {
    let interface = |text: &String| {
        let bare = text.strip_suffix('+').unwrap_or(text);
        Interface::new(bare, bare.len() != text.len())
    };
    Ok(texts(value)?.iter().map(interface).collect())
}

fn numbers<T: Discrete + TryFrom<u64> + std::str::FromStr>(value: &Value) -> Read<RangeList<T>> {
    let mut out = RangeList::default();
    for item in list(value, "it")? {
        let single = item.as_u64().and_then(|n| T::try_from(n).ok()).map(|n| (n, n));
        let range = || {
            let (first, last) = item.as_str()?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let (first, last) = single.or_else(range).ok_or_else(|| format!("{item} is no number and no range"))?;
        out.push(first, last);
    }
    Ok(out)
}

fn mark(value: &Value) -> Read<Masked> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let parts = value.as_str().and_then(|text| text.split_once('/'));
    let masked = parts.and_then(|(value, mask)| Some(Masked { value: number(value)?, mask: number(mask)? }));
    masked.ok_or_else(|| format!("{value} is no mark; expected \"0xVALUE/0xMASK\""))
}

fn states(value: &Value) -> Read<CtStates> {
    texts(value)?.iter().try_fold(CtStates(0), |all, name| {
        let known = CtStates::NAMED.iter().find(|(_, known)| known == name);
        Ok(all.union(known.ok_or_else(|| format!("'{name}' is no connection state"))?.0))
    })
}

fn verdict(object: &Object) -> Read<Verdict> {
    let chain = || Ok::<_, String>(ChainName::by_name(text(object, "chain")?));
    Ok(match text(object, "type")? {
        "continue" => Verdict::Continue,
        "return" => Verdict::Return,
        "accept" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "jump" => Verdict::Jump(chain()?),
        "goto" => Verdict::Goto(chain()?),
        "redirect" => Verdict::Redirect(port(object)?),
        "snat" => {
            let to = text(object, "to")?;
            Verdict::Snat(to.parse().map_err(|_| format!("'{to}' is no address"))?)
        }
        "tproxy" => Verdict::Tproxy {
            port: port(object)?,
            mark: Mark::new(number(object, "mark")?),
            closed: truth(object, "closed")?,
        },
        "set-mark" => Verdict::SetMark(Masked { value: number(object, "value")?, mask: number(object, "mask")? }),
        "save-mark" => Verdict::SaveMark,
        "restore-mark" => Verdict::RestoreMark,
        "set-connection-mark" => {
            Verdict::SetConnectionMark(Masked { value: number(object, "value")?, mask: number(object, "mask")? })
        }
        "ct-zone" => Verdict::CtZone(number(object, "zone")?),
        "unknown" => {
            let effect = object.get("effect").map_or(Some(Effect::Unknown), |name| Effect::by_name(name.as_str()?));
            let effect = effect.ok_or("\"effect\" is none of unknown, drops, accepts, none")?;
            Verdict::Unknown(Unmodelled::new(text(object, "text")?, effect))
        }
        other => return Err(format!("'{other}' is no verdict that podweir knows")),
    })
}

fn routing(value: &Value) -> Read<Routing> {
    let routing = object(value, "routing")?;
    let mut out = Routing { mesh_address: truth(routing, "mesh_address")?, ..Routing::default() };
    for rule in list(member(routing, "rules")?, "routing.rules")? {
        let rule = object(rule, "a rule of routing")?;
        out.rules.push(MarkRoute {
            family: family(text(rule, "family")?)?,
            mark: Masked {
                value: number(rule, "mark")?,
                mask: if rule.contains_key("mask") { number(rule, "mask")? } else { u32::MAX },
            },
            table: RouteTable::new(number(rule, "table")?),
        });
    }
    for route in list(member(routing, "routes")?, "routing.routes")? {
        let route = object(route, "a route")?;
        out.routes.push((family(text(route, "family")?)?, RouteTable::new(number(route, "table")?)));
    }
    Ok(out)
}
