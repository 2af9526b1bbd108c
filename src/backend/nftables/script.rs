//! A plan as a script for `nft -f`: what the native backend would do, in nft's words.

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnet::IpNet;

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Families, Family, Interface, Networks};
use crate::plan::canon;
use crate::plan::model::{Chain, Cond, CtStates, Matches, Plan, Rule, Table, Verdict, protocol};

use super::encode::split;
use super::names;

/// The script of a plan, always the same text. Loading it twice has the same result as loading it once.
pub fn script(plan: &Plan) -> String {
    let mut out = String::new();
    for table in Table::ALL {
        let chains: Vec<&Chain> = plan.chains.iter().filter(|c| c.table == table).collect();
        if chains.is_empty() {
            continue;
        }
        let name = names::table(plan.dataplane, table);
        // Making the table first lets the removal succeed where it is not there yet.
        let _ = writeln!(out, "table inet {name}\ndelete table inet {name}\ntable inet {name} {{");
        for (family, set) in named_sets(&chains) {
            let key = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
            let _ = writeln!(out, "\tset {set} {{\n\t\ttype {key}\n\t}}");
        }
        for chain in chains {
            let _ = writeln!(out, "\tchain {} {{", names::chain(&chain.name));
            if let Some(base) = names::base(table, &chain.name) {
                let (kind, (hook, priority)) = (base.kind.name(), base.told());
                let _ = writeln!(out, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for rule in &chain.rules {
                for line in rule_lines(rule, plan.families, chain.name.is_hook()) {
                    let _ = writeln!(out, "\t\t{line}");
                }
            }
            out.push_str("\t}\n");
        }
        out.push_str("}\n");
    }
    out
}

/// The sets that rules look into by name, each with the family of its addresses.
fn named_sets<'a>(chains: &[&'a Chain]) -> BTreeSet<(Family, &'a str)> {
    let rules = chains.iter().flat_map(|chain| &chain.rules);
    let sets =
        rules.filter_map(|rule| Some((rule.families.iter().next()?, &*rule.matches.destination_set.as_ref()?.value)));
    sets.collect()
}

/// A rule as nft rules.
pub fn rule_lines(rule: &Rule, families: Families, in_hook: bool) -> Vec<String> {
    let mut out = Vec::new();
    for (matches, family) in split(rule, families, in_hook) {
        let Some(mut words) = conditions(&matches, family) else { continue };
        words.push("counter".into());
        let comment = format!("comment \"{}\"", rule.why.comment().replace(['"', '\\'], ""));
        let mut with = |statement: String| {
            let all = words.iter().cloned().chain([statement, comment.clone()]);
            out.push(all.filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" "));
        };
        with(statement(&rule.verdict, family));
        if matches!(rule.verdict, Verdict::Tproxy { closed: true, .. }) {
            with("drop".into());
        }
    }
    out
}

/// Conditions in nft's words; `None` if no packet can meet them.
fn conditions(m: &Matches, family: Option<Family>) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let addresses = m.source.is_some() || m.destination.is_some() || m.destination_set.is_some();
    if let Some(family) = family.filter(|_| !addresses) {
        out.push(format!("meta nfproto {}", if family == Family::V4 { "ipv4" } else { "ipv6" }));
    }
    for (key, cond) in [("iifname", &m.in_interface), ("oifname", &m.out_interface)] {
        out.extend(cond.iter().flat_map(|cond| interfaces(key, cond)));
    }
    if let Some(family) = family {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        for (key, cond) in [("saddr", &m.source), ("daddr", &m.destination)] {
            if let Some(cond) = cond {
                out.push(networks(&format!("{ip} {key}"), cond, family)?);
            }
        }
        if let Some(Cond { negated, value }) = &m.destination_set {
            out.push(format!("{ip} daddr {}@{value}", if *negated { "!= " } else { "" }));
        }
    }
    protocol_and_ports(m, &mut out);
    for (key, cond) in [("meta mark", &m.mark), ("ct mark", &m.connection_mark)] {
        if let Some(cond) = cond {
            let op = if cond.negated { "!=" } else { "==" };
            out.push(match cond.value.mask {
                u32::MAX => format!("{key} {op} {:#x}", cond.value.value),
                mask => format!("{key} & {mask:#x} {op} {:#x}", cond.value.value),
            });
        }
    }
    if let Some(cond) = &m.connection_state {
        let names = CtStates::NAMED.iter().filter(|(s, _)| cond.value.has(*s)).map(|(_, name)| name.to_lowercase());
        let not = if cond.negated { "!= " } else { "" };
        out.push(format!("ct state {not}{}", names.collect::<Vec<_>>().join(",")));
    }
    for (key, cond) in [("meta skuid", &m.uid), ("meta skgid", &m.gid)] {
        out.extend(cond.as_ref().map(|cond| numbers(key, cond, |n| n.to_string())));
    }
    Some(out)
}

fn protocol_and_ports(m: &Matches, out: &mut Vec<String>) {
    let single = m.protocol.as_ref().filter(|c| !c.negated).and_then(|c| c.value.single());
    let has_ports = m.source_port.is_some() || m.destination_port.is_some();
    // `tcp dport` asks for TCP by itself.
    let header = match single {
        Some(number) if has_ports => protocol::name(number),
        _ => {
            let name = |n: u8| protocol::name(n);
            out.extend(m.protocol.as_ref().map(|cond| numbers("meta l4proto", cond, name)));
            "th".to_owned()
        }
    };
    for (key, cond) in [("sport", &m.source_port), ("dport", &m.destination_port)] {
        out.extend(cond.as_ref().map(|cond| numbers(&format!("{header} {key}"), cond, |n| n.to_string())));
    }
}

/// One item, or several in braces.
fn braces(items: Vec<String>) -> String {
    match &items[..] {
        [only] => only.clone(),
        _ => format!("{{ {} }}", items.join(", ")),
    }
}

fn numbers<T: Discrete>(key: &str, cond: &Cond<RangeList<T>>, name: impl Fn(T) -> String) -> String {
    let list = cond.value.distinct();
    let items = list.iter().map(|(a, b)| if a == b { name(a) } else { format!("{}-{}", name(a), name(b)) });
    let not = if cond.negated { "!= " } else { "" };
    format!("{key} {not}{}", braces(items.collect()))
}

fn interfaces(key: &str, cond: &Cond<Vec<Interface>>) -> Vec<String> {
    let quoted = |i: &Interface| format!("\"{}{}\"", i.name, if i.any_ending { "*" } else { "" });
    if cond.negated {
        return cond.value.iter().map(|i| format!("{key} != {}", quoted(i))).collect();
    }
    vec![format!("{key} {}", braces(cond.value.iter().map(quoted).collect()))]
}

fn networks(key: &str, cond: &Cond<Networks>, family: Family) -> Option<String> {
    let mut shown = Networks::default();
    for (first, last) in canon::distinct_addresses(&cond.value, family).iter() {
        canon::cover(family, first, last, &mut shown);
    }
    let list = shown.of(family);
    if list.is_empty() {
        return cond.negated.then(String::new);
    }
    let text = |net: &IpNet| if net.prefix_len() == family.bits() { net.addr().to_string() } else { net.to_string() };
    let not = if cond.negated { "!= " } else { "" };
    Some(format!("{key} {not}{}", braces(list.iter().map(text).collect())))
}

fn statement(verdict: &Verdict, family: Option<Family>) -> String {
    match verdict {
        Verdict::Continue | Verdict::Unknown(_) => String::new(),
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Jump(chain) => format!("jump {}", names::chain(chain)),
        Verdict::Goto(chain) => format!("goto {}", names::chain(chain)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Snat(to) => format!("snat {} to {to}", if to.is_ipv4() { "ip" } else { "ip6" }),
        Verdict::Tproxy { port, mark, .. } => {
            let ip = family.map_or("", |f| if f == Family::V4 { "ip " } else { "ip6 " });
            format!("tproxy {ip}to :{port} meta mark set {mark} accept")
        }
        Verdict::SetMark(m) if m.mask == u32::MAX => format!("meta mark set {:#x}", m.value),
        Verdict::SetMark(m) => format!("meta mark set meta mark & {:#x} ^ {:#x}", !m.mask, m.value),
        Verdict::SaveMark => "ct mark set meta mark".into(),
        Verdict::RestoreMark => "meta mark set ct mark".into(),
        Verdict::SetConnectionMark(m) if m.mask == u32::MAX => format!("ct mark set {:#x}", m.value),
        Verdict::SetConnectionMark(m) => format!("ct mark set ct mark & {:#x} ^ {:#x}", !m.mask, m.value),
        Verdict::CtZone(zone) => format!("ct zone set {zone}"),
    }
}
