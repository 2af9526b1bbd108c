//! What gets out by a packet mark. Flows are taken to start unmarked, but a process may
//! mark its own packets (SO_MARK, socket(7)): since Linux 5.17 with CAP_NET_RAW, which most
//! container runtimes give, before with CAP_NET_ADMIN.

use std::collections::BTreeMap;

use crate::audit::escapes::kind::Severity;
use crate::audit::escapes::{example, words};
use crate::audit::flow::Taker;
use crate::audit::partition::{Part, TooManyParts};
use crate::audit::question;
use crate::audit::ruleset::Ruleset;
use crate::audit::space::cube::{Cube, merged};
use crate::audit::space::{Scope, Space};
use crate::config::types::{Families, Family};

use super::Lint;
use super::shadow::place;

/// How many sets of flows a lint names for a mark.
const SHOWN: usize = 6;

/// What a mark lets out.
#[derive(Default)]
struct LetOut {
    flows: Vec<(Family, Cube)>,
    /// Where the rules stand that let it out.
    places: Vec<String>,
}

/// Lints about traffic from the pod that rules take, unless it is marked: one for each mark.
/// `explain`: the arguments by which `podweir explain` asks these rules, if it can.
///
/// # Errors
///
/// More parts than an audit takes, with the chain that makes them.
pub fn lints(
    ruleset: &Ruleset,
    space: &Space,
    families: Families,
    explain: Option<&[String]>,
) -> Result<Vec<Lint>, TooManyParts> {
    let mut found: BTreeMap<u32, LetOut> = BTreeMap::new();
    for family in families.iter() {
        let marks = ruleset.family(family).marks();
        if marks.is_empty() {
            continue;
        }
        let unmarked = space.parts_of(ruleset, family, Scope::Outbound, 0)?;
        let taken: Vec<&Part> = unmarked.iter().filter(|part| part.taker.is_proxy()).collect();
        for mark in marks {
            let mut cubes = Vec::new();
            for part in space.parts_of(ruleset, family, Scope::Outbound, mark)? {
                if part.taker != Taker::Direct {
                    continue;
                }
                let before = cubes.len();
                cubes.extend(taken.iter().filter_map(|taken| taken.flows.intersection(&part.flows)));
                if let Some((decider, _)) = part.decider.filter(|_| cubes.len() > before) {
                    let places = &mut found.entry(mark).or_default().places;
                    let place = place(decider.chain, decider.rule, family);
                    if !places.contains(&place) {
                        places.push(place);
                    }
                }
            }
            if !cubes.is_empty() {
                found.entry(mark).or_default().flows.extend(merged(cubes).into_iter().map(|cube| (family, cube)));
            }
        }
    }
    Ok(found.into_iter().filter_map(|(mark, out)| lint(mark, &out, space, explain)).collect())
}

fn lint(mark: u32, LetOut { flows, places }: &LetOut, space: &Space, explain: Option<&[String]>) -> Option<Lint> {
    let mut flow = example::of_any(flows, Scope::Outbound, space)?;
    flow.mark = mark;
    let example = match explain {
        Some(rules) => format!("try {}", question::command(&flow, rules)),
        None => format!("for example {flow}"),
    };
    let mut lines = words::sets(flows, Scope::Outbound, space);
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    lines.extend((more > 0).then(|| format!("and {more} more sets of flows")));
    let at = if places.is_empty() { String::new() } else { format!(", {}", places.join(" and ")) };
    Some(Lint {
        severity: Severity::Medium,
        id: "marked-packets-escape",
        subject: format!("packets marked {mark:#x}{at}"),
        message: format!(
            "{}: the proxy gets this, but not what is marked {mark:#x}; a process with CAP_NET_RAW can mark its packets; {example}",
            lines.join("; ")
        ),
        advice: "drop NET_RAW and NET_ADMIN from the capabilities of the pod's containers, or let the rule ask for more than the mark".into(),
    })
}
