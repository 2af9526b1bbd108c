//! Makes foreign text safe to show: names, comments and words from a kernel or a dump. Names that differ
//! stay different.

use std::sync::Arc;

use crate::config::types::Interface;
use crate::plan::model::{ChainName, Cond, Rule, RuleOrigin, Verdict};
use crate::plan::why::Why;
use crate::sys::text::printable;

/// Makes the names, comments and words of a rule fit to be shown.
pub fn rule(rule: &mut Rule) {
    for cond in [&mut rule.matches.in_interface, &mut rule.matches.out_interface].into_iter().flatten() {
        interfaces(cond);
    }
    rule.matches.unknown.iter_mut().for_each(text);
    match &mut rule.verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => name(chain),
        Verdict::Unknown(unknown) => boxed(&mut unknown.words),
        _ => {}
    }
    if let Why::Foreign(comment) = &mut rule.why {
        boxed(comment);
    }
    if let Some(listed) = rule.origin.as_ref().and_then(|origin| changed(origin.text.as_deref()?)) {
        let origin = rule.origin.as_deref().map(|origin| RuleOrigin { text: Some(listed.into()), ..origin.clone() });
        rule.origin = origin.map(Arc::new);
    }
}

/// The text as it is shown, if escaping changes it.
fn changed(text: &str) -> Option<String> {
    let shown = printable(text);
    (shown != text).then(|| shown.into_owned())
}

/// Makes a name or words fit to be shown.
pub fn text(text: &mut String) {
    if let Some(shown) = changed(text) {
        *text = shown;
    }
}

fn boxed(text: &mut Box<str>) {
    if let Some(shown) = changed(text) {
        *text = shown.into();
    }
}

/// Makes the name of a foreign chain safe to show.
pub fn name(name: &mut ChainName) {
    if let ChainName::Other(other) = name {
        boxed(other);
    }
}

fn interfaces(cond: &mut Cond<Vec<Interface>>) {
    for interface in &mut cond.value {
        if let Some(shown) = changed(&interface.name) {
            *interface = Interface::new(&shown, interface.any_ending);
        }
    }
}
