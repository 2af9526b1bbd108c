//! Rules of other tools that packets meet before the interception's: harmless today, and
//! the first place to look when traffic is lost or escapes.

use std::collections::HashSet;

use crate::audit::escapes::kind::Severity;
use crate::audit::ruleset::{ChainRules, Hook, Order, Ruleset};
use crate::config::types::Family;
use crate::plan::model::Verdict;
use crate::plan::why::Why;

use super::Lint;
use super::shadow::{place, which};

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

/// Lints about rules of others, on the hooks that the interception uses.
pub fn lints(ruleset: &Ruleset) -> Vec<Lint> {
    let mut out: Vec<Lint> = Vec::new();
    let mut known = HashSet::new();
    for family in Family::BOTH {
        for hook in HOOKS {
            out.extend(order_not_known(ruleset, family, hook));
            let chains: Vec<&ChainRules> = ruleset.family(family).on(hook, Order::First).collect();
            let Some(last) = chains.iter().rposition(|chain| chain.rules.iter().any(|r| !is_foreign(r.why()))) else {
                continue;
            };
            for (number, chain) in chains[..=last].iter().enumerate() {
                let ours = chain.rules.iter().position(|rule| !is_foreign(rule.why()));
                // In the last chain only what stands before the interception's own rules.
                let until = if number == last { ours.unwrap_or(0) } else { chain.rules.len() };
                for rule in &chain.rules[..until] {
                    if is_foreign(rule.why()) && decides(&rule.verdict) {
                        let lint = lint(place(chain, rule, family), &which(rule));
                        if known.insert(lint.subject.clone()) {
                            out.push(lint);
                        }
                    }
                }
            }
        }
    }
    out
}

/// About a hook whose chains the kernel may ask in two orders.
fn order_not_known(ruleset: &Ruleset, family: Family, hook: Hook) -> Option<Lint> {
    let rules = ruleset.family(family);
    let mut both = rules.on(hook, Order::First).zip(rules.on(hook, Order::Second));
    let (one, other) = both.find(|(one, other)| !std::ptr::eq(*one, *other))?;
    let [one, other] = [one, other].map(|chain| format!("{} ({})", chain.full_name(), chain.table.source));
    Some(Lint {
        severity: Severity::Medium,
        id: "order-not-known",
        subject: format!("{family} hook {}", hook.name()),
        message: format!(
            "{one} and {other} want the same place: the one made last comes first, and nothing tells which that is"
        ),
        advice: "keep the rules of one of them only; flows that it makes a difference for are unknown".into(),
    })
}

fn is_foreign(why: &Why) -> bool {
    matches!(why, Why::Foreign(_))
}

/// Whether a rule with this verdict may change where a packet goes.
fn decides(verdict: &Verdict) -> bool {
    !matches!(verdict, Verdict::Continue | Verdict::CtZone(_))
}

fn lint(subject: String, which: &str) -> Lint {
    Lint {
        severity: Severity::Medium,
        id: "foreign-rule-in-front",
        subject,
        message: format!("the rule{which} is not the interception's, and packets meet it first"),
        advice: "find out which tool makes it; what it lets out stands among the escapes as foreign-rule".into(),
    }
}
