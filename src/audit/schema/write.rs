//! Rules to JSON.

use serde_json::{Map, Value, json};

use crate::audit::routes::Route;
use crate::audit::source::Source;
use crate::backend::listing::ListedTable;
use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Families, Interface, Networks};
use crate::plan::model::{Cond, CtStates, Masked, Matches, Routing, Rule, RuleOrigin, Verdict};

/// What the member `format` says.
pub const FORMAT: &str = "podweir-rules";
/// The version that is written, and the latest one that is read.
pub const VERSION: u64 = 1;

/// A source with everything in it, as JSON.
pub fn source(source: &Source) -> Value {
    let addresses = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "format": FORMAT,
        "version": VERSION,
        "told": families(source.told),
        "pod": {
            "addresses": addresses(&source.pod.addresses),
            "dns_servers": source.pod.dns_servers.as_deref().map(addresses),
            "uplink": &*source.pod.uplink,
            "routes": source.pod.routes.all().iter().map(route).collect::<Vec<_>>(),
        },
        "tables": source.tables.iter().map(table).collect::<Vec<_>>(),
        "routing": source.routing.as_ref().map(routing),
    })
}

fn route(route: &Route) -> Value {
    json!({ "to": route.to.to_string(), "interface": &*route.interface, "own": route.own })
}

fn families(families: Families) -> Vec<String> {
    families.iter().map(|family| family.to_string()).collect()
}

fn table(table: &ListedTable) -> Value {
    let chains = table.chains.iter().map(|chain| {
        let hook = chain.base.as_ref().map(|base| {
            json!({
                "name": base.hook.name(),
                "type": base.kind.name(),
                "priority": base.priority,
                "drops": base.drops,
            })
        });
        json!({
            "name": chain.name.name(),
            "hook": hook,
            "rules": chain.rules.iter().map(rule).collect::<Vec<_>>(),
        })
    });
    json!({
        "holder": table.holder.name(),
        "name": table.name,
        "families": families(table.families),
        "dormant": table.dormant,
        "as_nft_shows": table.as_nft_shows,
        "chains": chains.collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    json!({
        "families": families(rule.families),
        "match": matches(&rule.matches),
        "verdict": verdict(&rule.verdict),
        "why": rule.why.comment(),
        "counters": rule.counters.map(|c| json!({ "packets": c.packets, "bytes": c.bytes })),
        "origin": rule.origin.as_deref().map(origin),
    })
}

fn origin(origin: &RuleOrigin) -> Value {
    let RuleOrigin { number, handle, text, incomplete } = origin;
    json!({ "number": number, "handle": handle, "text": text, "incomplete": incomplete })
}

fn matches(m: &Matches) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, cond: Option<(bool, Value)>| {
        if let Some((negated, value)) = cond {
            out.insert(name.into(), json!({ (if negated { "is_not" } else { "is" }): value }));
        }
    };
    put("source", m.source.as_ref().map(networks));
    put("destination", m.destination.as_ref().map(networks));
    put("in_interface", m.in_interface.as_ref().map(interfaces));
    put("out_interface", m.out_interface.as_ref().map(interfaces));
    put("protocol", m.protocol.as_ref().map(numbers));
    put("source_port", m.source_port.as_ref().map(numbers));
    put("destination_port", m.destination_port.as_ref().map(numbers));
    put("mark", m.mark.as_ref().map(mark));
    put("connection_mark", m.connection_mark.as_ref().map(mark));
    put("connection_state", m.connection_state.as_ref().map(states));
    put("uid", m.uid.as_ref().map(numbers));
    put("gid", m.gid.as_ref().map(numbers));
    put("destination_set", m.destination_set.as_ref().map(|cond| (cond.negated, json!(&*cond.value))));
    if !m.unknown.is_empty() {
        out.insert("unknown".into(), json!(m.unknown));
    }
    Value::Object(out)
}

fn networks(cond: &Cond<Networks>) -> (bool, Value) {
    let (v4, v6) = (cond.value.v4.iter().map(ToString::to_string), cond.value.v6.iter().map(ToString::to_string));
    (cond.negated, json!(v4.chain(v6).collect::<Vec<_>>()))
}

fn interfaces(cond: &Cond<Vec<Interface>>) -> (bool, Value) {
    (cond.negated, json!(cond.value.iter().map(ToString::to_string).collect::<Vec<_>>()))
}

fn numbers<T: Discrete + Into<u64>>(cond: &Cond<RangeList<T>>) -> (bool, Value) {
    let item = |(first, last): (T, T)| match first == last {
        true => json!(first.into()),
        false => json!(format!("{first}-{last}")),
    };
    (cond.negated, json!(cond.value.iter().map(item).collect::<Vec<_>>()))
}

fn mark(cond: &Cond<Masked>) -> (bool, Value) {
    (cond.negated, json!(format!("{:#x}/{:#x}", cond.value.value, cond.value.mask)))
}

fn states(cond: &Cond<CtStates>) -> (bool, Value) {
    let names = CtStates::NAMED.iter().filter(|(state, _)| cond.value.has(*state)).map(|(_, name)| *name);
    (cond.negated, json!(names.collect::<Vec<_>>()))
}

fn verdict(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Continue => json!({ "type": "continue" }),
        Verdict::Return => json!({ "type": "return" }),
        Verdict::Accept => json!({ "type": "accept" }),
        Verdict::Drop => json!({ "type": "drop" }),
        Verdict::Jump(chain) => json!({ "type": "jump", "chain": chain.name() }),
        Verdict::Goto(chain) => json!({ "type": "goto", "chain": chain.name() }),
        Verdict::Snat(to) => json!({ "type": "snat", "to": to.to_string() }),
        Verdict::Redirect(port) => json!({ "type": "redirect", "port": port.get() }),
        Verdict::Tproxy { port, mark, closed } => {
            json!({ "type": "tproxy", "port": port.get(), "mark": mark.get(), "closed": closed })
        }
        Verdict::SetMark(m) => json!({ "type": "set-mark", "value": m.value, "mask": m.mask }),
        Verdict::SaveMark => json!({ "type": "save-mark" }),
        Verdict::RestoreMark => json!({ "type": "restore-mark" }),
        Verdict::SetConnectionMark(m) => json!({ "type": "set-connection-mark", "value": m.value, "mask": m.mask }),
        Verdict::CtZone(zone) => json!({ "type": "ct-zone", "zone": zone }),
        Verdict::Unknown(unknown) => {
            json!({ "type": "unknown", "text": &*unknown.words, "effect": unknown.effect.name() })
        }
    }
}

/// Routing and addresses next to the rules.
fn routing(routing: &Routing) -> Value {
    json!({
        "rules": routing.rules.iter().map(|rule| json!({
            "family": rule.family.to_string(),
            "mark": rule.mark.value,
            "mask": rule.mark.mask,
            "table": rule.table.get(),
        })).collect::<Vec<_>>(),
        "routes": routing.routes.iter().map(|(family, table)| json!({
            "family": family.to_string(),
            "table": table.get(),
        })).collect::<Vec<_>>(),
        "mesh_address": routing.mesh_address,
    })
}
