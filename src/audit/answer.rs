//! Answers for people and for machines.

use serde_json::{Value, json};

use crate::config::types::Family;
use crate::plan::why::Why;
use crate::plan::words;

use super::explain::{Explanation, LostPackets, Trace};
use super::flow::{Flow, Taker};
use super::ruleset::{ChainRules, Decider, Hook};

/// Where a rule stands, and what it says: "nat ISTIO_OUTPUT: tcp: jump ISTIO_REDIRECT",
/// "rule 2 (handle 7) of inet filter out: [fib daddr type 0x2]: drop".
pub fn rule(decider: &Decider, family: Family) -> String {
    let Decider { chain, rule } = decider;
    let which = words::which(rule).map_or_else(String::new, |origin| format!("{origin} of "));
    format!("{which}{} {}: {}", chain.table.name, chain.name, words::rule(rule, family))
}

/// What is said of a packet that a routing rule sends back to the pod, whatever the ruleset says.
const ROUTED_BACK: &str = "its mark routes it to the pod itself (ip rule): it does not get to where it is addressed to";

/// The answer in a few lines.
pub fn text(answer: &Explanation, flow: &Flow) -> String {
    let mut out = match answer.taker {
        Taker::Unknown => format!("unknown: {flow}\n"),
        taker => format!("{taker}: {flow}\n"),
    };
    match &answer.decider {
        None if answer.routed_back => out += &format!("  {ROUTED_BACK}\n"),
        None => out += "  no rule says anything about it\n",
        Some(decider) => {
            let because = if answer.taker == Taker::Unknown { "cannot tell, because of" } else { "by" };
            out += &format!("  {because} {} ({})\n", rule(decider, flow.family()), decider.chain.table.source);
            if let Some(listed) = decider.rule.origin.as_ref().and_then(|origin| origin.text.as_deref()) {
                out += &format!("  listed as {listed}\n");
            }
        }
    }
    match answer.why {
        None => {}
        Some(Why::Foreign(comment)) if comment.is_empty() => {
            out += "  a rule of somebody else's: no interception has it there\n"
        }
        Some(Why::Foreign(comment)) => out += &format!("  a rule of somebody else's, who says: {comment}\n"),
        Some(why) => out += &format!("  because {}\n", why.sentence()),
    }
    if let Some(lost) = &answer.lost {
        out += &format!("  but {}\n", self::lost(lost, flow.family()));
    }
    out
}

/// "its replies are dropped, by …".
pub fn lost(lost: &LostPackets, family: Family) -> String {
    let packets = if lost.replies { "its replies" } else { "the packets that follow the first" };
    let by = lost.by.as_ref().map(|by| format!(", by {} ({})", rule(by, family), by.chain.table.source));
    format!("{packets} are dropped{}", by.unwrap_or_default())
}

/// The answer for machines.
pub fn json(answer: &Explanation, flow: &Flow) -> Value {
    let rule = answer.decider.as_ref().map(|decider| {
        let origin = decider.rule.origin.as_deref();
        json!({
            "holder": &*decider.chain.table.source,
            "table": &*decider.chain.table.name,
            "chain": decider.chain.name.name(),
            "number": origin.map(|origin| origin.number),
            "handle": origin.and_then(|origin| origin.handle),
            "text": words::rule(decider.rule, flow.family()),
            "listed": origin.and_then(|origin| origin.text.as_deref()),
        })
    });
    let why = match answer.why {
        None if answer.routed_back => Some(json!({ "id": "routed-back", "text": ROUTED_BACK })),
        why => why.map(|why| json!({ "id": why.id(), "text": why.sentence() })),
    };
    let mut out = json!({ "verdict": answer.taker.name(), "flow": flow.to_string(), "rule": rule, "why": why });
    if let Some(lost) = &answer.lost {
        out["lost"] = json!(self::lost(lost, flow.family()));
    }
    out
}

/// Keeps the walk as lines.
pub struct AnswerLines {
    pub lines: Vec<String>,
    family: Family,
    /// The line with which the part about later packets starts; the part is kept only if a rule matches
    /// one of these packets.
    section: Option<usize>,
    following: bool,
}

impl AnswerLines {
    /// Records a walk; with `following` also the packets after the first one.
    pub fn new(family: Family, following: bool) -> Self {
        Self { lines: Vec::new(), family, section: None, following }
    }
}

impl<'a> Trace<'a> for AnswerLines {
    fn hook(&mut self, hook: Hook, chain: &'a ChainRules) {
        let priority = chain.base.map_or(0, |base| base.priority);
        let table = &chain.table;
        let line = format!("{}: {} {} ({}, priority {priority})", hook.name(), table.name, chain.name, table.source);
        self.lines.push(line);
    }

    fn rule(&mut self, chain: &'a ChainRules, rule: &'a crate::plan::canon::CanonRule) {
        let why = rule.why().sentence();
        let why = if why.is_empty() { String::new() } else { format!("   # {why}") };
        self.lines.push(format!("    {}: {}{why}", chain.name, words::numbered(rule, self.family)));
        self.section = None;
    }

    fn passed(&mut self, chain: &'a ChainRules, rule: &'a crate::plan::canon::CanonRule) {
        self.lines.push(format!("    {}: may apply: {}", chain.name, words::numbered(rule, self.family)));
        self.section = None;
    }

    fn mark(&mut self, what: &str, mark: u32) {
        self.note(&format!("{what} {mark:#x}"));
    }

    fn note(&mut self, note: &str) {
        self.lines.push(format!("  > {note}"));
    }

    fn wants_following(&self) -> bool {
        self.following
    }

    fn section(&mut self, which: &str) {
        self.end_section();
        self.section = Some(self.lines.len());
        self.lines.push(format!("then {which}:"));
    }

    fn ended(&mut self, how: &str) {
        self.section = None;
        self.note(how);
    }

    fn end_section(&mut self) {
        if let Some(start) = self.section.take() {
            self.lines.truncate(start);
        }
    }
}
