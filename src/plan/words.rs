//! Rules in words, for people: the same words whichever backend holds the rule.

use crate::config::ranges::{Discrete, RangeList};
use crate::config::types::{Family, Interface, Networks};
use crate::plan::canon::{Addresses, CanonMatches, CanonRule, all_addresses, cover};
use crate::plan::model::{Cond, CtStates, RuleOrigin, Verdict, protocol};
use crate::plan::why::Why;

/// The most items of a list that are written out.
const SHOWN: usize = 6;

/// A canonical rule: its conditions, then what happens.
pub fn rule(rule: &CanonRule, family: Family) -> String {
    let conditions = matches(&rule.matches, family);
    let verdict = verdict(&rule.verdict);
    if conditions.is_empty() { verdict } else { format!("{conditions}: {verdict}") }
}

/// The origin of a rule that people must look up, because it is not understood or foreign.
pub fn which(rule: &CanonRule) -> Option<&RuleOrigin> {
    let told = !rule.is_understood() || matches!(rule.why(), Why::Foreign(_));
    rule.origin.as_deref().filter(|_| told)
}

/// A rule with its number and handle in front, as far as [`which`] tells them.
pub fn numbered(canon: &CanonRule, family: Family) -> String {
    let words = rule(canon, family);
    which(canon).map_or_else(|| words.clone(), |origin| format!("{origin}: {words}"))
}

/// The words of a foreign rule, in brackets and shortened.
fn foreign(words: &str) -> String {
    const MOST: usize = 160;
    match words.char_indices().nth(MOST) {
        Some((end, _)) => format!("[{}…]", &words[..end]),
        None => format!("[{words}]"),
    }
}

/// Conditions in words; empty for "everything".
pub fn matches(m: &CanonMatches, family: Family) -> String {
    let mut out: Vec<String> = Vec::new();
    if !m.protocol.is_full() {
        out.push(list(
            m.protocol
                .iter()
                .map(|(a, b)| (a..=b).map(protocol::name).collect::<Vec<_>>())
                .collect::<Vec<_>>()
                .concat(),
        ));
    }
    let whole = all_addresses(family);
    for (word, addresses) in [("from", &m.source), ("to", &m.destination)] {
        if *addresses != whole {
            out.push(format!("{word} {}", networks(addresses, family, &whole)));
        }
    }
    for (word, ports) in [("from port", &m.source_port), ("port", &m.destination_port)] {
        if !ports.is_full() {
            out.push(format!("{word} {}", numbers(ports)));
        }
    }
    for (word, cond) in [("in by", &m.in_interface), ("out by", &m.out_interface)] {
        if let Some(cond) = cond {
            out.push(format!("{}{word} {}", not(cond), list(cond.value.iter().map(Interface::to_string).collect())));
        }
    }
    for (word, cond) in [("of user", &m.uid), ("of group", &m.gid)] {
        if let Some(cond) = cond {
            out.push(format!("{}{word} {}", not(cond), list(spans(&cond.value))));
        }
    }
    for (word, cond) in [("marked", &m.mark), ("of a connection marked", &m.connection_mark)] {
        if let Some(cond) = cond {
            out.push(format!("{}{word} {}", not(cond), cond.value));
        }
    }
    if m.connection_state != CtStates::ALL {
        let names = CtStates::NAMED.iter().filter(|(s, _)| m.connection_state.has(*s)).map(|(_, n)| (*n).to_owned());
        out.push(format!("in state {}", list(names.collect())));
    }
    out.extend(m.unknown.iter().map(|words| foreign(words)));
    out.join(" ")
}

/// A verdict in words.
pub fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Continue => "go on".into(),
        Verdict::Return => "return".into(),
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Snat(address) => format!("from {address} instead"),
        Verdict::Redirect(port) => format!("redirect to port {port}"),
        Verdict::Tproxy { port, mark, closed } => {
            let open = if *closed { "" } else { ", going on when nobody listens" };
            format!("tproxy to port {port} marked {mark}{open}")
        }
        Verdict::SetMark(m) => format!("mark {}", m),
        Verdict::SaveMark => "save the mark".into(),
        Verdict::RestoreMark => "restore the mark".into(),
        Verdict::SetConnectionMark(m) => format!("mark the connection {}", m),
        Verdict::CtZone(zone) => format!("conntrack zone {zone}"),
        Verdict::Unknown(unknown) => foreign(&unknown.words),
    }
}

fn not<T>(cond: &Cond<T>) -> &'static str {
    if cond.negated { "not " } else { "" }
}

pub(crate) fn list(items: Vec<String>) -> String {
    let count = items.len();
    list_of(items, count)
}

/// The first of so many items, and how many more there are.
fn list_of(mut items: Vec<String>, count: usize) -> String {
    items.truncate(SHOWN);
    if count > items.len() {
        items.push(format!("and {} more", count - items.len()));
    }
    items.join(",")
}

pub(crate) fn spans<T: Discrete>(ranges: &RangeList<T>) -> Vec<String> {
    ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect()
}

/// A set of ports in words, or its complement where that is shorter.
pub(crate) fn numbers(ports: &RangeList<u16>) -> String {
    let rest = ports.complement();
    if rest.len() < ports.len() { format!("not {}", list(spans(&rest))) } else { list(spans(ports)) }
}

/// A set of addresses in words, or its complement in `all` where that is shorter.
pub(crate) fn networks(addresses: &Addresses, family: Family, all: &Addresses) -> String {
    let rest = all.minus(addresses);
    let (prefix, shown) = if rest.len() < addresses.len() { ("not ", &rest) } else { ("", addresses) };
    let mut nets = Networks::default();
    shown.iter().take(SHOWN).for_each(|(a, b)| cover(family, a, b, &mut nets));
    let items = nets.of(family).iter().map(ToString::to_string).collect();
    format!("{prefix}{}", list_of(items, shown.iter().map(blocks).sum()))
}

/// How many ranges in CIDR form hold just these addresses ([`cover`]): from both ends the
/// blocks grow towards the middle, the address with the most zeros at its end.
fn blocks((first, last): (u128, u128)) -> usize {
    let Some(end) = last.checked_add(1) else { return first.wrapping_neg().count_ones().max(1) as usize };
    let top = (first ^ end).ilog2();
    let middle = end >> top << top;
    ((middle - first).count_ones() + (end - middle).count_ones()) as usize
}
