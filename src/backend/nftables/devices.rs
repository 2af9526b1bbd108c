//! Chains on ingress and egress, which only packets of the devices meet that they are bound
//! to. That goes for their policy as well, so each is read as two chains: one that every
//! packet meets, and that leads those of the devices to the chain itself and drops what comes
//! back if the policy says so.

use crate::backend::hook::Hook;
use crate::backend::listing::{ListedChain, ListedHook};
use crate::backend::nftables::read::ListedHook as NumberedHook;
use crate::config::types::{Families, Interface};
use crate::plan::model::{ChainName, Cond, Matches, Rule, Verdict};
use crate::plan::why::Why;

/// What stands for devices that a listing does not name.
const UNNAMED: &str = "the device that the chain is bound to, which this listing does not name (nft list ruleset does)";
/// The most by which priorities count among the chains of devices.
const SPAN: i32 = 100_000;

/// A base chain of devices, without its rules and with them. `inward`: on ingress.
pub(super) fn chains(
    name: ChainName,
    hook: &NumberedHook,
    inward: bool,
    families: Families,
    rules: Vec<Rule>,
) -> Vec<ListedChain> {
    let rule = |verdict| Rule {
        families,
        matches: matches(&hook.devices, inward),
        verdict,
        why: Why::Foreign("".into()),
        counters: None,
        origin: None,
    };
    let mut entry = vec![rule(Verdict::Jump(name.clone()))];
    entry.extend(hook.drops.then(|| rule(Verdict::Drop)));
    // Packets meet ingress before every other hook, and egress behind all of them.
    let among = hook.priority.clamp(-SPAN, SPAN);
    let (place, priority) = match inward {
        true => (Hook::Prerouting, i32::MIN + SPAN + among),
        false => (Hook::Postrouting, i32::MAX - SPAN + among),
    };
    let base = ListedHook { hook: place, priority, kind: hook.kind.clone(), drops: false };
    let entry_name = ChainName::Other(format!("{name} of {}", shown(&hook.devices)).into());
    vec![ListedChain { name: entry_name, hook: Some(base), rules: entry }, ListedChain { name, hook: None, rules }]
}

fn matches(devices: &Option<Vec<Interface>>, inward: bool) -> Matches {
    let Some(devices) = devices else { return Matches { unknown: vec![UNNAMED.into()], ..Matches::default() } };
    let cond = Some(Cond::is(devices.clone()));
    match inward {
        true => Matches { in_interface: cond, ..Matches::default() },
        false => Matches { out_interface: cond, ..Matches::default() },
    }
}

fn shown(devices: &Option<Vec<Interface>>) -> String {
    let names = devices.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
    if names.is_empty() { "no known device".into() } else { names.join(",") }
}

/// Where the kernel enters a chain, by nft's name for it, and the priority it was made with.
pub fn place(hook: &ListedHook) -> (&'static str, i32) {
    const IN: i32 = i32::MIN + SPAN;
    const OUT: i32 = i32::MAX - SPAN;
    match hook.hook {
        Hook::Prerouting if hook.priority <= IN + SPAN => ("ingress", hook.priority.wrapping_sub(IN)),
        Hook::Postrouting if hook.priority >= OUT - SPAN => ("egress", hook.priority.wrapping_sub(OUT)),
        other => (other.name(), hook.priority),
    }
}
