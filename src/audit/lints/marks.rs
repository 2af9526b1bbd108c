//! What gets out by a packet mark. Flows are taken to start unmarked, but a process may
//! mark its own packets (SO_MARK, socket(7)): since Linux 5.17 with CAP_NET_RAW, which most
//! container runtimes give, before with CAP_NET_ADMIN.

use crate::audit::ask;
use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::{example, words};
use crate::audit::flow::Taker;
use crate::audit::partition::{Part, TooManyParts};
use crate::audit::ruleset::Ruleset;
use crate::audit::space::{Scope, Space};
use crate::config::types::{Families, Family};
use crate::plan::model::protocol;

use super::Lint;
use super::shadow::place;

/// Lints about TCP from the pod that rules take, unless it is marked.
///
/// # Errors
///
/// More parts than an audit takes, with the chain that makes them.
pub fn lints(ruleset: &Ruleset, space: &Space, families: Families) -> Result<Vec<Lint>, TooManyParts> {
    let mut out: Vec<Lint> = Vec::new();
    for family in families.iter() {
        let marks = ruleset.family(family).marks();
        if marks.is_empty() {
            continue;
        }
        let unmarked = space.parts_of(ruleset, family, Scope::Outbound, 0)?;
        let taken: Vec<&Part> = unmarked.iter().filter(|part| part.taker.is_proxy()).collect();
        for mark in marks {
            for part in space.parts_of(ruleset, family, Scope::Outbound, mark)? {
                if part.taker != Taker::Direct || !part.flows.protocol.holds(protocol::TCP) {
                    continue;
                }
                let Some(flows) = taken.iter().find_map(|taken| taken.flows.intersection(&part.flows)) else {
                    continue;
                };
                let mut flow = example::of(family, part.scope, &flows, space);
                flow.mark = mark;
                let flows = words::set(family, part.scope, &flows, space);
                let lint = lint(&part, family, mark, &flows, &ask::command(&flow));
                if !out.iter().any(|known| known.subject == lint.subject) {
                    out.push(lint);
                }
            }
        }
    }
    Ok(out)
}

fn lint(part: &Part, family: Family, mark: u32, flows: &str, command: &str) -> Lint {
    let place = part.decider.map(|(decider, _)| format!(", {}", place(decider.chain, decider.rule, family)));
    Lint {
        severity: Severity::Medium,
        id: "marked-packets-escape",
        subject: format!("packets marked {mark:#x}{}", place.unwrap_or_default()),
        message: format!(
            "{family}: {flows}, which the proxy gets otherwise, passes it by when marked {mark:#x}; a process with CAP_NET_RAW can mark its packets; try {command}"
        ),
        advice: "drop NET_RAW and NET_ADMIN from the capabilities of the pod's containers, or let the rule ask for more than the mark".into(),
    }
}
