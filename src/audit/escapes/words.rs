//! Sets of flows in words.

use crate::audit::flow::{Direction, protocol_name};
use crate::audit::space::cube::{Cube, NOBODY, Owners, everyone, processes};
use crate::audit::space::interfaces::Kinds;
use crate::audit::space::{Scope, Space};
use crate::config::ranges::RangeList;
use crate::config::types::{Families, Family};
use crate::plan::words::{list, networks, numbers, spans};

use super::Escape;

/// The flows of a class, a line for each set; what both families have is said once.
pub fn flows(escape: &Escape, space: &Space) -> Vec<String> {
    sets(&escape.flows, escape.scope, space)
}

/// Sets of flows of a scope, a line for each; what both families have is said once.
pub fn sets(flows: &[(Family, Cube)], scope: Scope, space: &Space) -> Vec<String> {
    let mut lines: Vec<(Families, String)> = Vec::new();
    for (family, cube) in flows {
        let (text, family) = (set(*family, scope, cube, space), Families::only(*family));
        match lines.iter_mut().find(|(_, known)| *known == text) {
            Some((families, _)) => *families = families.union(family),
            None => lines.push((family, text)),
        }
    }
    lines.into_iter().map(|(families, text)| format!("{families}: {text}")).collect()
}

/// A set of flows in one line: only what tells it from all flows of its scope.
pub fn set(family: Family, scope: Scope, flows: &Cube, space: &Space) -> String {
    let whole = space.whole(family, scope);
    let outbound = scope.direction() == Direction::Outbound;
    let mut out = vec![protocols(&flows.protocol)];
    let but = |text: String, what: &str| match text.strip_prefix("not ") {
        Some(rest) => format!("any {what} but {rest}"),
        None => text,
    };
    if flows.interface(scope) != whole.interface(scope) {
        let by = if outbound { "out by" } else { "in by" };
        out.push(format!("{by} {}", interfaces(flows.interface(scope), whole.interface(scope), space)));
    }
    // What comes in has no owner here.
    if outbound {
        let user = owners("user", &flows.uid);
        // Who has no user has no group.
        let group = owners("group", &flows.gid).filter(|group| user.as_ref() != Some(group));
        out.extend(user.into_iter().chain(group));
    }
    if flows.destination != whole.destination {
        out.push(format!("to {}", but(networks(&flows.destination, family, &whole.destination), "address")));
    }
    if !flows.port.is_full() {
        let ports = numbers(&flows.port);
        out.push(if ports.starts_with("not ") {
            format!("to {}", but(ports, "port"))
        } else {
            format!("port {ports}")
        });
    }
    if flows.source != whole.source {
        out.push(format!("from {}", but(networks(&flows.source, family, &whole.source), "address")));
    }
    if !flows.source_port.is_full() {
        out.push(format!("from port {}", but(numbers(&flows.source_port), "port")));
    }
    out.join(" ")
}

fn protocols(set: &RangeList<u8>) -> String {
    let name = |(a, b): (u8, u8)| (a..=b).map(protocol_name).collect::<Vec<_>>();
    let names = |set: &RangeList<u8>| list(set.iter().flat_map(name).collect());
    match set.complement() {
        rest if rest.is_empty() => "any protocol".into(),
        rest if rest.len() <= 4 && set.iter().map(|(a, b)| usize::from(b - a) + 1).sum::<usize>() > 128 => {
            format!("any protocol but {}", names(&rest))
        }
        _ => names(set),
    }
}

fn owners(word: &str, set: &Owners) -> Option<String> {
    let everyone = everyone();
    let nobody: Owners = RangeList::of([NOBODY]);
    if *set == everyone {
        return None;
    }
    if *set == nobody {
        return Some("of no process".into());
    }
    if *set == processes() {
        return Some("of a process".into());
    }
    let rest = everyone.minus(set);
    if set.holds(NOBODY) {
        Some(format!("not of {word} {}", list(spans(&rest))))
    } else if set.iter().next_back().is_some_and(|(_, last)| last == NOBODY - 1) {
        Some(format!("of any {word} but {}", list(spans(&processes().minus(set)))))
    } else {
        Some(format!("of {word} {}", list(spans(set))))
    }
}

fn interfaces(set: &Kinds, whole: &Kinds, space: &Space) -> String {
    let names = |set| list(space.interfaces.patterns(set).0.iter().map(ToString::to_string).collect());
    let (_, others) = space.interfaces.patterns(set);
    if others { format!("any but {}", names(&whole.minus(set))) } else { names(set) }
}

/// Where flows of a scope go.
pub fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Outbound => "from the pod to others",
        Scope::Local => "within the pod",
        Scope::Inbound => "from others to the pod",
        Scope::Transit => "through the pod",
    }
}
