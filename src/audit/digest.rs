//! A digest of a plan: the same whichever backend holds it, and however it writes it down.
//! It covers the canonical form of the rules of both families, and routing; neither
//! comments nor counters, nor rules of others.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Family, IdList, Interface};
use crate::plan::canon::{Canon, CanonMatches};
use crate::plan::model::{Cond, Masked, Routing, Verdict};

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(canon: &Canon) -> String {
    let hash = Sha256::digest(text(canon).as_bytes());
    hash.iter().fold(String::from("sha256:"), |mut out, byte| {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The canonical form as text. A change of it changes every digest: `1` is its version.
fn text(canon: &Canon) -> String {
    let mut out = String::from("podweir 1\n");
    for family in Family::BOTH {
        for ((table, chain), rules) in canon.family(family) {
            let _ = writeln!(out, "{family} {} {chain}", table.name());
            for rule in rules {
                matches(&rule.matches, &mut out);
                let _ = writeln!(out, "=> {}", verdict(&rule.verdict));
            }
        }
    }
    routing(&canon.routing, &mut out);
    out
}

fn matches(m: &CanonMatches, out: &mut String) {
    ranges("source", &m.source, out);
    ranges("destination", &m.destination, out);
    ranges("protocol", &m.protocol, out);
    ranges("source port", &m.source_port, out);
    ranges("destination port", &m.destination_port, out);
    let _ = writeln!(out, "state {}", m.connection_state.0);
    names("in", &m.in_interface, out);
    names("out", &m.out_interface, out);
    ids("uid", &m.uid, out);
    ids("gid", &m.gid, out);
    mark("mark", &m.mark, out);
    mark("connection mark", &m.connection_mark, out);
    for unknown in &m.unknown {
        let _ = writeln!(out, "unknown {unknown:?}");
    }
}

fn ranges<T: Discrete>(name: &str, ranges: &RangeList<T>, out: &mut String) {
    let _ = write!(out, "{name}");
    for (first, last) in ranges.iter() {
        let _ = write!(out, " {first}-{last}");
    }
    out.push('\n');
}

fn not<T>(cond: &Cond<T>) -> &'static str {
    if cond.negated { "not " } else { "" }
}

fn ids(name: &str, cond: &Option<Cond<IdList>>, out: &mut String) {
    if let Some(cond) = cond {
        ranges(&format!("{}{name}", not(cond)), &cond.value, out);
    }
}

fn names(name: &str, cond: &Option<Cond<Vec<Interface>>>, out: &mut String) {
    if let Some(cond) = cond {
        let names: Vec<String> = cond.value.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "{}{name} {}", not(cond), names.join(" "));
    }
}

fn mark(name: &str, cond: &Option<Cond<Masked>>, out: &mut String) {
    if let Some(cond) = cond {
        let _ = writeln!(out, "{}{name} {:#x}/{:#x}", not(cond), cond.value.value, cond.value.mask);
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Continue => "continue".into(),
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Snat(to) => format!("snat {to}"),
        Verdict::Redirect(port) => format!("redirect {port}"),
        Verdict::Tproxy { port, mark, closed } => format!("tproxy {port} {mark} {closed}"),
        Verdict::SetMark(m) => format!("mark {:#x}/{:#x}", m.value, m.mask),
        Verdict::SaveMark => "save mark".into(),
        Verdict::RestoreMark => "restore mark".into(),
        Verdict::SetConnectionMark(m) => format!("mark connection {:#x}/{:#x}", m.value, m.mask),
        Verdict::CtZone(zone) => format!("zone {zone}"),
        Verdict::Unknown(unknown) => format!("unknown {:?}", unknown.words),
    }
}

fn routing(routing: &Routing, out: &mut String) {
    for rule in &routing.rules {
        let _ = writeln!(out, "{} rule {} {}", rule.family, rule.mark, rule.table);
    }
    for (family, table) in &routing.routes {
        let _ = writeln!(out, "{family} route {table}");
    }
    let _ = writeln!(out, "mesh address {}", routing.mesh_address);
}
