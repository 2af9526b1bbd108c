//! Chains on ingress and egress, which only packets of the devices that they are bound to pass. The same
//! holds for their policy, so each chain is read as two: one that every packet passes, which sends those
//! of the devices to the chain itself, and drops those that return if the policy says so.

use crate::backend::hook::{Base, Hook};
use crate::backend::listing::ListedChain;
use crate::config::types::Families;
use crate::plan::model::{ChainName, Cond, Matches, Rule, Verdict};
use crate::plan::why::Why;

use super::table::Devices;

/// The text of a condition on devices that a listing does not name.
const UNNAMED: &str = "the device that the chain is bound to, which this listing does not name (nft list ruleset does)";
/// A base chain of devices as two chains: one with the hook, and one with the rules.
pub(super) fn chains(
    name: ChainName,
    base: Base,
    devices: &Devices,
    families: Families,
    rules: Vec<Rule>,
) -> Vec<ListedChain> {
    let inward = base.hook == Hook::Prerouting;
    let rule = |verdict| Rule {
        families,
        matches: matches(devices, inward),
        verdict,
        why: Why::Foreign("".into()),
        counters: None,
        origin: None,
    };
    let mut entry = vec![rule(Verdict::Jump(name.clone()))];
    entry.extend(base.drops.then(|| rule(Verdict::Drop)));
    let entry_base = Base { drops: false, ..base };
    let entry_name = ChainName::Other(format!("{name} of {}", shown(devices)).into());
    vec![
        ListedChain { name: entry_name, base: Some(entry_base), rules: entry },
        ListedChain { name, base: None, rules },
    ]
}

fn matches(devices: &Devices, inward: bool) -> Matches {
    let Devices::Named(devices) = devices else {
        return Matches { unknown: vec![UNNAMED.into()], ..Matches::default() };
    };
    let cond = Some(Cond::is(devices.clone()));
    match inward {
        true => Matches { in_interface: cond, ..Matches::default() },
        false => Matches { out_interface: cond, ..Matches::default() },
    }
}

fn shown(devices: &Devices) -> String {
    match devices {
        Devices::Named(names) if !names.is_empty() => {
            names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        _ => "no known device".into(),
    }
}
